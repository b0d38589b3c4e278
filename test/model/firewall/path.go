// SPDX-License-Identifier: Apache-2.0

package firewall

import "net/netip"

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
	if x.exceeds(p) {
		return x.tooBig(p, b)
	}
	if x.Dst == h.Metadata {
		return h.toMetadata(id, p, x, b)
	}
	if x.TTL <= 1 {
		return because(HopsSpent)
	}
	hairpin := isHairpin(x.Dst)
	switch {
	case hairpin && x.Piece != nil:
		return because(NotAllowed)
	case hairpin && x.isError():
		return because(ICMPUnmatched)
	}
	v := visitOf(x, Out)
	v.answerOnly = x.Dst == h.Probe || hairpin
	f, _, why := h.examine(p, &v, b, choose)
	if why != None {
		return because(why)
	}
	out := h.mendOut(v, f, x.edit(b)).hop()
	if x.Dst == h.Probe {
		return Verdict{ToDoor, f.Rule, 0, out.macs(h.Gateway, h.Door).b}
	}
	dst := x.Dst
	if hairpin {
		dst = v.Own
	}
	if to, neighbour := h.at(dst); neighbour != nil {
		return h.enter(to, neighbour, out.b, choose)
	}
	return Verdict{ToUplink, f.Rule, 0, out.b}
}

// examine a packet at a port: a later fragment goes the way of the first one, an
// ICMP error is its flow's, and everything else is tracked.
func (h *Host) examine(p *Port, v *visit, b []byte, choose Chooser) (*Flow, Tuple, Reason) {
	switch {
	case v.later():
		f, why := h.follow(p, *v)
		return f, v.Tuple, why
	case v.isError():
		return h.matchError(p, v, b)
	}
	f, t, why := h.track(p, *v, choose)
	if why == None && v.Piece != nil {
		why = h.beginPieces(p, *v, f)
	}
	return f, t, why
}

// mendOut what the instance has sent to what the wire knows the flow by: the
// service's address and port, the client's own port.
func (h *Host) mendOut(v visit, f *Flow, e edit) edit {
	service, balanced := h.Services[f.Service]
	switch {
	case v.quoted != nil:
		if !v.quoted.hasPorts() {
			return e
		}
		if balanced {
			e = e.quotedDestination(v.quoted, service.VIP.Addr(), service.VIP.Port()).source(service.VIP.Addr())
		}
		return e.quotedSourcePort(v.quoted, f.WirePort)
	case v.later():
		if balanced {
			e = e.source(service.VIP.Addr())
		}
		return e
	}
	if balanced {
		e = e.source(service.VIP.Addr()).sourcePort(service.VIP.Port())
	}
	if f.WirePort != v.PeerPort {
		e = e.destinationPort(f.WirePort)
	}
	if isHairpin(v.Peer) {
		e = e.destination(v.Own)
	}
	return e
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
	if isSpecial(x.Src) {
		return BadSource
	}
	if x.Dst == h.Probe || x.Dst == h.Metadata || isHairpin(x.Dst) {
		return None
	}
	if isSpecial(x.Dst) {
		return BadDestination
	}
	if within(x.Dst, h.Own) {
		return HostAddress
	}
	return None
}

func owns(p *Port, a netip.Addr) bool {
	for _, own := range p.Addresses {
		if own == a.Unmap() { // in disguise it is refused, but not for being another's
			return true
		}
	}
	return within(a.Unmap(), p.Ranges)
}

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
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
	f, t, why := h.examine(p, &v, b, choose)
	switch {
	case why != None:
		return because(why)
	case v.exceeds(p) && v.service != 0: // its sender knows another destination
		return because(Oversize)
	case v.exceeds(p):
		return v.tooBig(p, b)
	}
	e := v.edit(b).macs(h.Gateway, p.MAC)
	if v.service != 0 && v.quoted == nil && isHairpin(v.Peer) {
		e = e.source(v.Peer)
	}
	if t.PeerPort == v.PeerPort {
		return Verdict{ToPort, f.Rule, id, e.b}
	}
	if v.quoted != nil {
		return Verdict{ToPortTranslated, f.Rule, id, e.quotedDestination(v.quoted, v.quoted.Dst, t.PeerPort).b}
	}
	return Verdict{ToPortTranslated, f.Rule, id, e.sourcePort(t.PeerPort).b}
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
	v := visitOf(x, In)
	v.service = service
	if service != 0 && x.Src == x.Dst {
		if x.Piece != nil {
			return because(NotAllowed)
		}
		v.Peer = hairpinOf(x.Dst)
	}
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
	if x.Src == h.Metadata {
		return h.fromMetadata(x, b, choose)
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
