// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"encoding/binary"
	"net/netip"

	"cairn/test/model/frame"
)

// An ICMP error quotes the packet that it is about, and belongs to that packet's
// flow at the port, whoever sends it: a router is nobody that rules name. It
// neither creates nor refreshes a flow; about none it drops.

// Types of errors.
const (
	unreachable  = 3
	sourceQuench = 4
	redirect4    = 5
	exceeded     = 11
	parameter    = 12

	fragmentationNeeded = 4 // a code of unreachable
	tooBig6             = 2
)

// The least path MTU that anybody believes.
const (
	leastMTU4 = 576
	leastMTU6 = 1280
)

func (x Headers) isError() bool {
	switch {
	case x.Proto == frame.ICMPv6:
		return x.Type < 128
	case x.Proto != frame.ICMP:
		return false
	}
	switch x.Type {
	case unreachable, sourceQuench, redirect4, exceeded, parameter:
		return true
	}
	return false
}

func (x Headers) hasPorts() bool {
	return !x.isV6() && (x.Proto == frame.TCP || x.Proto == frame.UDP)
}

// checkError by itself: is it one that anybody sends?
func (x Headers) checkError(b []byte) Reason {
	if x.Piece != nil {
		return NotAllowed
	}
	if !x.isV6() && x.Type == redirect4 {
		return ICMPRedirect // nobody tells a port's routes but its host
	}
	mtu := binary.BigEndian.Uint32(b[x.L4+4:])
	if !x.isV6() && x.Type == unreachable && x.Code == fragmentationNeeded && mtu&0xffff < leastMTU4 ||
		x.isV6() && x.Type == tooBig6 && mtu < leastMTU6 {
		return ICMPTooSmall
	}
	return None
}

// quote reads what an error is about: addresses, protocol and ports, of which
// RFC 792 promises 8 bytes.
func (x Headers) quote(b []byte) (Headers, bool) {
	q := Headers{EtherType: x.EtherType, L3: x.Payload, Length: x.Length}
	h := b[min(len(b), q.L3):]
	if x.isV6() {
		if len(h) < 40 || h[0]>>4 != 6 {
			return q, false
		}
		q.Src, q.Dst = netip.AddrFrom16([16]byte(h[8:24])), netip.AddrFrom16([16]byte(h[24:40]))
		q.Proto, q.L4 = h[6], q.L3+40
		if q.Src.Is4In6() || q.Dst.Is4In6() || q.extensions(b) != None || q.later() {
			return q, false
		}
	} else {
		if len(h) < 20 || h[0]>>4 != 4 || h[0]&15 < 5 || binary.BigEndian.Uint16(h[6:])&0x1fff != 0 {
			return q, false
		}
		q.Src, q.Dst = netip.AddrFrom4([4]byte(h[12:16])), netip.AddrFrom4([4]byte(h[16:20]))
		q.Proto, q.L4 = h[9], q.L3+int(h[0]&15)*4
	}
	if q.L4+8 > x.L3+x.Length || q.L4+8 > len(b) {
		return q, false
	}
	switch q.Proto {
	case frame.TCP, frame.UDP:
		q.ports(b[q.L4:])
	case frame.ICMP, frame.ICMPv6:
		if (q.Proto == frame.ICMPv6) != q.isV6() || q.icmp(b[q.L4:]) != None || !q.isAsking() && !q.isAnswering() {
			return q, false
		}
	}
	return q, true
}

// matchError finds the flow that an error is about.
func (h *Host) matchError(p *Port, v *visit, b []byte) (*Flow, Tuple, Reason) {
	if why := v.checkError(b); why != None {
		return nil, v.Tuple, why
	}
	q, ok := v.quote(b)
	if !ok || q.Src != v.Dst { // it is for who has sent what it quotes
		return nil, v.Tuple, ICMPUnmatched
	}
	v.quoted = &q
	v.Tuple = Tuple{q.Proto, q.Dst, q.Src, q.DstPort, q.SrcPort}
	if v.direction == Out {
		v.Tuple = Tuple{q.Proto, q.Src, q.Dst, q.SrcPort, q.DstPort}
	}
	f, t := h.quotedFlow(p, *v)
	if f == nil || h.isRevoked(p, t, f) || v.answerOnly && !f.Host {
		return nil, t, ICMPUnmatched
	}
	return f, t, None
}

func (h *Host) quotedFlow(p *Port, v visit) (*Flow, Tuple) {
	live := func(t Tuple) *Flow {
		if f := p.Flows.All[t]; f != nil && f.Left(t.Proto, h.Now) >= 0 {
			return f
		}
		return nil
	}
	t := v.Tuple
	f := live(t)
	if f == nil || v.direction == Out || f.Service == v.service {
		return f, t
	}
	a := p.Flows.aliases[wire{t, v.service}]
	if a == nil || a.left(t.Proto, h.Now) < 0 {
		return nil, t
	}
	t.PeerPort = a.port
	return live(t), t
}

// isRevoked: the flow would end with its next packet.
func (h *Host) isRevoked(p *Port, t Tuple, f *Flow) bool {
	if f.Generation == p.Generation || f.Host || f.Keep {
		return false
	}
	_, why := h.permit(p, question{f.First, t.Peer, t.Proto, f.Match})
	return why != None
}

// Rewriting what is quoted. The quote's own checksums follow, and the error's,
// which covers all of it.

func (e edit) quotedSourcePort(q *Headers, port uint16) edit {
	return e.requote(q, q.L4, binary.BigEndian.AppendUint16(nil, port), false)
}

func (e edit) quotedDestination(q *Headers, a netip.Addr, port uint16) edit {
	e = e.requote(q, q.L3+16, a.AsSlice(), true)
	return e.requote(q, q.L4+2, binary.BigEndian.AppendUint16(nil, port), false)
}

func (e edit) requote(q *Headers, at int, is []byte, address bool) edit {
	was := append([]byte{}, e.b[at:at+len(is)]...)
	copy(e.b[at:], is)
	e.mend(e.x.L4+2, was, is, false)
	if address {
		e.mendQuoted(q.L3+10, was, is, false)
	}
	switch q.Proto {
	case frame.TCP:
		if q.L4+18 <= e.x.L3+e.x.Length { // else the quote ends before it
			e.mendQuoted(q.L4+16, was, is, false)
		}
	case frame.UDP:
		e.mendQuoted(q.L4+6, was, is, true)
	}
	return e
}

func (e edit) mendQuoted(at int, was, is []byte, optional bool) {
	before := append([]byte{}, e.b[at:at+2]...)
	e.mend(at, was, is, optional)
	e.mend(e.x.L4+2, before, e.b[at:at+2], false)
}
