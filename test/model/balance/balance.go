// SPDX-License-Identifier: Apache-2.0

// Package balance is the load balancer of a small zone twice: as a plain
// description of who gets a packet, and as the real programs of three hosts that
// send packets to each other. A made-up story of packets and of slots that move
// is put to both. It owns no judgement of the firewall (package firewall has that:
// here everything is admitted) and attaches nothing. Start at Zone.Judge, then
// Fabric in fabric.go and Story in story.go.
package balance

import (
	"fmt"
	"net/netip"

	"cairn/lb/slots"
)

// Protocols of the zone's two services.
const (
	TCP = 6
	UDP = 17
)

// Host of the zone, from 0. The first one has no backends.
type Host int

// Hosts of the zone.
const Hosts = 3

// Backend is the number of one, in the zone.
type Backend uint32

// State of a backend, as its own host has it.
type State int

// States of a backend.
const (
	Ready State = iota
	Unhealthy
	Draining
	Dead // its port is gone
)

func (s State) String() string { return [...]string{"ready", "unhealthy", "draining", "dead"}[s] }

// Member is a backend of both services.
type Member struct {
	Host  Host
	Port  uint32
	State State
	Flows map[Flow]*Known
}

// Flow is a client's connection.
type Flow struct {
	Proto  uint8
	Client netip.AddrPort
}

// Known is what a backend's host knows of a flow.
type Known struct{ Ending bool }

// Kind of a packet.
type Kind int

// Kinds of packets.
const (
	SYN  Kind = iota
	Data      // anything else but what ends
	FIN
)

// Packet of a client to a service, at the host that the router chose.
type Packet struct {
	Flow
	Kind Kind
	At   Host
}

func (p Packet) String() string {
	what := map[uint8][]string{TCP: {"SYN", "ACK", "FIN"}, UDP: {"datagram", "datagram", "datagram"}}[p.Proto][p.Kind]
	return fmt.Sprintf("%s of %s at host %d", what, p.Client, p.At)
}

// Outcome is who got a packet; without anybody, why.
type Outcome struct {
	Backend Backend
	Why     string // refused, dropped
}

func (o Outcome) String() string {
	if o.Backend == 0 {
		return o.Why
	}
	return fmt.Sprintf("backend %d", o.Backend)
}

// Zone is what the hosts know. Tables may differ while a slot moves.
type Zone struct {
	Tables  [Hosts]map[uint8]slots.Table
	Members map[Backend]*Member
	Hash    func(Flow) uint32
}

// Slot of a flow, as a host has it.
func (z *Zone) Slot(h Host, f Flow) slots.Slot { return z.Tables[h][f.Proto].Select(z.Hash(f)) }

// Judge a packet: whose it is, by the table of amendments to the design. What was
// delivered is known from then on.
func (z *Zone) Judge(p Packet) Outcome {
	slot := z.Slot(p.At, p.Flow)
	owner, other := Backend(slot.Cur()), Backend(slot.Prev())
	for hop := 0; ; hop++ {
		m := z.Members[owner]
		if m == nil || m.State == Dead {
			return Outcome{Why: "dropped"}
		}
		next := z.next(m.Host, p.Flow, owner, other, hop)
		switch known := m.Flows[p.Flow]; {
		case known != nil && !(p.isSYN() && known.Ending):
			return z.deliver(owner, p)
		case p.isSYN() && m.State == Ready:
			return z.deliver(owner, p)
		case p.isSYN() && next == 0 && m.State == Draining, p.isSYN() && hop == 2 && m.State == Draining:
			return Outcome{Why: "refused"}
		case next == 0, hop == 2, !p.isSYN() && hop == 1 && p.Proto == TCP:
			return z.deliver(owner, p)
		}
		owner, other = next, owner
	}
}

func (p Packet) isSYN() bool { return p.Proto == TCP && p.Kind == SYN }

// next owner: the one that came with the packet, else the other one in the own
// record of the host that the first owner is at.
func (z *Zone) next(h Host, f Flow, owner, other Backend, hop int) Backend {
	if other != 0 && other != owner {
		return other
	}
	if hop > 0 {
		return 0
	}
	slot := z.Slot(h, f)
	for _, b := range []Backend{Backend(slot.Cur()), Backend(slot.Prev())} {
		if b != owner {
			return b
		}
	}
	return 0
}

func (z *Zone) deliver(b Backend, p Packet) Outcome {
	flows := z.Members[b].Flows
	known := flows[p.Flow]
	if known == nil || p.isSYN() && known.Ending {
		known = &Known{}
		flows[p.Flow] = known
	}
	known.Ending = known.Ending || p.Proto == TCP && p.Kind == FIN
	return Outcome{Backend: b}
}
