// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"encoding/binary"
	"net/netip"

	"cairn/test/model/frame"
)

// Headers are what a frame says. Offsets count from its first byte.
type Headers struct {
	From, To  frame.MAC
	EtherType uint16

	Src, Dst         netip.Addr
	SrcPort, DstPort uint16 // ICMP echo: its id is the port of who asks, the other side has none
	Match            uint16 // by which rules judge: destination port, ICMP type and code
	Proto            uint8
	TTL              uint8
	Length           int // of the IP packet
	L3, L4           int
	Payload          int // behind TCP's, UDP's or ICMP's header

	Flags      uint8
	Seq, Ack   uint32
	Window     uint16
	Scale      int // a SYN's offer; -1 without one
	Type, Code uint8

	Piece *Piece // a fragment
	DF    bool   // it must not be cut in two; IPv6's never are
}

const (
	etherLen = 14
	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
)

func (x Headers) isV6() bool { return x.EtherType == typeIPv6 }

func (x Headers) later() bool { return x.Piece != nil && x.Piece.From > 0 }

// Read a frame. Addresses are known unless the reason is Malformed; the
// protocol and what follows it only without a reason.
func Read(b []byte) (Headers, Reason) {
	var x Headers
	if len(b) < etherLen {
		return x, Malformed
	}
	copy(x.To[:], b)
	copy(x.From[:], b[6:])
	x.EtherType = binary.BigEndian.Uint16(b[12:])
	x.L3 = etherLen
	var why Reason
	switch x.EtherType {
	case typeIPv4:
		why = x.ipv4(b)
	case typeIPv6:
		why = x.ipv6(b)
	default:
		return x, NotIP
	}
	if why != None || x.later() {
		return x, why
	}
	return x, x.l4(b)
}

func (x *Headers) ipv4(b []byte) Reason {
	h := b[x.L3:]
	if len(h) < 20 || h[0]>>4 != 4 {
		return Malformed
	}
	head := int(h[0]&15) * 4
	x.Length = int(binary.BigEndian.Uint16(h[2:]))
	if head < 20 || x.Length < head || x.Length > len(h) {
		return Malformed
	}
	x.Proto, x.TTL = h[9], h[8]
	x.Src, _ = netip.AddrFromSlice(h[12:16])
	x.Dst, _ = netip.AddrFromSlice(h[16:20])
	x.L4 = x.L3 + head
	word := binary.BigEndian.Uint16(h[6:])
	x.DF = word&0x4000 != 0
	return x.piece(uint32(binary.BigEndian.Uint16(h[4:])), int(word&0x1fff)*8, word&0x2000 != 0)
}

// piece: offset 0 and nothing more to come is a whole datagram (RFC 6946).
func (x *Headers) piece(id uint32, offset int, more bool) Reason {
	if offset == 0 && !more {
		return None
	}
	length := x.L3 + x.Length - x.L4
	if length == 0 || more && length%8 != 0 || offset+length > 65535 {
		return Malformed
	}
	x.Piece = &Piece{ID: id, From: offset, To: offset + length, More: more}
	if offset > 0 && offset < 20 && x.Proto == frame.TCP {
		return FragmentShort // RFC 3128: it can only be meant to change a TCP header
	}
	return None
}

// short is the reason of a header that is not all there.
func (x *Headers) short() Reason {
	if x.Piece != nil {
		return FragmentShort
	}
	return Malformed
}

func (x *Headers) l4(b []byte) Reason {
	if x.L4 > len(b) {
		return Malformed
	}
	x.Payload = x.L4
	h := b[x.L4:min(len(b), x.L3+x.Length)]
	switch x.Proto {
	case frame.TCP:
		return x.tcp(h)
	case frame.UDP:
		return x.udp(h)
	case frame.ICMP, frame.ICMPv6:
		if (x.Proto == frame.ICMPv6) != x.isV6() {
			return Protocol
		}
		return x.icmp(h)
	}
	return None
}

func (x *Headers) ports(h []byte) {
	x.SrcPort, x.DstPort = binary.BigEndian.Uint16(h), binary.BigEndian.Uint16(h[2:])
	x.Match = x.DstPort
}

func (x *Headers) tcp(h []byte) Reason {
	if len(h) < 20 {
		return x.short()
	}
	head := int(h[12]>>4) * 4
	if head < 20 {
		return Malformed
	}
	if head > len(h) {
		return x.short()
	}
	x.ports(h)
	x.Payload = x.L4 + head
	x.Seq, x.Ack = binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
	x.Flags, x.Window = h[13], binary.BigEndian.Uint16(h[14:])
	x.Scale = scaleOf(h[20:head])
	switch x.Flags & (frame.FIN | frame.SYN | frame.RST | frame.ACK) {
	case 0, frame.FIN:
		return TCPFlags // no state of RFC 9293 sends these
	}
	if x.Flags&frame.SYN != 0 && x.Flags&(frame.FIN|frame.RST) != 0 {
		return TCPFlags
	}
	return None
}

// scaleOf the window, among TCP's options (RFC 7323, 2.2). More than 14 is 14.
func scaleOf(options []byte) int {
	for len(options) > 2 {
		switch options[0] {
		case 0:
			return noScale
		case 1:
			options = options[1:]
			continue
		case 3:
			return min(int(options[2]), mostScale)
		}
		length := int(options[1])
		if length < 2 || length > len(options) {
			return noScale
		}
		options = options[length:]
	}
	return noScale
}

func (x *Headers) udp(h []byte) Reason {
	if len(h) < 8 {
		return x.short()
	}
	length := int(binary.BigEndian.Uint16(h[4:]))
	if length < 8 || x.Piece == nil && length > len(h) {
		return Malformed
	}
	x.ports(h)
	x.Payload = x.L4 + 8
	return None
}

func (x *Headers) icmp(h []byte) Reason {
	if len(h) < 8 {
		return x.short()
	}
	x.Type, x.Code = h[0], h[1]
	x.Match = uint16(x.Type)<<8 | uint16(x.Code)
	x.Payload = x.L4 + 8
	id := binary.BigEndian.Uint16(h[4:])
	switch {
	case x.isAsking():
		x.SrcPort = id
	case x.isAnswering():
		x.DstPort = id
	default: // a flow of its own: another type is not its answer
		x.SrcPort, x.DstPort = x.Match, x.Match
	}
	return None
}

func (x *Headers) isAsking() bool { return x.Type == 128 && x.isV6() || x.Type == 8 && !x.isV6() }

func (x *Headers) isAnswering() bool { return x.Type == 129 && x.isV6() || x.Type == 0 && !x.isV6() }
