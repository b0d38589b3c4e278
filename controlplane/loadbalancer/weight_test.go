// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"errors"
	"testing"

	"cairn/cloud"
	"cairn/controlplane/store"
)

// A member's label says how many times another's share of the slots it gets;
// what says no weight is one.
func TestWeights(t *testing.T) {
	b := newBench(t)
	b.runs(3)
	id, _ := b.add(b.create("nlb"), web(b.pool, "web", 80))
	label := func(member int, weight string) {
		t.Helper()
		b.write(func(tx *store.Tx) error {
			d, err := store.Get[store.InstanceDoc](tx, org, b.members[member])
			if err != nil {
				return err
			}
			d.Body.Labels = cloud.Labels{cloud.LabelWeight: weight}
			return errors.Join(store.Put(tx, "", d), b.PoolChanged(t.Context(), tx, b.pool, ""))
		})
	}
	for _, c := range []struct {
		member int
		weight string
		want   [3]int
	}{
		{0, "2", [3]int{128, 64, 64}},
		{1, "0", [3]int{128, 64, 64}},
		{1, "101", [3]int{128, 64, 64}},
		{1, "heavy", [3]int{128, 64, 64}},
		{1, "5", [3]int{64, 160, 32}},
		{0, "", [3]int{37, 183, 36}},
	} {
		label(c.member, c.weight)
		b.now = b.now.Add(patience) // for balance alone a slot that has just moved waits
		b.flush(t.Context())
		shares := b.table(id).Shares()
		for i, want := range c.want {
			got := shares[b.service(id).Body.Backends[i].Number]
			if got < want-1 || got > want+1 {
				t.Errorf("member %d weighs %q: shares %v, want about %v", c.member, c.weight, shares, c.want)
			}
		}
	}
}
