// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cairn/cloud"
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
)

// States of a pool, with the words of the contract. Its "updating" is never
// shown: what an update changes is there at once, for members made later.
const (
	creating    = fsm.State(cloud.PoolCreating)
	running     = fsm.State(cloud.PoolRunning)
	scalingUp   = fsm.State(cloud.PoolScalingUp)
	scalingDown = fsm.State(cloud.PoolScalingDown)
	suspended   = fsm.State(cloud.PoolSuspended) // a new member failed, or was late; left when all run
	destroying  = fsm.State(cloud.PoolDestroying)
	destroyed   = fsm.State("destroyed") // the row goes in the same transaction
)

// Events of a pool. Done and Failed are the ends of its program.
const (
	Grow   fsm.Event = "grow"
	Shrink fsm.Event = "shrink"
	Done   fsm.Event = "done"
	Failed fsm.Event = "failed"
)

// Effects: a program waits for the members that come, or for those that go.
var (
	awaitRunning = []fsm.Effect{{Name: "run", Args: []string{"running"}, Idempotent: true}}
	awaitGone    = []fsm.Effect{{Name: "run", Args: []string{"gone"}, Idempotent: true}}
	forget       = []fsm.Effect{{Name: "forget", Idempotent: true}}
)

var (
	grows   = fsm.Refuse("it is growing")
	shrinks = fsm.Refuse("it is shrinking")
	goes    = fsm.Refuse("it is being deleted")
)

// machine of a pool. An event counts only under the generation of the operation
// that it belongs to; see finish.
var machine = fsm.Machine{
	Name:    "instance-pool",
	Initial: creating,
	Events: []fsm.Event{operation.Update, Grow, Shrink, operation.Delete, Done, Failed,
		operation.Nacked, operation.Deadline},
	Timeout: operation.Deadline,
	Delete:  operation.Delete,
	Rows: []fsm.Row{
		growing(creating),
		{State: running, Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.To(running), Grow: fsm.To(scalingUp), Shrink: fsm.To(scalingDown),
			operation.Delete: fsm.To(destroying), Done: fsm.Ignore(), Failed: fsm.Ignore(),
			operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
		growing(scalingUp),
		{State: scalingDown, Kind: fsm.Transient, Effects: awaitGone, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.Ignore(), Grow: shrinks, Shrink: shrinks, operation.Delete: fsm.To(destroying),
			// Those that were to go are going, whatever becomes of the waiting.
			Done: fsm.To(running), Failed: fsm.To(running), operation.Nacked: fsm.To(running), operation.Deadline: fsm.To(running),
		}},
		{State: suspended, Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.Ignore(), Grow: fsm.To(scalingUp), Shrink: fsm.To(scalingDown),
			operation.Delete: fsm.To(destroying), Done: fsm.To(running), Failed: fsm.Ignore(),
			operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
		{State: destroying, Kind: fsm.Transient, Effects: awaitGone, On: map[fsm.Event]fsm.Edge{
			operation.Update: goes, Grow: goes, Shrink: goes, operation.Delete: fsm.Ignore(),
			Done: fsm.To(destroyed), Failed: fsm.Ignore(),
			operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.To(destroying),
		}},
		{State: destroyed, Kind: fsm.Terminal, Effects: forget, On: map[fsm.Event]fsm.Edge{
			operation.Update: goes, Grow: goes, Shrink: goes, operation.Delete: fsm.Ignore(),
			Done: fsm.Ignore(), Failed: fsm.Ignore(), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
	},
}

// growing is a state in which new members are waited for.
func growing(s fsm.State) fsm.Row {
	return fsm.Row{State: s, Kind: fsm.Transient, Effects: awaitRunning, On: map[fsm.Event]fsm.Edge{
		operation.Update: fsm.Ignore(), Grow: grows, Shrink: grows, operation.Delete: fsm.To(destroying),
		Done: fsm.To(running), Failed: fsm.To(suspended), operation.Nacked: fsm.To(suspended), operation.Deadline: fsm.To(suspended),
	}}
}
