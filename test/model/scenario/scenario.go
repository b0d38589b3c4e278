// SPDX-License-Identifier: Apache-2.0

// Package scenario owns what happens at a host, as a list of steps that prints
// as text and is read back from it: rules change, time passes, packets arrive.
// Tables of verdicts are such texts (testdata), the fuzzer makes them up, and
// what it finds is one. Everything plays in one small world (world.go). Steps
// are put to the model (package firewall) and, by Subject, to anything else
// that claims to do the same. Start at Step.
package scenario

import (
	"net/netip"
	"time"

	"cairn/test/model/firewall"
	"cairn/test/model/frame"
)

// Step is one thing that happens. Exactly one of the first three is set.
type Step struct {
	Change *Change
	Wait   time.Duration
	Send   *Send

	Want *Want // of a table's row
	Line int   // in the text it came from
}

// Verb of a change.
type Verb string

// Verbs.
const (
	Groups Verb = "groups" // a port is in these groups
	Add    Verb = "rule"
	Remove Verb = "no-rule"
	Join   Verb = "join"
	Leave  Verb = "leave"
	Source Verb = "source"
	Forget Verb = "no-source"
	Strict Verb = "strict" // TCP without a SYN opens no flow at the port
	Mail   Verb = "mail"   // the port may send some
	NoMail Verb = "no-mail"
)

// Change of who may do what.
type Change struct {
	Verb   Verb
	Port   firewall.PortID
	Groups []firewall.GroupID // the first one is meant where one is
	Rule   firewall.Rule
	Addr   netip.Addr
	Prefix netip.Prefix
}

// Hook is where a frame arrives.
type Hook string

// Hooks.
const (
	VM     Hook = "vm"
	Uplink Hook = "uplink"
	Door   Hook = "door"
)

// Send a frame.
type Send struct {
	Hook    Hook
	Port    firewall.PortID    // of VM
	Service firewall.ServiceID // at Uplink: the balancer brought it
	Spec    frame.Spec
}

// Want is what a table says of a packet.
type Want struct {
	Reason firewall.Reason
	Rule   firewall.RuleID
}

// Outcome is what became of a packet. Rule is 0 if it is not known or none was
// needed.
type Outcome struct {
	Reason firewall.Reason
	Rule   firewall.RuleID
	Out    []byte
}

// Frame that is sent, with the addresses of Ethernet that its way has unless
// the step gives others.
func (s Send) Frame() []byte {
	spec := s.Spec
	from, to := RouterMAC, UplinkMAC
	switch s.Hook {
	case VM:
		from, to = PortMAC(s.Port), GatewayMAC
	case Door:
		from, to = DoorMAC, GatewayMAC
	}
	if spec.From == (frame.MAC{}) {
		spec.From = from
	}
	if spec.To == (frame.MAC{}) {
		spec.To = to
	}
	return spec.Bytes()
}
