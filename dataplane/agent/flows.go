// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	"cairn/cloud/wire"
	dsync "cairn/dataplane/sync"
	"cairn/dataplane/table"
	"cairn/lb/slots"
)

// How often expired flows are deleted, and draining ones counted; and for how
// long after a table was programmed nobody is called empty: other hosts may
// still send new flows by the table before.
const (
	sweepPeriod = 5 * time.Second
	drainPeriod = time.Second
	drainAfter  = 2 * time.Second
)

// collect deletes expired flows, and tells which former owners of slots have no
// live flow left.
func (a *Agent) collect(ctx context.Context) {
	sweep, drain := time.NewTicker(sweepPeriod), time.NewTicker(drainPeriod)
	defer sweep.Stop()
	defer drain.Stop()
	d := drains{since: map[drainKey]time.Time{}, told: map[drainKey]bool{}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
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

// drainKey is one former owner in one generation of a service's table.
type drainKey struct {
	service, backend uint32
	generation       uint64
}

func (k drainKey) key() wire.Key {
	return wire.Key{Kind: wire.KindSlots, ID: fmt.Sprintf("%d/%d", k.service, k.backend)}
}

type drains struct {
	of     table.Mark             // the view that wanted is of
	wanted map[drainKey]uint32    // former owners here, and their ports
	since  map[drainKey]time.Time // when it was first seen
	told   map[drainKey]bool
}

// former lists the owners before of a view's slots whose port is on this host,
// with their ports.
func former(view table.View, self uint32) map[drainKey]uint32 {
	out := map[drainKey]uint32{}
	for s := range table.All[wire.Slots](view) {
		t, err := slots.Decode(s.Table)
		if err != nil {
			continue // refused when it came
		}
		for id := range t.Draining() {
			b, ok := table.Get[wire.Backend](view, fmt.Sprint(id))
			if ok && b.Host == self {
				out[drainKey{s.Service, id, s.Generation}] = b.Port
			}
		}
	}
	return out
}

func (a *Agent) drain(d *drains, now time.Time) {
	a.mu.Lock()
	programmed := a.programmed
	a.mu.Unlock()
	view := a.table.View()
	if view.Mark() != programmed {
		return // nothing is said of a table that is not in force
	}
	if d.wanted == nil || d.of != view.Mark() {
		d.of, d.wanted = view.Mark(), former(view, a.self(view))
	}
	for k := range d.since {
		if _, ok := d.wanted[k]; !ok {
			delete(d.since, k)
			delete(d.told, k)
			a.client.Forget(k.key())
		}
	}
	for k, port := range d.wanted {
		if _, ok := d.since[k]; !ok {
			d.since[k] = now
		}
		if d.told[k] || now.Sub(d.since[k]) < drainAfter {
			continue
		}
		s, _ := table.Get[wire.Slots](view, fmt.Sprint(k.service))
		n, err := a.liveFlows(port, k, s.Table)
		if err != nil {
			a.log.Warn("draining flows not counted", "service", k.service, "backend", k.backend, "error", err)
			continue
		}
		if n == 0 {
			d.told[k] = true
			a.client.Observe(dsync.Report{Key: k.key(), Generation: k.generation, State: "drained"})
		}
	}
}

// liveFlows counts a backend's flows in slots that another one owns now. A port
// without a flow table has none.
func (a *Agent) liveFlows(port uint32, k drainKey, body []byte) (int, error) {
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
	err = eachFlow(flows, func(key bpf.CtKey, f bpf.Ct) {
		if f.Service == k.service && f.Backend == k.backend && t.Select(f.Hash).Cur() != k.backend && alive(key, f, now) {
			n++
		}
	})
	return n, err
}

// alive tells whether somebody may still send in a flow. Closed ones linger for
// the sake of late packets only.
func alive(key bpf.CtKey, f bpf.Ct, now uint64) bool {
	if f.State == bpf.CtClosed || f.State == bpf.CtReset {
		return false
	}
	life := time.Hour
	switch {
	case key.Proto == 1:
		life = 5 * time.Second
	case key.Proto == 17 && f.State == bpf.CtEstablished:
		life = 180 * time.Second
	case key.Proto == 17, f.State == bpf.CtReplied:
		life = time.Minute
	case f.State == bpf.CtNew:
		life = 30 * time.Second
	}
	return f.Seen+uint64(life) >= now
}

// eachFlow reads a flow table in batches; flows that come or go meanwhile may
// be seen or not.
func eachFlow(flows *ebpf.Map, visit func(bpf.CtKey, bpf.Ct)) error {
	var cursor ebpf.MapBatchCursor
	keys, values := make([]bpf.CtKey, 1024), make([]bpf.Ct, 1024)
	for {
		n, err := flows.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			visit(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read flows: %w", err)
		}
	}
}
