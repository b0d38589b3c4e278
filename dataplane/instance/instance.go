// SPDX-License-Identifier: Apache-2.0

// Package instance brings the machines of this host to what the desired tables
// want, through the drivers of cloud/compute, and tells how they are. Nothing
// waits for it: a machine takes its time, the maps do not. Start at Plan, then
// Worker.
package instance

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"cairn/cloud/compute"
	"cairn/cloud/wire"
	"cairn/dataplane/table"
)

// The gateways of every instance, answered by its port's program: that of IPv6 is
// what the gateway's MAC makes (RFC 4291, appendix A).
var (
	gateway  = netip.MustParseAddr("169.254.0.1")
	gateway6 = netip.MustParseAddr("fe80::cb:ff:fe00:1")
)

// Want is one machine that should be, or why it cannot.
type Want struct {
	Spec  compute.Spec
	Fault string
}

// Wanted makes the specs of a view's instances, by id.
func Wanted(view table.View) map[string]Want {
	wanted := map[string]Want{}
	for i := range table.All[wire.Instance](view) {
		w := Want{Spec: compute.Spec{
			ID: i.ID, Port: i.Port, Name: i.Name, Driver: i.Driver, Command: i.Command, UserData: i.UserData,
			Gateway: gateway, Running: i.Running, Generation: i.Generation, Zone: i.Zone,
		}}
		if i.Port != 0 {
			w.public(view)
		}
		for _, id := range i.Networks {
			w.private(view, id)
		}
		wanted[i.ID] = w
	}
	return wanted
}

// public sets the interface that all instances had once and most have.
func (w *Want) public(view table.View) {
	port, ok := table.Get[wire.Port](view, fmt.Sprint(w.Spec.Port))
	at := slices.IndexFunc(port.Addresses, netip.Addr.Is4)
	switch {
	case !ok:
		w.Fault = fmt.Sprintf("port %d is not here", w.Spec.Port)
	case at < 0:
		w.Fault = fmt.Sprintf("port %d has no IPv4 address", w.Spec.Port)
	default:
		w.Spec.MAC, w.Spec.Address, w.Spec.MTU = net.HardwareAddr(port.MAC[:]), port.Addresses[at], int(port.MTU)
		if six := slices.IndexFunc(port.Addresses, netip.Addr.Is6); six >= 0 {
			w.Spec.Address6, w.Spec.Gateway6 = port.Addresses[six], gateway6
		}
	}
}

// private adds an interface in a private network.
func (w *Want) private(view table.View, id uint32) {
	port, ok := table.Get[wire.Port](view, fmt.Sprint(id))
	if !ok {
		w.Fault = fmt.Sprintf("port %d is not here", id)
		return
	}
	network, ok := table.Get[wire.Network](view, fmt.Sprint(port.Network))
	if !ok {
		w.Fault = fmt.Sprintf("network %d of port %d is not here", port.Network, id)
		return
	}
	w.Spec.Networks = append(w.Spec.Networks, compute.Interface{
		Port: id, MAC: net.HardwareAddr(port.MAC[:]), MTU: int(port.MTU), Leased: network.Lease != nil,
	})
}

// Op is what a step does.
type Op uint8

// The operations.
const (
	Ensure Op = iota + 1
	Remove
)

// Step is one call of a driver. It prints as one line.
type Step struct {
	Op     Op
	Driver string
	ID     string
	Spec   compute.Spec // of an Ensure
}

func (s Step) String() string {
	if s.Op == Remove {
		return fmt.Sprintf("remove %s by %s", s.ID, s.Driver)
	}
	state := "stopped"
	if s.Spec.Running {
		state = "running"
	}
	return fmt.Sprintf("ensure %s by %s: %s, port %d, generation %d", s.ID, s.Driver, state, s.Spec.Port, s.Spec.Generation)
}

// Plan lists the steps that turn the machines of each driver into those that
// are wanted: removals first, for a machine may need what another one has.
func Plan(want map[string]Want, have map[string][]compute.Machine) []Step {
	var steps []Step
	found := map[string]compute.Machine{}
	for driver, machines := range have {
		for _, m := range machines {
			if w, ok := want[m.ID]; ok && w.Spec.Driver == driver {
				found[m.ID] = m
			} else {
				steps = append(steps, Step{Op: Remove, Driver: driver, ID: m.ID})
			}
		}
	}
	for id, w := range want {
		if m, ok := found[id]; w.Fault == "" && (!ok || !fulfils(m, w.Spec)) {
			steps = append(steps, Step{Op: Ensure, Driver: w.Spec.Driver, ID: id, Spec: w.Spec})
		}
	}
	slices.SortFunc(steps, func(a, b Step) int {
		if a.Op != b.Op {
			return int(b.Op) - int(a.Op)
		}
		return strings.Compare(a.ID, b.ID)
	})
	return steps
}

func fulfils(m compute.Machine, s compute.Spec) bool {
	state := compute.StateStopped
	if s.Running {
		state = compute.StateRunning
	}
	return m.State == state && m.SpecHash == s.Hash() && m.Generation == s.Generation
}

// Report is how one machine is.
type Report struct {
	ID         string
	Generation uint64 // of the spec that it fulfils
	State      string // running, stopped, error
	Reason     string
}

// Reports tells how the wanted machines are. A machine that is still being made
// is not told of; failures are the errors of drivers, by id.
func Reports(want map[string]Want, have map[string][]compute.Machine, failures map[string]string) []Report {
	var out []Report
	found := map[string]compute.Machine{}
	for _, machines := range have {
		for _, m := range machines {
			found[m.ID] = m
		}
	}
	for id, w := range want {
		m, ok := found[id]
		reason := failures[id]
		if w.Fault != "" {
			reason = w.Fault
		}
		switch {
		case reason != "":
			out = append(out, Report{id, w.Spec.Generation, compute.StateError, reason})
		case ok && m.SpecHash == w.Spec.Hash() && m.State != compute.StateError:
			out = append(out, Report{id, m.Generation, m.State, m.Err})
		}
	}
	slices.SortFunc(out, func(a, b Report) int { return strings.Compare(a.ID, b.ID) })
	return out
}
