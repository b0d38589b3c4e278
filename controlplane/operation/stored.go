// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"errors"

	"cairn/controlplane/fsm"
	"cairn/controlplane/store"
)

// States of what StoredMachine moves. The contract shows none of them.
const (
	StateRunning  fsm.State = "running"
	StateUpdating fsm.State = "updating"
	StateDeleted  fsm.State = "deleted"
)

// Recompile is the one effect of what is only stored: the row has changed, and
// the agents follow it by the change log.
var Recompile = []fsm.Effect{{Name: "recompile", Idempotent: true}}

// StoredMachine is that of a noun which agents learn of only through those that
// use it: one that is made has no users, so that it is nothing to any agent, and
// the same holds when it is deleted. A change of one that is on its way is stored
// at once, under the next generation, and waited for by its own operation.
func StoredMachine(name string) fsm.Machine {
	return fsm.Machine{
		Name:    name,
		Initial: StateRunning,
		Events:  []fsm.Event{Update, Delete, Acked, Nacked, Deadline},
		Timeout: Deadline,
		Delete:  Delete,
		Rows: []fsm.Row{
			{State: StateRunning, Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
				Update: fsm.To(StateUpdating), Delete: fsm.To(StateDeleted),
				Acked: fsm.Ignore(), Nacked: fsm.Ignore(), Deadline: fsm.Ignore(),
			}},
			{State: StateUpdating, Kind: fsm.Transient, Effects: Recompile, On: map[fsm.Event]fsm.Edge{
				Update: fsm.To(StateUpdating), Delete: fsm.To(StateDeleted),
				// The stored wish stays and the agents follow it, late if they must.
				Acked: fsm.To(StateRunning), Nacked: fsm.To(StateRunning), Deadline: fsm.To(StateRunning),
			}},
			{State: StateDeleted, Kind: fsm.Terminal, Effects: Recompile, On: map[fsm.Event]fsm.Edge{
				Update: fsm.Refuse("it is deleted"), Delete: fsm.Ignore(),
				Acked: fsm.Ignore(), Nacked: fsm.Ignore(), Deadline: fsm.Ignore(),
			}},
		},
	}
}

// Settle makes a Noun's Settle: it moves the subject's machine, whose state is
// what status points to, by what became of the operation that waits for its
// present generation. Operations of an older one end on their own; those that
// change only who uses the subject (generation 0) leave it as it is.
func Settle[T store.Document](machine *fsm.Machine, status func(*T) *string) func(*store.Tx, store.Operation, fsm.Event, Outcome) error {
	return func(tx *store.Tx, op store.Operation, e fsm.Event, _ Outcome) error {
		if op.Generation == 0 {
			return nil
		}
		d, err := store.Get[T](tx, op.Org, op.Subject.ID)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil || d.Generation != op.Generation {
			return err
		}
		s := status(&d.Body)
		r := machine.Next(fsm.State(*s), e)
		if r.Verdict != fsm.Handled {
			return nil
		}
		*s = string(r.State)
		return store.Put(tx, op.ID, d)
	}
}
