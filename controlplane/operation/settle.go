// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/cloud"
	"cairn/controlplane/fsm"
	"cairn/controlplane/store"
)

const (
	look  = 500 * time.Millisecond // for deadlines that have passed
	clean = time.Minute            // what nobody asks for any more
	// keepEnded is how long an ended operation can be read.
	keepEnded = 7 * 24 * time.Hour
	// keepChanges is how many revisions the change log holds back for agents
	// that were away; who was away longer gets a snapshot.
	keepChanges = 100_000
	// waitPoll finds operations that another process has ended.
	waitPoll = 250 * time.Millisecond
)

// Settled is called when all agents that must hold an operation's change have
// acknowledged it or are no longer waited for, or when one of them refused. It
// may be called again, and late: the first end stays.
func (g *Gate) Settled(ctx context.Context, id cloud.ID, o Outcome) error {
	if op, ok := g.ended.get("", id); ok && op.State != cloud.OperationTimeout {
		return nil // heard twice
	}
	_, err := g.store.Write(ctx, func(tx *store.Tx) error {
		op, open, err := g.open(tx, id, o)
		if err != nil || !open {
			return err
		}
		tx.Redoable() // by the acknowledgements that agents give again
		return g.settle(tx, op, o)
	})
	if err != nil {
		return fmt.Errorf("settle operation %s: %w", id, err)
	}
	return nil
}

// open reads an operation and says whether the outcome is news to it.
func (g *Gate) open(tx *store.Tx, id cloud.ID, o Outcome) (store.Operation, bool, error) {
	op, err := tx.Operation("", id)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return op, false, nil // swept: it ended long ago
	case err != nil:
		return op, false, err
	case o.OK && g.nouns[op.Subject.Kind].ByStatus && g.nouns[op.Subject.Kind].Settle == nil:
		return op, false, nil
	}
	return op, !op.State.Final() || op.State == cloud.OperationTimeout, nil
}

// settle moves the noun's machine, and ends the operation if the noun has not.
func (g *Gate) settle(tx *store.Tx, op store.Operation, o Outcome) error {
	e, state := Acked, cloud.OperationSuccess
	if !o.OK {
		e, state = Nacked, cloud.OperationFailure
		if o.Reason == "" {
			o.Reason = cloud.ReasonFault
		}
	}
	if err := g.move(tx, op, e, o); err != nil || o.OK && g.nouns[op.Subject.Kind].ByStatus {
		return err
	}
	return g.Finish(tx, op.ID, state, o.Reason, o.Message)
}

func (g *Gate) move(tx *store.Tx, op store.Operation, e fsm.Event, o Outcome) error {
	noun := g.nouns[op.Subject.Kind]
	if noun.Settle == nil {
		return nil
	}
	if err := noun.Settle(tx, op, e, o); err != nil {
		return fmt.Errorf("%s of %s %s: %w", e, op.Subject.Kind, op.Subject.ID, err)
	}
	return nil
}

// Finish ends an operation as a part of the caller's transaction, and wakes
// those who wait for it. One that has ended stays as it ended.
func (g *Gate) Finish(tx *store.Tx, id cloud.ID, state cloud.OperationState, reason cloud.Reason, message string) error {
	ended, err := tx.FinishOperation(id, state, reason, message)
	if err != nil || !ended {
		return err
	}
	op, err := tx.Operation("", id)
	tx.AfterCommit(func() {
		g.ended.add(op.Org, *shape(op))
		g.wake(id)
	})
	return err
}

// Supersede ends the other pending operations on a resource, because of the
// one given: a delete, for example, leaves no start to be waited for.
func (g *Gate) Supersede(tx *store.Tx, on store.Ref, by cloud.ID) error {
	pending, err := tx.Pending(on)
	if err != nil {
		return err
	}
	for _, op := range pending {
		if op.ID == by {
			continue
		}
		err := g.Finish(tx, op.ID, cloud.OperationFailure, cloud.ReasonInterrupted, fmt.Sprintf("superseded by operation %s", by))
		if err != nil {
			return err
		}
	}
	return nil
}

// Run takes up what was pending, then watches deadlines and removes what has
// lost its meaning, until ctx ends.
func (g *Gate) Run(ctx context.Context) error {
	if err := g.resume(ctx); err != nil {
		return err
	}
	deadlines, cleaning := time.NewTicker(look), time.NewTicker(clean)
	defer deadlines.Stop()
	defer cleaning.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-deadlines.C:
			err = g.Expire(ctx)
		case <-cleaning.C:
			err = g.clean(ctx)
		}
		if err != nil && ctx.Err() == nil {
			g.log.Warn("look after operations", "error", err)
		}
	}
}

func (g *Gate) resume(ctx context.Context) error {
	var pending []store.Operation
	err := g.store.Read(ctx, func(tx *store.Tx) (err error) {
		pending, err = tx.Pending(store.Ref{})
		return err
	})
	if err != nil {
		return fmt.Errorf("take up pending operations: %w", err)
	}
	for _, op := range pending {
		noun := g.nouns[op.Subject.Kind]
		if noun.Resume == nil {
			continue
		}
		if err := noun.Resume(ctx, op); err != nil {
			g.log.Error("take up operation", "operation", op.ID, "command", op.Command, "error", err)
		}
	}
	return nil
}

// Expire ends the operations whose time is over. The work goes on: only the
// waiting ends. Run calls it twice a second.
func (g *Gate) Expire(ctx context.Context) error {
	var overdue []store.Operation
	err := g.store.Read(ctx, func(tx *store.Tx) (err error) { overdue, err = tx.Overdue(); return err })
	if err != nil {
		return err
	}
	for _, op := range overdue {
		if _, err := g.store.Write(ctx, func(tx *store.Tx) error { return g.expireOne(tx, op.ID) }); err != nil {
			return fmt.Errorf("deadline of operation %s: %w", op.ID, err)
		}
	}
	return nil
}

func (g *Gate) expireOne(tx *store.Tx, id cloud.ID) error {
	op, err := tx.Operation("", id)
	if err != nil || op.State.Final() {
		return err
	}
	who := ""
	if g.Waiting != nil {
		who = g.Waiting(id)
	}
	if who == "" {
		who = op.Message
	}
	if who == "" {
		who = string(op.Subject.Kind) + " " + string(op.Subject.ID)
	}
	state, o := cloud.OperationTimeout, Outcome{Reason: cloud.ReasonUnavailable, Message: "waiting for " + who}
	if op.Tightens {
		state, o.Reason = cloud.OperationFailure, cloud.ReasonPartial
		o.Message = "what was taken away may still be admitted by " + who
	}
	if err := g.move(tx, op, Deadline, o); err != nil {
		return err
	}
	return g.Finish(tx, id, state, o.Reason, o.Message)
}

func (g *Gate) clean(ctx context.Context) error {
	_, err := g.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.Sweep(keepEnded); err != nil {
			return err
		}
		rev, err := tx.Revision()
		if err != nil || rev <= keepChanges {
			return err
		}
		if g.Compacted != nil {
			tx.AfterCommit(func() { g.Compacted(rev - keepChanges) })
		}
		return tx.Compact(rev - keepChanges)
	})
	return err
}

// Wait follows an operation until it has ended or ctx is done, and returns it
// as it then stands.
func (g *Gate) Wait(ctx context.Context, id cloud.ID) (*cloud.Operation, error) {
	ended := g.watch(id)
	defer g.unwatch(id, ended)
	poll := time.NewTicker(waitPoll)
	defer poll.Stop()
	for {
		// Most operations that are waited for end here, and none of them has to be
		// read. What the caller's time allows is over when it is done waiting, not
		// while it learns what it waited for.
		if op, ok := g.ended.get("", id); ok {
			return &op, nil
		}
		select {
		case <-ended:
			continue
		case <-poll.C:
		case <-ctx.Done():
		}
		op, err := g.read(context.WithoutCancel(ctx), "", id)
		if err != nil || op.State.Final() || ctx.Err() != nil {
			return op, err
		}
	}
}

func (g *Gate) watch(id cloud.ID) chan struct{} {
	c := make(chan struct{}, 1)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiters[id] == nil {
		g.waiters[id] = map[chan struct{}]struct{}{}
	}
	g.waiters[id][c] = struct{}{}
	return c
}

func (g *Gate) unwatch(id cloud.ID, c chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.waiters[id], c)
	if len(g.waiters[id]) == 0 {
		delete(g.waiters, id)
	}
}

func (g *Gate) wake(id cloud.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.waiters[id] {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (g *Gate) read(ctx context.Context, org, id cloud.ID) (*cloud.Operation, error) {
	if op, ok := g.ended.get(org, id); ok {
		return &op, nil
	}
	var op store.Operation
	err := g.store.Read(ctx, func(tx *store.Tx) (err error) { op, err = tx.Operation(org, id); return err })
	if err != nil {
		return nil, err
	}
	shown := shape(op)
	if !op.State.Final() && g.Waiting != nil {
		if who := g.Waiting(id); who != "" {
			shown.Message = "waiting for " + who
		}
	}
	return shown, nil
}
