// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"cairn/cloud"
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
)

// States of an instance, with the words of the contract.
const (
	starting   = fsm.State(cloud.InstanceStarting)
	running    = fsm.State(cloud.InstanceRunning)
	stopping   = fsm.State(cloud.InstanceStopping)
	rebooting  = fsm.State("rebooting") // it stops, and starts again once it has; shown as stopping
	stopped    = fsm.State(cloud.InstanceStopped)
	failed     = fsm.State(cloud.InstanceError) // the host cannot, or has not in time; left by a late success
	destroying = fsm.State(cloud.InstanceDestroying)
	destroyed  = fsm.State(cloud.InstanceDestroyed) // the row goes in the same transaction
)

// Events of an instance. Up, Down and Broken are reports of the host about the
// present generation, and only as far as they concern what is wanted: Up comes
// when it is to run, Down when it is to be stopped.
const (
	Start  fsm.Event = "start"
	Stop   fsm.Event = "stop"
	Reboot fsm.Event = "reboot"
	Up     fsm.Event = "up"
	Down   fsm.Event = "down"
	Broken fsm.Event = "broken"
)

// Effects. Recompile: the row has changed, and the hosts follow it by the
// change log; they are told to have the instance, or to let it go. Free: what
// was allocated is given back, and the row goes.
var (
	there = []fsm.Effect{{Name: "recompile", Args: []string{"there"}, Idempotent: true}}
	away  = []fsm.Effect{{Name: "recompile", Args: []string{"gone"}, Idempotent: true}}
	free  = []fsm.Effect{{Name: "free", Idempotent: true}}
)

var goes = fsm.Refuse("it is being deleted")

// machine of an instance. Acked is that of a removal: the hosts concerned hold
// nothing of it any more. Acknowledgements of anything else say only that a host
// has read the wish, and move nothing.
var machine = fsm.Machine{
	Name:    "instance",
	Initial: starting,
	Events: []fsm.Event{Start, Stop, Reboot, operation.Delete, Up, Down, Broken,
		operation.Acked, operation.Nacked, operation.Deadline},
	Timeout: operation.Deadline,
	Delete:  operation.Delete,
	Rows: []fsm.Row{
		{State: starting, Kind: fsm.Transient, Effects: there, On: map[fsm.Event]fsm.Edge{
			Start: fsm.Ignore(), Stop: fsm.Refuse("it is starting"), Reboot: fsm.Refuse("it is starting"), operation.Delete: fsm.To(destroying),
			// Down: it was created without being started.
			Up: fsm.To(running), Down: fsm.To(stopped), Broken: fsm.To(failed),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.To(failed), operation.Deadline: fsm.To(failed),
		}},
		{State: running, Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
			Start: fsm.Ignore(), Stop: fsm.To(stopping), Reboot: fsm.To(rebooting), operation.Delete: fsm.To(destroying),
			Up: fsm.Ignore(), Down: fsm.Ignore(), Broken: fsm.To(failed),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
		{State: stopping, Kind: fsm.Transient, Effects: there, On: map[fsm.Event]fsm.Edge{
			Start: fsm.Refuse("it is stopping"), Stop: fsm.Ignore(), Reboot: fsm.Refuse("it is stopping"), operation.Delete: fsm.To(destroying),
			Up: fsm.Ignore(), Down: fsm.To(stopped), Broken: fsm.To(failed),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.To(failed), operation.Deadline: fsm.To(failed),
		}},
		{State: rebooting, Kind: fsm.Transient, Effects: there, On: map[fsm.Event]fsm.Edge{
			Start: fsm.Refuse("it is being rebooted"), Stop: fsm.Refuse("it is being rebooted"), Reboot: fsm.Ignore(), operation.Delete: fsm.To(destroying),
			// Down: the first half is done, and a new generation begins.
			Up: fsm.Ignore(), Down: fsm.To(starting), Broken: fsm.To(failed),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.To(failed), operation.Deadline: fsm.To(failed),
		}},
		{State: stopped, Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
			Start: fsm.To(starting), Stop: fsm.Ignore(), Reboot: fsm.Refuse("it is stopped"), operation.Delete: fsm.To(destroying),
			Up: fsm.Ignore(), Down: fsm.Ignore(), Broken: fsm.To(failed),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
		{State: failed, Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
			Start: fsm.To(starting), Stop: fsm.To(stopping), Reboot: fsm.To(rebooting), operation.Delete: fsm.To(destroying),
			Up: fsm.To(running), Down: fsm.To(stopped), Broken: fsm.Ignore(),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
		{State: destroying, Kind: fsm.Transient, Effects: away, On: map[fsm.Event]fsm.Edge{
			Start: goes, Stop: goes, Reboot: goes, operation.Delete: fsm.Ignore(),
			Up: fsm.Ignore(), Down: fsm.Ignore(), Broken: fsm.Ignore(),
			// The waiting ends at the deadline, the removal does not.
			operation.Acked: fsm.To(destroyed), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.To(destroying),
		}},
		{State: destroyed, Kind: fsm.Terminal, Effects: free, On: map[fsm.Event]fsm.Edge{
			Start: goes, Stop: goes, Reboot: goes, operation.Delete: fsm.Ignore(),
			Up: fsm.Ignore(), Down: fsm.Ignore(), Broken: fsm.Ignore(),
			operation.Acked: fsm.Ignore(), operation.Nacked: fsm.Ignore(), operation.Deadline: fsm.Ignore(),
		}},
	},
}
