// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/cloud"
	"cairn/controlplane/fsm"
	"cairn/controlplane/instance"
	"cairn/controlplane/operation"
	"cairn/controlplane/program"
	"cairn/controlplane/store"
)

// patience bounds a wait. It is longer than any operation: the deadline of the
// operation ends the waiting, and a removal is owed for ever.
const patience = 365 * 24 * time.Hour

// detail is what an operation on a pool has to remember.
type detail struct {
	Leaving []cloud.ID `json:"leaving,omitempty"` // the members that it takes away
}

func detailOf(op store.Operation) (d detail, err error) {
	if err := json.Unmarshal([]byte(op.Detail), &d); err != nil {
		return d, fmt.Errorf("detail of operation %s: %w", op.ID, err)
	}
	return d, nil
}

// Events of a member that programs wait for.
func isRunning(id cloud.ID) string { return "running/" + string(id) }
func isBroken(id cloud.ID) string  { return "broken/" + string(id) }
func isLeaving(id cloud.ID) string { return "leaving/" + string(id) }
func isGone(id cloud.ID) string    { return "gone/" + string(id) }

// awaitStart is the program of a member that comes, awaitEnd that of one that
// goes. Placed, numbered and told to its host it is in the accepting
// transaction: what remains is to wait for it.
func awaitStart(id cloud.ID) program.Node {
	return program.WaitFor(isRunning(id), patience, isBroken(id), isLeaving(id))
}

func awaitEnd(id cloud.ID) program.Node { return program.WaitFor(isGone(id), patience) }

// run adds the program of an operation on so many members to its plan: what
// waits for them runs side by side, and when the last has ended the pool's own
// state follows, in Done. A member that fails stops no other.
func (p *Pools) run(tx *store.Tx, op cloud.ID, plan operation.Plan, tree program.Node, members int) (operation.Plan, error) {
	text, err := tree.Encode()
	plan.Tasks = []program.Task{{ID: string(op), Subject: plan.Subject.String(), Program: text}}
	plan.Deadline = operation.PoolDeadline + time.Duration(members)*operation.PoolMember
	tx.AfterCommit(p.wake)
	return plan, err
}

func (p *Pools) wake() {
	if p.Wake != nil {
		p.Wake()
	}
}

// Done hears from the worker how the program of an operation ended: the pool's
// own state follows, and the operation ends. It may be told again.
func (p *Pools) Done(ctx context.Context, t program.Task, o program.Outcome) error {
	if o.State == program.Cancelled || !strings.HasPrefix(t.Subject, noun+"/") {
		return nil
	}
	_, err := p.store.Write(ctx, func(tx *store.Tx) error {
		op, err := tx.Operation("", cloud.ID(t.Operation))
		if errors.Is(err, store.ErrNotFound) {
			return nil // it ended so long ago that it was swept
		}
		if err != nil {
			return err
		}
		d, err := detailOf(op)
		if err != nil {
			return err
		}
		if o.State == program.Failed {
			if err := p.letGo(tx, op.Subject.ID, op.ID, d.Leaving); err != nil {
				return err
			}
			if err := p.advance(tx, op, Failed); err != nil {
				return err
			}
			return p.gate.Finish(tx, op.ID, cloud.OperationFailure, cloud.ReasonFault, o.Message)
		}
		if err := p.advance(tx, op, Done); err != nil {
			return err
		}
		message := ""
		if len(d.Leaving) > 0 {
			message = op.Message // who was not waited for
		}
		return p.gate.Finish(tx, op.ID, cloud.OperationSuccess, "", message)
	})
	if err != nil {
		return fmt.Errorf("end of %s: %w", t.Subject, err)
	}
	return nil
}

// advance moves a pool by an event of the operation of its present generation.
func (p *Pools) advance(tx *store.Tx, op store.Operation, e fsm.Event) error {
	d, err := store.Get[store.PoolDoc](tx, "", op.Subject.ID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil || d.Generation != op.Generation:
		return err
	}
	r := machine.Next(state(d), e)
	switch {
	case r.Verdict != fsm.Handled || r.State == state(d):
		return nil
	case r.State == destroyed:
		return tx.Delete(op.ID, d.Ref())
	}
	d.Body.State = cloud.InstancePoolState(r.State)
	if err := store.Put(tx, op.ID, d); err != nil {
		return err
	}
	// The member that failed may have gone, or come to run, meanwhile.
	if d, err = store.Get[store.PoolDoc](tx, "", d.ID); err != nil {
		return err
	}
	return p.heal(tx, d, op.ID)
}

// settle hears of the operations on pools from the gate: that hosts hold what it
// has changed so far, that one has refused something, that time is over.
func (p *Pools) settle(tx *store.Tx, op store.Operation, e fsm.Event, o operation.Outcome) error {
	if e != operation.Acked {
		return p.giveUp(tx, op, e)
	}
	d, err := detailOf(op)
	if err != nil || len(d.Leaving) == 0 {
		return err
	}
	left, err := find(tx, d.Leaving)
	if err != nil {
		return err
	}
	if o.Message != "" {
		if err := tx.NoteOperation(op.ID, o.Message); err != nil {
			return err
		}
	}
	if err := p.close(tx, op, left); err != nil {
		return err
	}
	// An acknowledgement of what came before they were told is none of that.
	gone := slices.DeleteFunc(left, func(m instance.Doc) bool { return o.Revision > 0 && o.Revision < uint64(m.Revision) })
	return p.instances.Remove(tx, op.ID, gone...)
}

// giveUp ends the waiting of an operation, but for the removal of the whole
// pool: that is owed until it is done. Members that were to leave go now.
func (p *Pools) giveUp(tx *store.Tx, op store.Operation, e fsm.Event) error {
	if err := p.abandon(tx, op, e == operation.Nacked); err != nil {
		return err
	}
	d, err := store.Get[store.PoolDoc](tx, "", op.Subject.ID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil || d.Generation != op.Generation || state(d) == destroying:
		return err
	}
	if _, err := tx.Inbox().Cancel(tx.Context(), d.Ref().String()); err != nil {
		return err
	}
	tx.AfterCommit(p.wake)
	return p.advance(tx, op, e)
}

// Leaves implements instance.Manager: the pool is smaller by one.
func (p *Pools) Leaves(tx *store.Tx, op cloud.ID, member instance.Doc) error {
	d, err := store.Get[store.PoolDoc](tx, "", member.Body.Pool)
	if err != nil {
		return err
	}
	d.Body.Size = max(d.Body.Size-1, 0)
	d.Body.MinAvailable = min(d.Body.MinAvailable, d.Body.Size)
	if err := store.Put(tx, op, d); err != nil {
		return err
	}
	err = p.signal(tx, d.ID, isLeaving(member.ID), fmt.Sprintf("instance %s was deleted", member.ID))
	if err != nil {
		return err
	}
	return p.changed(tx, d.ID, op)
}

func (p *Pools) signal(tx *store.Tx, pool cloud.ID, name, text string) error {
	subject := store.Ref{Kind: store.KindPool, ID: pool}.String()
	n, err := tx.Inbox().Signal(tx.Context(), subject, program.Event{Name: name, Detail: text})
	if n > 0 {
		tx.AfterCommit(p.wake)
	}
	return err
}

// Moved implements instance.Manager: programs hear of it, and the services in
// front of the pools follow.
func (p *Pools) Moved(tx *store.Tx, op cloud.ID, why string, members ...instance.Doc) error {
	var pools []cloud.ID
	for _, m := range members {
		if !slices.Contains(pools, m.Body.Pool) {
			pools = append(pools, m.Body.Pool)
		}
		event, text := "", ""
		switch m.Body.State {
		case cloud.InstanceRunning:
			event = isRunning(m.ID)
		case cloud.InstanceError:
			event, text = isBroken(m.ID), why
		case cloud.InstanceDestroyed:
			event = isGone(m.ID)
		default:
			continue
		}
		if err := p.signal(tx, m.Body.Pool, event, text); err != nil {
			return err
		}
	}
	for _, id := range pools {
		if err := p.follow(tx, id, op); err != nil {
			return err
		}
	}
	return nil
}

// follow lets what depends on the members of a pool follow: the services in
// front of it and, when it was suspended and all of them run, its own state.
func (p *Pools) follow(tx *store.Tx, id, op cloud.ID) error {
	d, err := store.Get[store.PoolDoc](tx, "", id)
	if err != nil {
		return err
	}
	if op == "" {
		// The hosts' refusals of what follows are the pool's operation's.
		pending, err := tx.Pending(d.Ref())
		if err != nil {
			return err
		}
		if len(pending) > 0 {
			op = pending[0].ID
		}
	}
	if err := p.heal(tx, d, op); err != nil {
		return err
	}
	return p.changed(tx, id, op)
}

// heal ends the suspension of a pool whose members all run.
func (p *Pools) heal(tx *store.Tx, d Doc, op cloud.ID) error {
	if state(d) != suspended {
		return nil
	}
	members, err := Members(tx, d.ID)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(staying(members), func(m instance.Doc) bool { return m.Body.State != cloud.InstanceRunning }) {
		return nil
	}
	d.Body.State = cloud.InstancePoolState(machine.Next(suspended, Done).State)
	return store.Put(tx, op, d)
}

// Busy implements instance.Manager.
func (p *Pools) Busy(tx *store.Tx, member instance.Doc) (cloud.ID, error) {
	pending, err := tx.Pending(store.Ref{Kind: store.KindPool, ID: member.Body.Pool})
	if err != nil {
		return "", err
	}
	for _, op := range pending {
		d, err := detailOf(op)
		if err != nil {
			return "", err
		}
		if slices.Contains(d.Leaving, member.ID) == leaving(member) {
			return op.ID, nil
		}
	}
	return "", nil
}
