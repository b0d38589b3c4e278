// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"errors"
	"fmt"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/privatenetwork"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/store"
)

func (i *Instances) start(ctx context.Context, c api.Call) (any, error) {
	if r, ok := c.Body.(*cloud.StartInstanceRequest); ok && r != nil && r.RescueProfile != "" {
		return nil, cloud.Invalidf("rescue-profile", "expected none: the template does not support it")
	}
	return i.want(ctx, c, Start, store.WantedRunning)
}

func (i *Instances) stop(ctx context.Context, c api.Call) (any, error) {
	return i.want(ctx, c, Stop, store.WantedStopped)
}

// want changes what an instance is wanted to be.
func (i *Instances) want(ctx context.Context, c api.Call, e fsm.Event, wanted string) (any, error) {
	return i.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		plan := operation.Plan{Subject: d.Ref()}
		if !d.Body.Leaving.IsZero() {
			busy, err := i.UnderWay(tx, d)
			if err == nil {
				err = cloud.Busy(noun, d.ID, busy)
			}
			return plan, err
		}
		r, err := operation.Step(tx, &machine, d.Ref(), state(d), e)
		if err != nil {
			return plan, err
		}
		if r.Verdict == fsm.Ignored {
			plan.UnderWay, err = i.UnderWay(tx, d)
			plan.Unchanged = plan.UnderWay == ""
			return plan, err
		}
		host, err := hostOf(tx, d)
		if err != nil {
			return plan, err
		}
		d.Body.State, d.Body.Wanted = cloud.InstanceState(r.State), wanted
		d.Generation++
		plan.Generation, plan.Waiting = d.Generation, fmt.Sprintf("%s to %s instance %s", host, e, d.ID)
		if err := store.Put(tx, op, d); err != nil {
			return plan, err
		}
		return plan, i.moved(tx, op, "", d)
	})
}

// hostOf names the hypervisor of an instance.
func hostOf(tx *store.Tx, d Doc) (string, error) {
	h, err := store.Get[store.HypervisorDoc](tx, "", d.Body.Hypervisor)
	return h.Body.Name, err
}

// moved tells the manager of members, and who moves their elastic IPs.
func (i *Instances) moved(tx *store.Tx, op cloud.ID, why string, d ...Doc) error {
	var members []Doc
	for _, one := range d {
		if i.Elastics != nil && len(one.Body.ElasticIPs) > 0 {
			if err := i.Elastics.Moved(tx, op, one); err != nil {
				return err
			}
		}
		if one.Body.Pool != "" {
			members = append(members, one)
		}
	}
	if len(members) == 0 || i.Manager == nil {
		return nil
	}
	return i.Manager.Moved(tx, op, why, members...)
}

// delete takes an instance away. A member of a pool is taken out of it: the
// pool is smaller by one afterwards, as if the member had been evicted.
func (i *Instances) delete(ctx context.Context, c api.Call) (any, error) {
	return i.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		if d.Body.Protected {
			return operation.Plan{}, cloud.Forbiddenf("Operation delete-instance on resource %s is forbidden - reason: manual instance protection", d.ID)
		}
		plan := operation.Plan{Subject: d.Ref()}
		if state(d) == destroying || !d.Body.Leaving.IsZero() {
			if plan.UnderWay, err = i.UnderWay(tx, d); err != nil || plan.UnderWay != "" {
				return plan, err
			}
		}
		if state(d) == destroying {
			// Its operation has ended before it: this one waits in its place.
			d.Generation++
			plan.Generation = d.Generation
			return plan, store.Put(tx, op, d)
		}
		host, err := hostOf(tx, d)
		if err != nil {
			return plan, err
		}
		if plan.Intents, err = i.Destroy(tx, op, &d); err != nil {
			return plan, err
		}
		plan.Generation, plan.Waiting = d.Generation, fmt.Sprintf("%s to let instance %s go", host, d.ID)
		if d.Body.Pool == "" || i.Manager == nil {
			return plan, nil
		}
		if !d.Body.Leaving.IsZero() { // the pool is smaller already
			return plan, i.moved(tx, op, "", d)
		}
		return plan, i.Manager.Leaves(tx, op, d)
	})
}

// Leave marks instances as on their way out. They run on and are held as before:
// it is for those who send them flows to let go of them. Whoever acts for op
// calls Destroy when they have. The intents are what the hosts lose by that at
// most, whatever else they lose before.
func (i *Instances) Leave(tx *store.Tx, op cloud.ID, leaving ...*Doc) ([]store.Intent, error) {
	intents, err := losses(tx, leaving, true)
	if err != nil {
		return nil, err
	}
	for _, d := range leaving {
		d.Body.Leaving = tx.Now().UTC()
		if err := store.Put(tx, op, *d); err != nil {
			return nil, err
		}
	}
	return intents, nil
}

// Close marks instances that leave: all hosts know that they do.
func (i *Instances) Close(tx *store.Tx, op cloud.ID, leaving ...Doc) error {
	for _, d := range leaving {
		d.Body.Closed = true
		if err := store.Put(tx, op, d); err != nil {
			return err
		}
	}
	return nil
}

// Destroy marks instances destroying: from here on the hosts are told to let
// them go. Whoever acts for op calls Remove when they have. The intents are what
// the hosts lose by it; for those that Leave has marked they are given already.
func (i *Instances) Destroy(tx *store.Tx, op cloud.ID, leaving ...*Doc) ([]store.Intent, error) {
	intents, err := losses(tx, leaving, false)
	if err != nil {
		return nil, err
	}
	for _, d := range leaving {
		r, err := operation.Step(tx, &machine, d.Ref(), state(*d), operation.Delete)
		if err != nil {
			return nil, err
		}
		if err := i.gate.Supersede(tx, d.Ref(), op); err != nil {
			return nil, err
		}
		d.Body.State = cloud.InstanceState(r.State)
		d.Generation++
		if i.Elastics != nil {
			if err := i.Elastics.LeaveAll(tx, op, d); err != nil {
				return nil, err
			}
		}
		if err := store.Put(tx, op, *d); err != nil {
			return nil, err
		}
	}
	return intents, nil
}

// Remove ends instances that no host holds any more: what they were given is
// free, and their rows are gone. Those that are gone already, or are not being
// destroyed, are left alone.
func (i *Instances) Remove(tx *store.Tx, op cloud.ID, leaving ...Doc) error {
	var gone []Doc
	for _, d := range leaving {
		r := machine.Next(state(d), operation.Acked)
		if r.State != destroyed {
			continue
		}
		if err := tx.Delete(op, d.Ref()); err != nil {
			return err
		}
		if err := release(tx, d); err != nil {
			return err
		}
		if _, err := securitygroup.Leave(tx, d.Body.SecurityGroups); err != nil {
			return err
		}
		d.Body.State = cloud.InstanceState(r.State)
		gone = append(gone, d)
	}
	return i.moved(tx, op, "", gone...)
}

// release gives back the numbers and addresses of an instance that is gone.
func release(tx *store.Tx, d Doc) error {
	owner := string(d.ID)
	err := errors.Join(tx.Free(store.NumberPort, owner), tx.FreeAddress(store.AddressInstance, owner),
		tx.FreeAddress(store.AddressInstance6, owner))
	for _, a := range d.Body.Networks {
		err = errors.Join(err, privatenetwork.Leave(tx, a.Network, d.ID, &d.Body))
	}
	return err
}
