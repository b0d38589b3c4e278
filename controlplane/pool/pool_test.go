// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/fsm"
	"cairn/controlplane/store"
)

func TestMachine(t *testing.T) {
	if err := machine.Verify("run", "forget"); err != nil {
		t.Fatal(err)
	}
	broken := machine
	broken.Rows = slices.Clone(machine.Rows)
	broken.Rows[5].On = nil
	if err := broken.Verify("run", "forget"); err == nil {
		t.Error("a machine that cannot be left passes")
	}
}

// world is what there is of a pool's members.
type world struct{ members, forgotten bool }

// TestBadWorld: programs that are run twice, late and half, and answer late, do
// not let a pool be forgotten while it has members; without generations they do.
func TestBadWorld(t *testing.T) {
	model := func(fence fsm.Fence) fsm.Model[world] {
		return fsm.Model[world]{
			Machine: &machine, Fence: fence, Budget: 3,
			External: []fsm.Event{"update", Grow, Shrink, "delete", Failed, "nacked"},
			Apply: func(w world, e fsm.Effect) world {
				switch {
				case e.Name == "forget":
					w.forgotten = true
				default:
					w.members = e.Args[0] == "running"
				}
				return w
			},
			Replies: func([]fsm.Effect) []fsm.Event { return []fsm.Event{Done} },
			Bad: func(s fsm.State, w world) string {
				if w.forgotten && (w.members || s != destroyed) {
					return "forgotten while it is " + string(s) + " or has members"
				}
				return ""
			},
		}
	}
	r, err := model(fsm.AtApply).Explore()
	if err != nil || r.Bad > 0 || r.States < 50 {
		t.Errorf("%d states, %d bad, %v: %+v", r.States, r.Bad, err, r.First)
	}
	if r, err = model(fsm.Unfenced).Explore(); err != nil || r.Bad == 0 {
		t.Errorf("without generations: %d states, %d bad, %v", r.States, r.Bad, err)
	}
}

func TestLife(t *testing.T) {
	b := newBench(t, 3)
	op := b.do("create-instance-pool", request(4))
	id := op.Reference.ID
	b.want(id, cloud.PoolCreating, 4, 4)
	b.succeeds(op)
	b.want(id, cloud.PoolRunning, 4, 4)
	spread := map[cloud.ID]int{}
	for _, m := range b.members(id) {
		spread[m.Body.Hypervisor]++
		if ok, _ := regexp.MatchString(`^pool-`+string(id[:5])+`-[a-z0-9]{5}$`, m.Body.Name); !ok {
			t.Errorf("member is called %q", m.Body.Name)
		}
		if m.Body.Manager == nil || m.Body.Manager.ID != id || m.Body.Manager.Type != "instance-pool" || m.Body.State != cloud.InstanceRunning {
			t.Errorf("member %+v", m.Body.Instance)
		}
	}
	if len(spread) != 3 || slices.Max([]int{spread[b.members(id)[0].Body.Hypervisor]}) > 2 {
		t.Errorf("spread %v, want 2/1/1", spread)
	}
	if b.front.count(id) == 0 {
		t.Error("nobody in front was told")
	}

	up := b.scale(id, 6)
	b.want(id, cloud.PoolScalingUp, 6, 6)
	if again := b.scale(id, 6); again.ID != up.ID {
		t.Errorf("scaling twice: %s and %s", up.ID, again.ID)
	}
	b.refused(cloud.Conflict, string(up.ID), "scale-instance-pool", &cloud.ScaleInstancePoolRequest{Size: 2}, "id", string(id))
	b.succeeds(up)
	if same := b.scale(id, 6); same.State != cloud.OperationSuccess {
		t.Errorf("the size that it has: %+v", same)
	}

	told := b.front.count(id)
	down := b.scale(id, 2)
	if b.front.count(id) == told {
		t.Error("who is in front was not told in the transaction that takes members out")
	}
	b.want(id, cloud.PoolScalingDown, 2, 6)
	b.succeeds(down)
	b.want(id, cloud.PoolRunning, 2, 2)

	chosen := b.members(id)[1].ID
	b.succeeds(b.do("evict-instance-pool-members", &cloud.EvictInstancePoolMembersRequest{Instances: []cloud.ID{chosen}}, "id", string(id)))
	if p := b.want(id, cloud.PoolRunning, 1, 1); p.Instances[0].ID == chosen {
		t.Error("the wrong one was evicted")
	}
	b.refused(cloud.Invalid, "instances[0]", "evict-instance-pool-members", &cloud.EvictInstancePoolMembersRequest{Instances: []cloud.ID{chosen}}, "id", string(id))
	b.succeeds(b.scale(id, 0))
	b.want(id, cloud.PoolRunning, 0, 0)
	b.succeeds(b.scale(id, 2))
	b.remove(id)
}

// remove deletes a pool, and looks for what is left of it.
func (b *bench) remove(id cloud.ID) {
	b.t.Helper()
	op := b.do("delete-instance-pool", nil, "id", string(id))
	b.succeeds(op)
	b.refused(cloud.NotFound, "instance-pool", "get-instance-pool", nil, "id", string(id))
	if left := b.held(); len(left) > 0 {
		b.t.Errorf("still allocated: %v", left)
	}
	for _, kind := range []wire.Kind{wire.KindInstance, wire.KindPort, wire.KindPolicy, wire.KindAnnouncement} {
		if n := b.hosts.Held(kind); n > 0 {
			b.t.Errorf("hosts still hold %d of kind %s", n, kind)
		}
	}
}

func TestScaleDownTakesTheOldest(t *testing.T) {
	b := newBench(t, 2)
	id := b.create(2)
	old := b.members(id)
	b.now = b.now.Add(time.Minute)
	b.succeeds(b.scale(id, 4))
	b.succeeds(b.scale(id, 2))
	for _, m := range b.members(id) {
		if m.ID == old[0].ID || m.ID == old[1].ID {
			t.Errorf("an old member stays: %s", m.ID)
		}
	}
}

// TestDeleteWaits: a delete ends when the last host has let its member go, also
// across a restart, and after the deadline.
func TestDeleteWaits(t *testing.T) {
	b := newBench(t, 3)
	id := b.create(3)
	b.hosts.Host("hv2").Silent = true
	op := b.do("delete-instance-pool", nil, "id", string(id))
	b.deliver()
	if o := b.operation(op.ID); o.State != cloud.OperationPending {
		t.Fatalf("it did not wait: %+v", o)
	}
	if again := b.do("delete-instance-pool", nil, "id", string(id)); again.ID != op.ID {
		t.Errorf("deleting twice: %s and %s", op.ID, again.ID)
	}
	b.want(id, cloud.PoolDestroying, 3, 3)
	b.restart()
	b.want(id, cloud.PoolDestroying, 3, 3)
	b.pass(5*time.Minute + 90*time.Second + time.Second)
	b.ends(op, cloud.OperationTimeout, cloud.ReasonUnavailable, "")
	b.want(id, cloud.PoolDestroying, 3, 3)
	b.hosts.Host("hv2").Silent = false
	b.deliver()
	b.eventually("pool gone", func() bool {
		_, err := b.call("get-instance-pool", nil, "id", string(id))
		return err != nil
	})
	if left := b.held(); len(left) > 0 {
		t.Errorf("still allocated: %v", left)
	}
}

func (b *bench) eventually(what string, ok func() bool) {
	b.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(waits); !ok(); {
		select {
		case <-tick.C:
		case <-limit:
			b.t.Fatalf("never: %s", what)
		}
	}
}

// TestDeleteInTheMiddle: a delete is accepted while members come or go.
func TestDeleteInTheMiddle(t *testing.T) {
	for _, what := range []string{"creating", "scaling-up", "scaling-down", "evicting", "suspended", "a member deleted"} {
		t.Run(what, func(t *testing.T) {
			b := newBench(t, 3)
			var other *cloud.Operation
			state, reason := cloud.OperationFailure, cloud.ReasonInterrupted
			var id cloud.ID
			if what == "creating" {
				other = b.do("create-instance-pool", request(3))
				id = other.Reference.ID
			} else {
				id = b.create(3)
			}
			switch what {
			case "scaling-up":
				other = b.scale(id, 5)
			case "scaling-down":
				other, state, reason = b.scale(id, 1), cloud.OperationSuccess, ""
			case "evicting":
				other, state, reason = b.do("evict-instance-pool-members", &cloud.EvictInstancePoolMembersRequest{Instances: []cloud.ID{b.members(id)[0].ID}}, "id", string(id)), cloud.OperationSuccess, ""
			case "a member deleted":
				other, state, reason = b.do("delete-instance", nil, "id", string(b.members(id)[0].ID)), cloud.OperationSuccess, ""
			case "suspended":
				other, state, reason = b.scale(id, 4), cloud.OperationFailure, cloud.ReasonFault
				members := b.members(id)
				b.hosts.Broken[members[len(members)-1].ID] = "no space left"
				b.ends(other, state, reason, "no space left")
				b.want(id, cloud.PoolSuspended, 4, 4)
			}
			b.remove(id)
			b.ends(other, state, reason, "")
		})
	}
}

// TestSuspended: one member that fails stops no other; the pool is suspended
// until it runs.
func TestSuspended(t *testing.T) {
	b := newBench(t, 2)
	op := b.do("create-instance-pool", request(2))
	id := op.Reference.ID
	ill := b.members(id)[0].ID
	b.hosts.Broken[ill] = "no space left"
	b.ends(op, cloud.OperationFailure, cloud.ReasonFault, "no space left")
	b.want(id, cloud.PoolSuspended, 2, 2)
	if m := b.members(id)[1]; m.Body.State != cloud.InstanceRunning {
		t.Errorf("the other member is %s", m.Body.State)
	}
	delete(b.hosts.Broken, ill)
	b.deliver()
	b.want(id, cloud.PoolRunning, 2, 2)

	up := b.scale(id, 3)
	late := b.members(id)[2].ID
	b.hosts.Slow[late] = true
	b.deliver()
	b.pass(5*time.Minute + 30*time.Second + time.Second)
	b.ends(up, cloud.OperationTimeout, cloud.ReasonUnavailable, "instances of pool")
	b.want(id, cloud.PoolSuspended, 3, 3)
	down := b.scale(id, 2) // takes the oldest, not the late one
	b.succeeds(down)
	delete(b.hosts.Slow, late)
	b.deliver()
	b.want(id, cloud.PoolRunning, 2, 2)
	b.remove(id)
}

// TestDeleteOfAMember takes it out of the pool, also while the pool waits for it.
func TestDeleteOfAMember(t *testing.T) {
	b := newBench(t, 2)
	id := b.create(2)
	b.succeeds(b.do("delete-instance", nil, "id", string(b.members(id)[0].ID)))
	b.want(id, cloud.PoolRunning, 1, 1)
	up := b.scale(id, 2)
	young := b.members(id)[1].ID
	if m := b.members(id)[1]; m.Body.State != cloud.InstanceStarting {
		young = b.members(id)[0].ID
	}
	gone := b.do("delete-instance", nil, "id", string(young))
	b.ends(up, cloud.OperationFailure, cloud.ReasonFault, "was deleted")
	b.succeeds(gone)
	b.want(id, cloud.PoolRunning, 1, 1) // as it is wanted now
	b.succeeds(b.scale(id, 2))
	b.want(id, cloud.PoolRunning, 2, 2)
	b.remove(id)
}

// TestNoRoom: all members are placed or none.
func TestNoRoom(t *testing.T) {
	b := newBench(t, 3)
	group := b.do("create-anti-affinity-group", &cloud.CreateAntiAffinityGroupRequest{Name: "apart"}).Reference.ID
	r := request(4)
	r.AntiAffinityGroups = []cloud.Ref{{ID: group}}
	b.ends(b.do("create-instance-pool", r), cloud.OperationFailure, cloud.ReasonUnavailable, "apart")
	if left := b.held(); len(left) > 0 {
		t.Errorf("still allocated: %v", left)
	}
	r.Size = 3
	op := b.do("create-instance-pool", r)
	b.succeeds(op)
	b.ends(b.scale(op.Reference.ID, 4), cloud.OperationFailure, cloud.ReasonUnavailable, "apart")
	b.want(op.Reference.ID, cloud.PoolRunning, 3, 3)
}

func TestUpdate(t *testing.T) {
	b := newBench(t, 2)
	id := b.create(2)
	put := func(body string) (*cloud.Operation, error) {
		var r cloud.UpdateInstancePoolRequest
		var keys map[string]json.RawMessage
		if err := json.Unmarshal([]byte(body), &r); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(body), &keys); err != nil {
			t.Fatal(err)
		}
		return b.put(id, &r, keys)
	}
	data := base64.StdEncoding.EncodeToString([]byte("#!/bin/sh\n"))
	if op, err := put(fmt.Sprintf(`{"name":"web2","description":"words","instance-prefix":"w","user-data":%q,"min-available":1}`, data)); err != nil || op.State != cloud.OperationSuccess {
		t.Fatal(op, err)
	}
	if op, err := put(`{"instance-prefix":"w"}`); err != nil || op.State != cloud.OperationSuccess {
		t.Fatal(op, err)
	}
	old := b.members(id)
	b.succeeds(b.scale(id, 3))
	for _, m := range b.members(id) {
		isOld := slices.ContainsFunc(old, func(o store.Doc[store.InstanceDoc]) bool { return o.ID == m.ID })
		if isOld == (string(m.Body.UserDataRaw) == "#!/bin/sh\n") {
			t.Errorf("member %s, old %v, has user-data %q", m.Body.Name, isOld, m.Body.UserDataRaw)
		}
		if !isOld && m.Body.Name[:2] != "w-" {
			t.Errorf("new member is called %s", m.Body.Name)
		}
	}
	b.refused(cloud.Invalid, "min-available", "scale-instance-pool", &cloud.ScaleInstancePoolRequest{Size: 0}, "id", string(id))
	if _, err := put(`{"description":null,"instance-prefix":null,"min-available":null,"user-data":null,"security-groups":null,"anti-affinity-groups":null}`); err != nil {
		t.Fatal(err)
	}
	if p := b.pool(id); p.Name != "web2" || p.Description != "" || p.InstancePrefix != "pool" || p.MinAvailable != 0 || p.UserData != "" {
		t.Errorf("pool %+v", p)
	}
	for body, text := range map[string]string{
		`{"security-groups":[{"id":"` + string(cloud.NewID()) + `"}]}`:  "security-groups[0].id",
		`{"ssh-keys":[{"name":"nobody"}]}`:                              "ssh-keys[0].name",
		`{"name":null}`:                                                 "name",
		`{"min-available":7}`:                                           "min-available",
		`{"private-networks":[{"id":"` + string(cloud.NewID()) + `"}]}`: "private-networks[0].id",
	} {
		var e *cloud.Error
		if _, err := put(body); !asInvalid(err, &e) || !regexp.MustCompile(regexp.QuoteMeta(text)).MatchString(e.Message) {
			t.Errorf("%s: %v, want a refusal of %s", body, err, text)
		}
	}
}

// TestUsed: a pool behind a service stays, and so does what it refers to.
func TestUsed(t *testing.T) {
	b := newBench(t, 1)
	id := b.create(1)
	service := store.Doc[store.ServiceDoc]{ID: cloud.NewID(), Org: org}
	service.Body.ID, service.Body.InstancePool, service.Body.State = service.ID, cloud.Ref{ID: id}, cloud.ServiceRunning
	write := func(fn func(*store.Tx) error) {
		if _, err := b.store.Write(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	write(func(tx *store.Tx) error { return store.Put(tx, "", service) })
	b.refused(cloud.Conflict, string(service.ID), "delete-instance-pool", nil, "id", string(id))
	b.want(id, cloud.PoolRunning, 1, 1)
	write(func(tx *store.Tx) error { return tx.Delete("", service.Ref()) })
	b.remove(id)
}
