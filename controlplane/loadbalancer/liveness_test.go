// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

// serviceOf makes a pool of n members with a service that runs.
func serviceOf(b *bench, n int) (nlb, id cloud.ID) {
	b.Helper()
	b.runs(n)
	nlb = b.create("nlb")
	id, op := b.add(nlb, web(b.pool, "web", 80))
	b.settled(op, true)
	return nlb, id
}

func (b *bench) want(id cloud.ID, states, owners string) {
	b.Helper()
	if got := b.states(id); got != states {
		b.Errorf("states %q, want %q", got, states)
	}
	if got := b.owners(id); got != owners {
		b.Errorf("owners %s, want %s", got, owners)
	}
}

func TestBackendsFollowThePool(t *testing.T) {
	b := newBench(t)
	_, id := serviceOf(b, 2)
	b.want(id, "1 active, 2 active", "[1 2]")
	before := b.table(id)

	// A new one gets flows when its own host has found it well.
	b.runs(1)
	b.want(id, "1 active, 2 active, 3 joining", "[1 2]")
	s := b.service(id)
	b.report(1, wire.KindCheck, s.Body.Number, 3, s.Body.Backends[2].Generation, store.VerdictSuccess) // not its host
	b.pass(0)
	b.report(3, wire.KindCheck, s.Body.Number, 3, s.Body.Backends[2].Generation+1, store.VerdictSuccess)
	b.pass(0)
	b.says(id, 3, store.VerdictInitial)
	b.pass(0)
	b.want(id, "1 active, 2 active, 3 joining", "[1 2]")
	b.says(id, 3, store.VerdictSuccess)
	b.pass(0)
	b.want(id, "1 active, 2 active, 3 active", "[1 2 3]")
	if moved := slots.Moves(before, b.table(id)); moved > 256/2 || moved == 0 {
		t.Errorf("%d slots moved", moved)
	}
	if got := b.table(id).Draining(); got[1]+got[2] != 256/3 {
		t.Errorf("predecessors %v", got)
	}
	// Or, if that finds nothing, after a while; never, if that finds it ill.
	b.runs(1)
	b.pass(joinWait - time.Millisecond)
	b.want(id, "1 active, 2 active, 3 active, 4 joining", "[1 2 3]")
	b.pass(time.Millisecond)
	b.want(id, "1 active, 2 active, 3 active, 4 active", "[1 2 3 4]")
	b.runs(1)
	b.says(id, 5, store.VerdictFailure)
	b.pass(pace)
	b.want(id, "1 active, 2 active, 3 active, 4 active, 5 draining", "[1 2 3 4]")
	b.goes("", b.members[4])

	// Those that go are dead at once, and so is the memory of them.
	op := cloud.NewID()
	b.goes(op, b.members[0], b.members[3])
	b.want(id, "2 active, 3 active", "[2 3]")
	if got := b.table(id).Draining(); got[1]+got[4] != 0 {
		t.Errorf("predecessors %v", got)
	}
	if got := b.intents(op); got != "backend 2;check 2;" {
		t.Errorf("intents %s", got)
	}
	// Their numbers rest.
	b.runs(1)
	b.want(id, "2 active, 3 active, 6 joining", "[2 3]")
	b.goes("", b.members...)
	b.want(id, "", "[0]")
	b.runs(1)
	b.want(id, "7 active", "[7]")
}

// TestMembersThatStop: what does not run gets no flow, whatever the others are,
// and is a backend still.
func TestMembersThatStop(t *testing.T) {
	b := newBench(t)
	nlb, id := serviceOf(b, 3)
	b.turns(b.members[1], cloud.InstanceStopping)
	b.want(id, "1 active, 2 dead, 3 active", "[1 3]")
	if got := b.nlb(nlb).Services[0].HealthcheckStatus; len(got) != 1 || got[0].Status != cloud.HealthFailure {
		t.Errorf("shown: %+v", got)
	}
	b.turns(b.members[1], cloud.InstanceStarting)
	b.want(id, "1 active, 2 dead, 3 active", "[1 3]")
	b.turns(b.members[1], cloud.InstanceRunning)
	b.want(id, "1 active, 2 active, 3 active", "[1 2 3]")
	b.turns(b.members[1], cloud.InstanceDestroying)
	b.want(id, "1 active, 3 active", "[1 3]")
}

func TestVerdicts(t *testing.T) {
	b := newBench(t)
	nlb, id := serviceOf(b, 4)
	status := func() (words string) {
		for _, h := range b.nlb(nlb).Services[0].HealthcheckStatus {
			words += fmt.Sprintf("%s %s;", h.PublicIP, h.Status)
		}
		return words
	}
	generation := b.service(id).Generation
	b.says(id, 1, store.VerdictSuccess)
	b.pass(0)
	if got := status(); got != "198.51.0.0 success;" {
		t.Errorf("status %s", got)
	}
	// At most one commit a second: what comes meanwhile waits for its second.
	commits := b.store.Commits()
	b.says(id, 2, store.VerdictSuccess)
	b.says(id, 3, store.VerdictSuccess)
	b.says(id, 4, store.VerdictSuccess)
	b.pass(pace - time.Millisecond)
	if n := b.store.Commits() - commits; n != 0 {
		t.Errorf("%d commits within a second", n)
	}
	b.pass(time.Millisecond)
	if n := b.store.Commits() - commits; n != 1 || status() != "198.51.0.0 success;198.51.0.1 success;198.51.0.2 success;198.51.0.3 success;" {
		t.Errorf("%d commits, status %s", n, status())
	}
	// What is known, and a host that begins anew, commit nothing.
	b.pass(pace)
	b.says(id, 1, store.VerdictInitial)
	b.says(id, 2, store.VerdictSuccess)
	b.pass(0)
	if n := b.store.Commits() - commits; n != 1 {
		t.Errorf("%d commits of nothing", n-1)
	}

	// Unhealthy is a drain: the old owner keeps its flows until it says that
	// none is left.
	b.says(id, 2, store.VerdictFailure)
	b.pass(0)
	b.want(id, "1 active, 2 draining, 3 active, 4 active", "[1 3 4]")
	s := b.service(id)
	if got := b.table(id).Draining()[2]; got != 64 || status() != "198.51.0.0 success;198.51.0.1 failure;198.51.0.2 success;198.51.0.3 success;" {
		t.Errorf("%d slots remember the one that drains; status %s", got, status())
	}
	b.report(2, wire.KindSlots, s.Body.Number, 2, s.Body.SlotsGeneration-1, "drained") // of a table before
	b.report(3, wire.KindSlots, s.Body.Number, 2, s.Body.SlotsGeneration, "drained")   // of another host
	b.pass(pace)
	if got := b.table(id).Draining()[2]; got != 64 {
		t.Errorf("%d slots remember the one that drains", got)
	}
	b.report(2, wire.KindSlots, s.Body.Number, 2, s.Body.SlotsGeneration, "drained")
	b.pass(pace)
	if got := b.table(id).Draining()[2]; got != 0 {
		t.Errorf("%d slots remember the one that is empty", got)
	}
	b.says(id, 2, store.VerdictSuccess)
	b.pass(pace)
	b.want(id, "1 active, 2 active, 3 active, 4 active", "[1 2 3 4]")
	if got := b.service(id).Generation; got != generation {
		t.Errorf("generation went from %d to %d without a wish", generation, got)
	}
}

func TestRemovalsAreCapped(t *testing.T) {
	b := newBench(t)
	_, id := serviceOf(b, 9)
	for n := uint32(1); n <= 4; n++ {
		b.says(id, n, store.VerdictFailure)
	}
	b.pass(0)
	b.want(id, "1 draining, 2 draining, 3 draining, 4 active, 5 active, 6 active, 7 active, 8 active, 9 active", "[4 5 6 7 8 9]")
	b.pass(removalPeriod - time.Millisecond)
	b.want(id, "1 draining, 2 draining, 3 draining, 4 active, 5 active, 6 active, 7 active, 8 active, 9 active", "[4 5 6 7 8 9]")
	b.pass(time.Millisecond)
	b.want(id, "1 draining, 2 draining, 3 draining, 4 draining, 5 active, 6 active, 7 active, 8 active, 9 active", "[5 6 7 8 9]")
}

// TestAllFail: below half all are used, also those that fail, but never those
// that cannot be reached.
func TestAllFail(t *testing.T) {
	b := newBench(t)
	nlb, id := serviceOf(b, 4) // on hosts 1, 2, 3, 1
	for n := uint32(1); n <= 4; n++ {
		b.says(id, n, store.VerdictFailure)
	}
	b.pass(0)
	b.want(id, "1 active, 2 active, 3 active, 4 active", "[1 2 3 4]")
	if !b.service(id).Body.Panic {
		t.Error("not flagged")
	}
	b.host("hv2", true)
	b.want(id, "1 active, 2 dead, 3 active, 4 active", "[1 3 4]")
	b.says(id, 1, store.VerdictSuccess)
	b.says(id, 3, store.VerdictSuccess)
	b.pass(pace)
	b.want(id, "1 active, 2 dead, 3 active, 4 draining", "[1 3]")
	if b.service(id).Body.Panic {
		t.Error("still flagged")
	}
	if got := len(b.nlb(nlb).Services[0].HealthcheckStatus); got != 4 {
		t.Errorf("%d verdicts shown", got)
	}
}

func TestHostsThatCannotBeReached(t *testing.T) {
	b := newBench(t)
	_, id := serviceOf(b, 4) // on hosts 1, 2, 3, 1
	before := b.table(id)
	b.host("hv1", true)
	b.want(id, "1 dead, 2 active, 3 active, 4 dead", "[2 3]")
	for i, s := range b.table(id) {
		if s.Prev() == 1 || s.Prev() == 4 {
			t.Fatalf("slot %d remembers a dead owner: %v", i, s)
		}
		if o := before[i].Cur(); o != 1 && o != 4 && o != s.Cur() {
			t.Fatalf("slot %d moved from %d to %d", i, o, s.Cur())
		}
	}
	// A second one of three: whoever sees that is cut off itself.
	b.host("hv2", true)
	b.want(id, "1 dead, 2 active, 3 active, 4 dead", "[2 3]")
	b.host("hv1", false)
	b.want(id, "1 active, 2 dead, 3 active, 4 active", "[1 3 4]")
	b.host("hv2", false)
	b.want(id, "1 active, 2 active, 3 active, 4 active", "[1 2 3 4]")

	// All of a service's hosts are gone, and they are not most.
	b.goes("", b.members[0], b.members[2], b.members[3])
	b.host("hv2", true)
	b.want(id, "2 dead", "[0]")
	b.host("hv2", false)
	b.want(id, "2 active", "[2]")
}

func TestCheckOfAnotherPlace(t *testing.T) {
	b := newBench(t)
	nlb, id := serviceOf(b, 2)
	b.says(id, 1, store.VerdictSuccess)
	b.says(id, 2, store.VerdictFailure)
	b.pass(0)
	args := []string{"id", string(nlb), "service-id", string(id)}
	old := b.service(id).Body
	update := func(h cloud.Healthcheck) store.ServiceDoc {
		b.settled(b.do("update-load-balancer-service", &cloud.UpdateServiceRequest{Healthcheck: &h}, args...), true)
		return b.service(id).Body
	}
	h := old.Healthcheck
	h.Interval = 30
	if now := update(h); now.Backends[1].Verdict != store.VerdictFailure || now.Backends[1].Generation != old.Backends[1].Generation {
		t.Errorf("another interval: %+v", now.Backends)
	}
	h.Port = 9
	now := update(h)
	if now.Backends[1].Verdict != store.VerdictInitial || now.Backends[1].Generation <= old.Backends[1].Generation {
		t.Errorf("another port: %+v", now.Backends)
	}
	b.want(id, "1 active, 2 active", "[1 2]")
	b.report(2, wire.KindCheck, now.Number, 2, old.Backends[1].Generation, store.VerdictFailure) // of the port before
	b.pass(pace)
	b.want(id, "1 active, 2 active", "[1 2]")
}

func TestRestartMovesNothing(t *testing.T) {
	b := newBench(t)
	_, id := serviceOf(b, 5)
	b.says(id, 2, store.VerdictFailure)
	b.pass(0)
	b.host("hv3", true)
	before, doc, commits := b.table(id), b.service(id), b.store.Commits()
	if commits == 0 {
		t.Fatal("nothing was committed")
	}
	b.reopen()
	b.pass(time.Hour)
	if n := b.store.Commits(); n != 0 {
		t.Errorf("%d commits after a restart", n)
	}
	if after := b.service(id); !slices.Equal(before, b.table(id)) || after.Revision != doc.Revision {
		t.Errorf("a restart changed %+v to %+v", doc, after)
	}
}

// TestNewsAfterARestart: what was put off is taken up, and agents say all they
// know again.
func TestNewsAfterARestart(t *testing.T) {
	b := newBench(t)
	_, id := serviceOf(b, 2)
	b.runs(1)
	b.says(id, 2, store.VerdictFailure) // never committed
	b.reopen()
	b.want(id, "1 active, 2 active, 3 joining", "[1 2]")
	b.pass(joinWait)
	b.want(id, "1 active, 2 active, 3 active", "[1 2 3]")
	b.says(id, 2, store.VerdictFailure)
	b.pass(pace)
	b.want(id, "1 active, 2 draining, 3 active", "[1 3]")
}

// TestNumberOfAnotherService: a number that has had its rest goes to another
// service, and what is said of it with it.
func TestNumberOfAnotherService(t *testing.T) {
	b := newBench(t)
	nlb, id := serviceOf(b, 2)
	b.says(id, 1, store.VerdictSuccess)
	b.pass(0)
	number := b.service(id).Body.Number
	b.settled(b.do("delete-load-balancer-service", nil, "id", string(nlb), "service-id", string(id)), true)
	b.now = b.now.Add(store.Rest)
	next, _ := b.add(nlb, web(b.pool, "next", 80))
	if got := b.service(next).Body.Number; got != number {
		t.Fatalf("number %d, want %d", got, number)
	}
	b.says(next, 1, store.VerdictFailure)
	b.pass(0)
	if got := b.service(next).Body.Backends[0].Verdict; got != store.VerdictFailure {
		t.Errorf("verdict %s", got)
	}
}

// TestRun: reports are committed without anybody asking.
func TestRun(t *testing.T) {
	b := newBench(t)
	_, id := serviceOf(b, 3)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	b.says(id, 1, store.VerdictFailure)
	hint, stop := b.store.Subscribe()
	defer stop()
	for deadline := time.After(10 * time.Second); b.states(id) != "1 draining, 2 active, 3 active"; {
		select {
		case <-hint:
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("states %s", b.states(id))
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
