// SPDX-License-Identifier: Apache-2.0

// Package pool keeps instance pools: a number of equal instances that come and
// go together. It owns the pools' machine, and the programs that wait for all
// members that an operation makes or removes. Members are instances: how one is
// placed, made and removed is package instance's business. What stands in front
// of a pool, its load balancers, follows by way of Follower.
//
// Start at Handlers, then machine.go and program.go.
package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/fsm"
	"cairn/controlplane/instance"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

const noun = string(store.KindPool)

// Doc is a pool as it is stored.
type Doc = store.Doc[store.PoolDoc]

// Follower is what stands in front of a pool. PoolChanged is called in the
// transaction in which a member comes to run, ceases to, is marked leaving, or is
// told to go, for the operation op, which may be empty; rather too often than
// not. It gives op leave for what hosts lose by what it does itself.
type Follower interface {
	PoolChanged(ctx context.Context, tx *store.Tx, pool, op cloud.ID) error
	// Drains names the leaving members of a pool that may still get packets.
	// Pools.Drained is told when there are fewer.
	Drains(tx *store.Tx, pool cloud.ID) ([]cloud.ID, error)
}

// DefaultLinger is how long leaving members keep the flows that they have once
// they get no new ones. What goes on for longer is cut.
const DefaultLinger = 30 * time.Second

// Pools keeps pools in a store. What is exported is set before it is used.
type Pools struct {
	Follower Follower      // may be nil
	Wake     func()        // of the worker that runs the programs; may be nil
	Linger   time.Duration // DefaultLinger

	store     *store.Store
	gate      *operation.Gate
	instances *instance.Instances
}

// New keeps pools, registers them with the gate, and manages their members.
func New(s *store.Store, g *operation.Gate, i *instance.Instances) *Pools {
	p := &Pools{Linger: DefaultLinger, store: s, gate: g, instances: i}
	i.Manager = p
	g.Register(operation.Noun{Kind: store.KindPool, ByStatus: true, Settle: p.settle})
	return p
}

// Handlers performs the operations on pools.
func (p *Pools) Handlers() api.Handlers {
	return api.Handlers{
		"list-instance-pools":         p.list,
		"create-instance-pool":        p.create,
		"get-instance-pool":           p.get,
		"update-instance-pool":        p.update,
		"delete-instance-pool":        p.delete,
		"scale-instance-pool":         p.scale,
		"evict-instance-pool-members": p.evict,
	}
}

// Find reads a pool. A refusal says that there is none.
func Find(tx *store.Tx, org, id cloud.ID) (Doc, error) {
	d, err := store.Get[store.PoolDoc](tx, org, id)
	if errors.Is(err, store.ErrNotFound) {
		err = cloud.Missing(noun, id)
	}
	return d, err
}

// Members lists the members of a pool, those that are leaving too, the oldest
// first.
func Members(tx *store.Tx, id cloud.ID) ([]instance.Doc, error) {
	users, err := tx.Referrers(store.Ref{Kind: store.KindPool, ID: id})
	if err != nil {
		return nil, err
	}
	var members []instance.Doc
	for _, u := range users {
		if u.Kind != store.KindInstance {
			continue
		}
		d, err := store.Get[store.InstanceDoc](tx, "", u.ID)
		if err != nil {
			return nil, err
		}
		members = append(members, d)
	}
	slices.SortFunc(members, func(a, b instance.Doc) int {
		return cmp.Or(a.Body.CreatedAt.Compare(b.Body.CreatedAt), cmp.Compare(a.Body.Port, b.Body.Port))
	})
	return members, nil
}

// staying are the members that are not on their way out.
func staying(members []instance.Doc) []instance.Doc {
	return slices.DeleteFunc(slices.Clone(members), leaving)
}

func leaving(d instance.Doc) bool { return !d.Body.Leaving.IsZero() || told(d) }

// told says that the hosts are told to let a member go.
func told(d instance.Doc) bool { return d.Body.State == cloud.InstanceDestroying }

func state(d Doc) fsm.State { return fsm.State(d.Body.State) }

// read is a pool as its owner sees it.
func read(tx *store.Tx, d Doc) (cloud.InstancePool, error) {
	answer := d.Body.InstancePool
	answer.InstancePrefix = cmp.Or(answer.InstancePrefix, cloud.DefaultInstancePrefix)
	members, err := Members(tx, d.ID)
	for _, m := range members {
		answer.Instances = append(answer.Instances, cloud.Ref{ID: m.ID})
	}
	return answer, err
}

func (p *Pools) get(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.InstancePool
	err := p.store.Read(ctx, func(tx *store.Tx) error {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return err
		}
		answer, err = read(tx, d)
		return err
	})
	return answer, err
}

func (p *Pools) list(ctx context.Context, c api.Call) (any, error) {
	answer := cloud.InstancePoolList{InstancePools: []cloud.InstancePool{}}
	err := p.store.Read(ctx, func(tx *store.Tx) error {
		docs, err := store.List[store.PoolDoc](tx, c.Org)
		if err != nil {
			return err
		}
		for _, d := range docs {
			one, err := read(tx, d)
			if err != nil {
				return err
			}
			answer.InstancePools = append(answer.InstancePools, one)
		}
		return nil
	})
	return answer, err
}

func (p *Pools) changed(tx *store.Tx, pool, op cloud.ID) error {
	if p.Follower == nil {
		return nil
	}
	if err := p.Follower.PoolChanged(tx.Context(), tx, pool, op); err != nil {
		return fmt.Errorf("in front of pool %s: %w", pool, err)
	}
	return nil
}
