// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/compile"
	"cairn/controlplane/store"
	agentv1 "cairn/proto/agent/v1"
)

// TestDeltaIsWhatProtoWouldSend: the frames that share bodies read as the
// message they stand for, none is too large, and together they are the delta.
func TestDeltaIsWhatProtoWouldSend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := &delta{from: rapid.Uint64().Draw(t, "from"), to: rapid.Uint64().Draw(t, "to"), epoch: rapid.Uint64().Draw(t, "epoch")}
		want := &agentv1.Delta{From: d.from, To: d.to, Epoch: d.epoch}
		for range rapid.IntRange(0, 8).Draw(t, "items") {
			e := &compile.Entry{
				Key:        wire.Key{Kind: rapid.SampledFrom(wire.Kinds()).Draw(t, "kind"), ID: rapid.StringMatching(`[a-z0-9/]{0,20}`).Draw(t, "id")},
				Generation: rapid.Uint64().Draw(t, "generation"),
				Body:       bytes.Repeat([]byte{7}, rapid.SampledFrom([]int{0, 1, 100, 300_000, wire.MaxBody}).Draw(t, "size")),
			}
			d.items = append(d.items, e)
		}
		for range rapid.IntRange(0, 4).Draw(t, "tombstones") {
			d.tombstones = append(d.tombstones, tombstone{
				wire.Key{Kind: rapid.SampledFrom(wire.Kinds()).Draw(t, "kind"), ID: "x"}, cloud.ID(rapid.SampledFrom([]string{"", "op"}).Draw(t, "op")),
			})
		}
		d.order()
		for _, e := range d.items {
			want.Items = append(want.Items, &agentv1.Item{Kind: agentv1.Kind(e.Key.Kind), Key: e.Key.ID, Generation: e.Generation, Body: e.Body})
		}
		for _, x := range d.tombstones {
			want.Tombstones = append(want.Tombstones, &agentv1.Tombstone{Kind: agentv1.Kind(x.key.Kind), Key: x.key.ID, Operation: string(x.operation)})
		}
		got := &agentv1.Delta{}
		frames := d.cut()
		for i, frame := range frames {
			raw := frame.buffers().Materialize()
			if len(raw) > maxFrame+headerSize && len(frame.items) > 1 {
				t.Fatalf("a frame of %d items has %d bytes", len(frame.items), len(raw))
			}
			var m agentv1.ToAgent
			if err := proto.Unmarshal(raw, &m); err != nil {
				t.Fatal(err)
			}
			part := m.GetDelta()
			if last := i == len(frames)-1; (part.To != d.to && last) || (part.To != d.from && !last) {
				t.Fatalf("frame %d of %d is to %d", i+1, len(frames), part.To)
			}
			proto.Merge(got, part)
			got.To = part.To
		}
		if !proto.Equal(got, want) {
			t.Fatalf("got %d items, %d tombstones of %d, %d", len(got.Items), len(got.Tombstones), len(want.Items), len(want.Tombstones))
		}
	})
}

func entry(id string, revision uint64, hosts ...uint32) *compile.Entry {
	return &compile.Entry{
		Key: wire.Key{Kind: wire.KindPort, ID: id}, Owner: compile.Owner{Kind: compile.OwnsInstance, ID: "i" + id},
		Generation: 3, Sum: 99, Hosts: hosts, Revision: revision,
	}
}

func TestLedger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	l, p, err := openLedger(path)
	if err != nil || len(p.items) > 0 || p.zone != "" {
		t.Fatalf("a new one tells %+v, %v", p, err)
	}
	intents := map[cloud.ID][]store.Intent{"op": {{Operation: "op", Class: "port", Count: 2}}}
	one, two := entry("1", 5, 1, 2), entry("2", 5, 1)
	if err := l.renew(past{zone: "z", epoch: 2, floor: 4, revision: 5}, slices.Values([]*compile.Entry{one, two})); err != nil {
		t.Fatal(err)
	}
	moved := entry("1", 6, 2, 3)
	err = l.note(compile.Result{Revision: 6, Steps: []compile.Step{
		{Before: one, After: moved, Operations: []cloud.ID{"move"}},
		{Before: two, Operations: []cloud.ID{"op"}},
		{After: entry("3", 6, 4)},
	}}, intents)
	if err != nil {
		t.Fatal(err)
	}
	l.close()
	check := func(what string) {
		t.Helper()
		l, got, err := openLedger(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		want := past{
			zone: "z", epoch: 2, floor: 4, revision: 6, intents: intents,
			items: map[wire.Key]*compile.Entry{moved.Key: moved, {Kind: wire.KindPort, ID: "3"}: entry("3", 6, 4)},
			graves: []grave{
				{Key: one.Key, Revision: 6, Operation: "move", Hosts: []uint32{1}},
				{Key: two.Key, Revision: 6, Operation: "op", Hosts: []uint32{1}},
			},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
		}
	}
	check("as written")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(whole, `12345678 {"revision":7,"gone":[{"k":"port/3"`...), 0o600); err != nil {
		t.Fatal(err)
	}
	check("with a torn line")
	if err := os.WriteFile(path, append(whole, "00000000 {\"revision\":7}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	check("with a line that was changed")
}

func TestLeases(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	tests := []struct {
		what string
		now  float64
		last map[string]float64
		lost []string // already
		want []string
	}{
		{"all are heard of", 100, map[string]float64{"a": 99, "b": 98, "c": 97}, nil, nil},
		{"one is silent", 100, map[string]float64{"a": 99, "b": 98, "c": 94}, nil, []string{"c"}},
		{"just in time", 100, map[string]float64{"a": 99, "b": 98, "c": 95}, nil, nil},
		{"right after the start", 14, map[string]float64{"a": 13, "b": 13, "c": 0}, nil, nil},
		{"after the grace", 15, map[string]float64{"a": 14, "b": 14, "c": 0}, nil, []string{"c"}},
		{"two of three at once", 100, map[string]float64{"a": 99, "b": 80, "c": 90}, nil, nil},
		{"two of four at once", 100, map[string]float64{"a": 99, "b": 80, "c": 90, "d": 99}, nil, []string{"b", "c"}},
		{"the second after the first was lost long ago", 100, map[string]float64{"a": 99, "b": 10, "c": 94}, []string{"b"}, []string{"c"}},
		{"the second right after the first", 100, map[string]float64{"a": 99, "b": 80, "c": 94}, []string{"b"}, nil},
		{"the only one", 100, map[string]float64{"a": 1}, nil, nil},
		{"one of two", 100, map[string]float64{"a": 99, "b": 1}, nil, []string{"b"}},
	}
	for _, test := range tests {
		leases := map[string]*lease{}
		for name, s := range test.last {
			leases[name] = &lease{last: at(s), lost: slices.Contains(test.lost, name)}
		}
		got := over(leases, start, at(test.now))
		slices.Sort(got)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.what, got, test.want)
		}
	}
}

func TestNothingIsCreditedBeforeItIsInStep(t *testing.T) {
	for _, test := range []struct {
		lease lease
		want  notice
	}{
		{lease{}, nothing},
		{lease{told: lost}, lost},
		{lease{told: lost, synced: true}, alive},
		{lease{told: alive}, alive},
		{lease{told: alive, uplinkDown: true}, uplinkDown},
		{lease{told: uplinkDown}, alive},
		{lease{told: alive, lost: true, synced: true}, lost},
		{lease{told: lost, synced: true, missed: true}, lost},
		{lease{told: alive, synced: true, missed: true}, alive},
	} {
		if got := test.lease.due(); got != test.want {
			t.Errorf("%+v: %d, want %d", test.lease, got, test.want)
		}
	}
}

func TestSevered(t *testing.T) {
	type words = map[uint32]bool
	node := func(number uint32, sees words) *lease { return &lease{number: number, sees: sees} }
	ended := func(number uint32) *lease { return &lease{number: number, ended: true} }
	up, gone := words{3: true}, words{3: false}
	tests := []struct {
		what   string
		leases []*lease // the third is in question
		want   bool
	}{
		{"killed whole", []*lease{node(1, gone), node(2, gone), ended(3)}, true},
		{"its agent alone", []*lease{node(1, up), node(2, up), ended(3)}, false},
		{"its uplink alone", []*lease{node(1, gone), node(2, gone), node(3, nil)}, false},
		{"nobody asks it", []*lease{node(1, nil), node(2, nil), ended(3)}, false},
		{"the first of two says so", []*lease{node(1, gone), node(2, up), ended(3)}, true},
		{"one of three says so", []*lease{node(1, gone), node(2, up), ended(3), node(4, up)}, false},
		{"it says so itself", []*lease{node(1, nil), node(2, up), {number: 3, ended: true, sees: gone}}, false},
		{"one that is lost says so", []*lease{{number: 1, lost: true, sees: gone}, node(2, nil), ended(3), node(4, nil)}, false},
		{"one whose stream has ended says so", []*lease{{number: 1, ended: true, sees: gone}, node(2, up), ended(3)}, false},
		{"one without an uplink says so", []*lease{{number: 1, uplinkDown: true, sees: gone}, node(2, nil), ended(3), node(4, nil)}, false},
		{"it is lost already", []*lease{node(1, gone), node(2, gone), {number: 3, ended: true, lost: true}}, false},
		{"two of three at once", []*lease{node(1, words{2: false, 3: false}), ended(2), ended(3)}, false},
		{"the second after the first", []*lease{node(1, gone), {number: 2, lost: true}, ended(3)}, false},
		{"two of four at once", []*lease{node(1, words{2: false, 3: false}), ended(2), ended(3), node(4, nil)}, true},
		{"one of two", []*lease{node(1, gone), ended(3)}, true},
	}
	for _, test := range tests {
		leases := map[string]*lease{}
		for _, l := range test.leases {
			leases[fmt.Sprintf("hv%d", l.number)] = l
		}
		for _, l := range leases {
			l.missed = missed(leases, l.number)
		}
		if got := slices.Contains(severed(leases), "hv3"); got != test.want {
			t.Errorf("%s: severed %t", test.what, got)
		}
	}
}

func TestShelfKeepsDigests(t *testing.T) {
	s := newShelf()
	a, b, shared := entry("1", 1, 1, 2), entry("2", 1, 2), entry("3", 1)
	shared.All = true
	for _, e := range []*compile.Entry{a, b, shared} {
		s.put(e)
	}
	s.put(entry("1", 2, 2, 3))
	s.drop(b.Key)
	for host, want := range map[uint32]uint64{1: 1, 2: 2, 3: 2, 4: 1} {
		if got := s.expected(host)[wire.KindPort]; got.Count != want || got.Sum != 99*want {
			t.Errorf("host %d: %+v", host, got)
		}
		if got := len(s.all(host)); got != int(want) {
			t.Errorf("host %d has %d items", host, got)
		}
	}
	if got := slices.Collect(maps.Keys(s.since(3, 1))); fmt.Sprint(got) != "[port/1]" {
		t.Errorf("since 1: %v", got)
	}
}
