// SPDX-License-Identifier: Apache-2.0

// Package firewall is the specification of the firewall at one host's ports,
// in plain Go: what becomes of a packet, why, by which rule, and what it looks
// like afterwards. It knows sets and lists, no maps, no classes, no bitmaps; it
// is slow, and meant to be read. It shares no code with the programs that it
// specifies, and touches nothing. Start at Host, then path.go, which is read
// downwards: it is the way of a packet.
package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"cairn/test/model/frame"
)

// Host is everything at one hypervisor that the firewall looks at.
type Host struct {
	Facts
	Groups map[GroupID]*Group
	Ports  map[PortID]*Port
	Now    time.Duration // since some moment
	Counts map[RuleID]Count
}

// Count of packets of flows that a rule admitted, at each port they pass; 0
// stands for none.
type Count struct{ Packets, Bytes uint64 }

// Facts do not change while a host runs.
type Facts struct {
	Own      []netip.Prefix // underlay, management, host: no port may reach it
	Served   []netip.Prefix // announced for instances
	Probe    netip.Addr     // the door's own address, the source of health checks
	Metadata netip.Addr     // where instances ask who they are
	Uplink   frame.MAC
	Gateway  frame.MAC // of every port
	Door     frame.MAC
	Services map[ServiceID]Service
}

// Service is what a load balancer serves; its backends listen on another port.
type Service struct {
	Proto uint8
	VIP   netip.AddrPort
}

// Names of things. Zero is none.
type (
	ServiceID uint32
	PortID    uint32
	GroupID   uint32
	RuleID    uint32
)

// Port of an instance.
type Port struct {
	Addresses  []netip.Addr
	Ranges     []netip.Prefix // of which it has all addresses, but for those of others
	MAC        frame.MAC
	Groups     []GroupID
	MTU        int           // of IP; 0: any
	Strict     bool          // TCP without a SYN opens no flow
	Mail       bool          // may go to TCP port 25
	Idle       time.Duration // how long an established TCP flow may be silent; 0: an hour
	Generation uint32
	Flows      Flows
	Pieces     Pieces
	asked      map[uint16]asked // of the metadata service
}

// Group is a security group.
type Group struct {
	Members map[netip.Addr]bool
	Sources map[netip.Prefix]bool
	Rules   []Rule
}

// Rule admits flows. A peer is an address of Peer, or, with a group, one of its
// members or sources. Protocol 0 is every protocol.
type Rule struct {
	ID         RuleID
	Egress     bool
	Protocol   uint8
	From, To   uint16 // TCP and UDP, both inclusive
	Type, Code int    // ICMP, -1 any
	Peer       netip.Prefix
	PeerGroup  GroupID
	Keep       bool // flows that it has admitted outlive it
}

// NewHost is one without ports.
func NewHost(facts Facts) *Host {
	return &Host{Facts: facts, Groups: map[GroupID]*Group{}, Ports: map[PortID]*Port{}, Counts: map[RuleID]Count{}}
}

// Group is there from the moment somebody speaks of it.
func (h *Host) Group(id GroupID) *Group {
	g := h.Groups[id]
	if g == nil {
		g = &Group{Members: map[netip.Addr]bool{}, Sources: map[netip.Prefix]bool{}}
		h.Groups[id] = g
	}
	return g
}

// port that has an address: itself, or in the smallest range.
func (h *Host) at(addr netip.Addr) (PortID, *Port) {
	var found PortID
	bits := -1
	for id, p := range h.Ports {
		if slices.Contains(p.Addresses, addr) {
			return id, p
		}
		for _, r := range p.Ranges {
			if r.Contains(addr) && r.Bits() > bits {
				found, bits = id, r.Bits()
			}
		}
	}
	return found, h.Ports[found]
}

// Rules are the union of the port's groups' rules. The order is that of ids, so
// that the first one that admits is always the same.
func (h *Host) Rules(p *Port) []Rule {
	var all []Rule
	for _, id := range p.Groups {
		all = append(all, h.Group(id).Rules...)
	}
	slices.SortFunc(all, func(a, b Rule) int { return int(a.ID) - int(b.ID) })
	return slices.CompactFunc(all, func(a, b Rule) bool { return a.ID == b.ID })
}

// A change of who may do what. Flows are judged again at their next packet when
// something may have been taken away: another set of rules, or an address that
// left a group which the rules name. Who comes takes nothing away.

// SetGroups puts a port into exactly these groups.
func (h *Host) SetGroups(id PortID, groups ...GroupID) {
	p := h.Ports[id]
	h.changing(func() { p.Groups = groups })
}

// SetMail lets a port send mail, or no more.
func (h *Host) SetMail(id PortID, may bool) {
	p := h.Ports[id]
	if p.Mail != may {
		p.Mail = may
		p.Generation++
	}
}

// AddRule to a group.
func (h *Host) AddRule(id GroupID, r Rule) {
	g := h.Group(id)
	h.changing(func() { g.Rules = append(g.Rules, r) })
}

// RemoveRule from whichever group has it.
func (h *Host) RemoveRule(id RuleID) {
	h.changing(func() {
		for _, g := range h.Groups {
			g.Rules = slices.DeleteFunc(g.Rules, func(r Rule) bool { return r.ID == id })
		}
	})
}

// SetSource adds an external source to a group, or takes it away. The rules that
// name the group are other rules then.
func (h *Host) SetSource(id GroupID, source netip.Prefix, there bool) {
	g := h.Group(id)
	h.changing(func() { set(g.Sources, source, there) })
}

// SetMember puts an address into a group, or takes it out.
func (h *Host) SetMember(id GroupID, addr netip.Addr, there bool) {
	g := h.Group(id)
	left := g.Members[addr] && !there
	set(g.Members, addr, there)
	if !left {
		return
	}
	for _, p := range h.Ports {
		if slices.ContainsFunc(h.Rules(p), func(r Rule) bool { return r.PeerGroup == id }) {
			p.Generation++
		}
	}
}

func set[K comparable](m map[K]bool, key K, there bool) {
	if there {
		m[key] = true
	} else {
		delete(m, key)
	}
}

// changing raises the generation of every port whose rules are others after it.
func (h *Host) changing(change func()) {
	before := map[PortID]string{}
	for id, p := range h.Ports {
		before[id] = h.meaning(p)
	}
	change()
	for id, p := range h.Ports {
		if h.meaning(p) != before[id] {
			p.Generation++
		}
	}
}

// meaning of a port's rules, with the sources of the groups that they name.
func (h *Host) meaning(p *Port) string {
	var out strings.Builder
	fmt.Fprint(&out, len(p.Groups) > 0, h.Rules(p))
	for _, r := range h.Rules(p) {
		if r.PeerGroup != 0 {
			fmt.Fprint(&out, h.Group(r.PeerGroup).Sources)
		}
	}
	return out.String()
}
