// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

// States of a load balancer and of its services, in the words of the contract
// but for the last. A load balancer itself is never updating: its name and
// labels are nothing to any agent.
const (
	creating fsm.State = "creating"
	running  fsm.State = "running"
	updating fsm.State = "updating"
	deleting fsm.State = "deleting"
	failed   fsm.State = "error" // an agent refused it, or was too late; left by a late success
	deleted  fsm.State = "deleted"
)

// recompile is the one effect: the row has changed, and the agents follow it
// by the change log. In deleting it makes them let go; the numbers and the
// address are freed only in deleted, when they have.
var recompile = []fsm.Effect{{Name: "recompile", Idempotent: true}}

// forget removes the row and what was allocated for it.
var forget = []fsm.Effect{{Name: "forget", Idempotent: true}}

var events = []fsm.Event{operation.Update, operation.Delete, operation.Acked, operation.Nacked, operation.Deadline}

// on lists what each event does, in the order of events.
func on(update, del, acked, nacked, deadline fsm.Edge) map[fsm.Event]fsm.Edge {
	return map[fsm.Event]fsm.Edge{
		operation.Update: update, operation.Delete: del,
		operation.Acked: acked, operation.Nacked: nacked, operation.Deadline: deadline,
	}
}

var (
	to, ignore = fsm.To, fsm.Ignore()
	leaving    = fsm.Row{State: deleting, Kind: fsm.Transient, Effects: recompile, On: on(
		// Who asks again takes up what is under way, or what was given up.
		fsm.Refuse("it is being deleted"), to(deleting), to(deleted), ignore, to(deleting))}
	gone = fsm.Row{State: deleted, Kind: fsm.Terminal, Effects: forget, On: on(
		fsm.Refuse("it is deleted"), ignore, ignore, ignore, ignore)}
)

// balancerMachine is that of a load balancer. Only its deletion waits for
// agents, and only if it had services.
var balancerMachine = fsm.Machine{
	Name: "load-balancer", Initial: creating, Events: events, Timeout: operation.Deadline, Delete: operation.Delete,
	Rows: []fsm.Row{
		{State: creating, Kind: fsm.Transient, Effects: recompile, On: on(
			to(creating), to(deleting), to(running), to(failed), to(failed))},
		{State: running, Kind: fsm.Resting, On: on(
			to(running), to(deleting), ignore, ignore, ignore)},
		{State: failed, Kind: fsm.Resting, On: on(
			to(running), to(deleting), to(running), ignore, ignore)},
		leaving, gone,
	},
}

// serviceMachine is that of a service. A change of one that is on its way is
// stored at once, under the next generation, and waited for by its own
// operation. Where an update fails the stored wish stays: agents follow it,
// late if they must.
var serviceMachine = fsm.Machine{
	Name: "load-balancer-service", Initial: creating, Events: events, Timeout: operation.Deadline, Delete: operation.Delete,
	Rows: []fsm.Row{
		{State: creating, Kind: fsm.Transient, Effects: recompile, On: on(
			to(creating), to(deleting), to(running), to(failed), to(failed))},
		{State: running, Kind: fsm.Resting, On: on(
			to(updating), to(deleting), ignore, ignore, ignore)},
		{State: updating, Kind: fsm.Transient, Effects: recompile, On: on(
			to(updating), to(deleting), to(running), to(running), to(running))},
		{State: failed, Kind: fsm.Resting, On: on(
			to(updating), to(deleting), to(running), ignore, ignore)},
		leaving, gone,
	},
}

// Nouns are what the gate knows of load balancers and their services.
var Nouns = []operation.Noun{
	{Kind: store.KindLoadBalancer, Settle: settleBalancer},
	{Kind: store.KindService, Settle: settleService},
}
