// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/cloud"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

// keepFor is how long a slot stays with a backend that leaves, because the one
// before it may still have flows there and a slot remembers but one. Drains of
// short flows take 3 s.
const keepFor = 5 * time.Second

// leaves says that a backend's instance is on its way out: it gets no slots any
// more, and keeps its flows until the instance goes.
func leaves(b store.BackendDoc) bool { return !b.Leaving.IsZero() }

// part says what backends that leave are for their hosts, given the table: one
// that has still slots takes new flows as ever, until these can move; and so does
// one that other hosts may still send some, by a table from before.
func part(backends []store.BackendDoc, table slots.Table, now time.Time) {
	shares := table.Shares()
	for i := range backends {
		b := &backends[i]
		switch {
		case !leaves(*b) || b.State == store.BackendDead:
		case shares[b.Number] > 0:
			enter(b, store.BackendActive, now)
		case b.Closed || b.State == store.BackendJoining:
			enter(b, store.BackendDraining, now)
		}
	}
}

// keep puts slots back that would go from a backend that leaves and forget one
// of their owners, with its flows: they move when the one before is empty, or
// keepFor after the backend began to leave. That is again, zero if none is kept.
func keep(old, table slots.Table, dead []uint32, backends []store.BackendDoc, now time.Time) (kept slots.Table, again time.Time) {
	until := map[uint32]time.Time{}
	for _, b := range backends {
		if end := b.Leaving.Add(keepFor); leaves(b) && b.State != store.BackendDead && now.Before(end) {
			until[b.Number] = end
		}
	}
	if len(until) == 0 || len(old) == 0 {
		return table, time.Time{}
	}
	kept = slices.Clone(table)
	for i, s := range kept {
		was := old[i&(len(old)-1)]
		end, leaving := until[was.Cur()]
		if !leaving || s.Cur() == was.Cur() || was.Prev() == 0 || slices.Contains(dead, was.Prev()) {
			continue
		}
		if s.Cur() != was.Prev() { // else both are remembered
			kept[i] = was
			again = sooner(again, end)
		}
	}
	return kept, again
}

// Drains names the members of a pool that leave and may still get packets from
// a service: slots name them, and there is somebody to take these over. Hosts
// say when no flow is left.
func (b *Balancers) Drains(tx *store.Tx, pool cloud.ID) ([]cloud.ID, error) {
	users, err := tx.Referrers(store.Ref{Kind: store.KindPool, ID: pool})
	if err != nil {
		return nil, err
	}
	var all []cloud.ID
	for _, u := range users {
		if u.Kind != store.KindService {
			continue
		}
		s, err := store.Get[store.ServiceDoc](tx, "", u.ID)
		if err != nil {
			return nil, err
		}
		some, err := drains(tx, s)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", s.ID, err)
		}
		all = append(all, some...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func drains(tx *store.Tx, s service) (instances []cloud.ID, err error) {
	if !serves(s) || !slices.ContainsFunc(s.Body.Backends, leaves) {
		return nil, nil
	}
	stored, err := tx.Slots(s.ID)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	table, err := slots.Decode(stored.Cells)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(s.Body.Backends, func(b store.BackendDoc) bool { return b.State == store.BackendActive && !leaves(b) }) {
		return nil, nil
	}
	shares, before := table.Shares(), table.Draining()
	for _, b := range s.Body.Backends {
		if leaves(b) && shares[b.Number]+before[b.Number] > 0 {
			instances = append(instances, b.Instance)
		}
	}
	return instances, nil
}

// drained tells of a service that has members that leave.
func (b *Balancers) drained(tx *store.Tx, s service) error {
	if b.Drained == nil || !slices.ContainsFunc(s.Body.Backends, leaves) {
		return nil
	}
	return b.Drained(tx, s.Body.InstancePool.ID)
}

// losses counts what a host loses at most when backends go, or begin to leave:
// those and their checks; and if it is no LB node and had the last one there,
// all that it held of the service. Those that began to leave before are counted
// already. Who leaves goes later: the others on its host may have gone by then,
// and there may be as many backends as members.
func losses(h hosts, before, after []store.BackendDoc, members int) []store.Intent {
	here, stays := map[uint32]bool{}, map[uint32]bool{}
	for _, b := range after {
		here[b.Host] = true
		stays[b.Number] = !leaves(b)
	}
	gone, whole := 0, false
	for _, b := range before {
		if leaves(b) || stays[b.Number] {
			continue
		}
		_, later := stays[b.Number]
		gone++
		whole = whole || (later || !here[b.Host]) && !h.holdsAll(b.Host)
	}
	switch {
	case gone == 0:
		return nil
	case whole:
		return holdings(members)
	}
	return backendIntents(gone)
}
