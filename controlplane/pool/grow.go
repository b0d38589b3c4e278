// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/cloud"
	"cairn/cloud/place"
	"cairn/controlplane/api"
	"cairn/controlplane/instance"
	"cairn/controlplane/operation"
	"cairn/controlplane/program"
	"cairn/controlplane/sshkey"
	"cairn/controlplane/store"
)

func (p *Pools) create(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.CreateInstancePoolRequest)
	return p.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		id := cloud.NewID()
		d := Doc{ID: id, Org: c.Org, Generation: 1, Body: store.PoolDoc{InstancePool: *r.Pool(id)}}
		d.Body.State, d.Body.CreatedAt, d.Body.Size = cloud.InstancePoolState(machine.Initial), tx.Now().UTC(), 0
		return p.grow(tx, op, d, r.Size)
	})
}

// grow stores a pool with n more members: all of them or, if there is no room
// for all, an operation that fails and changes nothing.
func (p *Pools) grow(tx *store.Tx, op cloud.ID, d Doc, n int) (operation.Plan, error) {
	plan := operation.Plan{Subject: d.Ref(), Generation: d.Generation}
	order, err := p.orderOf(tx, d)
	if err != nil {
		return plan, err
	}
	hosts, err := instance.Place(tx, order, n)
	if errors.Is(err, place.ErrUnavailable) {
		plan.Failed = &operation.Outcome{Reason: cloud.ReasonUnavailable, Message: err.Error()}
		return plan, nil
	}
	if err != nil {
		return plan, err
	}
	d.Body.Size += n
	if err := store.Put(tx, op, d); err != nil {
		return plan, err
	}
	waits := make([]program.Node, n)
	for k, at := range hosts {
		id := cloud.NewID()
		if _, err := instance.Make(tx, op, id, name(d), order, at); err != nil {
			return plan, err
		}
		waits[k] = awaitStart(id)
	}
	plan.Waiting = fmt.Sprintf("%d instances of pool %s to start", n, d.ID)
	return p.run(tx, op, plan, program.Par(waits...), len(waits))
}

// orderOf is what new members are made from. Keys that were deleted since the
// pool was told of them are left out.
func (p *Pools) orderOf(tx *store.Tx, d Doc) (instance.Order, error) {
	b := d.Body
	r := cloud.CreateInstanceRequest{
		InstanceType: b.InstanceType, Template: b.Template, DiskSize: b.DiskSize, SSHKey: b.SSHKey, SSHKeys: slices.Clone(b.SSHKeys),
		UserData: b.UserData, SecurityGroups: b.SecurityGroups, AntiAffinityGroups: b.AntiAffinityGroups,
		PublicIPAssignment: b.PublicIPAssignment, DeployTarget: b.DeployTarget, Labels: b.Labels,
		IPv6Enabled: b.IPv6Enabled, ConsistentSnapshot: b.ConsistentSnapshot,
	}
	if d.Revision != 0 {
		gone := func(k cloud.SSHKeyRef) bool { _, err := sshkey.Named(tx, d.Org, k.Name); return err != nil }
		if r.SSHKey != nil && gone(*r.SSHKey) {
			r.SSHKey = nil
		}
		r.SSHKeys = slices.DeleteFunc(r.SSHKeys, gone)
	}
	order, err := instance.Check(tx, d.Org, r)
	order.Pool = d.ID
	if err == nil {
		err = p.instances.Into(tx, &order, b.PrivateNetworks, b.ElasticIPs)
	}
	return order, err
}

// name of a new member: the pool's prefix, the start of the pool's id, and
// something random.
func name(d Doc) string {
	prefix := cmp.Or(d.Body.InstancePrefix, cloud.DefaultInstancePrefix)
	return fmt.Sprintf("%s-%s-%s", prefix, d.ID[:5], strings.ToLower(rand.Text()[:5]))
}

func (p *Pools) scale(ctx context.Context, c api.Call) (any, error) {
	size := c.Body.(*cloud.ScaleInstancePoolRequest).Size
	return p.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		now := d.Body.Size
		switch {
		case size < d.Body.MinAvailable:
			return operation.Plan{}, cloud.Invalidf("size", "expected at least min-available, %d", d.Body.MinAvailable)
		case size == now && state(d) != destroying:
			return p.asItIs(tx, d)
		case size > now:
			if err := p.step(tx, &d, Grow); err != nil {
				return operation.Plan{}, err
			}
			return p.grow(tx, op, d, size-now)
		}
		if err := p.step(tx, &d, Shrink); err != nil {
			return operation.Plan{}, err
		}
		members, err := Members(tx, d.ID)
		if err != nil {
			return operation.Plan{}, err
		}
		oldest := staying(members)
		return p.shrink(tx, op, d, oldest[:min(now-size, len(oldest))])
	})
}

// asItIs answers a wish for the size that the pool has, or is on its way to.
func (p *Pools) asItIs(tx *store.Tx, d Doc) (operation.Plan, error) {
	plan := operation.Plan{Subject: d.Ref()}
	pending, err := tx.Pending(d.Ref())
	if err == nil && len(pending) > 0 {
		plan.UnderWay = pending[0].ID
		return plan, nil
	}
	plan.Unchanged = true
	return plan, err
}
