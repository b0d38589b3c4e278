// SPDX-License-Identifier: Apache-2.0

// Package frame owns Ethernet frames as tests write them: a Spec says in words
// what a packet is, Bytes makes it, and Text and Parse carry it through a
// scenario's line. It judges nothing and is a second builder beside bpf/packet
// on purpose, so that a fault in one is no fault in both. Start at Spec.
package frame

import (
	"encoding/binary"
	"net/netip"
)

// IP protocols.
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
)

// IPv6 extension headers.
const (
	HopByHop    = 0
	Routing     = 43
	FragmentHdr = 44
	Auth        = 51
	NoNext      = 59
	Destination = 60
)

// TCP flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Fragment is one piece of a datagram; Offset counts 8 bytes.
type Fragment struct {
	ID     uint32
	Offset uint16
	More   bool
}

// MAC is an Ethernet address.
type MAC [6]byte

// Poke overwrites one byte of the finished frame.
type Poke struct {
	At    int
	Value byte
}

// Spec is one packet. Ports of ICMP are the echo's id, in Src; a protocol that
// is neither TCP, UDP nor ICMP has no header of its own, only payload.
type Spec struct {
	Proto    uint8
	Src, Dst netip.AddrPort
	TTL      uint8 // 0: 64

	Flags    uint8
	Seq, Ack uint32
	Window   uint16
	Scale    uint8 // of a SYN's window, plus 1; 0: no option
	Payload  int   // bytes

	Type, Code uint8 // ICMP
	Inner      *Spec // what an ICMP error is about
	MTU        uint16

	Fragment   *Fragment
	Extensions []uint8 // IPv6, in order
	Options    int     // bytes of IPv4 options, a multiple of 4
	DF         bool    // IPv4: it must not be cut in two

	From, To MAC    // zero: whoever sends it there knows
	Cut      int    // bytes missing at the end
	Pokes    []Poke // written last, checksums are not mended
}

// V6 tells the family.
func (s Spec) V6() bool { return s.Src.Addr().Is6() }

// IsICMP tells whether the protocol is the family's own ICMP.
func (s Spec) IsICMP() bool {
	return s.Proto == ICMP && !s.V6() || s.Proto == ICMPv6 && s.V6()
}

const etherLen = 14

// Bytes is the frame, with all checksums right but for what Pokes break.
func (s Spec) Bytes() []byte {
	b := make([]byte, 0, etherLen+s.Payload+100)
	b = append(append(b, s.To[:]...), s.From[:]...)
	if s.V6() {
		b = append(b, 0x86, 0xdd)
	} else {
		b = append(b, 0x08, 0x00)
	}
	b = append(b, s.ip()...)
	b = b[:max(0, len(b)-s.Cut)]
	for _, p := range s.Pokes {
		if p.At < len(b) {
			b[p.At] = p.Value
		}
	}
	return b
}

func (s Spec) ttl() uint8 {
	if s.TTL == 0 {
		return 64
	}
	return s.TTL
}

func (s Spec) ip() []byte {
	if s.V6() {
		return s.ipv6()
	}
	l4 := s.l4()
	length := 20 + s.Options + len(l4)
	h := make([]byte, 20+s.Options)
	h[0] = 4<<4 | byte(len(h)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(length))
	binary.BigEndian.PutUint16(h[6:], bit(s.DF, 0x4000))
	if f := s.Fragment; f != nil {
		binary.BigEndian.PutUint16(h[4:], uint16(f.ID))
		binary.BigEndian.PutUint16(h[6:], f.Offset&0x1fff|bit(f.More, 0x2000)|bit(s.DF, 0x4000))
	}
	h[8], h[9] = s.ttl(), s.Proto
	src, dst := s.Src.Addr().As4(), s.Dst.Addr().As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	for i := range s.Options {
		h[20+i] = 1 // no operation
	}
	binary.BigEndian.PutUint16(h[10:], ^Sum(0, h))
	return append(h, l4...)
}

func bit(set bool, b uint16) uint16 {
	if set {
		return b
	}
	return 0
}

func (s Spec) ipv6() []byte {
	l4 := s.l4()
	next, body := s.Proto, l4
	for i := len(s.Extensions) - 1; i >= 0; i-- {
		body = append(s.extension(s.Extensions[i], next), body...)
		next = s.Extensions[i]
	}
	h := make([]byte, 40, 40+len(body))
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	h[6], h[7] = next, s.ttl()
	src, dst := s.Src.Addr().As16(), s.Dst.Addr().As16()
	copy(h[8:], src[:])
	copy(h[24:], dst[:])
	return append(h, body...)
}

// extension is a header of 8 bytes of the kind, or 16 of Auth.
func (s Spec) extension(kind, next uint8) []byte {
	h := make([]byte, 8)
	h[0] = next
	switch kind {
	case FragmentHdr:
		f := s.Fragment
		if f == nil {
			f = &Fragment{}
		}
		binary.BigEndian.PutUint16(h[2:], f.Offset<<3|bit(f.More, 1))
		binary.BigEndian.PutUint32(h[4:], f.ID)
	case Auth:
		h = make([]byte, 16)
		h[0], h[1] = next, 2 // 4 words, counted from the third
	case HopByHop, Destination:
		h[2], h[3] = 1, 4 // PadN
	}
	return h
}

// l4 is the header and the payload; a later fragment has payload alone.
func (s Spec) l4() []byte {
	payload := make([]byte, s.Payload)
	for i := range payload {
		payload[i] = byte(i*7 + 3)
	}
	if s.Fragment != nil && s.Fragment.Offset > 0 {
		return payload
	}
	switch {
	case s.Proto == TCP:
		return s.tcp(payload)
	case s.Proto == UDP:
		return s.udp(payload)
	case s.IsICMP():
		return s.icmp(payload)
	}
	return payload
}

func (s Spec) tcp(payload []byte) []byte {
	h := make([]byte, 20)
	if s.Scale > 0 {
		h = append(h, 3, 3, s.Scale-1, 0) // RFC 7323: window scale, end of options
	}
	binary.BigEndian.PutUint16(h[0:], s.Src.Port())
	binary.BigEndian.PutUint16(h[2:], s.Dst.Port())
	binary.BigEndian.PutUint32(h[4:], s.Seq)
	binary.BigEndian.PutUint32(h[8:], s.Ack)
	h[12], h[13] = byte(len(h)/4)<<4, s.Flags
	binary.BigEndian.PutUint16(h[14:], s.Window)
	h = append(h, payload...)
	binary.BigEndian.PutUint16(h[16:], ^s.pseudo(h))
	return h
}

func (s Spec) udp(payload []byte) []byte {
	h := make([]byte, 8)
	binary.BigEndian.PutUint16(h[0:], s.Src.Port())
	binary.BigEndian.PutUint16(h[2:], s.Dst.Port())
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(payload)))
	h = append(h, payload...)
	sum := ^s.pseudo(h)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(h[6:], sum)
	return h
}

func (s Spec) icmp(payload []byte) []byte {
	h := make([]byte, 8)
	h[0], h[1] = s.Type, s.Code
	if s.Inner != nil {
		payload = s.Inner.quoted()
		binary.BigEndian.PutUint16(h[6:], s.MTU)
	} else {
		binary.BigEndian.PutUint16(h[4:], s.Src.Port())
	}
	h = append(h, payload...)
	if s.V6() {
		binary.BigEndian.PutUint16(h[2:], ^s.pseudo(h))
	} else {
		binary.BigEndian.PutUint16(h[2:], ^Sum(0, h))
	}
	return h
}

// quoted is what an error carries of a packet: its IP header and the first
// bytes of what follows, as many as RFC 1812 asks for at least.
func (s Spec) quoted() []byte {
	b := s.ip()
	head := len(b) - len(s.l4())
	b = b[:min(len(b), head+8)]
	return b[:max(0, len(b)-s.Cut)]
}

// pseudo sums the pseudo header and what follows it.
func (s Spec) pseudo(h []byte) uint16 {
	sum := Sum(0, s.Src.Addr().AsSlice())
	sum = Sum(uint32(sum), s.Dst.Addr().AsSlice())
	return Sum(uint32(sum)+uint32(s.Proto)+uint32(len(h)), h)
}

// Sum adds in ones' complement (RFC 1071), beginning with sum.
func Sum(sum uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
