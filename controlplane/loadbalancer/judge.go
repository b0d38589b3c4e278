// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"slices"
	"time"

	"cairn/controlplane/compile"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

const (
	// joinWait is how long a new backend waits for its first verdict before it
	// gets flows all the same.
	joinWait = 5 * time.Second
	// removalPeriod and removalShare cap removals by verdict: in each period at
	// most one backend of so many, and at least one. Checks that err, err together.
	removalPeriod = time.Minute
	removalShare  = 3
	// patience is how long after a backend joined the shares may differ, so that
	// no flow is cut for balance alone. Drains of short flows take 3 s.
	patience = 30 * time.Second
)

// hosts is what is known of the zone's hypervisors, by number.
type hosts struct {
	joined      int
	unreachable map[uint32]bool
	numbers     map[string]uint32 // by name
	nodes       map[uint32]bool   // with the role lb
}

// holdsAll reports whether a host holds every service, whether or not it hosts
// a backend of it: an LB node does, unless the zone is so large that services
// have nodes of their own.
func (h hosts) holdsAll(host uint32) bool {
	return h.nodes[host] && len(h.nodes) <= compile.AllAnnounce
}

// cutOff: when more than half of the hypervisors look unreachable, the one that
// is cut off is whoever looks. Then nobody is taken out.
func (h hosts) cutOff() bool { return 2*len(h.unreachable) > h.joined }

// dead reports whether a backend has nobody who could answer: its instance does
// not run, or its host cannot be reached.
func (h hosts) dead(b store.BackendDoc) bool {
	return b.Down || h.unreachable[b.Host] && (!h.cutOff() || b.State == store.BackendDead)
}

// judge says what each backend is to be, and whether too few are well, so that
// all that can be reached are used. Since when is when somebody has to look
// again; zero if only news can change anything.
//
//   - Reachability is not health: whoever cannot be reached is dead, at once,
//     whatever the others are.
//   - Unknown is not unhealthy: a backend without a verdict counts as well.
//   - Below half, all reachable ones are used; else those that fail drain, but
//     only so many a minute.
//   - A new backend waits a little to be found well, which says too that its
//     host knows it, unless it is needed.
//   - One that leaves is not counted among the others, whatever its verdict: see
//     part.
func judge(backends []store.BackendDoc, h hosts, now time.Time) (after []store.BackendDoc, panicking bool, again time.Time) {
	after = slices.Clone(backends)
	reachable, well := 0, 0
	for _, b := range after {
		if h.dead(b) || leaves(b) {
			continue
		}
		reachable++
		if b.Verdict != store.VerdictFailure {
			well++
		}
	}
	panicking = 2*well < reachable
	budget, freed := removals(after, now)
	active := 0
	for i := range after {
		b := &after[i]
		state := store.BackendActive
		switch {
		case h.dead(*b):
			state = store.BackendDead
		case leaves(*b):
			continue
		case b.State == store.BackendJoining && b.Verdict == store.VerdictInitial && now.Sub(b.Since) < joinWait:
			state = store.BackendJoining
			again = sooner(again, b.Since.Add(joinWait))
		case panicking || b.Verdict != store.VerdictFailure:
		case b.State != store.BackendActive:
			state = store.BackendDraining
		case counted(*b, now):
			state, b.Removed = store.BackendDraining, now
		case budget > 0:
			budget--
			state, b.Removed = store.BackendDraining, now
			freed = sooner(freed, now.Add(removalPeriod))
		default:
			again = sooner(again, freed)
		}
		enter(b, state, now)
		if state == store.BackendActive {
			active++
		}
	}
	for i := range after {
		if active == 0 && after[i].State == store.BackendJoining && !leaves(after[i]) {
			enter(&after[i], store.BackendActive, now)
		}
	}
	return after, panicking, again
}

func enter(b *store.BackendDoc, state string, now time.Time) {
	if b.State != state {
		b.State, b.Since = state, now
	}
}

// removals says how many backends may be taken out now because of a verdict,
// and when there will be one more.
func removals(backends []store.BackendDoc, now time.Time) (budget int, freed time.Time) {
	backends = slices.DeleteFunc(slices.Clone(backends), leaves)
	budget = max(1, (len(backends)+removalShare-1)/removalShare)
	for _, b := range backends {
		if counted(b, now) {
			budget--
			freed = sooner(freed, b.Removed.Add(removalPeriod))
		}
	}
	return budget, freed
}

// counted: the backend has been taken out in the period that ends now, whatever
// has become of it.
func counted(b store.BackendDoc, now time.Time) bool {
	return !b.Removed.IsZero() && now.Sub(b.Removed) < removalPeriod
}

// sooner is the earlier of two times; zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// assign makes the table of the backends as they are out of the one before.
// Whoever the old one names and is no backend any more is dead: its port is
// gone. Where backends join one after the other, slots that have just moved are
// left alone for a while, and where one leaves, those that it has just taken
// over: again is when that ends, zero if none is waited for.
// While a seed rotates only what has to moves: who owns slots keeps them, and shares
// those of who drains or dies.
func assign(old slots.Table, backends []store.BackendDoc, rotating bool, now time.Time) (table slots.Table, again time.Time) {
	want := slots.Want{Patient: true, Weights: map[uint32]int{}}
	known := map[uint32]bool{0: true}
	var joined time.Time
	for _, b := range backends {
		known[b.Number] = true
		want.Weights[b.Number] = b.Weight
		switch {
		case b.State == store.BackendActive && !leaves(b):
			want.Backends = append(want.Backends, b.Number)
			if b.Since.After(joined) {
				joined = b.Since
			}
		case b.State == store.BackendDead:
			want.Dead = append(want.Dead, b.Number)
		}
	}
	for _, s := range old {
		for _, owner := range [2]uint32{s.Cur(), s.Prev()} {
			if !known[owner] {
				known[owner] = true
				want.Dead = append(want.Dead, owner)
			}
		}
	}
	if rotating {
		freeze(old, &want)
	}
	table, kept := keep(old, slots.Assign(old, want), want.Dead, backends, now)
	want.Patient = false
	balanced, _ := keep(table, slots.Assign(table, want), want.Dead, backends, now)
	switch until := joined.Add(patience); {
	case slices.Equal(table, balanced):
		return table, kept
	case now.Before(until):
		return table, sooner(kept, until)
	}
	return balanced, kept
}

// freeze leaves those who want slots as they are: whoever has none waits.
func freeze(old slots.Table, want *slots.Want) {
	shares := old.Shares()
	owners := slices.DeleteFunc(slices.Clone(want.Backends), func(b uint32) bool { return shares[b] == 0 })
	if len(owners) > 0 {
		want.Backends, want.Weights = owners, shares
	}
}
