// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"cairn/cloud"
	"cairn/controlplane/store"
)

// pollInterval bounds how late a change is seen whose hint got lost, or which
// another process committed.
const pollInterval = 250 * time.Millisecond

// pageSize of the change log. A page never ends inside a commit.
const pageSize = 1000

// Batch is what happened from one snapshot to the next: usually one commit,
// several if they came faster than they were read. Rows are those of the last.
type Batch struct {
	Before, After Snapshot
	Changes       []store.Change
	// Operations that the changes name, and what each of them may remove.
	Operations map[cloud.ID]store.Operation
	Intents    map[cloud.ID][]store.Intent
	// Full: Changes does not tell everything that differs from Before.
	Full bool
	// Bad are rows that could not be decoded. They are not in After, or as they
	// were in Before; what was compiled from them must stay.
	Bad []store.Ref
}

// Follower keeps a replica in step with a store.
type Follower struct {
	Store   *store.Store
	Replica *Replica
	Log     *slog.Logger

	hint   <-chan struct{}
	behind bool // there may be commits that no hint is left of
	cancel func()
}

// Load reads the whole zone and returns it as a full batch. Its changes are
// those after a revision that the caller knows, as far as the log reaches back.
func (f *Follower) Load(ctx context.Context, since store.Revision) (Batch, error) {
	if f.hint == nil {
		f.hint, f.cancel = f.Store.Subscribe() // before the reading, so that nothing falls in between
	}
	b := Batch{Before: f.Replica.Snapshot(), Full: true}
	err := f.Store.Read(ctx, func(tx *store.Tx) error {
		rows, err := readAll(tx, f.Log)
		if err != nil {
			return err
		}
		rev, err := tx.Revision()
		if err != nil {
			return err
		}
		if err := f.readChanges(tx, &b, since, rev); err != nil && !errors.Is(err, store.ErrCompacted) {
			return err
		}
		rows.Revision, rows.Whole, b.Bad = rev, true, rows.Bad
		f.Replica.Commit(rows)
		return nil
	})
	if err != nil {
		return Batch{}, fmt.Errorf("load the zone: %w", err)
	}
	b.After = f.Replica.Snapshot()
	return b, nil
}

// Close ends the subscription.
func (f *Follower) Close() {
	if f.cancel != nil {
		f.cancel()
	}
}

// Next waits for the next commits and returns them. After an error of the
// store it may be called again.
func (f *Follower) Next(ctx context.Context) (Batch, error) {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		if !f.behind {
			select {
			case <-ctx.Done():
				return Batch{}, ctx.Err()
			case <-f.hint:
			case <-poll.C:
			}
		}
		b, err := f.read(ctx)
		f.behind = err != nil
		switch {
		case errors.Is(err, store.ErrCompacted):
			return f.Load(ctx, f.Replica.Snapshot().Revision)
		case err != nil:
			return Batch{}, fmt.Errorf("follow the zone: %w", err)
		case b.After.Revision != b.Before.Revision:
			return b, nil
		}
	}
}

// read takes in what was committed since the last time, possibly nothing.
func (f *Follower) read(ctx context.Context) (Batch, error) {
	before := f.Replica.Snapshot()
	b := Batch{Before: before, After: before}
	err := f.Store.Read(ctx, func(tx *store.Tx) error {
		rev, err := tx.Revision()
		if err != nil || rev == before.Revision {
			return err
		}
		if rev < before.Revision {
			return fmt.Errorf("the store went back from revision %d to %d", before.Revision, rev)
		}
		if err := f.readChanges(tx, &b, before.Revision, rev); err != nil {
			return err
		}
		rows, err := readChanged(tx, b.Changes, f.Log)
		if err != nil {
			return err
		}
		rows.Revision, b.Bad = rev, rows.Bad
		f.Replica.Commit(rows)
		return nil
	})
	b.After = f.Replica.Snapshot()
	return b, err
}

// readChanges fills in the changes after since, up to rev, with the operations
// they name.
func (f *Follower) readChanges(tx *store.Tx, b *Batch, since, rev store.Revision) error {
	b.Operations, b.Intents = map[cloud.ID]store.Operation{}, map[cloud.ID][]store.Intent{}
	for at := since; at < rev; {
		page, err := tx.Changes(at, pageSize)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		b.Changes = append(b.Changes, page...)
		at = page[len(page)-1].Revision
	}
	for _, c := range b.Changes {
		if _, ok := b.Operations[c.Operation]; ok || c.Operation == "" {
			continue
		}
		op, err := tx.Operation("", c.Operation)
		if errors.Is(err, store.ErrNotFound) {
			continue // swept long ago
		}
		if err != nil {
			return err
		}
		b.Operations[op.ID] = op
		if b.Intents[op.ID], err = tx.Intents(op.ID); err != nil {
			return err
		}
	}
	return nil
}

// readAll reads every row of the kinds that agents are concerned with.
func readAll(tx *store.Tx, log *slog.Logger) (Rows, error) {
	var rows Rows
	for _, kind := range kinds {
		all, err := tx.Rows(kind, "")
		if err != nil {
			return rows, err
		}
		for _, row := range all {
			if err := rows.add(tx, row, log); err != nil {
				return rows, err
			}
		}
	}
	return rows, nil
}

// readChanged reads the rows that changes name as they are now.
func readChanged(tx *store.Tx, changes []store.Change, log *slog.Logger) (Rows, error) {
	var rows Rows
	seen := map[store.Ref]bool{}
	for _, c := range changes {
		ref := store.Ref{Kind: c.Kind, ID: c.ID}
		if seen[ref] {
			continue
		}
		seen[ref] = true
		row, err := tx.Row(c.Kind, c.ID)
		if errors.Is(err, store.ErrNotFound) {
			rows.Deleted = append(rows.Deleted, ref)
			continue
		}
		if err != nil {
			return rows, err
		}
		if err := rows.add(tx, row, log); err != nil {
			return rows, err
		}
	}
	return rows, nil
}
