// SPDX-License-Identifier: Apache-2.0

package host

import (
	"testing"

	"cairn/bpf"
)

// Whoever watches gets what it asked for, whatever others ask for.
func TestWatchersAskForWhatAllWant(t *testing.T) {
	five := DropFilter{Port: 5, Reason: bpf.ReasonPolicyIn}
	for name, c := range map[string]struct {
		all  []DropFilter
		want DropFilter
	}{
		"nobody":          {},
		"one":             {[]DropFilter{five}, five},
		"two alike":       {[]DropFilter{five, five}, five},
		"two ports":       {[]DropFilter{five, {Port: 6, Reason: bpf.ReasonPolicyIn}}, DropFilter{Reason: bpf.ReasonPolicyIn}},
		"two reasons":     {[]DropFilter{five, {Port: 5, Reason: bpf.ReasonSMTP}}, DropFilter{Port: 5}},
		"one wants all":   {[]DropFilter{five, {}}, DropFilter{}},
		"and a third one": {[]DropFilter{{}, five, {Port: 6}}, DropFilter{}},
	} {
		w := watchers{all: map[*DropFilter]bool{}}
		for i := range c.all {
			w.all[&c.all[i]] = true
		}
		if got := w.common(); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		for _, f := range c.all {
			e := bpf.Event{Audience: bpf.EventForWatch, Port: 5, Reason: uint32(bpf.ReasonPolicyIn)}
			if want := f.Port != 6 && f.Reason != bpf.ReasonSMTP; f.takes(e) != want {
				t.Errorf("%s: %+v takes %+v: %t", name, f, e, !want)
			}
		}
	}
	if (DropFilter{}).takes(bpf.Event{Audience: bpf.EventForLog}) {
		t.Error("what is for the flow log alone is shown to who watches")
	}
}

func TestFrameOfACutRecord(t *testing.T) {
	record := make([]byte, captureHead+60)
	native.PutUint64(record, 7)
	native.PutUint32(record[8:], 5)
	native.PutUint16(record[28:], 60)
	if f, at, ok := frameOf(record); !ok || at != 7 || f.Port != 5 || len(f.Bytes) != 60 {
		t.Errorf("%+v at %d, %t", f, at, ok)
	}
	for _, n := range []int{0, captureHead - 1, captureHead + 59} {
		if _, _, ok := frameOf(record[:n]); ok {
			t.Errorf("%d bytes were taken for a frame", n)
		}
	}
}
