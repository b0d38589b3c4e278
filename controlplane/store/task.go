// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"time"

	"cairn/controlplane/program"
)

// Tasks is the store as the workers of programs see it. Each method is a
// transaction of its own.
func (s *Store) Tasks() program.Tasks { return tasks{s} }

type tasks struct{ s *Store }

var (
	_ program.Tasks = tasks{}
	_ program.Inbox = (*Inbox)(nil)
)

const taskColumns = `SELECT id, operation, subject, seq, program, progress, claim, lease_owner, lease_until,
	not_before, deadline, attempts, cancelled, finished, outcome, outcome_message FROM task `

func scanTask(scan func(...any) error) (t program.Task, err error) {
	var leaseUntil, notBefore, deadline int64
	err = scan(&t.ID, &t.Operation, &t.Subject, &t.Seq, &t.Program, &t.Progress, &t.Claim, &t.LeaseOwner,
		&leaseUntil, &notBefore, &deadline, &t.Attempts, &t.Cancelled, &t.Finished,
		&t.Outcome.State, &t.Outcome.Message)
	t.LeaseUntil, t.NotBefore, t.Deadline = moment(leaseUntil), moment(notBefore), moment(deadline)
	return t, err
}

func (tx *Tx) withEvents(t program.Task) (program.Task, error) {
	events, err := query(tx, func(scan func(...any) error) (e program.Event, err error) {
		return e, scan(&e.Name, &e.Detail)
	}, `SELECT name, detail FROM task_event WHERE task = $1 ORDER BY seq`, t.ID)
	t.Events = events
	return t, err
}

// claimable selects tasks that may be taken at $1: due, not held, and the
// oldest of their subject.
const claimable = `WHERE finished = 0 AND not_before <= $1 AND (lease_owner = '' OR lease_until < $1)
	AND (subject = '' OR seq = (SELECT MIN(older.seq) FROM task AS older
		WHERE older.subject = task.subject AND older.finished = 0))
	ORDER BY seq LIMIT $2`

// Claim implements program.Tasks. A look without anything to take writes
// nothing and does not queue for the writer.
func (t tasks) Claim(ctx context.Context, owner string, now time.Time, lease time.Duration, limit int) ([]program.Task, error) {
	var taken []program.Task
	err := t.s.Read(ctx, func(tx *Tx) (err error) {
		taken, err = query(tx, scanTask, taskColumns+claimable, nanos(now), limit)
		return err
	})
	if err != nil || len(taken) == 0 {
		return nil, err
	}
	_, err = t.s.Write(ctx, func(tx *Tx) error {
		var err error
		if taken, err = query(tx, scanTask, taskColumns+claimable, nanos(now), limit); err != nil {
			return err
		}
		for i := range taken {
			one := &taken[i]
			one.Claim++
			one.Attempts++
			one.LeaseOwner, one.LeaseUntil = owner, now.Add(lease).UTC()
			_, err := tx.exec(`UPDATE task SET claim = $1, attempts = $2, lease_owner = $3, lease_until = $4 WHERE id = $5`,
				one.Claim, one.Attempts, owner, nanos(one.LeaseUntil), one.ID)
			if err != nil {
				return err
			}
			if *one, err = tx.withEvents(*one); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("claim tasks: %w", err)
	}
	return taken, nil
}

// held reads a task as it stands, ErrLost if it is not held under t's claim.
func (tx *Tx) held(t program.Task) (program.Task, error) {
	all, err := query(tx, scanTask, taskColumns+`WHERE id = $1 AND claim = $2 AND finished = 0 AND lease_owner <> ''`,
		t.ID, t.Claim)
	if err != nil {
		return t, err
	}
	if len(all) == 0 {
		return t, program.ErrLost
	}
	return tx.withEvents(all[0])
}

// Extend implements program.Tasks.
func (t tasks) Extend(ctx context.Context, task program.Task, until time.Time) (program.Signals, error) {
	var signals program.Signals
	_, err := t.s.Write(ctx, func(tx *Tx) error {
		now, err := tx.held(task)
		if err != nil {
			return err
		}
		signals = program.Signals{Cancelled: now.Cancelled, Events: now.Events}
		_, err = tx.exec(`UPDATE task SET lease_until = $1 WHERE id = $2`, nanos(until), task.ID)
		return err
	})
	if err != nil {
		return program.Signals{}, fmt.Errorf("extend task %s: %w", task.ID, err)
	}
	return signals, nil
}

// Save implements program.Tasks.
func (t tasks) Save(ctx context.Context, task program.Task, release bool) error {
	_, err := t.s.Write(ctx, func(tx *Tx) error {
		now, err := tx.held(task)
		if err != nil {
			return err
		}
		if !release {
			_, err = tx.exec(`UPDATE task SET progress = $1 WHERE id = $2`, blob(task.Progress), task.ID)
			return err
		}
		notBefore := task.NotBefore
		if len(now.Events) != len(task.Events) || now.Cancelled != task.Cancelled {
			notBefore = time.Time{}
		}
		_, err = tx.exec(`UPDATE task SET progress = $1, lease_owner = '', lease_until = 0, not_before = $2 WHERE id = $3`,
			blob(task.Progress), nanos(notBefore), task.ID)
		return err
	})
	if err != nil {
		return fmt.Errorf("save task %s: %w", task.ID, err)
	}
	return nil
}

// Finish implements program.Tasks.
func (t tasks) Finish(ctx context.Context, task program.Task, o program.Outcome) error {
	_, err := t.s.Write(ctx, func(tx *Tx) error { return tx.FinishTask(task, o) })
	return err
}

// blob is b for a column that is never NULL: an empty one comes back as nil.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Free implements program.Tasks.
func (t tasks) Free(ctx context.Context, owner string) error {
	_, err := t.s.Write(ctx, func(tx *Tx) error {
		_, err := tx.exec(`UPDATE task SET lease_owner = '', lease_until = 0 WHERE lease_owner = $1 AND finished = 0`, owner)
		return err
	})
	if err != nil {
		return fmt.Errorf("free the tasks of %s: %w", owner, err)
	}
	return nil
}

// FinishTask is Finish as a part of the caller's transaction.
func (tx *Tx) FinishTask(task program.Task, o program.Outcome) error {
	if _, err := tx.held(task); err != nil {
		return fmt.Errorf("finish task %s: %w", task.ID, err)
	}
	_, err := tx.exec(`UPDATE task SET progress = $1, lease_owner = '', lease_until = 0, finished = 1,
		outcome = $2, outcome_message = $3 WHERE id = $4`, blob(task.Progress), o.State, o.Message, task.ID)
	if err != nil {
		return fmt.Errorf("finish task %s: %w", task.ID, err)
	}
	return nil
}

// Inbox is where orchestrators leave tasks and signals, as a part of their own
// transaction. Its methods ignore their context in favour of the
// transaction's.
type Inbox struct{ tx *Tx }

// Inbox is that of this transaction.
func (tx *Tx) Inbox() *Inbox { return &Inbox{tx} }

// Insert implements program.Inbox.
func (b *Inbox) Insert(_ context.Context, t program.Task) error {
	_, err := b.tx.exec(`INSERT INTO task (id, operation, subject, seq, program, progress, claim, lease_owner,
		lease_until, not_before, deadline, attempts, cancelled, finished, outcome, outcome_message)
		VALUES ($1, $2, $3, (SELECT COALESCE(MAX(seq), 0) + 1 FROM task), $4, $5, 0, '', 0, $6, $7, 0, 0, 0, '', '')
		ON CONFLICT (id) DO NOTHING`,
		t.ID, t.Operation, t.Subject, t.Program, []byte{}, nanos(t.NotBefore), nanos(t.Deadline))
	if err != nil {
		return fmt.Errorf("insert task %s: %w", t.ID, err)
	}
	return nil
}

// unfinished lists the tasks of a subject that have not ended.
func (b *Inbox) unfinished(subject string) ([]string, error) {
	return query(b.tx, func(scan func(...any) error) (id string, err error) { return id, scan(&id) },
		`SELECT id FROM task WHERE subject = $1 AND finished = 0 ORDER BY seq`, subject)
}

// Signal implements program.Inbox.
func (b *Inbox) Signal(_ context.Context, subject string, e program.Event) (int, error) {
	ids, err := b.unfinished(subject)
	if err != nil {
		return 0, fmt.Errorf("signal %s: %w", subject, err)
	}
	for _, id := range ids {
		n, err := b.tx.exec(`INSERT INTO task_event (task, seq, name, detail)
			VALUES ($1, (SELECT COALESCE(MAX(seq), 0) + 1 FROM task_event WHERE task = $2), $3, $4)
			ON CONFLICT (task, name) DO NOTHING`, id, id, e.Name, e.Detail)
		if err != nil {
			return 0, fmt.Errorf("signal %s: %w", subject, err)
		}
		if n == 0 {
			continue // it has this event already
		}
		if _, err := b.tx.exec(`UPDATE task SET not_before = 0 WHERE id = $1`, id); err != nil {
			return 0, fmt.Errorf("signal %s: %w", subject, err)
		}
	}
	return len(ids), nil
}

// Cancel implements program.Inbox.
func (b *Inbox) Cancel(_ context.Context, subject string) (int, error) {
	n, err := b.tx.exec(`UPDATE task SET cancelled = 1, not_before = 0 WHERE subject = $1 AND finished = 0`, subject)
	if err != nil {
		return 0, fmt.Errorf("cancel %s: %w", subject, err)
	}
	return int(n), nil
}

// TaskOutcomes says how the ended tasks of an operation ended.
func (tx *Tx) TaskOutcomes(operation string) ([]program.Task, error) {
	return query(tx, scanTask, taskColumns+`WHERE operation = $1 AND finished = 1 ORDER BY seq`, operation)
}

// UnfinishedTasks counts the tasks that have not ended.
func (tx *Tx) UnfinishedTasks() (int, error) {
	var n int
	err := tx.queryRow([]any{&n}, `SELECT COUNT(*) FROM task WHERE finished = 0`)
	return n, err
}
