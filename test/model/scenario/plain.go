// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"cairn/test/model/firewall"
	"cairn/test/model/frame"
)

// What other firewalls understand as well: rules of one port, set once, and
// packets as they are meant to be.

// Rules of port 5.
func (g *Generator) Rules() []*Change {
	changes := []*Change{{Verb: Groups, Port: Ports[0], Groups: []firewall.GroupID{1, 2}}, g.join(), g.join()}
	for range 3 + g.rnd.IntN(12) {
		c := g.addRule()
		c.Groups = []firewall.GroupID{1}
		changes = append(changes, c)
	}
	return append(changes, &Change{Verb: Source, Prefix: g.prefix(), Groups: []firewall.GroupID{g.group()}})
}

// Plain packet that port 5 sends or gets: one that begins a flow, or the next
// that its ends would say.
func (g *Generator) Plain(h *firewall.Host) *Send {
	flows := h.Ports[Ports[0]].Flows.All
	if len(flows) > 0 && g.one(2) {
		tuples := slices.SortedFunc(maps.Keys(flows), func(a, b firewall.Tuple) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		t := pick(g, tuples...)
		return g.next(t, flows[t])
	}
	for {
		s := g.fresh()
		if s.Hook == VM && (s.Port != Ports[0] || !slices.Contains(Addresses(Ports[0]), s.Spec.Src.Addr())) ||
			s.Hook == Uplink && !slices.Contains(Addresses(Ports[0]), s.Spec.Dst.Addr()) {
			continue // another port's, or of a range, to which the other firewall has no route
		}
		s.Service, s.Spec.TTL = 0, 0
		if s.Hook == VM && slices.ContainsFunc(Ports, func(p firewall.PortID) bool { return slices.Contains(Addresses(p), s.Spec.Dst.Addr()) }) ||
			s.Hook == Uplink && slices.Contains(Addresses(Ports[1]), s.Spec.Src.Addr()) {
			continue // not by way of the network
		}
		if s.Spec.Proto == frame.TCP {
			s.Spec.Flags = frame.SYN
			if known(flows, *s) {
				continue // a SYN in the middle of a flow is for each to judge in his own way
			}
		}
		if s.Spec.IsICMP() {
			s.Spec.Type, s.Spec.Code = echo(s.Spec.V6(), false), 0
			if s.Hook == VM {
				s.Spec.Src = netip.AddrPortFrom(s.Spec.Src.Addr(), 77)
			} else {
				s.Spec.Src = netip.AddrPortFrom(s.Spec.Src.Addr(), 78)
			}
		}
		return s
	}
}

func echo(v6, reply bool) uint8 {
	switch {
	case v6 && reply:
		return 129
	case v6:
		return 128
	case reply:
		return 0
	}
	return 8
}

// next packet of a flow, from either end.
func (g *Generator) next(t firewall.Tuple, f *firewall.Flow) *Send {
	d := pick(g, firewall.In, firewall.Out)
	s := frame.Spec{Proto: t.Proto, Src: netip.AddrPortFrom(t.Peer, t.PeerPort), Dst: netip.AddrPortFrom(t.Own, t.OwnPort), Payload: 4}
	switch {
	case t.Proto == frame.TCP:
		me, you := f.Ends[d], f.Ends[1-d]
		s.Seq, s.Ack, s.Window, s.Payload = me.Sent, you.Sent, 1000, 0
		switch {
		case d != f.First && !me.HasSent:
			s.Flags, s.Seq = frame.SYN|frame.ACK, g.rnd.Uint32()
		case d == f.First && !you.HasSent:
			s.Flags, s.Seq, s.Ack = frame.SYN, me.Sent-1, 0
		default:
			s.Flags = frame.ACK
		}
	case s.IsICMP():
		s.Type = echo(s.V6(), d != f.First)
		s.Src, s.Dst = netip.AddrPortFrom(t.Peer, t.PeerPort|t.OwnPort), netip.AddrPortFrom(t.Own, 0)
	}
	if d == firewall.Out {
		return &Send{Hook: VM, Port: Ports[0], Spec: turn(s)}
	}
	return &Send{Hook: Uplink, Spec: s}
}

func known(flows map[firewall.Tuple]*firewall.Flow, s Send) bool {
	t := firewall.Tuple{Proto: s.Spec.Proto, Peer: s.Spec.Src.Addr(), Own: s.Spec.Dst.Addr(), PeerPort: s.Spec.Src.Port(), OwnPort: s.Spec.Dst.Port()}
	if s.Hook == VM {
		t.Peer, t.Own, t.PeerPort, t.OwnPort = t.Own, t.Peer, t.OwnPort, t.PeerPort
	}
	return flows[t] != nil
}
