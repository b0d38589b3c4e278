// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"cairn/bpf"
	"cairn/dataplane/maps"

	"github.com/cilium/ebpf"
)

func flowOf(n uint32) bpf.CtKey {
	return bpf.CtKey{Peer: bpf.Ip16{B: [16]uint8{12: byte(n >> 24), 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)}}, Proto: 6}
}

// A port gets room for more flows, and for fewer, while it has some: those that
// fit stay, with what is known of them, and what is written meanwhile is not
// lost.
func TestAQuotaChangesWithoutLosingFlows(t *testing.T) {
	b := newBench(t)
	h := b.open()
	b.in("cbpf-hv", func() { must(t, h.AttachPort(b.cp5, port5)) })
	k, err := maps.NewKernel(h)
	must(t, err)
	defer k.Close()
	quotas := func() (got []maps.Entry) {
		t.Helper()
		must(t, k.Load(maps.Quota, func(e maps.Entry) { got = append(got, e) }))
		return got
	}
	if got := quotas(); len(got) != 1 || got[0] != maps.Make(maps.Quota, port5, uint32(bpf.CtQuota)) {
		t.Fatalf("a new port has quotas %v", got)
	}
	flows, err := h.Flows(port5)
	must(t, err)
	const many = 5000
	for n := range uint32(many) {
		must(t, flows.Confirmed.Put(flowOf(n), &bpf.Ct{Seen: 100, Packets: uint64(n)}))
	}
	must(t, flows.New.Put(flowOf(many), &bpf.Ct{Seen: 100, Packets: many}))
	must(t, flows.Close())

	grown := maps.Make(maps.Quota, port5, uint32(65536))
	must(t, k.Put(grown, ""))
	if got, ok, err := k.Get(grown); got != grown.Value || !ok || err != nil {
		t.Errorf("read back: %v %t %v", []byte(got), ok, err)
	}
	flows, err = h.Flows(port5)
	must(t, err)
	if got := flows.Confirmed.MaxEntries(); got != 65536 {
		t.Errorf("room for %d flows", got)
	}
	for n := range uint32(many + 1) {
		if f, ok := flows.Lookup(flowOf(n)); !ok || f.Packets != uint64(n) || f.Seen != 100 {
			t.Fatalf("flow %d: %+v, %t", n, f, ok)
		}
	}
	must(t, flows.Close())

	shrunk := maps.Make(maps.Quota, port5, uint32(1000))
	must(t, k.Put(shrunk, ""))
	flows, err = h.Flows(port5)
	must(t, err)
	defer flows.Close()
	left := 0
	must(t, flows.Each(func(_ bpf.CtKey, f bpf.Ct) {
		if f.Seen == 100 {
			left++
		}
	}))
	if left != 1000+1 {
		t.Errorf("%d flows are left of %d, with room for 1000", left, many)
	}
	if err := k.Put(maps.Make(maps.Quota, port5, uint32(0)), ""); err == nil {
		t.Error("a port without room for any flow")
	}
	must(t, k.Delete(shrunk)) // with the port, not before
	if got := quotas(); len(got) != 1 || got[0] != shrunk {
		t.Errorf("quotas %v", got)
	}
}

// What a program writes while the tables are exchanged is there afterwards. The
// writer here does as a program: it finds the table anew for every packet.
func TestFlowsThatComeWhileAQuotaChanges(t *testing.T) {
	b := newBench(t)
	h := b.open()
	b.in("cbpf-hv", func() { must(t, h.AttachPort(b.cp5, port5)) })
	var written atomic.Uint32
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for n := range uint32(6000) {
			select {
			case <-stop:
				return
			default:
			}
			var est *ebpf.Map
			if err := h.Maps.CtEst.Lookup(port5, &est); err != nil {
				t.Error(err)
				return
			}
			if err := est.Put(flowOf(n), &bpf.Ct{Seen: uint64(n) + 1, Packets: uint64(n)}); err != nil {
				t.Error(err)
			}
			est.Close()
			written.Add(1)
		}
	})
	for quota := uint32(10000); quota < 10010; quota++ {
		must(t, h.SetQuota(port5, quota))
	}
	close(stop)
	writing.Wait()
	flows, err := h.Flows(port5)
	must(t, err)
	defer flows.Close()
	lost := 0
	for n := range written.Load() {
		if f, ok := flows.Lookup(flowOf(n)); !ok || f.Packets != uint64(n) {
			lost++
		}
	}
	// The writer may hold a table that was exchanged just then; a program never
	// does, because the kernel waits for it.
	if lost > 10 {
		t.Errorf("%d of %d flows are lost", lost, written.Load())
	}
	if written.Load() == 0 {
		t.Error("nothing was written meanwhile")
	}
}
