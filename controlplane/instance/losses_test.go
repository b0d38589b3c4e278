// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/store"
)

// TestLossesCoverWhatHostsLose wanders through groups that name each other and
// instances that come and go: every removal has its intent. Those of instances,
// ports and announcements are counted exactly. The hosts look after each
// removal, since which of several operations answers for a policy that they all
// touched is not known here.
func TestLossesCoverWhatHostsLose(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	b := newBench(t, 3, "198.51.0.0/16")
	var groups, instances []cloud.ID
	for n := range 5 {
		groups = append(groups, b.do("create-security-group", &cloud.CreateSecurityGroupRequest{Name: fmt.Sprint("group", n)}).Reference.ID)
	}
	removed, peers := 0, 0
	for range 150 {
		switch k := r.IntN(10); {
		case k == 0:
			_, err := b.call("add-rule-to-security-group", &cloud.AddRuleRequest{FlowDirection: cloud.Ingress, Protocol: cloud.TCP, StartPort: 80, EndPort: 80,
				SecurityGroup: &cloud.SecurityGroupResource{ID: groups[r.IntN(len(groups))]}}, "id", string(groups[r.IntN(len(groups))]))
			if err == nil {
				peers++
			}
		case k < 6 || len(instances) == 0:
			var in []cloud.Ref
			for _, n := range r.Perm(len(groups))[:r.IntN(3)] {
				in = append(in, cloud.Ref{ID: groups[n]})
			}
			op := b.create(cloud.CreateInstanceRequest{SecurityGroups: in})
			if op.State == cloud.OperationPending {
				instances = append(instances, op.Reference.ID)
			}
		default:
			b.deliver()
			n := r.IntN(len(instances))
			op := b.do("delete-instance", nil, "id", string(instances[n]))
			instances = slices.Delete(instances, n, n+1)
			removed++
			b.exactly(op.ID)
			b.deliver()
		}
	}
	for _, id := range instances {
		b.do("delete-instance", nil, "id", string(id))
		b.deliver()
	}
	if left := b.held(); len(left) > 0 || removed == 0 || peers == 0 {
		t.Errorf("%d removed, %d rules, still allocated: %v", removed, peers, left)
	}
}

// exactly checks the intents of the removal of one instance.
func (b *bench) exactly(op cloud.ID) {
	b.t.Helper()
	var intents []store.Intent
	err := b.store.Read(b.t.Context(), func(tx *store.Tx) (err error) { intents, err = tx.Intents(op); return err })
	if err != nil {
		b.t.Fatal(err)
	}
	for _, kind := range []wire.Kind{wire.KindInstance, wire.KindPort, wire.KindAnnouncement} {
		if !slices.Contains(intents, store.Intent{Operation: op, Class: kind.String(), Count: 1}) {
			b.t.Errorf("kind %s is not counted once: %v", kind, intents)
		}
	}
}

// TestWithoutIntents is the control: the played hosts see a removal that nobody
// has counted.
func TestWithoutIntents(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	id := b.create(cloud.CreateInstanceRequest{}).Reference.ID
	b.deliver()
	_, err := b.store.Write(t.Context(), func(tx *store.Tx) error {
		d, err := Find(tx, org, id)
		if err != nil {
			return err
		}
		d.Body.State = cloud.InstanceDestroying
		return store.Put(tx, "", d)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.hosts.Deliver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(b.hosts.Faults) == 0 {
		t.Error("nobody noticed")
	}
}
