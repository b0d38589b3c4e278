// SPDX-License-Identifier: Apache-2.0

package securitygroup

import (
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

// States of a group. The contract shows none of them.
const (
	creating fsm.State = "creating"
	running  fsm.State = "running"
	updating fsm.State = "updating"
	failed   fsm.State = "error" // nobody has acknowledged it yet; left by a late success
	deleted  fsm.State = "deleted"
)

// machine of a group. A change of a group that is on its way is stored at
// once, under the next generation, and waited for by its own operation. Only a
// group without members can be deleted, so there is nothing to wait for then.
var machine = fsm.Machine{
	Name:    "security-group",
	Initial: creating,
	Events:  []fsm.Event{operation.Update, operation.Delete, operation.Acked, operation.Nacked, operation.Deadline},
	Timeout: operation.Deadline,
	Delete:  operation.Delete,
	Rows: []fsm.Row{
		{State: creating, Kind: fsm.Transient, Effects: operation.Recompile, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.To(creating), operation.Delete: fsm.To(deleted),
			operation.Acked: fsm.To(running), operation.Nacked: fsm.To(failed), operation.Deadline: fsm.To(failed),
		}},
		{State: running, Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.To(updating), operation.Delete: fsm.To(deleted),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
		{State: updating, Kind: fsm.Transient, Effects: operation.Recompile, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.To(updating), operation.Delete: fsm.To(deleted),
			// The stored wish stays and the agents follow it, late if they must.
			operation.Acked: fsm.To(running), operation.Nacked: fsm.To(running), operation.Deadline: fsm.To(running),
		}},
		{State: failed, Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.To(updating), operation.Delete: fsm.To(deleted),
			operation.Acked: fsm.To(running), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
		{State: deleted, Kind: fsm.Terminal, Effects: operation.Recompile, On: map[fsm.Event]fsm.Edge{
			operation.Update: fsm.Refuse("it is deleted"), operation.Delete: fsm.Ignore(),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
	},
}

// Noun is what the gate knows of security groups.
var Noun = operation.Noun{
	Kind:   store.KindSecurityGroup,
	Settle: operation.Settle(&machine, func(d *store.SecurityGroupDoc) *string { return &d.Status }),
}

func state(d store.Doc[store.SecurityGroupDoc]) fsm.State { return fsm.State(d.Body.Status) }
