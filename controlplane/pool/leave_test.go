// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/instance"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

// served makes a pool of n members behind a service, all of them backends.
func (b *bench) served(n int) (pool, balancer, service cloud.ID) {
	b.t.Helper()
	pool = b.create(n)
	balancer = b.do("create-load-balancer", &cloud.CreateLoadBalancerRequest{Name: "front"}).Reference.ID
	b.succeeds(b.do("add-service-to-load-balancer", &cloud.AddServiceRequest{Name: "http", InstancePool: cloud.Ref{ID: pool}, Protocol: cloud.TCP,
		Strategy: cloud.RoundRobin, Port: 80, TargetPort: 80, Healthcheck: cloud.Healthcheck{Mode: cloud.CheckTCP, Port: 80}}, "id", string(balancer)))
	services := b.services()
	if len(services) != 1 || len(services[0].Body.Backends) != n {
		b.t.Fatalf("services %+v", services)
	}
	return pool, balancer, services[0].ID
}

func (b *bench) services() (all []store.Doc[store.ServiceDoc]) {
	b.t.Helper()
	err := b.store.Read(b.t.Context(), func(tx *store.Tx) (err error) {
		all, err = store.List[store.ServiceDoc](tx, org)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

// backends counts those in each state, and those that leave.
func (b *bench) backends() (states map[string]int, leave int) {
	b.t.Helper()
	states = map[string]int{}
	for _, one := range b.services()[0].Body.Backends {
		states[one.State]++
		if !one.Leaving.IsZero() {
			leave++
		}
	}
	return states, leave
}

// goesOn delivers for a while, in which an operation must not end.
func (b *bench) goesOn(op *cloud.Operation) {
	b.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 20 {
		b.deliver()
		<-tick.C
	}
	if o := b.operation(op.ID); o.State != cloud.OperationPending {
		b.t.Fatalf("it did not wait: %+v", o)
	}
}

// eventuallyGone delivers until a pool has so many members.
func (b *bench) eventuallyHas(pool cloud.ID, members int) {
	b.t.Helper()
	b.eventually("members gone", func() bool {
		b.deliver()
		return len(b.members(pool)) == members
	})
}

// TestLeavingMembersKeepTheirFlows: members that go get no new flow, and stay
// until they have none left. To their owner the pool shrinks until they are gone.
func TestLeavingMembersKeepTheirFlows(t *testing.T) {
	b := newFront(t, 3)
	pool, _, _ := b.served(6)
	busy := b.members(pool)[1].ID
	b.hosts.Slow[busy] = true
	op := b.scale(pool, 2)
	b.goesOn(op)
	b.want(pool, cloud.PoolScalingDown, 2, 6)
	if states, leave := b.backends(); states[store.BackendDraining] != 4 || states[store.BackendActive] != 2 || leave != 4 {
		t.Errorf("backends %v, %d leave", states, leave)
	}
	if n := b.hosts.Held(wire.KindInstance); n != 6 {
		t.Errorf("hosts hold %d instances while flows go on", n)
	}
	b.refused(cloud.Conflict, string(op.ID), "stop-instance", nil, "id", string(busy))
	b.refused(cloud.Conflict, string(op.ID), "scale-instance-pool", &cloud.ScaleInstancePoolRequest{Size: 6}, "id", string(pool))
	if again := b.do("delete-instance", nil, "id", string(busy)); again.ID != op.ID {
		t.Errorf("deleting what leaves: operation %s, want %s", again.ID, op.ID)
	}
	b.restart()
	b.goesOn(op)
	b.want(pool, cloud.PoolScalingDown, 2, 6)
	delete(b.hosts.Slow, busy)
	b.succeeds(op)
	b.want(pool, cloud.PoolRunning, 2, 2)
	if states, leave := b.backends(); states[store.BackendActive] != 2 || len(states) != 1 || leave != 0 {
		t.Errorf("backends %v, %d leave", states, leave)
	}
	if n := b.hosts.Held(wire.KindInstance); n != 2 {
		t.Errorf("hosts hold %d instances", n)
	}
}

// TestFlowsThatDoNotEnd are cut after a while.
func TestFlowsThatDoNotEnd(t *testing.T) {
	b := newFront(t, 3)
	b.pools.Linger = 200 * time.Millisecond
	pool, _, _ := b.served(4)
	for _, m := range b.members(pool) {
		b.hosts.Slow[m.ID] = true
	}
	begin := time.Now()
	b.succeeds(b.scale(pool, 2))
	if took := time.Since(begin); took < b.pools.Linger {
		t.Errorf("cut after %s", took)
	}
	b.want(pool, cloud.PoolRunning, 2, 2)
}

// TestNobodyTakesOver: where nothing is left to send flows to, or nothing sends
// any, members go at once.
func TestNobodyTakesOver(t *testing.T) {
	b := newFront(t, 3)
	b.pools.Linger = time.Hour
	pool, _, _ := b.served(2)
	for _, m := range b.members(pool) {
		b.hosts.Slow[m.ID] = true
	}
	op := b.scale(pool, 0)
	for _, m := range b.members(pool) {
		if m.Body.State != cloud.InstanceDestroying {
			t.Errorf("member is %s", m.Body.State)
		}
	}
	b.succeeds(op)
	plain := b.create(2)
	b.succeeds(b.scale(plain, 1))
	b.want(plain, cloud.PoolRunning, 1, 1)
}

// rash says that nobody drains, so that members are destroyed in the commit that
// takes them out of the tables.
type rash struct{ Follower }

func (rash) Drains(*store.Tx, cloud.ID) ([]cloud.ID, error) { return nil, nil }

// TestNoHostSendsToAPortThatIsGone, however late it hears of a change. It does
// where members are destroyed in the commit that takes their slots away.
func TestNoHostSendsToAPortThatIsGone(t *testing.T) {
	for what, follower := range map[string]func(Follower) Follower{
		"in two steps": func(f Follower) Follower { return f },
		"in one":       func(f Follower) Follower { return rash{f} },
	} {
		t.Run(what, func(t *testing.T) {
			b := newFront(t, 3)
			b.pools.Follower = follower(b.pools.Follower)
			pool, _, _ := b.served(6)
			var faults []string
			b.hosts.Between = func() { faults = append(faults, b.hosts.Dangling()...) }
			b.succeeds(b.scale(pool, 4))
			b.succeeds(b.do("evict-instance-pool-members", &cloud.EvictInstancePoolMembersRequest{Instances: []cloud.ID{b.members(pool)[2].ID}}, "id", string(pool)))
			b.succeeds(b.scale(pool, 2))
			if got := len(faults) > 0; got != (what == "in one") {
				t.Errorf("%d times: %q", len(faults), faults)
			}
		})
	}
}

// TestTheRemovalIsOwed: whatever becomes of the waiting, members that leave are
// destroyed, and in the end nothing is left of them.
func TestTheRemovalIsOwed(t *testing.T) {
	for what, end := range map[string]func(b *bench, op *cloud.Operation){
		"deadline": func(b *bench, op *cloud.Operation) {
			b.clock = func() time.Time { return time.Now().Add(10 * time.Minute) }
			b.restart()
			b.pass(0)
			b.ends(op, cloud.OperationTimeout, cloud.ReasonUnavailable, "")
		},
		"refusal": func(b *bench, op *cloud.Operation) {
			err := b.gate.Settled(b.t.Context(), op.ID, operation.Outcome{Reason: cloud.ReasonFault, Message: "hv2: slots/1: no space left"})
			if err != nil {
				b.t.Fatal(err)
			}
			b.ends(op, cloud.OperationFailure, cloud.ReasonFault, "no space left")
		},
	} {
		t.Run(what, func(t *testing.T) {
			b := newFront(t, 3)
			b.pools.Linger = 50 * time.Millisecond
			pool, _, _ := b.served(4)
			silent := b.hosts.Host("hv2")
			silent.Silent = true
			op := b.scale(pool, 2)
			b.goesOn(op)
			b.want(pool, cloud.PoolScalingDown, 2, 4)
			end(b, op)
			b.pools.Linger = 50 * time.Millisecond
			if p := b.pool(pool); p.State != cloud.PoolRunning || p.Size != 2 {
				t.Errorf("pool is %s of size %d", p.State, p.Size)
			}
			for _, m := range b.members(pool)[:2] {
				if m.Body.State != cloud.InstanceDestroying {
					t.Errorf("member is %s", m.Body.State)
				}
			}
			b.restart()
			b.eventuallyHas(pool, 2)
			silent.Silent = false
			b.deliver()
			if n := b.hosts.Held(wire.KindInstance); n != 2 {
				t.Errorf("hosts hold %d instances", n)
			}
			b.succeeds(b.scale(pool, 3))
			b.want(pool, cloud.PoolRunning, 3, 3)
		})
	}
}

// TestRowsGoWithoutARestart: after a refusal nobody waits for acknowledgements,
// and the rows go all the same.
func TestRowsGoWithoutARestart(t *testing.T) {
	b := newFront(t, 3)
	b.pools.Linger = 50 * time.Millisecond
	pool, _, _ := b.served(4)
	b.hosts.Host("hv2").Silent = true
	op := b.scale(pool, 2)
	if err := b.gate.Settled(t.Context(), op.ID, operation.Outcome{Reason: cloud.ReasonFault, Message: "no"}); err != nil {
		t.Fatal(err)
	}
	b.eventuallyHas(pool, 2)
}

// TestAnAcknowledgementOfTheFirstStep is none of the second: the rows stay until
// the hosts have let the members go.
func TestAnAcknowledgementOfTheFirstStep(t *testing.T) {
	b := newFront(t, 3)
	pool, _, _ := b.served(4)
	var first store.Revision
	op := b.scale(pool, 2)
	if err := b.store.Read(t.Context(), func(tx *store.Tx) (err error) { first, err = tx.Revision(); return err }); err != nil {
		t.Fatal(err)
	}
	if states, _ := b.backends(); states[store.BackendDraining] != 0 {
		t.Errorf("backends %v before all hosts know that some leave", states)
	}
	b.deliver()
	for n := range 3 {
		b.hosts.Host([]string{"hv1", "hv2", "hv3"}[n]).Silent = true
	}
	b.eventually("hosts are told", func() bool { return slices.ContainsFunc(b.members(pool), told) })
	late := operation.Outcome{OK: true, Revision: uint64(first)}
	if err := b.gate.Settled(t.Context(), op.ID, late); err != nil {
		t.Fatal(err)
	}
	b.want(pool, cloud.PoolScalingDown, 2, 4)
	for n := range 3 {
		b.hosts.Host([]string{"hv1", "hv2", "hv3"}[n]).Silent = false
	}
	b.succeeds(op)
	b.want(pool, cloud.PoolRunning, 2, 2)
}

// TestTheServiceGoesMeanwhile: members that leave wait for nobody any more, and
// the pool can be deleted.
func TestTheServiceGoesMeanwhile(t *testing.T) {
	b := newFront(t, 3)
	b.pools.Linger = time.Hour
	pool, balancer, service := b.served(4)
	leaver := b.members(pool)[0]
	b.hosts.Slow[leaver.ID] = true
	op := b.scale(pool, 2)
	b.goesOn(op)
	b.refused(cloud.Conflict, string(service), "delete-instance-pool", nil, "id", string(pool))
	b.succeeds(b.do("delete-load-balancer-service", nil, "id", string(balancer), "service-id", string(service)))
	b.succeeds(op)
	b.want(pool, cloud.PoolRunning, 2, 2)

	// The same before the hosts have acknowledged the first step: the pool takes
	// all with it.
	pool2 := b.create(4)
	b.succeeds(b.do("add-service-to-load-balancer", &cloud.AddServiceRequest{Name: "more", InstancePool: cloud.Ref{ID: pool2}, Protocol: cloud.TCP,
		Strategy: cloud.RoundRobin, Port: 81, TargetPort: 80, Healthcheck: cloud.Healthcheck{Mode: cloud.CheckTCP, Port: 80}}, "id", string(balancer)))
	service = b.services()[0].ID
	b.hosts.Host("hv2").Silent = true
	op = b.scale(pool2, 2)
	b.deliver()
	gone := b.do("delete-load-balancer-service", nil, "id", string(balancer), "service-id", string(service))
	b.deliver()
	if err := b.gate.Settled(t.Context(), gone.ID, operation.Outcome{OK: true}); err != nil {
		t.Fatal(err)
	}
	all := b.do("delete-instance-pool", nil, "id", string(pool2))
	if slices.ContainsFunc(b.members(pool2), func(m instance.Doc) bool { return !told(m) }) {
		t.Error("members of a pool that goes wait")
	}
	b.hosts.Host("hv2").Silent = false
	b.succeeds(all)
	b.succeeds(op)
	b.refused(cloud.NotFound, "instance-pool", "get-instance-pool", nil, "id", string(pool2))
}

// TestAMemberWeighs: a label on a member reaches the services before its pool at
// once, and no host has to acknowledge anything first; so does its reset.
func TestAMemberWeighs(t *testing.T) {
	b := newFront(t, 2)
	pool, _, _ := b.served(2)
	one := b.members(pool)[0].ID
	weight := func() int {
		for _, backend := range b.services()[0].Body.Backends {
			if backend.Instance == one {
				return backend.Weight
			}
		}
		return 0
	}
	for _, step := range []struct {
		call api.Call
		want int
	}{
		{api.Call{Operation: capi.Find(capi.Operations, "update-instance"), Org: org, Args: map[string]string{"id": string(one)},
			Body: &cloud.UpdateInstanceRequest{Labels: cloud.Labels{cloud.LabelWeight: "7"}},
			Keys: map[string]json.RawMessage{"labels": json.RawMessage(`{"nlb-weight":"7"}`)}}, 7},
		{api.Call{Operation: capi.Find(capi.Operations, "reset-instance-field"), Org: org, Args: map[string]string{"id": string(one), "field": "labels"}}, 1},
	} {
		op, err := b.Handlers[step.call.Operation.ID](t.Context(), step.call)
		if err != nil || op.(*cloud.Operation).State != cloud.OperationSuccess || weight() != step.want {
			t.Errorf("%s: %+v, %v; it weighs %d, want %d", step.call.Operation.ID, op, err, weight(), step.want)
		}
	}
}
