// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/cloud"
	"cairn/controlplane/instance"
	"cairn/controlplane/program"
	"cairn/controlplane/store"
)

// Members that leave a pool with services in front of it go in three steps, all
// for the same operation. First they are marked leaving: their slots move, while
// flows that they have still find them, and so do new ones that are sent by an
// older table. When all hosts hold that, they are closed: new flows are refused.
// When no flow is left, or after a while, the hosts are told to let them go.

// held is the event that all hosts hold what an operation has changed so far.
const held = "held"

// isDrained is the event that no packet can reach a leaving member any more.
func isDrained(id cloud.ID) string { return "drained/" + string(id) }

// Actions of the programs, for the worker that runs them.
func (p *Pools) Actions() map[string]program.Action {
	return map[string]program.Action{
		"let-go": func(ctx context.Context, c program.Call) error {
			return p.act(ctx, c, func(tx *store.Tx, op store.Operation, d detail) error {
				return p.letGo(tx, op.Subject.ID, op.ID, d.Leaving)
			})
		},
		"remove": func(ctx context.Context, c program.Call) error { return p.act(ctx, c, p.remove) },
	}
}

// act does something for the operation of a program. One that was swept has
// nothing left to be done.
func (p *Pools) act(ctx context.Context, c program.Call, do func(*store.Tx, store.Operation, detail) error) error {
	_, err := p.store.Write(ctx, func(tx *store.Tx) error {
		op, err := tx.Operation("", cloud.ID(c.Operation))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		d, err := detailOf(op)
		if err != nil {
			return err
		}
		return do(tx, op, d)
	})
	return err
}

// leave is the program of members that leave: drained ones get packets still.
func (p *Pools) leave(drained []cloud.ID, ends []program.Node) program.Node {
	waits := make([]program.Node, len(drained))
	for n, id := range drained {
		waits[n] = program.WaitFor(isDrained(id), p.Linger)
	}
	return program.Seq(program.WaitFor(held, patience), atMost(waits...), leaf("let-go"), program.Par(ends...))
}

// atMost waits side by side, and goes on when a wait is over in vain.
func atMost(waits ...program.Node) program.Node {
	return program.Node{Try: &program.Try{Body: program.Par(waits...), Rescue: &program.Node{}, Recover: true}}
}

// leaf is an action that is tried until it is done.
func leaf(name string) program.Node {
	return program.Leaf{Action: name, Retries: -1}.With(nil)
}

// close refuses new flows for those of the members that leave and are here yet:
// all hosts hold that their slots have moved.
func (p *Pools) close(tx *store.Tx, op store.Operation, members []instance.Doc) error {
	here := slices.DeleteFunc(slices.Clone(members), told)
	if len(here) == 0 {
		return nil
	}
	open := slices.DeleteFunc(slices.Clone(here), func(m instance.Doc) bool { return m.Body.Closed })
	if len(open) > 0 {
		if err := p.instances.Close(tx, op.ID, open...); err != nil {
			return err
		}
		if err := p.changed(tx, op.Subject.ID, op.ID); err != nil {
			return err
		}
	}
	return p.signal(tx, op.Subject.ID, held, "")
}

// draining are those of the members that get packets still.
func (p *Pools) draining(tx *store.Tx, pool cloud.ID, members []cloud.ID) ([]cloud.ID, error) {
	if p.Follower == nil {
		return nil, nil
	}
	all, err := p.Follower.Drains(tx, pool)
	if err != nil {
		return nil, fmt.Errorf("in front of pool %s: %w", pool, err)
	}
	return slices.DeleteFunc(all, func(id cloud.ID) bool { return !slices.Contains(members, id) }), nil
}

// Drained hears that what stands in front of a pool may have let go of members
// that leave, in the transaction in which it has.
func (p *Pools) Drained(tx *store.Tx, pool cloud.ID) error {
	pending, err := tx.Pending(store.Ref{Kind: store.KindPool, ID: pool})
	if err != nil {
		return err
	}
	for _, op := range pending {
		d, err := detailOf(op)
		if err != nil {
			return err
		}
		still, err := p.draining(tx, pool, d.Leaving)
		if err != nil {
			return err
		}
		for _, id := range d.Leaving {
			if slices.Contains(still, id) {
				continue
			}
			if err := p.signal(tx, pool, isDrained(id), ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// find reads members, those that are still there.
func find(tx *store.Tx, ids []cloud.ID) (members []instance.Doc, err error) {
	for _, id := range ids {
		m, err := store.Get[store.InstanceDoc](tx, "", id)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	return members, nil
}

// letGo tells the hosts to let leaving members go; those that they have been
// told of are left alone. The intents were given when the members began to
// leave.
func (p *Pools) letGo(tx *store.Tx, pool, op cloud.ID, members []cloud.ID) error {
	left, err := find(tx, members)
	if err != nil {
		return err
	}
	var going []*instance.Doc
	for n := range left {
		if !told(left[n]) {
			going = append(going, &left[n])
		}
	}
	if len(going) == 0 {
		return nil
	}
	if _, err := p.instances.Destroy(tx, op, going...); err != nil {
		return err
	}
	// The services forget the members in the same commit, so that no slot names
	// one when its host is told.
	return p.changed(tx, pool, op)
}

// hasten lets members that are leaving a pool go now: the whole pool is to go,
// and nothing stands in front of it.
func (p *Pools) hasten(tx *store.Tx, d Doc) error {
	pending, err := tx.Pending(d.Ref())
	if err != nil {
		return err
	}
	for _, op := range pending {
		leaves, err := detailOf(op)
		if err != nil {
			return err
		}
		if err := p.letGo(tx, d.ID, op.ID, leaves.Leaving); err != nil {
			return err
		}
		if err := p.signal(tx, d.ID, held, ""); err != nil {
			return err
		}
		for _, id := range leaves.Leaving {
			if err := p.signal(tx, d.ID, isDrained(id), ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// abandon lets the members go that an operation takes away and that are still
// there when it ends in failure. Nobody will say any more that the hosts have
// acknowledged it, or what they refused, so the rows go after a while: whoever
// still holds such a member is told to let go of it whenever it listens.
func (p *Pools) abandon(tx *store.Tx, op store.Operation, refused bool) error {
	d, err := detailOf(op)
	if err != nil {
		return err
	}
	left, err := find(tx, d.Leaving)
	if err != nil || len(left) == 0 {
		return err
	}
	if !refused && !slices.ContainsFunc(left, func(m instance.Doc) bool { return !told(m) }) {
		return nil // an acknowledgement that comes late is heard
	}
	if err := p.letGo(tx, op.Subject.ID, op.ID, d.Leaving); err != nil {
		return err
	}
	const never = "never"
	text, err := program.Seq(atMost(program.WaitFor(never, max(p.Linger, time.Millisecond))), leaf("remove")).Encode()
	if err != nil {
		return err
	}
	return tx.Inbox().Insert(tx.Context(), program.Task{ID: string(op.ID) + "/remove", Operation: string(op.ID), Program: text})
}

// remove ends the members of an operation that has ended before they did.
func (p *Pools) remove(tx *store.Tx, op store.Operation, d detail) error {
	left, err := find(tx, d.Leaving)
	if err != nil {
		return err
	}
	return p.instances.Remove(tx, op.ID, left...)
}
