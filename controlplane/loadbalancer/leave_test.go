// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

// leaving marks members, in one transaction with what follows; for the second
// time because all hosts know it.
func (b *bench) leaving(op cloud.ID, ids ...cloud.ID) {
	b.Helper()
	b.write(func(tx *store.Tx) error {
		for _, id := range ids {
			d, err := store.Get[store.InstanceDoc](tx, org, id)
			if err != nil {
				return err
			}
			if d.Body.Leaving.IsZero() {
				d.Body.Leaving = b.now
			} else {
				d.Body.Closed = true
			}
			if err := store.Put(tx, op, d); err != nil {
				return err
			}
		}
		return b.PoolChanged(b.t.Context(), tx, b.pool, op)
	})
}

// drainsOf names the leaving members that may still get packets, by their place
// among the bench's members.
func (b *bench) drainsOf() (places []int) {
	b.Helper()
	b.read(func(tx *store.Tx) error {
		ids, err := b.Drains(tx, b.pool)
		for _, id := range ids {
			places = append(places, slices.Index(b.members, id))
		}
		return err
	})
	slices.Sort(places)
	return places
}

// empty reports that a backend has no flow left in slots of others.
func (b *bench) empty(id cloud.ID, n uint32) {
	b.Helper()
	s := b.service(id)
	i := slices.IndexFunc(s.Body.Backends, func(one store.BackendDoc) bool { return one.Number == n })
	b.report(s.Body.Backends[i].Host, wire.KindSlots, s.Body.Number, n, s.Body.SlotsGeneration, drained)
}

// TestMembersThatLeave: their slots move at once and remember them; they drain,
// whatever their verdict, until their hosts say that no flow is left.
func TestMembersThatLeave(t *testing.T) {
	b := newBench(t)
	nlb, id := serviceOf(b, 4)
	for n := uint32(1); n <= 4; n++ {
		b.says(id, n, store.VerdictSuccess)
	}
	b.pass(0)
	var told []cloud.ID
	b.Drained = func(_ *store.Tx, pool cloud.ID) error { told = append(told, pool); return nil }
	before := b.table(id)
	op := cloud.NewID()
	b.leaving(op, b.members[0], b.members[1])
	b.want(id, "1 active, 2 active, 3 active, 4 active", "[3 4]") // not all hosts know it
	for i, s := range b.table(id) {
		if was := before[i].Cur(); was <= 2 && (s.Cur() <= 2 || s.Prev() != was) || was > 2 && s != before[i] {
			t.Fatalf("slot %d of %d became %v", i, was, s)
		}
	}
	if got := b.intents(op); got != "backend 2;check 2;" {
		t.Errorf("intents %s", got)
	}
	if got := b.nlb(nlb).Services[0].HealthcheckStatus; len(got) != 2 {
		t.Errorf("to their owner they are still backends: %+v", got)
	}
	if got := fmt.Sprint(b.drainsOf()); got != "[0 1]" {
		t.Errorf("still draining %s", got)
	}
	b.empty(id, 1) // too early: a host may go by the table before
	b.pass(pace)
	b.leaving(op, b.members[0], b.members[1])
	b.want(id, "1 draining, 2 draining, 3 active, 4 active", "[3 4]")
	if got := fmt.Sprint(b.drainsOf()); got != "[0 1]" {
		t.Errorf("still draining %s", got)
	}
	told = nil
	b.empty(id, 1)
	b.pass(pace)
	if got := fmt.Sprint(b.drainsOf()); got != "[1]" || len(told) != 1 || told[0] != b.pool {
		t.Errorf("still draining %s, told %v", got, told)
	}
	// One that fails, or comes to be well, leaves as the others do.
	b.says(id, 2, store.VerdictFailure)
	b.pass(pace)
	b.want(id, "1 draining, 2 draining, 3 active, 4 active", "[3 4]")
	if b.service(id).Body.Panic {
		t.Error("who leaves is counted among those that should be well")
	}
	told = nil
	b.reopen()
	b.Drained = func(_ *store.Tx, pool cloud.ID) error { told = append(told, pool); return nil }
	b.empty(id, 2)
	b.pass(pace)
	if got := b.drainsOf(); len(got) != 0 || len(told) != 1 {
		t.Errorf("still draining %v, told %v", got, told)
	}
	// What hosts lose when they go was counted when they began to leave.
	b.goes(op, b.members[0], b.members[1])
	b.want(id, "3 active, 4 active", "[3 4]")
	if got := b.intents(op); got != "backend 2;check 2;" {
		t.Errorf("intents %s", got)
	}
}

// TestNobodyToTakeOver: without another backend slots stay, their owners take
// flows as ever, and nobody is waited for.
func TestNobodyToTakeOver(t *testing.T) {
	b := newBench(t)
	nlb, id := serviceOf(b, 3)
	b.leaving("", b.members...)
	b.want(id, "1 active, 2 active, 3 active", "[1 2 3]")
	if got := b.drainsOf(); len(got) != 0 {
		t.Errorf("draining %v", got)
	}
	b.runs(1)
	b.want(id, "1 active, 2 active, 3 active, 4 active", "[4]")
	b.leaving("", b.members[:3]...)
	b.want(id, "1 draining, 2 draining, 3 draining, 4 active", "[4]")
	if got := fmt.Sprint(b.drainsOf()); got != "[0 1 2]" {
		t.Errorf("draining %v", got)
	}
	// Who cannot be reached is dead, leaving or not.
	b.host("hv1", true)
	if got := fmt.Sprint(b.drainsOf()); got != "[]" { // nor is there anybody else
		t.Errorf("draining %v", got)
	}
	b.host("hv1", false)
	b.host("hv2", true)
	if got := fmt.Sprint(b.drainsOf()); got != "[2]" {
		t.Errorf("draining %v", got)
	}
	told := 0
	b.Drained = func(*store.Tx, cloud.ID) error { told++; return nil }
	b.do("delete-load-balancer-service", nil, "id", string(nlb), "service-id", string(id))
	if got := b.drainsOf(); len(got) != 0 || told == 0 {
		t.Errorf("draining %v of a service that goes, told %d times", got, told)
	}
}

// TestLeavingBeforeDrainsHaveEnded: a slot that has just moved remembers the one
// before, and a slot remembers but one. Where its new owner leaves, it stays
// until that is empty, or for a while.
func TestLeavingBeforeDrainsHaveEnded(t *testing.T) {
	for _, drains := range []bool{true, false} {
		b := newBench(t)
		_, id := serviceOf(b, 2)
		b.runs(2)
		b.says(id, 3, store.VerdictSuccess)
		b.says(id, 4, store.VerdictSuccess)
		b.pass(pace)
		b.want(id, "1 active, 2 active, 3 active, 4 active", "[1 2 3 4]")
		before := b.table(id)
		b.leaving("", b.members[:3]...) // 3 took slots of 1 and 2
		b.leaving("", b.members[:3]...)
		b.want(id, "1 draining, 2 draining, 3 active, 4 active", "[3 4]")
		for i, s := range b.table(id) {
			was := before[i]
			switch {
			case s.Cur() == was.Cur():
			case was.Prev() != 0 || s.Prev() != was.Cur():
				t.Fatalf("slot %d went from %v to %v", i, was, s)
			}
			if s.Cur() == 3 && s.Prev() == 0 {
				t.Fatalf("slot %d %v could have moved", i, s)
			}
		}
		if got := fmt.Sprint(b.drainsOf()); got != "[0 1 2]" {
			t.Errorf("draining %s", got)
		}
		if drains {
			b.empty(id, 1)
			b.empty(id, 2)
			b.pass(pace)
		} else {
			b.pass(keepFor - time.Millisecond)
			b.want(id, "1 draining, 2 draining, 3 active, 4 active", "[3 4]")
			b.pass(time.Millisecond)
		}
		b.want(id, "1 draining, 2 draining, 3 draining, 4 active", "[4]")
	}
}

// TestKeepForgetsNobody: whatever the table, one step of leaving forgets no live
// owner of a slot that one who leaves has. Without keep it does.
func TestKeepForgetsNobody(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	cut := 0
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 8).Draw(t, "backends")
		var backends []store.BackendDoc
		want := slots.Want{}
		for i := range n {
			b := store.BackendDoc{Number: uint32(i + 1), State: store.BackendActive}
			if rapid.Bool().Draw(t, "leaves") {
				b.Leaving = now
			} else {
				want.Backends = append(want.Backends, b.Number)
			}
			backends = append(backends, b)
		}
		old := make(slots.Table, slots.MinSize)
		owner := rapid.Uint32Range(1, uint32(n))
		for i := range old {
			cur, prev := owner.Draw(t, "cur"), uint32(0)
			if rapid.Bool().Draw(t, "moved") {
				prev = owner.Draw(t, "prev")
			}
			if prev == cur {
				prev = 0
			}
			old[i] = slots.Make(cur, prev)
		}
		check := func(table slots.Table) (forgotten int) {
			for i, s := range table {
				was := old[i%len(old)] // a table that grows repeats itself
				for _, o := range []uint32{was.Cur(), was.Prev()} {
					if leaves(backends[was.Cur()-1]) && o != 0 && o != s.Cur() && o != s.Prev() {
						forgotten++
					}
				}
			}
			return forgotten
		}
		table, again := assign(old, backends, false, now)
		if n := check(table); n > 0 {
			t.Fatalf("%d owners forgotten", n)
		}
		if more, _ := assign(table, backends, false, now); !slices.Equal(more, table) {
			t.Fatal("the same again moves slots")
		}
		if n := check(slots.Assign(old, want)); n > 0 {
			cut++
			if again != now.Add(keepFor) {
				t.Fatalf("looks again at %s", again)
			}
		}
		last, _ := assign(table, backends, false, now.Add(keepFor))
		for b, n := range last.Shares() {
			if len(want.Backends) > 0 && n > 0 && !slices.Contains(want.Backends, b) {
				t.Fatalf("%d has %d slots in the end", b, n)
			}
		}
	})
	if cut == 0 {
		t.Error("no flow would have been cut without it either")
	}
}
