// SPDX-License-Identifier: Apache-2.0

// Package hosttest plays the hypervisors of a zone for tests of what keeps
// instances: it follows the store, compiles it with the real compiler, holds
// what each host would hold, and reports and acknowledges as agents do. It
// starts nothing, and does something only in Deliver. Start there.
package hosttest

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/compile"
	"cairn/controlplane/converge"
	"cairn/controlplane/dist"
	"cairn/controlplane/operation"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

// Cairnd is the process that the hosts talk to: it changes when it restarts.
type Cairnd struct {
	Store    *store.Store
	Settler  converge.Settler
	Reported func(ctx context.Context, host string, reports []dist.Report) error
}

// Host is one hypervisor.
type Host struct {
	Name   string
	Silent bool // takes nothing in and says nothing
	held   map[wire.Key]*compile.Entry
	queue  []delivery
	said   map[wire.Key]dist.Report
}

type delivery struct {
	step    compile.Step
	intents []store.Intent
}

// Hosts are all of them.
type Hosts struct {
	Zone string
	// Broken instances cannot be brought to what they are wanted to be: the
	// reason, by id.
	Broken map[cloud.ID]string
	// Slow instances are not reported at all, nor that they have no flow left.
	Slow map[cloud.ID]bool
	// Between, if set, is called when one of the hosts has taken in all that there
	// was for it, and others may not have.
	Between func()
	// Faults are removals that no intent covers: agents could refuse them.
	Faults []string

	cairnd   Cairnd
	follower *replica.Follower
	state    *compile.State
	hosts    map[uint32]*Host
	waits    []wait
	used     map[budget]int
}

// wait is an operation that some hosts have to acknowledge up to a revision.
type wait struct {
	op       cloud.ID
	hosts    []uint32
	revision uint64
}

type budget struct {
	host uint32
	op   cloud.ID
	kind string
}

// New has hosts for the hypervisors of a zone as they join.
func New(zone string) *Hosts {
	return &Hosts{Zone: zone, Broken: map[cloud.ID]string{}, Slow: map[cloud.ID]bool{}, hosts: map[uint32]*Host{}, used: map[budget]int{}}
}

// Connect gives the hosts a new process to talk to. They say everything again.
func (h *Hosts) Connect(ctx context.Context, c Cairnd) error {
	if h.follower != nil {
		h.follower.Close()
	}
	r, err := replica.New()
	if err != nil {
		return err
	}
	h.cairnd, h.waits, h.state = c, nil, compile.NewState(h.Zone, func(func(*compile.Entry) bool) {})
	h.follower = &replica.Follower{Store: c.Store, Replica: r, Log: slog.New(slog.DiscardHandler)}
	batch, err := h.follower.Load(ctx, 0)
	if err != nil {
		return err
	}
	h.state.Apply(batch)
	h.meet(batch.After)
	for n, host := range h.hosts {
		host.held, host.queue, host.said = map[wire.Key]*compile.Entry{}, nil, map[wire.Key]dist.Report{}
		for e := range h.state.Entries() {
			if e.Holds(n) {
				host.held[e.Key] = e
			}
		}
	}
	return c.Store.Read(ctx, func(tx *store.Tx) error {
		pending, err := tx.Pending(store.Ref{})
		for _, op := range pending {
			h.waits = append(h.waits, wait{op.ID, slices.Collect(maps.Keys(h.hosts)), uint64(batch.After.Revision)})
		}
		return err
	})
}

func (h *Hosts) meet(snap replica.Snapshot) {
	for d := range snap.Hosts() {
		if d.Body.Joined && h.hosts[d.Body.Number] == nil {
			h.hosts[d.Body.Number] = &Host{Name: d.Body.Name, held: map[wire.Key]*compile.Entry{}, said: map[wire.Key]dist.Report{}}
		}
	}
}

// Host finds one by name.
func (h *Hosts) Host(name string) *Host {
	for _, host := range h.hosts {
		if host.Name == name {
			return host
		}
	}
	return nil
}

// Instances lists what a host runs or keeps, by id.
func (host *Host) Instances() map[cloud.ID]wire.Instance {
	all := map[cloud.ID]wire.Instance{}
	for key := range host.held {
		if i, ok := decode[wire.Instance](host, key); ok {
			all[cloud.ID(i.ID)] = i
		}
	}
	return all
}

// Items are all that a host holds, decoded.
func (host *Host) Items() []wire.Item {
	var items []wire.Item
	for key, e := range host.held {
		if item, err := wire.Decode(key.Kind, e.Body); err == nil {
			items = append(items, item)
		}
	}
	return items
}

// Held counts what the hosts hold of a kind.
func (h *Hosts) Held(kind wire.Kind) (n int) {
	for _, host := range h.hosts {
		for key := range host.held {
			if key.Kind == kind {
				n++
			}
		}
	}
	return n
}

// Deliver carries on until nothing is left to be delivered, reported or
// acknowledged.
func (h *Hosts) Deliver(ctx context.Context) error {
	for {
		news, err := h.follow(ctx)
		if err != nil {
			return err
		}
		h.takeIn()
		said, err := h.report(ctx)
		if err != nil {
			return err
		}
		settled, err := h.acknowledge(ctx)
		if err != nil || !news && !said && !settled {
			return err
		}
	}
}

// follow takes in what was committed since the last time.
func (h *Hosts) follow(ctx context.Context) (bool, error) {
	var rev store.Revision
	err := h.cairnd.Store.Read(ctx, func(tx *store.Tx) (err error) { rev, err = tx.Revision(); return err })
	if err != nil || rev == h.follower.Replica.Snapshot().Revision {
		return false, err
	}
	batch, err := h.follower.Next(ctx)
	if err != nil {
		return false, err
	}
	h.meet(batch.After)
	result := h.state.Apply(batch)
	for _, f := range result.Faults {
		h.Faults = append(h.Faults, f.Err.Error())
	}
	concerned := map[cloud.ID][]uint32{}
	for id, op := range batch.Operations {
		if !op.State.Final() {
			concerned[id] = nil
		}
	}
	for _, s := range result.Steps {
		touched := s.Touched(result.Everyone)
		for _, n := range touched {
			h.hosts[n].queue = append(h.hosts[n].queue, delivery{s, batch.Intents[s.Operation()]})
		}
		for _, op := range s.Operations {
			if hosts, ok := concerned[op]; ok {
				concerned[op] = append(hosts, touched...)
			}
		}
	}
	for op, hosts := range concerned {
		h.waits = append(h.waits, wait{op, hosts, result.Revision})
	}
	return true, nil
}

func (h *Hosts) takeIn() {
	for n, host := range h.hosts {
		if host.Silent {
			continue
		}
		for _, d := range host.queue {
			key := d.step.Key()
			if d.step.After.Holds(n) {
				host.held[key] = d.step.After
				continue
			}
			h.judge(n, d)
			delete(host.held, key)
			delete(host.said, key)
		}
		host.queue = nil
		if h.Between != nil {
			h.Between()
		}
	}
}

// Dangling lists where a host sends new flows of a service to a backend whose own
// host has let go of the port.
func (h *Hosts) Dangling() (faults []string) {
	for _, host := range h.hosts {
		for key := range host.held {
			table, ok := decode[wire.Slots](host, key)
			if !ok {
				continue
			}
			cells, err := slots.Decode(table.Table)
			if err != nil {
				return append(faults, err.Error())
			}
			for number := range cells.Shares() {
				if number == 0 {
					continue
				}
				b, ok := decode[wire.Backend](host, wire.Key{Kind: wire.KindBackend, ID: fmt.Sprint(number)})
				if !ok {
					faults = append(faults, fmt.Sprintf("%s sends to backend %d, which it does not know", host.Name, number))
				} else if at := h.hosts[b.Host]; at == nil || at.held[wire.Key{Kind: wire.KindPort, ID: fmt.Sprint(b.Port)}] == nil {
					faults = append(faults, fmt.Sprintf("%s sends to backend %d, whose port is gone", host.Name, number))
				}
			}
		}
	}
	return faults
}

// decode reads an item that a host holds.
func decode[T wire.Item](host *Host, key wire.Key) (item T, ok bool) {
	e := host.held[key]
	if e == nil {
		return item, false
	}
	decoded, err := wire.Decode(key.Kind, e.Body)
	if err != nil {
		return item, false
	}
	item, ok = decoded.(T)
	return item, ok
}

// judge holds a removal against the intents of its operation.
func (h *Hosts) judge(n uint32, d delivery) {
	b := budget{n, d.step.Operation(), d.step.Key().Kind.String()}
	h.used[b]++
	for _, i := range d.intents {
		if i.Class == b.kind && h.used[b] <= i.Count {
			return
		}
	}
	h.Faults = append(h.Faults, fmt.Sprintf("%s: removal %d of kind %s by operation %q has no intent", h.hosts[n].Name, h.used[b], b.kind, b.op))
}

// report says how the instances of each host are, and which of its backends have
// no flow left in slots of others, as far as it is news.
func (h *Hosts) report(ctx context.Context) (bool, error) {
	any := false
	for n, host := range h.hosts {
		if host.Silent {
			continue
		}
		var reports []dist.Report
		for _, r := range append(h.states(host), h.drained(host, n)...) {
			if key := (wire.Key{Kind: r.Kind, ID: r.Key}); host.said[key] != r {
				host.said[key] = r
				reports = append(reports, r)
			}
		}
		if len(reports) == 0 {
			continue
		}
		any = true
		if err := h.cairnd.Reported(ctx, host.Name, reports); err != nil {
			return false, err
		}
	}
	return any, nil
}

func (h *Hosts) states(host *Host) (reports []dist.Report) {
	for id, i := range host.Instances() {
		r := dist.Report{Kind: wire.KindInstance, Key: i.ID, Generation: i.Generation, State: "stopped"}
		if i.Running {
			r.State = "running"
		}
		if why := h.Broken[id]; why != "" {
			r.State, r.Reason = "error", why
		}
		if !h.Slow[id] {
			reports = append(reports, r)
		}
	}
	return reports
}

func (h *Hosts) drained(host *Host, self uint32) (reports []dist.Report) {
	for key := range host.held {
		service, _ := decode[wire.Slots](host, key)
		table, err := slots.Decode(service.Table)
		if err != nil {
			continue // Dangling says so
		}
		for number := range table.Draining() {
			b, ok := decode[wire.Backend](host, wire.Key{Kind: wire.KindBackend, ID: fmt.Sprint(number)})
			port, _ := decode[wire.Port](host, wire.Key{Kind: wire.KindPort, ID: fmt.Sprint(b.Port)})
			if !ok || b.Host != self || h.Slow[cloud.ID(port.Instance)] {
				continue
			}
			r := dist.Report{Kind: wire.KindSlots, Key: fmt.Sprintf("%d/%d", b.Service, number), Generation: service.Generation, State: "drained"}
			if b.Draining {
				r.Reason = "draining" // said again where it was said before
			}
			reports = append(reports, r)
		}
	}
	return reports
}

// acknowledge settles the operations that no host is waited for any more.
func (h *Hosts) acknowledge(ctx context.Context) (bool, error) {
	waits := h.waits
	h.waits = nil
	any := false
	for _, w := range waits {
		if slices.ContainsFunc(w.hosts, func(n uint32) bool { return len(h.hosts[n].queue) > 0 || h.hosts[n].Silent }) {
			h.waits = append(h.waits, w)
			continue
		}
		any = true
		if err := h.cairnd.Settler.Settled(ctx, w.op, operation.Outcome{OK: true, Revision: w.revision}); err != nil {
			return false, err
		}
	}
	return any, nil
}
