// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/cloud/place"
	"cairn/controlplane/api"
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

// passwordLife is how long a password can be read.
const passwordLife = 24 * time.Hour

// reboot stops an instance and starts it again. The operation waits for the second
// of the two generations that it makes.
func (i *Instances) reboot(ctx context.Context, c api.Call) (any, error) {
	return i.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		plan := operation.Plan{Subject: d.Ref()}
		if plan.UnderWay, err = operation.UnderWay(tx, d.Ref(), c.Operation.ID); err != nil || plan.UnderWay != "" {
			return plan, err
		}
		r, err := operation.Step(tx, &machine, d.Ref(), state(d), Reboot)
		if err != nil {
			return plan, err
		}
		if r.Verdict == fsm.Ignored {
			plan.Unchanged = true
			return plan, nil
		}
		host, err := hostOf(tx, d)
		if err != nil {
			return plan, err
		}
		d.Body.State, d.Body.Wanted = cloud.InstanceState(r.State), store.WantedStopped
		d.Generation++
		plan.Generation, plan.Waiting = final(d), fmt.Sprintf("%s to reboot instance %s", host, d.ID)
		if err := store.Put(tx, op, d); err != nil {
			return plan, err
		}
		return plan, i.moved(tx, op, "", d)
	})
}

// change stores an instance that hosts are to know otherwise; what it is wanted to
// be stays, and so does its generation. quiet says that no host is concerned.
func (i *Instances) change(ctx context.Context, c api.Call, fn func(tx *store.Tx, d *Doc) (changed, quiet bool, err error)) (any, error) {
	return i.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		plan := operation.Plan{Subject: d.Ref()}
		if state(d) == destroying {
			return plan, cloud.Conflictf("instance %s is being deleted", d.ID)
		}
		weight := d.Body.Labels.Weight()
		changed, quiet, err := fn(tx, &d)
		if errors.Is(err, place.ErrUnavailable) {
			plan.Failed = &operation.Outcome{Reason: cloud.ReasonUnavailable, Message: err.Error()}
			return plan, nil
		}
		if err != nil || !changed {
			plan.Unchanged = err == nil
			return plan, err
		}
		plan.Done, plan.Waiting = quiet, "its host to learn of it"
		if err := store.Put(tx, op, d); err != nil || quiet && d.Body.Labels.Weight() == weight {
			return plan, err
		}
		return plan, i.moved(tx, op, "", d)
	})
}

func (i *Instances) update(ctx context.Context, c api.Call) (any, error) {
	return i.change(ctx, c, func(tx *store.Tx, d *Doc) (changed, quiet bool, err error) {
		before := d.Body
		result, changed, err := capi.Overlay(before.Instance, c.Body, c.Keys)
		if err != nil || !changed {
			return false, false, err
		}
		if result.ConsistentSnapshot {
			return false, false, cloud.Invalidf("application-consistent-snapshot-enabled", "expected false: the template does not support it")
		}
		d.Body.Instance = result
		if d.Body.UserDataRaw, err = base64.StdEncoding.DecodeString(result.UserData); err != nil {
			return false, false, fmt.Errorf("user-data: %w", err) // it was validated
		}
		switch was := before.PublicIPAssignment; {
		case result.PublicIPAssignment == was:
		case was == cloud.PublicIPInet4 && result.PublicIPAssignment == cloud.PublicIPDual:
			if err := dual(tx, d); err != nil {
				return false, false, err
			}
		default:
			return false, false, cloud.Invalidf("public-ip-assignment", "expected %s: only inet4 can be changed, to dual", was)
		}
		quiet = before.Name == result.Name && before.UserData == result.UserData &&
			before.PublicIPAssignment == result.PublicIPAssignment && before.FlowLog == result.FlowLog
		return true, quiet, nil
	})
}

func (i *Instances) reset(ctx context.Context, c api.Call) (any, error) {
	return i.change(ctx, c, func(_ *store.Tx, d *Doc) (changed, quiet bool, err error) {
		changed = len(d.Body.Labels) > 0
		d.Body.Labels = nil
		return changed, true, nil
	})
}

// scale gives a stopped instance another size, of the same family, where it is. If
// its host has no room the operation fails, and nothing has changed.
func (i *Instances) scale(ctx context.Context, c api.Call) (any, error) {
	wanted := c.Body.(*cloud.ScaleInstanceRequest).InstanceType.ID
	return i.change(ctx, c, func(tx *store.Tx, d *Doc) (changed, quiet bool, err error) {
		size, known := cloud.FindInstanceType(wanted)
		now, _ := cloud.FindInstanceType(d.Body.InstanceType.ID)
		switch {
		case !known:
			return false, false, cloud.Invalidf("instance-type.id", "expected an instance type, there is no %s", wanted)
		case size.ID == now.ID:
			return false, false, nil
		case size.Family != now.Family:
			return false, false, cloud.Invalidf("instance-type.id", "expected a type of the family %s", now.Family)
		case state(*d) != stopped:
			return false, false, cloud.Conflictf("instance %s is %s: it must be stopped to be scaled", d.ID, shown(*d).State)
		}
		if err := room(tx, *d, size); err != nil {
			return false, false, err
		}
		d.Body.InstanceType = cloud.Ref{ID: size.ID}
		return true, false, nil
	})
}

// protect keeps an instance from being deleted, or lets it be.
func (i *Instances) protect(on bool) api.Handler {
	return func(ctx context.Context, c api.Call) (any, error) {
		return i.change(ctx, c, func(_ *store.Tx, d *Doc) (changed, quiet bool, err error) {
			changed = d.Body.Protected != on
			d.Body.Protected = on
			return changed, true, nil
		})
	}
}

func passwordName(id cloud.ID) string { return "password of instance " + string(id) }

func (i *Instances) resetPassword(ctx context.Context, c api.Call) (any, error) {
	return i.change(ctx, c, func(tx *store.Tx, d *Doc) (changed, quiet bool, err error) {
		if i.Root == nil {
			return false, false, cloud.Conflictf("the zone keeps no passwords")
		}
		d.Body.Password = &store.Password{Sealed: i.Root.Seal(passwordName(d.ID), rand.Text()), Set: tx.Now().UTC()}
		return true, true, nil
	})
}

func (i *Instances) revealPassword(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.InstancePassword
	err := i.store.Read(ctx, func(tx *store.Tx) error {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return err
		}
		p := d.Body.Password
		if p == nil || i.Root == nil || tx.Now().Sub(p.Set) > passwordLife {
			return cloud.NotFoundf("instance %s has no password that was set in the last 24 hours", d.ID)
		}
		answer.Password, err = i.Root.Open(passwordName(d.ID), p.Sealed)
		return err
	})
	return answer, err
}
