// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	"cairn/cloud/wire"
	dsync "cairn/dataplane/sync"
	"cairn/dataplane/table"
	"cairn/lb/slots"
)

// How often expired flows are deleted, and draining ones counted; and for how
// long after a table was programmed nobody who is open is called empty: other
// hosts may still send new flows by the table before.
const (
	sweepPeriod = 5 * time.Second
	drainPeriod = time.Second
	drainAfter  = 2 * time.Second

	tcp = 6 // the protocol's number
)

// collect deletes expired flows, and tells which former owners of slots have no
// live flow left.
func (a *Agent) collect(ctx context.Context) {
	sweep, drain := time.NewTicker(sweepPeriod), time.NewTicker(drainPeriod)
	defer sweep.Stop()
	defer drain.Stop()
	tunnels := map[uint32]uint64{}
	d := drains{since: map[drainKey]time.Time{}, told: map[drainKey]uint64{}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			a.alarm(tunnels)
			if err := a.host.KeepLatency(a.services()); err != nil {
				a.log.Warn("latencies of services that are gone", "error", err)
			}
			live, _, err := a.host.Sweep()
			if err != nil {
				a.log.Warn("expired flows not deleted", "error", err)
				continue
			}
			a.mu.Lock()
			a.flows = live
			a.mu.Unlock()
		case now := <-drain.C:
			a.drain(&d, now)
		}
	}
}

// services that this host knows.
func (a *Agent) services() map[uint32]bool {
	known := map[uint32]bool{}
	for s := range table.All[wire.Service](a.table.View()) {
		known[s.ID] = true
	}
	return known
}

// drainKey is a former owner of slots of a service.
type drainKey struct{ service, backend uint32 }

func (k drainKey) key() wire.Key {
	return wire.Key{Kind: wire.KindSlots, ID: fmt.Sprintf("%d/%d", k.service, k.backend)}
}

var slotSeed = maphash.MakeSeed()

// lease is what a former owner still has.
type lease struct {
	port       uint32
	generation uint64 // of the table
	slots      uint64 // a sum over the slots it owned before
	draining   bool
	closed     bool // this host lets no new flow in, whoever sends it
}

// reason that a former owner has lost its slots: the same table is told of twice
// when it begins to drain afterwards.
func (l lease) reason() string {
	if l.draining {
		return "draining"
	}
	return ""
}

type drains struct {
	of     table.Mark // the view that leases are of
	leases map[drainKey]lease
	since  map[drainKey]time.Time // when it was first seen with these slots
	told   map[drainKey]uint64    // generation for which it was called empty
}

// former lists the owners before of a view's slots whose port is on this host.
func former(view table.View, self uint32) map[drainKey]lease {
	out := map[drainKey]lease{}
	for s := range table.All[wire.Slots](view) {
		t, err := slots.Decode(s.Table)
		if err != nil {
			continue // refused when it came
		}
		for i, slot := range t {
			if slot.Prev() == 0 {
				continue
			}
			k := drainKey{s.Service, slot.Prev()}
			l, seen := out[k]
			if !seen {
				b, ok := table.Get[wire.Backend](view, fmt.Sprint(k.backend))
				if !ok || b.Host != self {
					continue
				}
				l = lease{port: b.Port, generation: s.Generation, draining: b.Draining, closed: closed(view, s.Service, b)}
			}
			l.slots += maphash.Comparable(slotSeed, i)
			out[k] = l
		}
	}
	rotating(view, self, out)
	return out
}

// rotating adds the backends on this host of services whose seed rotates: each may
// have flows that began by the seed before.
func rotating(view table.View, self uint32, out map[drainKey]lease) {
	for b := range table.All[wire.Backend](view) {
		s, ok := table.Get[wire.Service](view, fmt.Sprint(b.Service))
		if !ok || !s.Rotating || b.Host != self {
			continue
		}
		k := drainKey{b.Service, b.ID}
		l := out[k]
		l.port, l.generation, l.draining, l.closed = b.Port, s.SlotsGeneration, b.Draining, false
		l.slots += maphash.Comparable(slotSeed, s.Seed)
		out[k] = l
	}
}

// closed reports whether a draining backend gets no new flow from the moment on
// at which its own host has programmed that. A datagram can open one as long as
// another host goes by the table before, and with too few backends well all are
// open.
func closed(view table.View, service uint32, b wire.Backend) bool {
	s, ok := table.Get[wire.Service](view, fmt.Sprint(service))
	return ok && b.Draining && s.Protocol == tcp && !s.Panic
}

// renew takes the leases of a view over. Who has other slots than before, or
// begins to drain, waits anew and is told anew; a table that only others' slots
// changed in does not matter.
func (d *drains) renew(leases map[drainKey]lease, now time.Time) (gone []drainKey) {
	for k := range d.leases {
		if _, ok := leases[k]; !ok {
			delete(d.since, k)
			delete(d.told, k)
			gone = append(gone, k)
		}
	}
	for k, l := range leases {
		old, ok := d.leases[k]
		if !ok || old.slots != l.slots || old.draining != l.draining {
			d.since[k] = now
		}
		if old.draining != l.draining {
			delete(d.told, k)
		}
	}
	d.leases = leases
	return gone
}

// due lists whose flows are to be counted.
func (d *drains) due(now time.Time) []drainKey {
	var due []drainKey
	for k, l := range d.leases {
		if d.told[k] != l.generation && (l.closed || now.Sub(d.since[k]) >= drainAfter) {
			due = append(due, k)
		}
	}
	return due
}

func (a *Agent) drain(d *drains, now time.Time) {
	a.mu.Lock()
	programmed := a.programmed
	a.mu.Unlock()
	view := a.table.View()
	if view.Mark() != programmed {
		return // nothing is said of a table that is not in force
	}
	if d.leases == nil || d.of != view.Mark() {
		d.of = view.Mark()
		for _, k := range d.renew(former(view, a.self(view)), now) {
			a.client.Forget(k.key())
		}
	}
	for _, k := range d.due(now) {
		l := d.leases[k]
		body, _ := table.Get[wire.Slots](view, fmt.Sprint(k.service))
		s, _ := table.Get[wire.Service](view, fmt.Sprint(k.service))
		n, err := a.liveFlows(l.port, k, body.Table, s)
		if err != nil {
			a.log.Warn("draining flows not counted", "service", k.service, "backend", k.backend, "error", err)
			continue
		}
		if n == 0 {
			d.told[k] = l.generation
			a.client.Observe(dsync.Report{Key: k.key(), Generation: l.generation, State: "drained", Reason: l.reason()})
		}
	}
}

// liveFlows counts a backend's flows in slots that another one owns now, by the
// service's seed as it is now. A port without a flow table has none.
func (a *Agent) liveFlows(port uint32, k drainKey, body []byte, s wire.Service) (int, error) {
	flows, err := a.host.Flows(port)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer flows.Close()
	t, err := slots.Decode(body)
	if err != nil || len(t) == 0 {
		return 0, err
	}
	n, now := 0, uint64(monotonic())
	err = flows.Each(func(key bpf.CtKey, f bpf.Ct) {
		if f.Service == k.service && f.Backend == k.backend && t.Select(hashNow(s, key, f)).Cur() != k.backend && alive(key, f, now) {
			n++
		}
	})
	return n, err
}

// hashNow of a balanced flow's packets. The flow remembers the hash that it began
// with, and the seed may have rotated since. Who calls its own VIP is seen under
// another address than the one that was hashed: such a flow keeps what it has.
func hashNow(s wire.Service, key bpf.CtKey, f bpf.Ct) uint32 {
	peer, vip := key.Peer.Addr(), f.Vip.Addr()
	if peer.IsLinkLocalUnicast() || f.Vip.Addr() != s.VIP.Unmap() {
		return f.Hash
	}
	return slots.Hash(s.Seed, peer, vip, bpf.BE16(f.PeerPort), bpf.BE16(f.VipPort), key.Proto, s.SourceHash)
}

// alive tells whether somebody may still send in a flow. Closed ones linger for
// the sake of late packets only.
func alive(key bpf.CtKey, f bpf.Ct, now uint64) bool {
	if f.State == bpf.CtClosed || f.State == bpf.CtReset {
		return false
	}
	return !isOver(key, f, now)
}

// isOver as the programs have it: Seen may be a moment after now, or lie before
// the machine's start if the flow comes from another host.
func isOver(key bpf.CtKey, f bpf.Ct, now uint64) bool {
	return time.Duration(now-f.Seen) > lifetime(key.Proto, f)
}

// lifetime of a flow that hears nothing, as the programs have it.
func lifetime(proto uint8, f bpf.Ct) time.Duration {
	established := f.State == bpf.CtEstablished
	switch {
	case proto == 1, proto == 58:
		return 5 * time.Second
	case proto == 17 && established:
		return 180 * time.Second
	case proto == 17:
		return time.Minute
	case proto != 6 && established:
		return 600 * time.Second
	case proto != 6, f.State == bpf.CtReplied, f.State == bpf.CtClosed:
		return time.Minute
	case f.State == bpf.CtNew:
		return 30 * time.Second
	case f.State == bpf.CtReset:
		return 10 * time.Second
	case f.Idle != 0:
		return time.Duration(f.Idle) * time.Second
	}
	return time.Hour
}
