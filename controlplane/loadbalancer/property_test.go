// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"flag"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

// TestMain keeps the properties short: each step is a commit or several.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		flag.Set("rapid.checks", "20")
	}
	os.Exit(m.Run())
}

// world is a service under random events, with its state before the last one.
type world struct {
	*bench
	id     cloud.ID
	before slots.Table
	active []uint32
	hosts  map[string]bool // unreachable
}

func (w *world) look() (table slots.Table, active []uint32, s service) {
	s = w.service(w.id)
	for _, one := range s.Body.Backends {
		if one.State == store.BackendActive && !leaves(one) {
			active = append(active, one.Number)
		}
	}
	slices.Sort(active)
	return w.table(w.id), active, s
}

// check holds after every event.
func (w *world) check(t *rapid.T) {
	table, active, s := w.look()
	known, reachable, well := map[uint32]store.BackendDoc{}, 0, 0
	for _, one := range s.Body.Backends {
		known[one.Number] = one
		if one.State != store.BackendDead && !leaves(one) {
			reachable++
			if one.Verdict != store.VerdictFailure {
				well++
			}
		}
		if one.Down && one.State != store.BackendDead {
			t.Fatalf("backend %d does not run and is %s", one.Number, one.State)
		}
	}
	if (reachable > 0) != (len(active) > 0) {
		t.Fatalf("%d can be reached, %v are used", reachable, active)
	}
	if s.Body.Panic != (2*well < reachable) {
		t.Fatalf("%d of %d are well, panic %v", well, reachable, s.Body.Panic)
	}
	shares := table.Shares()
	for _, one := range s.Body.Backends {
		if leaves(one) && one.State == store.BackendDraining && shares[one.Number] > 0 {
			t.Fatalf("backend %d leaves, takes no new flow and has %d slots", one.Number, shares[one.Number])
		}
	}
	for i, slot := range table {
		if cur := slot.Cur(); cur == 0 && len(active) > 0 || cur != 0 && known[cur].State != store.BackendActive {
			t.Fatalf("slot %d %v: owner is %+v, used are %v", i, slot, known[cur], active)
		}
		if prev := slot.Prev(); prev != 0 && (known[prev].Number == 0 || known[prev].State == store.BackendDead || prev == slot.Cur()) {
			t.Fatalf("slot %d %v remembers %+v", i, slot, known[prev])
		}
	}
	if bound, one := moveBound(w.active, active, len(table)); one {
		bound += owed(w.before, w.active, len(table)) + w.kept()
		if moved := slots.Moves(w.before, table); moved > bound {
			t.Fatalf("from %v to %v moved %d of %d slots, at most %d should", w.active, active, moved, len(table), bound)
		}
	}
	w.before, w.active = table, active
}

// moveBound is how many slots may move where the used backends differ by one,
// or not at all.
func moveBound(before, after []uint32, size int) (bound int, ok bool) {
	differ := 0
	for _, n := range before {
		if !slices.Contains(after, n) {
			differ++
		}
	}
	for _, n := range after {
		if !slices.Contains(before, n) {
			differ++
		}
	}
	n := max(len(before), len(after), 1)
	switch {
	case differ == 0:
		return 0, true
	case differ == 1:
		return (size + n - 1) / n, true
	}
	return 0, false
}

// kept is how many slots backends that left had still, which move when they can.
func (w *world) kept() (n int) {
	for owner, slots := range w.before.Shares() {
		if owner != 0 && !slices.Contains(w.active, owner) {
			n += slots
		}
	}
	return n
}

// owed is how many slots the used backends were still short of, while slots that
// had just moved were left alone. Once somebody is short, who gets the odd slots
// of a share is open too, so that each may be short of one more.
func owed(before slots.Table, active []uint32, size int) int {
	if len(before) == 0 || len(active) == 0 {
		return 0
	}
	has := before.Shares()
	short := func(share int) (n int) {
		for _, b := range active {
			n += max(0, share-has[b]*(size/len(before)))
		}
		return n
	}
	if short(size/len(active)) == 0 {
		return 0
	}
	return short((size + len(active) - 1) / len(active))
}

// TestAnyEvents: whatever happens in whatever order, the table names only
// backends that are used and owners that are there, moves as little as one
// change needs, and is empty only when nobody can be reached.
func TestAnyEvents(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		b := newBenchFor(t, r)
		defer func() { b.store.Close() }()
		_, id := serviceOf(b, rapid.IntRange(0, 5).Draw(r, "members"))
		w := &world{bench: b, id: id, hosts: map[string]bool{}}
		w.before, w.active, _ = w.look()
		member := func() cloud.ID {
			if len(w.members) == 0 {
				r.Skip("no members")
			}
			return rapid.SampledFrom(w.members).Draw(r, "member")
		}
		backend := func() store.BackendDoc {
			all := w.service(id).Body.Backends
			if len(all) == 0 {
				r.Skip("no backends")
			}
			return rapid.SampledFrom(all).Draw(r, "backend")
		}
		r.Repeat(map[string]func(*rapid.T){
			"": w.check,
			"comes": func(*rapid.T) {
				if len(w.members) > 12 {
					r.Skip("enough")
				}
				w.runs(1)
			},
			"goes":   func(*rapid.T) { w.goes("", member()) },
			"leaves": func(*rapid.T) { w.leaving("", member()) },
			"stops":  func(*rapid.T) { w.turns(member(), cloud.InstanceStopping) },
			"runs":   func(*rapid.T) { w.turns(member(), cloud.InstanceRunning) },
			"verdict": func(*rapid.T) {
				one := backend()
				w.says(id, one.Number, rapid.SampledFrom([]string{store.VerdictInitial, store.VerdictSuccess, store.VerdictFailure}).Draw(r, "verdict"))
				w.pass(pace)
			},
			"verdict not committed": func(*rapid.T) { w.says(id, backend().Number, store.VerdictFailure) },
			"host": func(*rapid.T) {
				name := rapid.SampledFrom([]string{"hv1", "hv2", "hv3"}).Draw(r, "host")
				w.hosts[name] = !w.hosts[name]
				w.host(name, w.hosts[name])
			},
			"drained": func(*rapid.T) {
				one, s := backend(), w.service(id)
				w.report(one.Host, wire.KindSlots, s.Body.Number, one.Number, s.Body.SlotsGeneration, "drained")
				w.pass(pace)
			},
			"time": func(*rapid.T) {
				w.pass(time.Duration(rapid.IntRange(1, 90).Draw(r, "seconds")) * time.Second)
			},
			"restart": func(*rapid.T) {
				before := w.states(id)
				w.reopen()
				if after := w.table(id); !slices.Equal(after, w.before) {
					r.Fatalf("a restart moved %d slots: from %s, %v to %s, %v", slots.Moves(w.before, after),
						before, w.before.Shares(), w.states(id), after.Shares())
				}
			},
		})
	})
}
