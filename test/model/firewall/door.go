// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"
	"time"

	"cairn/test/model/frame"
)

// Behind the door is the metadata service, which tells an instance who it is. It
// goes by the port and nothing else: on its way there a request gets the address
// that stands for the port. No rule is asked.

// MetadataService is of the flows with it.
const MetadataService ServiceID = 1<<32 - 1

const metadataPort = 80

// asked says by which of its addresses a port has asked from one of its TCP ports,
// last.
type asked struct {
	own  netip.Addr
	seen time.Duration
	idle time.Duration
}

// identity stands for a port: 198.18.0.0/15 and its number.
func identity(id PortID) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18 + byte(id>>16), byte(id >> 8), byte(id)})
}

func ofIdentity(a netip.Addr) (PortID, bool) {
	if !in(a, "198.18.0.0/15") {
		return 0, false
	}
	b := a.As4()
	return PortID(b[1]-18)<<16 | PortID(b[2])<<8 | PortID(b[3]), true
}

// toMetadata is a request, or what else goes there.
func (h *Host) toMetadata(id PortID, p *Port, x Headers, b []byte) Verdict {
	switch {
	case x.Piece != nil:
		return because(NotAllowed)
	case x.Proto != frame.TCP || x.DstPort != metadataPort:
		return because(DoorProtocol)
	}
	v := visitOf(x, Out)
	v.host, v.answerOnly, v.service = true, !v.isSYN(), MetadataService
	before := h.find(p, v.Tuple, v)
	confirmed := before != nil && before.Confirmed
	f, _, why := h.track(p, v, nil)
	if why != None {
		return because(why)
	}
	if before == nil || f.Confirmed != confirmed {
		if p.asked == nil {
			p.asked = map[uint16]asked{}
		}
		p.asked[x.SrcPort] = asked{x.Src, h.Now, p.Idle}
	}
	return Verdict{ToDoor, 0, 0, x.edit(b).source(identity(id)).macs(h.Gateway, h.Door).b}
}

// fromMetadata is an answer, to a flow that the port which it names has.
func (h *Host) fromMetadata(x Headers, b []byte, choose Chooser) Verdict {
	id, ok := ofIdentity(x.Dst)
	switch {
	case !ok:
		return because(BadSource)
	case x.Proto != frame.TCP || x.SrcPort != metadataPort:
		return because(DoorProtocol)
	case h.Ports[id] == nil:
		return because(DoorNobody)
	}
	p := h.Ports[id]
	a, ok := p.asked[x.DstPort]
	if !ok || a.left(h.Now) < 0 {
		return because(DoorNoFlow)
	}
	a.seen = h.Now
	p.asked[x.DstPort] = a
	v := visitOf(x, In)
	v.answerOnly, v.service, v.Own = true, MetadataService, a.own
	if _, _, why := h.track(p, v, choose); why != None {
		return because(why)
	}
	return Verdict{ToPort, 0, id, x.edit(b).address(x.L3+16, a.own).macs(h.Gateway, p.MAC).b}
}

func (a asked) left(now time.Duration) time.Duration {
	return (&alias{seen: a.seen, idle: a.idle}).left(frame.TCP, now)
}
