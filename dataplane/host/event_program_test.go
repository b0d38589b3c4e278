// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/dataplane/host"

	"github.com/cilium/ebpf"
)

// next event that is wanted, within the patience of a test.
func next(t *testing.T, e *host.Events, wanted func(bpf.Event) bool) bpf.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for event := range e.All(ctx) {
		if wanted(event) {
			return event
		}
	}
	t.Fatal("no such event came")
	return bpf.Event{}
}

func ofReason(r bpf.Reason) func(bpf.Event) bool {
	return func(e bpf.Event) bool { return e.Reason == uint32(r) }
}

func TestListenersHearOfDropsWhileTheyWatch(t *testing.T) {
	b := newBench(t)
	h := b.open()
	b.in("cbpf-hv", func() { must(t, h.AttachPort(b.cp5, port5)) })
	programMaps(t, h, b.cp5, false)
	one, err := h.Events()
	must(t, err)
	two, err := h.Events()
	must(t, err)
	defer two.Close()
	must(t, h.WatchDrops(time.Now().Add(time.Minute), port5, bpf.ReasonNone))
	knock := func() {
		if conn, err := b.dial("cbpf-rtr", "tcp", vip); err == nil {
			conn.Close()
			t.Fatal("a port without rules let a connection in")
		}
	}
	knock()
	got := next(t, one, ofReason(bpf.ReasonPolicyIn))
	if got.Port != port5 || got.Dst != ip16(vmAddr) || got.Dport != bpf.BE16(8080) || got.Service != service7 || got.Audience != bpf.EventForWatch {
		t.Errorf("event %+v", got)
	}
	if ago := time.Since(host.TimeOf(got.At)); ago < 0 || ago > time.Minute {
		t.Errorf("the event was %s ago", ago)
	}
	next(t, two, ofReason(bpf.ReasonPolicyIn))
	one.Close()
	one.Close()
	knock()
	next(t, two, ofReason(bpf.ReasonPolicyIn))
	if loss, err := two.Loss(); err != nil || loss != (host.EventLoss{}) {
		t.Errorf("lost %+v, %v", loss, err)
	}
	stats, err := h.PortStats(port5)
	must(t, err)
	if stats.Dropped < 2 || stats.PacketsIn != 0 {
		t.Errorf("counted %+v", stats)
	}
	must(t, h.DetachPort(port5))
	if _, err := h.PortStats(port5); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("counters of a port that is gone: %v", err)
	}
}
