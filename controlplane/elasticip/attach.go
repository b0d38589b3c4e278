// SPDX-License-Identifier: Apache-2.0

package elasticip

import (
	"context"
	"errors"
	"slices"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// Join attaches an elastic IP to an instance, and stores both for op.
func (e *Elastics) Join(tx *store.Tx, op cloud.ID, d Doc, i *Instance) error {
	if !replica.Public(i.Body) {
		return cloud.Conflictf("instance %s has no public interface for elastic-ip %s", i.ID, d.ID)
	}
	i.Body.ElasticIPs = append(slices.Clone(i.Body.ElasticIPs), cloud.Ref{ID: d.ID})
	if err := store.Put(tx, op, *i); err != nil {
		return err
	}
	before := d.Body
	d.Body.Attached = append(slices.Clone(before.Attached), store.ElasticPlace{
		Instance: i.ID, Port: i.Body.Port, Host: i.Body.HostNumber, Generation: 1, Verdict: store.VerdictInitial,
	})
	return e.revise(tx, op, before, d)
}

// Leave detaches an elastic IP from an instance, and stores it for op, which gets
// leave for what hosts lose by it. The instance is not stored.
func (e *Elastics) Leave(tx *store.Tx, op cloud.ID, d Doc, i *Instance) error {
	i.Body.ElasticIPs = slices.DeleteFunc(slices.Clone(i.Body.ElasticIPs), func(r cloud.Ref) bool { return r.ID == d.ID })
	before := d.Body
	d.Body.Attached = slices.DeleteFunc(slices.Clone(before.Attached), func(p store.ElasticPlace) bool { return p.Instance == i.ID })
	return e.revise(tx, op, before, d)
}

// LeaveAll detaches what is attached to an instance that goes. The instance is not
// stored.
func (e *Elastics) LeaveAll(tx *store.Tx, op cloud.ID, i *Instance) error {
	for _, ref := range slices.Clone(i.Body.ElasticIPs) {
		d, err := Find(tx, i.Org, ref.ID)
		if err != nil {
			return err
		}
		if err := e.Leave(tx, op, d, i); err != nil {
			return err
		}
	}
	return nil
}

// Moved brings the elastic IPs of an instance in step with it, in the transaction
// that stored it for op, which may be empty.
func (e *Elastics) Moved(tx *store.Tx, op cloud.ID, i Instance) error {
	for _, ref := range i.Body.ElasticIPs {
		d, err := Find(tx, i.Org, ref.ID)
		if err != nil {
			return err
		}
		if err := e.revise(tx, op, d.Body, d); err != nil {
			return err
		}
	}
	return nil
}

// both reads the elastic IP and the instance of a request.
func both(tx *store.Tx, c api.Call) (Doc, Instance, error) {
	d, err := Find(tx, c.Org, c.ID("id"))
	if err != nil {
		return d, Instance{}, err
	}
	id := c.Body.(*cloud.InstanceRequest).Instance.ID
	i, err := store.Get[store.InstanceDoc](tx, c.Org, id)
	switch {
	case errors.Is(err, store.ErrNotFound):
		err = cloud.Missing("instance", id)
	case err != nil:
	case !replica.Placed(i.Body):
		err = cloud.Conflictf("instance %s is being deleted", id)
	}
	return d, i, err
}

// attach is the elastic IP's operation, and the instance's change.
func (e *Elastics) attach(ctx context.Context, c api.Call) (any, error) {
	return e.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, i, err := both(tx, c)
		plan := operation.Plan{Subject: d.Ref()}
		if err != nil {
			return plan, err
		}
		if plan.Unchanged = i.Body.HasElastic(d.ID); plan.Unchanged {
			return plan, nil
		}
		return plan, e.Join(tx, op, d, &i)
	})
}

func (e *Elastics) detach(ctx context.Context, c api.Call) (any, error) {
	return e.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, i, err := both(tx, c)
		plan := operation.Plan{Subject: d.Ref(), Tightens: true}
		if err != nil {
			return plan, err
		}
		if plan.Unchanged = !i.Body.HasElastic(d.ID); plan.Unchanged {
			return plan, nil
		}
		if err := e.Leave(tx, op, d, &i); err != nil {
			return plan, err
		}
		return plan, store.Put(tx, op, i)
	})
}
