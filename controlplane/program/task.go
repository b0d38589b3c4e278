// SPDX-License-Identifier: Apache-2.0

package program

import (
	"context"
	"errors"
	"time"
)

// Task is one program under way, as the store keeps it. A row per task, and a
// row per event that it received.
type Task struct {
	ID        string // chosen by who inserts it; unique for ever
	Operation string // the operation that waits for the outcome, may be empty
	Subject   string // the object it works on, as "kind/id"; may be empty
	Seq       int64  // order of insertion, given by the store

	Program  []byte // the tree as JSON; written once, by Insert
	Progress []byte // how far it is, as JSON; rewritten by Save

	Claim      int64     // raised by every Claim; the fencing token of a lease
	LeaseOwner string    // empty: nobody works on it
	LeaseUntil time.Time // in the past: whoever had it is taken for dead
	NotBefore  time.Time // sleeps until then, unless an event or a cancel comes
	Deadline   time.Time // zero: none; afterwards leaves that have not begun fail
	Attempts   int       // claims so far

	Cancelled bool    // set by Cancel, never unset
	Events    []Event // what Signal has delivered so far, oldest first
	Finished  bool
	Outcome   Outcome // set by Finish
}

// Event is a fact that a Wait may be waiting for. It stays with the task until
// the task ends, so that one that comes before its Wait is not lost; a name
// therefore carries the generation it speaks of, as "running/3".
type Event struct {
	Name   string `json:"name"`
	Detail string `json:"detail,omitempty"` // words for people, the error of a failed wait
}

// Outcome is how a program ended.
type Outcome struct {
	State   OutcomeState `json:"state"`
	Message string       `json:"message,omitempty"` // empty unless it failed
}

// OutcomeState says how a program ended.
type OutcomeState string

// The ways a program ends.
const (
	Succeeded OutcomeState = "succeeded"
	Failed    OutcomeState = "failed"
	Cancelled OutcomeState = "cancelled"
)

// ErrLost says that a task is no longer held under the claim that was shown:
// its lease ran out and somebody else took it, or it has ended. Who gets it
// drops the task and what it was about to write.
var ErrLost = errors.New("lease lost")

// Signals is what reached a task from outside while it was held.
type Signals struct {
	Cancelled bool
	Events    []Event // all of them, not only the new ones
}

// Tasks is what a Worker needs of a store. Every method is atomic, and what it
// has acknowledged survives a crash.
type Tasks interface {
	// Claim takes up to limit tasks for owner until now+lease, the oldest Seq
	// first, and returns them as they now stand, with Events. A task can be
	// taken when it has not ended, NotBefore is not after now, its lease is
	// free or has run out (LeaseUntil before now), and no older task of the
	// same non-empty Subject is unfinished: programs of one object run one
	// after the other. Claim raises Claim and Attempts by one.
	Claim(ctx context.Context, owner string, now time.Time, lease time.Duration, limit int) ([]Task, error)

	// Extend moves LeaseUntil of a held task and says what has come for it.
	// ErrLost if (t.ID, t.Claim) does not hold it any more.
	Extend(ctx context.Context, t Task, until time.Time) (Signals, error)

	// Save writes Progress, and with release also gives the lease back and sets
	// NotBefore. If an event or a cancel has come that t does not show
	// (len(t.Events) or t.Cancelled differ from the row), a release sets
	// NotBefore to the zero time instead: what came in between is not slept
	// through. ErrLost as above; then nothing is written.
	Save(ctx context.Context, t Task, release bool) error

	// Finish writes Progress and Outcome, sets Finished and frees the lease.
	// ErrLost as above.
	Finish(ctx context.Context, t Task, o Outcome) error

	// Free ends the leases of owner, without touching Claim. A worker calls it
	// once when it starts, so that what its predecessor of the same name held
	// need not wait for the leases to run out. Should the predecessor live
	// after all, nothing worse happens than at the end of a lease.
	Free(ctx context.Context, owner string) error
}

// Inbox is the other side of the store: what an orchestrator calls inside the
// transaction of its own mutation, so that the step of a machine, the row and
// the task are committed together or not at all. A Worker does not use it.
type Inbox interface {
	// Insert stores a new task: ID, Operation, Subject, Program, NotBefore and
	// Deadline are taken from t, the rest starts at zero. Inserting an ID that
	// is there already changes nothing and is no error.
	Insert(ctx context.Context, t Task) error

	// Signal delivers e to every unfinished task of the subject, sets their
	// NotBefore to the zero time, and returns how many there were. An event
	// whose name the task has already got is not delivered again.
	Signal(ctx context.Context, subject string, e Event) (int, error)

	// Cancel marks every unfinished task of the subject cancelled, sets their
	// NotBefore to the zero time, and returns how many there were.
	Cancel(ctx context.Context, subject string) (int, error)
}
