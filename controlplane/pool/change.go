// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"fmt"
	"slices"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/controlplane/api"
	"cairn/controlplane/fsm"
	"cairn/controlplane/instance"
	"cairn/controlplane/operation"
	"cairn/controlplane/program"
	"cairn/controlplane/store"
)

// step moves a pool by what a customer asks for, under its next generation.
func (p *Pools) step(tx *store.Tx, d *Doc, e fsm.Event) error {
	r, err := operation.Step(tx, &machine, d.Ref(), state(*d), e)
	if err != nil {
		return err
	}
	d.Body.State = cloud.InstancePoolState(r.State)
	d.Generation++
	return nil
}

// update changes what members made later are made from. It touches no member,
// so nobody is waited for, and no generation begins.
func (p *Pools) update(ctx context.Context, c api.Call) (any, error) {
	return p.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		plan := operation.Plan{Subject: d.Ref(), Done: true}
		if _, err := operation.Step(tx, &machine, d.Ref(), state(d), operation.Update); err != nil {
			return plan, err
		}
		result, changed, err := capi.Overlay(d.Body.InstancePool, c.Body, c.Keys)
		if err != nil || !changed {
			plan.Unchanged = err == nil
			return plan, err
		}
		d.Body.InstancePool = result
		// Everything named must be there, keys too: to orderOf it is a new pool.
		fresh := d
		fresh.Revision = 0
		if _, err := p.orderOf(tx, fresh); err != nil {
			return plan, err
		}
		return plan, store.Put(tx, op, d)
	})
}

func (p *Pools) evict(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.EvictInstancePoolMembersRequest)
	return p.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		members, err := Members(tx, d.ID)
		if err != nil {
			return operation.Plan{}, err
		}
		var faults []cloud.FieldError
		var chosen []instance.Doc
		left := staying(members)
		for n, id := range r.Instances {
			at := slices.IndexFunc(left, func(m instance.Doc) bool { return m.ID == id })
			if at < 0 {
				faults = append(faults, cloud.Fault(fmt.Sprintf("instances[%d]", n), "expected a member of the pool, %s is none", id))
				continue
			}
			chosen = append(chosen, left[at])
		}
		if size := d.Body.Size - len(chosen); size < d.Body.MinAvailable {
			faults = append(faults, cloud.Fault("instances", "expected to leave at least min-available, %d", d.Body.MinAvailable))
		}
		if len(faults) > 0 {
			return operation.Plan{}, cloud.InvalidFields(faults)
		}
		if err := p.step(tx, &d, Shrink); err != nil {
			return operation.Plan{}, err
		}
		return p.shrink(tx, op, d, chosen)
	})
}

// shrink stores a pool without some of its members. They go at once if nothing
// stands in front of them, else when it has let go of them: see leave.go.
func (p *Pools) shrink(tx *store.Tx, op cloud.ID, d Doc, chosen []instance.Doc) (operation.Plan, error) {
	d.Body.Size = max(d.Body.Size-len(chosen), 0)
	plan := operation.Plan{Subject: d.Ref(), Generation: d.Generation}
	if err := store.Put(tx, op, d); err != nil {
		return plan, err
	}
	members, leaves := make([]*instance.Doc, len(chosen)), detail{}
	ends := make([]program.Node, len(chosen))
	for n := range chosen {
		id := chosen[n].ID
		members[n], ends[n] = &chosen[n], awaitEnd(id)
		leaves.Leaving = append(leaves.Leaving, id)
	}
	plan.Detail = leaves
	var err error
	if plan.Intents, err = p.instances.Leave(tx, op, members...); err != nil {
		return plan, err
	}
	if err := p.changed(tx, d.ID, op); err != nil {
		return plan, err
	}
	drained, err := p.draining(tx, d.ID, leaves.Leaving)
	if err != nil {
		return plan, err
	}
	if len(drained) > 0 {
		return p.run(tx, op, plan, p.leave(drained, ends), len(ends))
	}
	if err := p.letGo(tx, d.ID, op, leaves.Leaving); err != nil {
		return plan, err
	}
	return p.run(tx, op, plan, program.Par(ends...), len(ends))
}

// part stores a pool that is deleted, whose members go: chosen ones from now on,
// orphans already, by an operation that ended before they did. Awaited are all
// those whose end the operation waits for.
func (p *Pools) part(tx *store.Tx, op cloud.ID, d Doc, chosen, awaited, orphans []instance.Doc) (operation.Plan, error) {
	plan := operation.Plan{Subject: d.Ref(), Generation: d.Generation}
	if err := store.Put(tx, op, d); err != nil {
		return plan, err
	}
	going := make([]*instance.Doc, len(chosen))
	detail := detail{}
	for n := range chosen {
		going[n] = &chosen[n]
		detail.Leaving = append(detail.Leaving, chosen[n].ID)
	}
	for _, m := range orphans {
		detail.Leaving = append(detail.Leaving, m.ID)
	}
	plan.Detail = detail
	var err error
	if plan.Intents, err = p.instances.Destroy(tx, op, going...); err != nil {
		return plan, err
	}
	if err := p.changed(tx, d.ID, op); err != nil {
		return plan, err
	}
	waits := make([]program.Node, len(awaited))
	for n, m := range awaited {
		waits[n] = awaitEnd(m.ID)
	}
	return p.run(tx, op, plan, program.Par(waits...), len(waits))
}

// delete takes a pool away with its members. It is refused while a service
// stands in front of it, and ends when the last member is gone.
func (p *Pools) delete(ctx context.Context, c api.Call) (any, error) {
	return p.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		plan := operation.Plan{Subject: d.Ref()}
		if state(d) == destroying {
			plan.UnderWay, err = operation.UnderWay(tx, d.Ref(), c.Operation.ID)
			if err != nil || plan.UnderWay != "" {
				return plan, err
			}
		}
		if err := free(tx, d); err != nil {
			return plan, err
		}
		if state(d) == scalingDown {
			if err := p.hasten(tx, d); err != nil {
				return plan, err
			}
		}
		members, err := Members(tx, d.ID)
		if err != nil {
			return plan, err
		}
		if state(d) == creating || state(d) == scalingUp {
			if err := p.interrupt(tx, d, op); err != nil {
				return plan, err
			}
		}
		if err := p.step(tx, &d, operation.Delete); err != nil {
			return plan, err
		}
		if len(members) == 0 {
			plan.Done = true
			return plan, tx.Delete(op, d.Ref())
		}
		orphans, err := p.orphans(tx, members)
		if err != nil {
			return plan, err
		}
		return p.part(tx, op, d, staying(members), members, orphans)
	})
}

// orphans are the members whose removal no operation waits for any more.
func (p *Pools) orphans(tx *store.Tx, members []instance.Doc) ([]instance.Doc, error) {
	var orphans []instance.Doc
	for _, m := range members {
		if !leaving(m) {
			continue
		}
		op, err := p.instances.UnderWay(tx, m)
		if err != nil {
			return nil, err
		}
		if op == "" {
			orphans = append(orphans, m)
		}
	}
	return orphans, nil
}

// free refuses while a load balancer's service uses the pool.
func free(tx *store.Tx, d Doc) error {
	users, err := tx.Referrers(d.Ref())
	users = slices.DeleteFunc(users, func(u store.Ref) bool { return u.Kind == store.KindInstance })
	if err == nil && len(users) > 0 {
		err = &store.InUseError{What: d.Ref(), Users: users}
	}
	return err
}

// interrupt ends the waiting for members that are to go now.
func (p *Pools) interrupt(tx *store.Tx, d Doc, op cloud.ID) error {
	if _, err := tx.Inbox().Cancel(tx.Context(), d.Ref().String()); err != nil {
		return err
	}
	return p.gate.Supersede(tx, d.Ref(), op)
}
