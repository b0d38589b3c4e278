// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"
	"time"

	"cairn/test/model/frame"
)

// Tuple is a flow as the instance sees it.
type Tuple struct {
	Proto             uint8
	Peer, Own         netip.Addr
	PeerPort, OwnPort uint16 // ICMP echo: the id is the port of who asks
}

// State of a flow. Any protocol has the first three: somebody spoke, the other
// side answered, the first one went on.
type State uint8

// States.
const (
	New State = iota + 1
	Replied
	Established
	Closing // one FIN
	Closed  // both
	Reset
)

// Flow is what is remembered.
type Flow struct {
	First      Direction // of its first packet
	State      State
	FINs       [2]bool // by direction
	Ends       [2]End  // TCP: of who sends in that direction
	Seen       time.Duration
	Packets    uint64
	Match      uint16
	Generation uint32
	Rule       RuleID
	Keep       bool
	Idle       time.Duration // how long TCP may be silent; 0: an hour
	Loose      bool          // TCP that was under way when it was first seen
	Host       bool          // opened by the host through its door
	Confirmed  bool          // its initiator has heard the answer
	Service    ServiceID
	WirePort   uint16 // the peer's own, which the instance may know as another
}

// wire is a flow whose peer's port is translated, as the wire has it.
type wire struct {
	Tuple
	service ServiceID
}

// Flows of one port. Confirmed ones have a quota; the others live in a small
// table of their own that forgets whom it has not seen for longest, so that a
// flood of first packets costs nobody but itself.
type Flows struct {
	All     map[Tuple]*Flow
	Quota   int // of confirmed ones; 0: any
	aliases map[wire]*alias
}

// alias leads from a flow on the wire to the port that the instance knows it by.
// It lives as an established flow does, from the last packet that needed it.
type alias struct {
	port uint16
	seen time.Duration
	idle time.Duration
}

func (f *Flows) confirmed() (n int) {
	for _, flow := range f.All {
		if flow.Confirmed {
			n++
		}
	}
	return n
}

// lifetime of a flow that hears nothing.
func (f *Flow) lifetime(proto uint8) time.Duration {
	going := f.State == Established
	switch proto {
	case frame.ICMP, frame.ICMPv6:
		return 5 * time.Second
	case frame.UDP:
		if going {
			return 180 * time.Second
		}
		return 60 * time.Second
	case frame.TCP:
		return f.tcpLifetime()
	}
	if going {
		return 600 * time.Second
	}
	return 60 * time.Second
}

func (f *Flow) tcpLifetime() time.Duration {
	switch f.State {
	case New:
		return 30 * time.Second
	case Replied, Closed:
		return 60 * time.Second
	case Reset:
		return 10 * time.Second
	}
	if f.Idle > 0 {
		return f.Idle
	}
	return time.Hour
}

// Left until the flow is over; negative when it is.
func (f *Flow) Left(proto uint8, now time.Duration) time.Duration {
	return f.Seen + f.lifetime(proto) - now
}

func (f *Flow) isEnding() bool { return f.State >= Closing }

// visit is one packet at one port.
type visit struct {
	Headers
	Tuple
	direction  Direction
	host       bool // it came through the door
	answerOnly bool // it may belong to a flow, never open one
	service    ServiceID
	wirePort   uint16
	quoted     *Headers // of an ICMP error
}

func visitOf(x Headers, d Direction) visit {
	v := visit{Headers: x, direction: d}
	if d == In {
		v.Tuple = Tuple{x.Proto, x.Src, x.Dst, x.SrcPort, x.DstPort}
	} else {
		v.Tuple = Tuple{x.Proto, x.Dst, x.Src, x.DstPort, x.SrcPort}
	}
	v.wirePort = v.PeerPort
	return v
}

func (v visit) question() question {
	return question{v.direction, v.asked(), v.Tuple.Proto, v.Match}
}

func (v visit) isSYN() bool {
	return v.Tuple.Proto == frame.TCP && v.Flags&(frame.SYN|frame.ACK|frame.RST) == frame.SYN
}

// opens tells whether it is a packet that flows begin with; others may begin
// one too, but take nothing over.
func (v visit) opens() bool { return v.Tuple.Proto != frame.TCP || v.isSYN() }

// find the live flow of a tuple, unless the packet begins a new one in its place.
func (h *Host) find(p *Port, t Tuple, v visit) *Flow {
	f := p.Flows.All[t]
	if f == nil || f.Left(t.Proto, h.Now) < 0 || v.isSYN() && f.isEnding() {
		return nil
	}
	return f
}

// track accounts the packet to its flow and judges it. Without a reason it
// returns the flow and the tuple that the instance knows it by; taken is a port
// that somebody else has chosen, if the model must have one.
func (h *Host) track(p *Port, v visit, choose func() uint16) (*Flow, Tuple, Reason) {
	t := v.Tuple
	f := h.find(p, t, v)
	if f != nil && v.direction == In && f.Service != v.service {
		if v.opens() && (f.isEnding() || f.State == New) {
			f = nil // it was nobody's yet, or is nobody's any more
		} else {
			f, t.PeerPort = h.translated(p, v, choose)
		}
	}
	if f == nil {
		return h.begin(p, v, t)
	}
	if why := h.renew(p, f, v); why != None {
		if why != InvalidRST { // such a one is not the flow's packet at all
			delete(p.Flows.All, t)
		}
		return nil, t, why
	}
	h.count(f, v)
	return f, t, None
}

func (h *Host) count(f *Flow, v visit) {
	n := h.Counts[f.Rule]
	h.Counts[f.Rule] = Count{n.Packets + 1, n.Bytes + uint64(v.Length)}
}

// translated finds the flow that the packet is of although the instance knows
// its tuple as another one's: there the peer's port is another, chosen by
// nobody in particular among the free ones.
func (h *Host) translated(p *Port, v visit, choose func() uint16) (*Flow, uint16) {
	key := wire{v.Tuple, v.service}
	t := v.Tuple
	if a := p.Flows.aliases[key]; a != nil && a.left(t.Proto, h.Now) >= 0 {
		a.seen = h.Now
		t.PeerPort = a.port
		return h.find(p, t, v), a.port
	}
	return nil, choose()
}

func (a *alias) left(proto uint8, now time.Duration) time.Duration {
	f := Flow{State: Established, Seen: a.seen, Idle: a.idle}
	return f.Left(proto, now)
}

// begin a flow, if the rules admit its first packet.
func (h *Host) begin(p *Port, v visit, t Tuple) (*Flow, Tuple, Reason) {
	var rule Rule
	var why Reason
	switch {
	case v.answerOnly:
		return nil, t, NoDoorFlow
	case p.Strict && !v.opens():
		return nil, t, NoSYN
	case !v.host:
		rule, why = h.permit(p, v.question())
	}
	if why != None {
		return nil, t, why
	}
	f := &Flow{
		First: v.direction, State: New, Match: v.Match, Generation: p.Generation, Rule: rule.ID, Keep: rule.Keep,
		Host: v.host, Service: v.service, WirePort: v.wirePort, Idle: p.Idle,
	}
	if p.Flows.All == nil {
		p.Flows.All, p.Flows.aliases = map[Tuple]*Flow{}, map[wire]*alias{}
	}
	p.Flows.All[t] = f
	if t != v.Tuple {
		p.Flows.aliases[wire{v.Tuple, v.service}] = &alias{t.PeerPort, h.Now, p.Idle}
	}
	if v.Tuple.Proto == frame.TCP {
		f.hearFirst(v)
		f.ends(v)
	}
	f.Confirmed = f.Host && v.direction == In && p.Flows.roomForOne()
	f.Seen, f.Packets = h.Now, 1
	h.count(f, v)
	return f, t, None
}

// roomForOne more among the confirmed ones.
func (f *Flows) roomForOne() bool { return f.Quota == 0 || f.confirmed() < f.Quota }

// renew a flow that is there: judge it again if the rules are others since, and
// have the packet change its state.
func (h *Host) renew(p *Port, f *Flow, v visit) Reason {
	if f.Generation != p.Generation && !f.Host {
		rule, why := h.permit(p, question{f.First, v.asked(), v.Tuple.Proto, f.Match})
		switch {
		case why == None:
			f.Rule, f.Keep = rule.ID, rule.Keep
		case !f.Keep:
			return why
		}
		f.Generation = p.Generation
	}
	tcp, rst := v.Tuple.Proto == frame.TCP, v.Flags&frame.RST != 0
	if tcp && rst && !f.mayReset(v) {
		return InvalidRST
	}
	if !tcp || rst || f.fits(v) {
		f.advance(v)
		if tcp {
			f.hear(v)
		}
	}
	if f.State == Established && v.direction == f.First && !f.Confirmed {
		f.Confirmed = p.Flows.roomForOne()
	}
	f.Seen, f.Idle = h.Now, p.Idle
	f.Packets++
	return None
}

// Lives are how long everything that a port remembers of flows has left.
func (p *Port) Lives(now time.Duration) []time.Duration {
	var out []time.Duration
	for t, f := range p.Flows.All {
		out = append(out, f.Left(t.Proto, now))
	}
	for w, a := range p.Flows.aliases {
		out = append(out, a.left(w.Proto, now))
	}
	for _, d := range p.Pieces {
		out = append(out, d.left(now))
	}
	for _, a := range p.asked {
		out = append(out, a.left(now))
	}
	return out
}

// Unjudged finds a flow that the rules do not admit any more, although it was
// judged last when the port's generation was this one. If that is the port's
// generation still, the flow lives on against the rules.
func (h *Host) Unjudged(p *Port, generation uint32) (Tuple, bool) {
	for t, f := range p.Flows.All {
		if f.Generation != generation || f.Host || f.Keep || f.Left(t.Proto, h.Now) < 0 {
			continue
		}
		if _, why := h.permit(p, question{f.First, t.asked(), t.Proto, f.Match}); why != None {
			return t, true
		}
	}
	return Tuple{}, false
}
