// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"errors"
	"fmt"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/dist"
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

// States that hosts report.
const (
	isRunning = "running"
	isStopped = "stopped"
	isBroken  = "error"
)

// Report takes in what a host says of its instances. What says nothing new is
// dropped without a write: hosts repeat themselves. Reports of other kinds are
// left to others.
func (i *Instances) Report(ctx context.Context, host string, reports []dist.Report) error {
	var mine []dist.Report
	for _, r := range reports {
		if r.Kind == wire.KindInstance {
			mine = append(mine, r)
		}
	}
	if len(mine) == 0 {
		return nil
	}
	news := false
	err := i.store.Read(ctx, func(tx *store.Tx) error {
		steps, err := heard(tx, host, mine)
		news = len(steps) > 0
		return err
	})
	if err == nil && news {
		_, err = i.store.Write(ctx, func(tx *store.Tx) error { return i.take(tx, host, mine) })
	}
	if err != nil {
		return fmt.Errorf("instances of %s: %w", host, err)
	}
	return nil
}

// step is what a report does to an instance.
type step struct {
	d   Doc // as it is before
	to  fsm.State
	why string // it is broken
}

// heard finds the reports that move an instance: about its present generation,
// from the host that it is on.
func heard(tx *store.Tx, host string, reports []dist.Report) ([]step, error) {
	h, err := store.Named[store.HypervisorDoc](tx, "", host)
	if err != nil {
		return nil, err
	}
	var steps []step
	for _, r := range reports {
		d, err := store.Get[store.InstanceDoc](tx, "", cloud.ID(r.Key))
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if d.Body.Hypervisor != h.ID || d.Generation != r.Generation {
			continue
		}
		e := event(d, r)
		if e == "" {
			continue
		}
		if next := machine.Next(state(d), e); next.Verdict == fsm.Handled {
			steps = append(steps, step{d, next.State, r.Reason})
		}
	}
	return steps, nil
}

// event is what a report means to an instance; "" if nothing: a machine that is
// not yet, or no longer, as it is wanted is on its way, and its host sees to it.
func event(d Doc, r dist.Report) fsm.Event {
	switch {
	case r.State == isBroken:
		return Broken
	case r.State == isRunning && d.Body.Wanted == store.WantedRunning:
		return Up
	case r.State == isStopped && d.Body.Wanted == store.WantedStopped:
		return Down
	}
	return ""
}

// take moves the instances that were heard of, ends the operations that waited
// for it, and tells the manager.
func (i *Instances) take(tx *store.Tx, host string, reports []dist.Report) error {
	steps, err := heard(tx, host, reports)
	if err != nil {
		return err
	}
	for _, s := range steps {
		ops, err := waiting(tx, s.d)
		if err != nil {
			return err
		}
		op, why := cloud.ID(""), ""
		end, reason := cloud.OperationSuccess, cloud.Reason("")
		if s.to == failed {
			why = fmt.Sprintf("%s: instance %s: %s", host, s.d.ID, s.why)
			end, reason = cloud.OperationFailure, cloud.ReasonFault
		}
		halfway := state(s.d) == rebooting && s.to == starting
		for _, id := range ops {
			if op = id; halfway {
				continue
			}
			if err := i.gate.Finish(tx, id, end, reason, why); err != nil {
				return err
			}
		}
		s.d.Body.State = cloud.InstanceState(s.to)
		if halfway {
			s.d.Body.Wanted = store.WantedRunning
			s.d.Generation++
		}
		if err := store.Put(tx, op, s.d); err != nil {
			return err
		}
		if err := i.moved(tx, op, why, s.d); err != nil {
			return err
		}
	}
	return nil
}

// final is the generation that operations on an instance wait for: its present
// one or, half-way through a reboot, the one that is to follow.
func final(d Doc) uint64 {
	if state(d) == rebooting {
		return d.Generation + 1
	}
	return d.Generation
}

// waiting lists the operations that wait for an instance as it is wanted now.
func waiting(tx *store.Tx, d Doc) ([]cloud.ID, error) {
	pending, err := tx.Pending(d.Ref())
	var ids []cloud.ID
	for _, op := range pending {
		if op.Generation == final(d) {
			ids = append(ids, op.ID)
		}
	}
	return ids, err
}

// settle hears of the operations on instances from the gate: that a removal is
// acknowledged, that a host has refused, that time is over.
func (i *Instances) settle(tx *store.Tx, op store.Operation, e fsm.Event, o operation.Outcome) error {
	if op.Generation == 0 { // a change of what hosts know of it, and not of what it is wanted to be
		if e == operation.Acked {
			return i.gate.Finish(tx, op.ID, cloud.OperationSuccess, "", o.Message)
		}
		return nil
	}
	d, err := store.Get[store.InstanceDoc](tx, "", op.Subject.ID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil || final(d) != op.Generation:
		return err
	}
	if e == operation.Acked && state(d) == destroying {
		if err := i.Remove(tx, op.ID, d); err != nil {
			return err
		}
		return i.gate.Finish(tx, op.ID, cloud.OperationSuccess, "", o.Message)
	}
	r := machine.Next(state(d), e)
	if r.Verdict != fsm.Handled || r.State == state(d) {
		return nil
	}
	d.Body.State = cloud.InstanceState(r.State)
	if err := store.Put(tx, op.ID, d); err != nil {
		return err
	}
	return i.moved(tx, op.ID, o.Message, d)
}

// Recover ends removals whose operation ended before they did, in an earlier
// life: who still had to acknowledge them is not known any more. The hosts get
// the tombstones whenever they come. Call it before anything is delivered.
func (i *Instances) Recover(ctx context.Context) error {
	var orphans []Doc
	look := func(tx *store.Tx) error {
		all, err := store.List[store.InstanceDoc](tx, "")
		if err != nil {
			return err
		}
		orphans = nil
		for _, d := range all {
			if state(d) != destroying {
				continue
			}
			op, err := i.UnderWay(tx, d)
			if err != nil {
				return err
			}
			if op == "" {
				orphans = append(orphans, d)
			}
		}
		return nil
	}
	err := i.store.Read(ctx, look)
	if err == nil && len(orphans) > 0 {
		_, err = i.store.Write(ctx, func(tx *store.Tx) error {
			if err := look(tx); err != nil {
				return err
			}
			return i.Remove(tx, "", orphans...)
		})
	}
	if err != nil {
		return fmt.Errorf("end removals of instances: %w", err)
	}
	return nil
}
