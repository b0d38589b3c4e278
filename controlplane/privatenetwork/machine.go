// SPDX-License-Identifier: Apache-2.0

package privatenetwork

import (
	"errors"

	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

// States of a network. The contract shows none.
const (
	running  fsm.State = "running"
	updating fsm.State = "updating"
	deleted  fsm.State = "deleted"
)

// recompile is the one effect: the row has changed, and the agents follow it by
// the change log.
var recompile = []fsm.Effect{{Name: "recompile", Idempotent: true}}

// machine of a network. One that is made has no instances, so that it is nothing
// to any agent; the same holds when it is deleted. A change of a network that is
// on its way is stored at once, under the next generation, and waited for by its
// own operation.
var machine = fsm.Machine{
	Name:    "private-network",
	Initial: running,
	Events:  []fsm.Event{operation.Update, operation.Delete, operation.Acked, operation.Nacked, operation.Deadline},
	Timeout: operation.Deadline,
	Delete:  operation.Delete,
	Rows: []fsm.Row{
		{State: running, Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.To(updating), operation.Delete: fsm.To(deleted),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
		{State: updating, Kind: fsm.Transient, Effects: recompile, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.To(updating), operation.Delete: fsm.To(deleted),
			// The stored wish stays and the agents follow it, late if they must.
			operation.Acked: fsm.To(running), operation.Nacked: fsm.To(running), operation.Deadline: fsm.To(running),
		}},
		{State: deleted, Kind: fsm.Terminal, Effects: recompile, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.Refuse("it is deleted"), operation.Delete: fsm.Ignore(),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
	},
}

// Noun is what the gate knows of private networks.
var Noun = operation.Noun{Kind: store.KindPrivateNetwork, Settle: settle}

func state(d Doc) fsm.State { return fsm.State(d.Body.Status) }

// settle moves a network by what became of the operation that waits for its
// present generation. Operations of an older one end on their own; those that
// change who is in it (generation 0) leave it as it is.
func settle(tx *store.Tx, op store.Operation, e fsm.Event, _ operation.Outcome) error {
	if op.Generation == 0 {
		return nil
	}
	d, err := store.Get[store.PrivateNetworkDoc](tx, op.Org, op.Subject.ID)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || d.Generation != op.Generation {
		return err
	}
	r := machine.Next(state(d), e)
	if r.Verdict != fsm.Handled {
		return nil
	}
	d.Body.Status = string(r.State)
	return store.Put(tx, op.ID, d)
}
