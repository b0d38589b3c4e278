// SPDX-License-Identifier: Apache-2.0

// Package packet builds packets to put through the programs, and takes apart
// what comes out. It knows nothing of maps and sends nothing. Start at TCP.
package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// IP protocols.
const (
	ProtoHopByHop    = 0
	ProtoICMP        = 1
	ProtoTCP         = 6
	ProtoUDP         = 17
	ProtoRouting     = 43
	ProtoFragment    = 44
	ProtoGRE         = 47
	ProtoESP         = 50
	ProtoAH          = 51
	ProtoICMPv6      = 58
	ProtoDestination = 60
)

// TCP flags.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	ACK = 0x10
)

// Ethernet types.
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100
	TypeIPv6 = 0x86dd
)

const (
	ethLen = 14
	ipLen  = 20
	ip6Len = 40
)

// Packet is one IP packet in an Ethernet frame, of the family of its addresses.
// Its methods return a changed copy, so that a base can be shared.
type Packet struct {
	src, dst       netip.AddrPort
	srcMAC, dstMAC net.HardwareAddr
	etherType      uint16
	proto          uint8
	ttl            uint8
	flags          uint8
	icmpType       uint8
	icmpCode       uint8
	fragment       uint16
	id             uint32
	options        []byte
	extensions     []Extension
	tcpOptions     []byte
	payload        []byte
	noChecksum     bool
	seq, ack       uint32
	window         uint16
	rest           uint32 // of an ICMP error
	raw            bool   // the payload is all of L4
}

func base(src, dst netip.AddrPort, proto uint8) Packet {
	p := Packet{
		src: src, dst: dst, proto: proto, ttl: 64, window: 65535, etherType: TypeIPv4,
		srcMAC: MAC("02:00:00:00:00:01"), dstMAC: MAC("02:00:00:00:00:02"),
	}
	if src.Addr().Is6() {
		p.etherType = TypeIPv6
	}
	return p
}

// IP is a packet of any protocol, its payload what follows the IP header.
func IP(src, dst string, proto uint8, payload []byte) Packet {
	p := base(netip.AddrPortFrom(netip.MustParseAddr(src), 0), netip.AddrPortFrom(netip.MustParseAddr(dst), 0), proto)
	p.raw, p.payload = true, payload
	return p
}

// TCP is a segment without flags: TCP("192.0.2.1:1234", "203.0.113.1:80").SYN().
func TCP(src, dst string) Packet {
	return base(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), ProtoTCP)
}

// UDP is a datagram.
func UDP(src, dst string) Packet {
	return base(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), ProtoUDP)
}

// Ping is an echo request with an id.
func Ping(src, dst string, id uint16) Packet {
	p := base(netip.AddrPortFrom(netip.MustParseAddr(src), id), netip.AddrPortFrom(netip.MustParseAddr(dst), id), ProtoICMP)
	p.icmpType = 8
	if p.src.Addr().Is6() {
		p.proto, p.icmpType = ProtoICMPv6, 128
	}
	return p
}

// ICMPError is about a packet, of which it quotes the first bytes. rest is the
// header's second word: a path MTU, for one.
func ICMPError(src, dst string, kind, code uint8, rest uint32, about []byte) Packet {
	p := Ping(src, dst, 0).ICMP(kind, code)
	p.rest = rest
	p.payload = about
	return p
}

// MAC parses a hardware address and panics on anything else.
func MAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return mac
}

// Flags sets all of TCP's flags.
func (p Packet) Flags(flags uint8) Packet { p.flags = flags; return p }

// SYN sets the flag, as do the others.
func (p Packet) SYN() Packet { p.flags |= SYN; return p }

// ACK sets the flag.
func (p Packet) ACK() Packet { p.flags |= ACK; return p }

// FIN sets the flag.
func (p Packet) FIN() Packet { p.flags |= FIN; return p }

// RST sets the flag.
func (p Packet) RST() Packet { p.flags |= RST; return p }

// Sequence sets TCP's sequence number.
func (p Packet) Sequence(n uint32) Packet { p.seq = n; return p }

// Acknowledge sets TCP's acknowledgement number.
func (p Packet) Acknowledge(n uint32) Packet { p.ack = n; return p }

// Window sets TCP's window.
func (p Packet) Window(n uint16) Packet { p.window = n; return p }

// MACs sets the Ethernet addresses.
func (p Packet) MACs(src, dst string) Packet {
	p.srcMAC, p.dstMAC = MAC(src), MAC(dst)
	return p
}

// TTL sets the hops left.
func (p Packet) TTL(ttl uint8) Packet { p.ttl = ttl; return p }

// Options puts IP options in; their length is a multiple of 4.
func (p Packet) Options(b []byte) Packet { p.options = b; return p }

// TCPOptions puts TCP options in; their length is a multiple of 4.
func (p Packet) TCPOptions(b []byte) Packet { p.tcpOptions = b; return p }

// Extension is an IPv6 extension header: what it is, and what follows its two
// bytes of next header and length. All but a fragment's are a multiple of 8, less 2.
type Extension struct {
	Proto uint8
	Body  []byte
}

// Extensions puts headers between IPv6's and L4's.
func (p Packet) Extensions(e ...Extension) Packet { p.extensions = e; return p }

// ID sets the number of the datagram that a fragment is of.
func (p Packet) ID(id uint32) Packet { p.id = id; return p }

// Payload sets what follows the L4 header.
func (p Packet) Payload(b []byte) Packet { p.payload = b; return p }

// Proto sets another IP protocol; the payload follows the IP header at once.
func (p Packet) Proto(proto uint8) Packet { p.proto = proto; return p }

// ICMP sets type and code.
func (p Packet) ICMP(kind, code uint8) Packet {
	p.icmpType, p.icmpCode = kind, code
	return p
}

// Fragment sets the more-fragments bit and the offset in units of 8 bytes.
func (p Packet) Fragment(more bool, offset uint16) Packet {
	p.fragment = offset
	if more {
		p.fragment |= 0x2000
	}
	return p
}

// DF sets the don't-fragment bit.
func (p Packet) DF() Packet { p.fragment |= 0x4000; return p }

// Split cuts the packet into fragments that carry at most size bytes each, a
// multiple of 8.
func (p Packet) Split(size int) []Packet {
	l4 := p.l4()
	var out []Packet
	for at := 0; at < len(l4); at += size {
		f, end := p, min(at+size, len(l4))
		f.raw, f.payload = true, l4[at:end]
		out = append(out, f.Fragment(end < len(l4), uint16(at/8)))
	}
	return out
}

// NoChecksum leaves a UDP checksum out (0).
func (p Packet) NoChecksum() Packet { p.noChecksum = true; return p }

// EtherType overwrites the Ethernet type.
func (p Packet) EtherType(t uint16) Packet { p.etherType = t; return p }

// From sets the source.
func (p Packet) From(src string) Packet { p.src = netip.MustParseAddrPort(src); return p }

// To sets the destination.
func (p Packet) To(dst string) Packet { p.dst = netip.MustParseAddrPort(dst); return p }

// Reply swaps both ends, of IP and of Ethernet.
func (p Packet) Reply() Packet {
	p.src, p.dst = p.dst, p.src
	p.srcMAC, p.dstMAC = p.dstMAC, p.srcMAC
	p.flags = 0
	switch p.proto {
	case ProtoICMP:
		p.icmpType = 0
	case ProtoICMPv6:
		p.icmpType = 129
	}
	return p
}

// Bytes is the frame, all checksums set.
func (p Packet) Bytes() []byte {
	b := Ethernet(p.dstMAC, p.srcMAC, p.etherType)
	return append(b, p.IP()...)
}

// IP is the packet without its Ethernet header.
func (p Packet) IP() []byte {
	if p.src.Addr().Is6() {
		return p.ipv6()
	}
	l4 := p.l4()
	h := make([]byte, ipLen, ipLen+len(p.options)+len(l4))
	h[0] = 4<<4 | byte((ipLen+len(p.options))/4)
	binary.BigEndian.PutUint16(h[2:], uint16(ipLen+len(p.options)+len(l4)))
	binary.BigEndian.PutUint16(h[4:], uint16(p.id))
	binary.BigEndian.PutUint16(h[6:], p.fragment)
	h[8], h[9] = p.ttl, p.proto
	src, dst := p.src.Addr().As4(), p.dst.Addr().As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	h = append(h, p.options...)
	binary.BigEndian.PutUint16(h[10:], checksum(0, h))
	return append(h, l4...)
}

func (p Packet) ipv6() []byte {
	chain := p.extensions
	if p.fragment&^0x4000 != 0 {
		b := binary.BigEndian.AppendUint16(nil, p.fragment<<3|p.fragment>>13&1)
		chain = append(chain[:len(chain):len(chain)], Extension{ProtoFragment, binary.BigEndian.AppendUint32(b, p.id)})
	}
	next := p.proto
	var headers []byte
	for i := len(chain) - 1; i >= 0; i-- {
		length := byte((len(chain[i].Body)+2)/8 - 1)
		headers = append(append([]byte{next, length}, chain[i].Body...), headers...)
		next = chain[i].Proto
	}
	body := append(headers, p.l4()...)
	h := make([]byte, ip6Len, ip6Len+len(body))
	h[0], h[6], h[7] = 6<<4, next, p.ttl
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	src, dst := p.src.Addr().As16(), p.dst.Addr().As16()
	copy(h[8:], src[:])
	copy(h[24:], dst[:])
	return append(h, body...)
}

// offset of the checksum in L4's header.
func (p Packet) checksumAt() int {
	switch p.proto {
	case ProtoTCP:
		return 16
	case ProtoUDP:
		return 6
	}
	return 2
}

func (p Packet) l4() []byte {
	h := p.l4Header()
	if h == nil {
		return p.payload
	}
	h = append(h, p.payload...)
	if p.noChecksum && p.proto == ProtoUDP {
		return h
	}
	var start uint32
	if p.proto != ProtoICMP {
		start = pseudo(p.src.Addr(), p.dst.Addr(), p.proto, len(h))
	}
	sum := checksum(start, h)
	if sum == 0 && p.proto == ProtoUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(h[p.checksumAt():], sum)
	return h
}

// l4Header is L4's without its checksum, or nil.
func (p Packet) l4Header() []byte {
	var h []byte
	switch {
	case p.raw:
		return nil
	case p.proto == ProtoTCP:
		h = make([]byte, 20)
		h[12], h[13] = byte(5+len(p.tcpOptions)/4)<<4, p.flags
		binary.BigEndian.PutUint32(h[4:], p.seq)
		binary.BigEndian.PutUint32(h[8:], p.ack)
		binary.BigEndian.PutUint16(h[14:], p.window)
		h = append(h, p.tcpOptions...)
	case p.proto == ProtoUDP:
		h = make([]byte, 8)
		binary.BigEndian.PutUint16(h[4:], uint16(8+len(p.payload)))
	case p.proto == ProtoICMP, p.proto == ProtoICMPv6:
		h = make([]byte, 8)
		h[0], h[1] = p.icmpType, p.icmpCode
		binary.BigEndian.PutUint32(h[4:], p.rest)
		if p.rest == 0 {
			binary.BigEndian.PutUint16(h[4:], p.src.Port())
		}
		return h
	default:
		return nil
	}
	binary.BigEndian.PutUint16(h[0:], p.src.Port())
	binary.BigEndian.PutUint16(h[2:], p.dst.Port())
	return h
}

// Ethernet is a header.
func Ethernet(dst, src net.HardwareAddr, etherType uint16) []byte {
	b := make([]byte, 0, ethLen+ipLen)
	b = append(b, dst...)
	b = append(b, src...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

func pseudo(src, dst netip.Addr, proto uint8, length int) uint32 {
	var sum uint32
	for _, a := range []netip.Addr{src, dst} {
		b := a.AsSlice()
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	return sum + uint32(proto) + uint32(length)
}

func checksum(sum uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
