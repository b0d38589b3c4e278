// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"cairn/test/model/firewall"
	"cairn/test/model/frame"
)

// Generator makes up what happens next. It looks at the model's host, so that
// most packets belong to a flow or come close to one: the pools of addresses,
// ports and rules are small, for things to meet.
type Generator struct {
	Length  int // of the sequence
	opening int // how many of its steps set the host up
	rnd     *rand.Rand
	rule    firewall.RuleID // the last one that was added
	broken  *Send           // the packet that comes in pieces
}

// NewGenerator of one sequence. The same seed makes the same of the same host.
func NewGenerator(seed uint64) *Generator {
	g := &Generator{rnd: rand.New(rand.NewPCG(seed, 0)), opening: few}
	if g.one(8) { // so many rules that the programs search in two steps
		g.opening = many
	}
	g.Length = g.opening + 136 // few enough for a story that a person reads
	return g
}

func pick[T any](g *Generator, of ...T) T { return of[g.rnd.IntN(len(of))] }

func (g *Generator) one(in int) bool { return g.rnd.IntN(in) == 0 }

const (
	groupsInPlay = 4
	few, many    = 14, 94 // steps that set the host up
)

// Step that comes at a place.
func (g *Generator) Step(at int, h *firewall.Host) Step {
	if at < g.opening {
		return g.open(at)
	}
	switch n := g.rnd.IntN(100); {
	case n < 9:
		return Step{Change: g.change(h)}
	case n < 13:
		return Step{Wait: pick(g, 2*time.Second, 6*time.Second, 11*time.Second, 31*time.Second, 61*time.Second, 121*time.Second,
			181*time.Second, 601*time.Second, 3601*time.Second) + time.Duration(g.rnd.IntN(900))*time.Millisecond}
	case n < 48:
		return Step{Send: g.another(h)}
	case n < 54:
		return Step{Send: g.check()}
	case n < 58:
		return Step{Send: g.question()}
	case n < 66:
		return Step{Send: g.spoil(g.another(h))}
	case n < 72:
		return Step{Send: g.failure(g.another(h))}
	case n < 77:
		return Step{Send: g.piece(h)}
	}
	return Step{Send: g.fresh()}
}

func (g *Generator) open(at int) Step {
	switch at {
	case 0, 1:
		return Step{Change: &Change{Verb: Groups, Port: Ports[at], Groups: pick(g, []firewall.GroupID{1}, []firewall.GroupID{1, 2}, []firewall.GroupID{2, 3}, []firewall.GroupID{2})}}
	case 2, 3:
		return Step{Change: g.join()}
	case 4:
		r := firewall.Rule{Protocol: pick[uint8](g, frame.TCP, frame.UDP, 0), From: TargetPort, To: TargetPort, Peer: netip.MustParsePrefix("0.0.0.0/0")}
		g.rule++
		r.ID = g.rule
		return Step{Change: &Change{Verb: Add, Rule: r, Groups: []firewall.GroupID{2}}}
	}
	c := g.addRule() // an empty firewall has little to say
	if at >= few {
		from := g.crowded()
		c.Rule.Protocol, c.Rule.From, c.Rule.To, c.Rule.Egress = frame.TCP, from, from+pick[uint16](g, 0, 1, 100), false
		c.Groups = []firewall.GroupID{2} // which a port is in at first, if not both
	}
	return Step{Change: c}
}

// crowded is one of so many ports that the programs search them in two steps.
func (g *Generator) crowded() uint16 { return uint16(1000 + 997*g.rnd.IntN(60)) }

// Changes

func (g *Generator) group() firewall.GroupID { return firewall.GroupID(g.rnd.IntN(groupsInPlay) + 1) }

func (g *Generator) change(h *firewall.Host) *Change {
	switch n := g.rnd.IntN(21); {
	case n < 6:
		return g.addRule()
	case n < 10:
		return g.removeRule(h)
	case n < 13:
		return g.join()
	case n < 16:
		c := g.join()
		c.Verb = Leave
		for id, group := range sorted(h.Groups) { // one that is there, if there is any
			for addr := range sortedAddrs(group.Members) {
				c.Addr, c.Groups = addr, []firewall.GroupID{id}
				if g.one(3) {
					return c
				}
			}
		}
		return c
	case n < 18:
		verb := pick(g, Source, Source, Forget)
		return &Change{Verb: verb, Prefix: g.prefix(), Groups: []firewall.GroupID{g.group()}}
	case n < 19:
		return &Change{Verb: pick(g, Mail, NoMail), Port: pick(g, Ports...)}
	}
	groups := []firewall.GroupID{g.group(), g.group()}
	slices.Sort(groups)
	return &Change{Verb: Groups, Port: pick(g, Ports...), Groups: slices.Compact(groups)}
}

func (g *Generator) join() *Change {
	return &Change{Verb: Join, Addr: g.peer(g.one(3)), Groups: []firewall.GroupID{g.group()}}
}

func (g *Generator) removeRule(h *firewall.Host) *Change {
	var ids []firewall.RuleID
	for _, group := range h.Groups {
		for _, r := range group.Rules {
			ids = append(ids, r.ID)
		}
	}
	if len(ids) == 0 {
		return g.addRule()
	}
	slices.Sort(ids)
	return &Change{Verb: Remove, Rule: firewall.Rule{ID: pick(g, ids...)}}
}

func (g *Generator) addRule() *Change {
	g.rule++
	r := firewall.Rule{ID: g.rule, Egress: g.one(4), Keep: g.one(6)}
	r.Protocol = pick[uint8](g, frame.TCP, frame.TCP, frame.TCP, frame.UDP, frame.UDP, frame.ICMP, frame.ICMPv6, 0, 47, 50)
	switch r.Protocol {
	case frame.TCP, frame.UDP:
		r.From, r.To = g.port(), g.port()
		if r.From > r.To {
			r.From, r.To = r.To, r.From
		}
		if g.one(4) {
			r.From, r.To = 1, 65535
		}
	case frame.ICMP, frame.ICMPv6:
		r.Type, r.Code = pick(g, -1, 0, 8, 128, 129, 13), -1
		if r.Type >= 0 {
			r.Code = pick(g, -1, 0, 1)
		}
	}
	if g.one(3) {
		r.PeerGroup = g.group()
	} else {
		r.Peer = g.prefix()
	}
	return &Change{Verb: Add, Rule: r, Groups: []firewall.GroupID{g.group()}}
}

func (g *Generator) prefix() netip.Prefix {
	return netip.MustParsePrefix(pick(g, "192.0.2.0/24", "192.0.2.9/32", "192.0.2.8/31", "192.0.2.10/31", "0.0.0.0/0", "192.0.2.0/23",
		"198.51.100.0/24", "192.0.0.0/14", "2001:db8::/64", "2001:db8::9/128", "2001:db8::8/127", "::/0", "2001:db8::/31", "2001:db8:5::/64"))
}

// Packets

func (g *Generator) peer(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(pick(g, "2001:db8::9", "2001:db8::a", "2001:db9::1", "2001:dba::1", "2001:db8:5::6"))
	}
	return netip.MustParseAddr(pick(g, "192.0.2.9", "192.0.2.10", "192.0.2.11", "192.0.3.1", "192.0.4.1", "198.51.100.6"))
}

func (g *Generator) port() uint16 {
	if g.opening > few && g.one(2) {
		return g.crowded() + pick[uint16](g, 0, 0, 1, 2)
	}
	return pick[uint16](g, 1, 25, 79, 80, 81, 443, 1234, 1235, 8079, 8080, 8080, 8080, 8081, 65535)
}

// fresh is the first packet of some flow, in either direction.
func (g *Generator) fresh() *Send {
	id := pick(g, Ports...)
	v6 := g.one(3)
	own := Addresses(id)[0]
	if v6 {
		own = Addresses(id)[1]
	}
	if g.one(5) {
		own = g.ranged(v6)
	}
	var s frame.Spec
	s.Proto = pick[uint8](g, frame.TCP, frame.TCP, frame.TCP, frame.UDP, frame.UDP, frame.ICMP, frame.ICMP, 47, 50, 200)
	if s.Proto == frame.ICMP && v6 {
		s.Proto = frame.ICMPv6
	}
	s.Src, s.Dst = netip.AddrPortFrom(g.peer(v6), 0), netip.AddrPortFrom(own, 0)
	s.Payload = pick(g, 0, 1, 7, 32)
	switch s.Proto {
	case frame.TCP, frame.UDP:
		s.Src = netip.AddrPortFrom(s.Src.Addr(), pick[uint16](g, 1234, 1235))
		s.Dst = netip.AddrPortFrom(s.Dst.Addr(), g.port())
		if s.Proto == frame.TCP {
			s.Flags, s.Seq, s.Window = pick[uint8](g, frame.SYN, frame.SYN, frame.SYN, frame.ACK, frame.SYN|frame.ACK), g.rnd.Uint32(), g.window()
			s.Scale = pick[uint8](g, 0, 0, 1, 8)
		}
	case frame.ICMP, frame.ICMPv6:
		s.Src = netip.AddrPortFrom(s.Src.Addr(), pick[uint16](g, 0, 1234, 1235))
		s.Type, s.Code = g.kind(v6)
	}
	if g.one(2) && s.Src.Addr() != own {
		return &Send{Hook: Uplink, Spec: s, Service: g.service(s)}
	}
	return &Send{Hook: VM, Port: id, Spec: turn(s)}
}

// ranged is an address of a range of the ports, or just outside.
func (g *Generator) ranged(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(pick(g, "2001:db8:6:5::", "2001:db8:6:5::7fff:ffff", "2001:db8:6:5::8000:0", "2001:db8:6:5::ffff:ffff",
			"2001:db8:6:5:0:1::", "2001:db8:6:4:ffff:ffff:ffff:ffff"))
	}
	return netip.MustParseAddr(pick(g, "198.51.101.16", "198.51.101.23", "198.51.101.24", "198.51.101.27", "198.51.101.28", "198.51.101.31",
		"198.51.101.15", "198.51.101.32"))
}

func (g *Generator) window() uint16 { return pick[uint16](g, 0, 1, 1000, 65535) }

func (g *Generator) kind(v6 bool) (kind, code uint8) {
	if v6 {
		return pick[uint8](g, 128, 129, 128, 200, 201), pick[uint8](g, 0, 0, 1)
	}
	return pick[uint8](g, 8, 0, 8, 13, 14), pick[uint8](g, 0, 0, 1)
}

// service that a packet may have come through.
func (g *Generator) service(s frame.Spec) firewall.ServiceID {
	if s.V6() || s.Dst.Port() != TargetPort || g.one(2) {
		return 0
	}
	return map[uint8]firewall.ServiceID{frame.TCP: TCPService, frame.UDP: UDPService}[s.Proto]
}

// turn a packet round.
func turn(s frame.Spec) frame.Spec {
	if s.IsICMP() { // the id is said in the source
		s.Src, s.Dst = netip.AddrPortFrom(s.Dst.Addr(), s.Src.Port()), netip.AddrPortFrom(s.Src.Addr(), 0)
		return s
	}
	s.Src, s.Dst = s.Dst, s.Src
	return s
}

// question to the metadata service, or something that comes close to it, or to
// its answer.
func (g *Generator) question() *Send {
	id := pick(g, Ports...)
	own := pick(g, Addresses(id)[0], Addresses(id)[0], g.ranged(false))
	s := frame.Spec{
		Proto: pick[uint8](g, frame.TCP, frame.TCP, frame.TCP, frame.TCP, frame.UDP), Flags: pick[uint8](g, frame.SYN, frame.SYN, g.flags()),
		Src: netip.AddrPortFrom(own, pick[uint16](g, 1234, 1235)), Dst: netip.AddrPortFrom(Metadata, pick[uint16](g, 80, 80, 80, 80, 81)),
		Seq: g.rnd.Uint32(), Ack: g.rnd.Uint32(), Window: g.window(),
	}
	if !g.one(5) {
		return &Send{Hook: VM, Port: id, Spec: s}
	}
	s.Src = netip.AddrPortFrom(pick(g, Identity(id), Identity(id), Identity(9), own), s.Src.Port())
	if s.Flags == frame.SYN && g.one(2) {
		s.Flags = frame.SYN | frame.ACK
	}
	return &Send{Hook: pick(g, Door, Door, Uplink), Spec: turn(s)}
}

// check is a packet of a health check, or something that comes close to it.
func (g *Generator) check() *Send {
	src := netip.AddrPortFrom(Probe, pick[uint16](g, 40000, 40001))
	if g.one(10) {
		src = netip.AddrPortFrom(g.peer(false), 40000)
	}
	dst := netip.AddrPortFrom(Addresses(pick(g, Ports...))[0], pick[uint16](g, 8080, 80))
	s := frame.Spec{Proto: frame.TCP, Src: src, Dst: dst, Flags: g.flags(), Seq: g.rnd.Uint32(), Ack: g.rnd.Uint32(), Window: g.window()}
	switch g.rnd.IntN(6) {
	case 0:
		return &Send{Hook: Uplink, Spec: s} // forged
	case 1:
		return &Send{Hook: VM, Port: Ports[0], Spec: turn(s)}
	}
	return &Send{Hook: Door, Spec: s}
}

func (g *Generator) flags() uint8 {
	return pick[uint8](g, frame.SYN, frame.SYN|frame.ACK, frame.ACK, frame.ACK, frame.ACK, frame.ACK|frame.PSH,
		frame.FIN|frame.ACK, frame.RST, frame.RST|frame.ACK)
}

// another packet of a flow that is there, in either direction.
func (g *Generator) another(h *firewall.Host) *Send {
	id := pick(g, Ports...)
	flows := h.Ports[id].Flows.All
	if len(flows) == 0 {
		return g.fresh()
	}
	tuples := slices.SortedFunc(maps.Keys(flows), func(a, b firewall.Tuple) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	t := pick(g, tuples...)
	f := flows[t]
	s := frame.Spec{Proto: t.Proto, Src: netip.AddrPortFrom(t.Peer, t.PeerPort), Dst: netip.AddrPortFrom(t.Own, t.OwnPort), Payload: pick(g, 0, 5)}
	d := pick(g, firewall.In, firewall.Out)
	if d == firewall.In {
		s.Src = netip.AddrPortFrom(t.Peer, f.WirePort)
	}
	if s.IsICMP() {
		s.Type, s.Code = g.kind(s.V6())
		s.Src, s.Dst = netip.AddrPortFrom(t.Peer, t.PeerPort|t.OwnPort), netip.AddrPortFrom(t.Own, 0)
	}
	if s.Proto == frame.TCP {
		g.say(&s, f, d)
	}
	local := slices.ContainsFunc(Ports, func(p firewall.PortID) bool { return slices.Contains(Addresses(p), t.Peer) })
	switch {
	case d == firewall.Out:
		if !s.IsICMP() {
			s.Src = netip.AddrPortFrom(t.Peer, t.PeerPort)
		}
		return &Send{Hook: VM, Port: id, Spec: turn(s)}
	case t.Peer == Probe:
		return &Send{Hook: Door, Spec: s}
	case t.Peer == Metadata: // to who has asked, or to the other one
		s.Dst = netip.AddrPortFrom(Identity(pick(g, id, id, id, pick(g, Ports...))), t.OwnPort)
		return &Send{Hook: Door, Spec: s}
	case local:
		for _, p := range Ports {
			if slices.Contains(Addresses(p), t.Peer) {
				return &Send{Hook: VM, Port: p, Spec: s}
			}
		}
	}
	send := &Send{Hook: Uplink, Spec: s, Service: f.Service}
	if g.one(4) { // the same tuple another way
		send.Service = g.service(s)
	}
	return send
}

// say something in a connection: numbers that its ends know, or nearly so.
func (g *Generator) say(s *frame.Spec, f *firewall.Flow, d firewall.Direction) {
	mine, other := f.Ends[d], f.Ends[1-d]
	s.Flags, s.Window = g.flags(), g.window()
	window := other.Edge - other.Awaits
	s.Seq = other.Awaits + pick(g, 0, 0, 1, window-1, window, window+1, ^uint32(0), g.rnd.Uint32(), mine.Sent-other.Awaits, mine.Sent-other.Awaits)
	s.Ack = other.Sent + pick(g, 0, 0, 0, 0, 1, ^uint32(0), mine.Awaits-other.Sent, g.rnd.Uint32())
	if s.Flags&frame.SYN != 0 {
		s.Scale = pick[uint8](g, 0, 3, 16)
	}
}

func sorted(groups map[firewall.GroupID]*firewall.Group) func(func(firewall.GroupID, *firewall.Group) bool) {
	return func(yield func(firewall.GroupID, *firewall.Group) bool) {
		for _, id := range slices.Sorted(maps.Keys(groups)) {
			if !yield(id, groups[id]) {
				return
			}
		}
	}
}

func sortedAddrs(set map[netip.Addr]bool) func(func(netip.Addr) bool) {
	return slices.Values(slices.SortedFunc(maps.Keys(set), netip.Addr.Compare))
}
