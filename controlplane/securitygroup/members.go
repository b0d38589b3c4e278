// SPDX-License-Identifier: Apache-2.0

package securitygroup

import (
	"context"
	"errors"
	"slices"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

// Members lists the instances that are in a group.
func Members(tx *store.Tx, id cloud.ID) ([]cloud.ID, error) {
	users, err := tx.Referrers(store.Ref{Kind: store.KindSecurityGroup, ID: id})
	var members []cloud.ID
	for _, u := range users {
		if u.Kind == store.KindInstance {
			members = append(members, u.ID)
		}
	}
	return members, err
}

// Enter gives the number of the class that a set of groups makes, and takes it
// if it is the first instance in it. Groups that have too many rules together
// are refused.
func Enter(tx *store.Tx, groups []cloud.Ref) (uint32, error) {
	number, err := tx.Number(store.NumberClass, store.ClassOwner(groups))
	if !errors.Is(err, store.ErrNotFound) {
		return number, err
	}
	if err := Fits(tx, groups); err != nil {
		return 0, err
	}
	return tx.Allocate(store.NumberClass, store.ClassOwner(groups))
}

// Leave gives the number of a class back if no instance is left in it. Call it
// when the instance has been put with its new groups, or deleted. It reports
// whether the class has gone.
func Leave(tx *store.Tx, groups []cloud.Ref) (bool, error) {
	left, err := tx.Referrers(store.ClassRef(groups))
	if err != nil || len(left) > 0 {
		return false, err
	}
	return true, tx.Free(store.NumberClass, store.ClassOwner(groups))
}

func (sg groups) attach(ctx context.Context, c api.Call) (any, error) {
	return sg.regroup(ctx, c, func(of []cloud.Ref, group cloud.ID) []cloud.Ref {
		if slices.Contains(of, cloud.Ref{ID: group}) {
			return of
		}
		return append(slices.Clone(of), cloud.Ref{ID: group})
	})
}

func (sg groups) detach(ctx context.Context, c api.Call) (any, error) {
	return sg.regroup(ctx, c, func(of []cloud.Ref, group cloud.ID) []cloud.Ref {
		return slices.DeleteFunc(slices.Clone(of), func(r cloud.Ref) bool { return r.ID == group })
	})
}

// regroup changes the groups of an instance, and with them its class. It is
// the group's operation, and the instance's change. The instance's generation
// stays: it counts what the machine is wanted to be, not who may talk to it.
func (sg groups) regroup(ctx context.Context, c api.Call, change func([]cloud.Ref, cloud.ID) []cloud.Ref) (any, error) {
	r := c.Body.(*cloud.InstanceRequest)
	return sg.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		group, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		d, err := store.Get[store.InstanceDoc](tx, c.Org, r.Instance.ID)
		if errors.Is(err, store.ErrNotFound) {
			err = cloud.Missing("instance", r.Instance.ID)
		}
		if err != nil {
			return operation.Plan{}, err
		}
		switch d.Body.State {
		case cloud.InstanceDestroying, cloud.InstanceDestroyed, cloud.InstanceExpunging:
			return operation.Plan{}, cloud.Conflictf("instance %s is being deleted", d.ID)
		}
		before := d.Body.SecurityGroups
		after := change(before, group.ID)
		plan := operation.Plan{
			Subject: group.Ref(), Tightens: len(after) < len(before) || closed(group.Body), Unchanged: len(after) == len(before),
		}
		if plan.Unchanged {
			return plan, nil
		}
		was := d.Body.Class
		d.Body.SecurityGroups = after
		if d.Body.Class, err = Enter(tx, after); err != nil {
			return plan, err
		}
		if err := store.Put(tx, op, d); err != nil {
			return plan, err
		}
		if _, err := Leave(tx, before); err != nil {
			return plan, err
		}
		lost := newShed(tx)
		lost.regrouped(was)
		if len(after) < len(before) {
			err = lost.left(group, d)
		}
		plan.Intents = lost.intents()
		return plan, err
	})
}
