// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"

	"cairn/test/model/frame"
)

// Verdict is what becomes of a packet. Out is the frame that leaves; nil when
// it drops or is left to the host's stack. Rule is of the flow at the last port
// that was asked, 0 if none was needed.
type Verdict struct {
	Reason Reason
	Rule   RuleID
	Port   PortID // that it enters
	Out    []byte
}

func because(why Reason) Verdict { return Verdict{Reason: why} }

// Chooser names the port that a peer's is translated to. The choice is free, so
// whoever compares brings it along.
type Chooser func() uint16

// FromVM is a frame that a port's instance sends.
func (h *Host) FromVM(id PortID, b []byte, choose Chooser) Verdict {
	p := h.Ports[id]
	if p == nil {
		return because(NoPort)
	}
	x, why := Read(b)
	if x.From != p.MAC {
		return because(SpoofedMAC)
	}
	if why == NotIP {
		return because(NotIP)
	}
	if why == None && x.isND() {
		return because(h.fromND(p, x))
	}
	if why == None && x.isDHCP() {
		return because(h.fromDHCP(p, x))
	}
	if why = h.maySend(p, x, why); why != None {
		return because(why)
	}
	v := visitOf(x, Out)
	v.answerOnly = x.Dst == h.Probe
	f, _, why := h.track(p, v, choose)
	if why != None {
		return because(why)
	}
	e := x.edit(b).hop()
	if f.Service != 0 {
		e = e.source(h.Services[f.Service].VIP.Addr()).sourcePort(h.Services[f.Service].VIP.Port())
	}
	if f.WirePort != v.PeerPort {
		e = e.destinationPort(f.WirePort)
	}
	if v.answerOnly {
		return Verdict{ToDoor, f.Rule, 0, e.macs(h.Gateway, h.Door).b}
	}
	if to, neighbour := h.at(x.Dst); neighbour != nil {
		return h.enter(to, neighbour, e.b, choose)
	}
	return Verdict{ToUplink, f.Rule, 0, e.b}
}

// maySend is what a port may send at all, whatever its rules say.
func (h *Host) maySend(p *Port, x Headers, why Reason) Reason {
	if why == Malformed {
		return Malformed
	}
	if !owns(p, x.Src) {
		return SpoofedIP
	}
	if why != None {
		return why
	}
	if x.Piece != nil {
		return NotAllowed
	}
	if x.Dst == h.Probe {
		return sizes(p, x)
	}
	if isSpecial(x.Dst) {
		return BadDestination
	}
	if within(x.Dst, h.Own) {
		return HostAddress
	}
	return sizes(p, x)
}

func owns(p *Port, a netip.Addr) bool {
	for _, own := range p.Addresses {
		if own == a.Unmap() { // in disguise it is refused, but not for being another's
			return true
		}
	}
	return false
}

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func sizes(p *Port, x Headers) Reason {
	if p.MTU > 0 && x.Length > p.MTU {
		return Oversize
	}
	if x.TTL <= 1 {
		return HopsSpent
	}
	return None
}

// enter is a packet on its way into a port, from wherever.
func (h *Host) enter(id PortID, p *Port, b []byte, choose Chooser) Verdict {
	x, why := Read(b)
	if why != None {
		return because(why)
	}
	return h.deliver(id, p, b, visitOf(x, In), choose)
}

func (h *Host) deliver(id PortID, p *Port, b []byte, v visit, choose Chooser) Verdict {
	f, t, why := h.track(p, v, choose)
	if why != None {
		return because(why)
	}
	e := v.edit(b).macs(h.Gateway, p.MAC)
	if t.PeerPort != v.PeerPort {
		return Verdict{ToPortTranslated, f.Rule, id, e.sourcePort(t.PeerPort).b}
	}
	return Verdict{ToPort, f.Rule, id, e.b}
}

// FromUplink is a frame from the network. With a service, the load balancer has
// rewritten it: it is for the backend by now.
func (h *Host) FromUplink(b []byte, service ServiceID, choose Chooser) Verdict {
	x, why := Read(b)
	switch {
	case why == NotIP:
		return because(PassNotIP)
	case len(b) < etherLen:
		return because(Malformed)
	case x.To != h.Uplink:
		return because(PassOtherMAC)
	case why == Malformed:
		return because(Malformed)
	case isHosts(x.Src) && !x.isV6():
		return because(BadSource)
	}
	dst := x.Dst.Unmap() // an IPv4 address in disguise is whose it claims to be
	id, p := h.at(dst)
	if p == nil {
		if service != 0 || within(dst, h.Served) {
			return because(NoPort)
		}
		return because(PassHost)
	}
	if why != None {
		return because(why)
	}
	if isSpecial(x.Src) {
		return because(BadSource)
	}
	if x.isND() {
		return because(NDIgnored)
	}
	if x.Piece != nil {
		return because(NotAllowed)
	}
	v := visitOf(x, In)
	v.service = service
	return h.deliver(id, p, b, v, choose)
}

// FromDoor is a frame of the host's own services: a health check. No rule is
// asked, because it came through the door, not because of its address.
func (h *Host) FromDoor(b []byte, choose Chooser) Verdict {
	x, why := Read(b)
	if why != None {
		return because(why)
	}
	if x.Piece != nil {
		return because(NotAllowed)
	}
	if x.Src != h.Probe {
		return because(BadSource)
	}
	id, p := h.at(x.Dst)
	if p == nil {
		return because(NoPort)
	}
	v := visitOf(x, In)
	v.host = true
	return h.deliver(id, p, b, v, choose)
}

// Piece and Pieces are fragments.
type Piece struct {
	ID       uint32
	From, To int // bytes of the datagram
	More     bool
}

// Pieces is what a port remembers of datagrams in fragments.
type Pieces struct{}

var _ = frame.TCP
