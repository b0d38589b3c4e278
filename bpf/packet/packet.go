// SPDX-License-Identifier: Apache-2.0

// Package packet builds packets to put through the programs, and takes apart
// what comes out. It knows nothing of maps and sends nothing. Start at TCP.
package packet

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// IP protocols.
const (
	ProtoICMP = 1
	ProtoTCP  = 6
	ProtoUDP  = 17
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
)

const (
	ethLen = 14
	ipLen  = 20
)

// Packet is one IPv4 packet in an Ethernet frame. Its methods return a changed
// copy, so that a base can be shared.
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
	options        []byte
	payload        []byte
	noChecksum     bool
	seq, ack       uint32
	window         uint16
}

func base(src, dst netip.AddrPort, proto uint8) Packet {
	return Packet{
		src: src, dst: dst, proto: proto, ttl: 64, window: 65535, etherType: TypeIPv4,
		srcMAC: MAC("02:00:00:00:00:01"), dstMAC: MAC("02:00:00:00:00:02"),
	}
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
	if p.proto == ProtoICMP {
		p.icmpType = 0
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
	l4 := p.l4()
	h := make([]byte, ipLen, ipLen+len(p.options)+len(l4))
	h[0] = 4<<4 | byte((ipLen+len(p.options))/4)
	binary.BigEndian.PutUint16(h[2:], uint16(ipLen+len(p.options)+len(l4)))
	binary.BigEndian.PutUint16(h[6:], p.fragment)
	h[8], h[9] = p.ttl, p.proto
	src, dst := p.src.Addr().As4(), p.dst.Addr().As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	h = append(h, p.options...)
	binary.BigEndian.PutUint16(h[10:], checksum(0, h))
	return append(h, l4...)
}

func (p Packet) l4() []byte {
	var h []byte
	var check int
	switch p.proto {
	case ProtoTCP:
		h = make([]byte, 20)
		h[12], h[13] = 5<<4, p.flags
		binary.BigEndian.PutUint32(h[4:], p.seq)
		binary.BigEndian.PutUint32(h[8:], p.ack)
		binary.BigEndian.PutUint16(h[14:], p.window)
		check = 16
	case ProtoUDP:
		h = make([]byte, 8)
		binary.BigEndian.PutUint16(h[4:], uint16(8+len(p.payload)))
		check = 6
	case ProtoICMP:
		h = make([]byte, 8)
		h[0], h[1] = p.icmpType, p.icmpCode
		binary.BigEndian.PutUint16(h[4:], p.src.Port())
		h = append(h, p.payload...)
		binary.BigEndian.PutUint16(h[2:], checksum(0, h))
		return h
	default:
		return p.payload
	}
	binary.BigEndian.PutUint16(h[0:], p.src.Port())
	binary.BigEndian.PutUint16(h[2:], p.dst.Port())
	h = append(h, p.payload...)
	if p.noChecksum && p.proto == ProtoUDP {
		return h
	}
	sum := checksum(pseudo(p.src.Addr(), p.dst.Addr(), p.proto, len(h)), h)
	if sum == 0 && p.proto == ProtoUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(h[check:], sum)
	return h
}

// Ethernet is a header.
func Ethernet(dst, src net.HardwareAddr, etherType uint16) []byte {
	b := make([]byte, 0, ethLen+ipLen)
	b = append(b, dst...)
	b = append(b, src...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

// Tunnel is what a load-balanced packet wears between hosts.
type Tunnel struct {
	SrcMAC, DstMAC string
	Src, Dst       string // tunnel endpoints
	Port           uint16 // UDP source
	VNI            uint32
	Backend        string // inner destination MAC
	Tag            Tag
}

// Tag is what the inner source MAC says.
type Tag struct {
	Generation uint8 // the lower 6 bits of the slot table's
	Hop        uint8
	Other      uint32 // backend id of the slot's other owner
}

// MAC is the tag as an Ethernet address.
func (t Tag) MAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 2, 6)
	mac[0], mac[1] = 0x0a, t.Generation<<2|t.Hop&3
	return binary.BigEndian.AppendUint32(mac, t.Other)
}

// Wrap encapsulates a packet; its own Ethernet header is replaced by the inner
// one.
func (t Tunnel) Wrap(p Packet) []byte {
	return t.wrap(append(Ethernet(MAC(t.Backend), t.Tag.MAC(), TypeIPv4), p.IP()...))
}

// TypeReach is the Ethernet type of the question whether a host is reached.
const TypeReach = 0x88b5

// WrapReach encapsulates a question (op 1) or an answer (op 2), filled up to
// size bytes.
func (t Tunnel) WrapReach(op uint8, sent uint64, size int) []byte {
	return t.wrap(Reach(op, sent, size))
}

// Reach is the inner frame of a question or an answer.
func Reach(op uint8, sent uint64, size int) []byte {
	b := Ethernet(make(net.HardwareAddr, 6), make(net.HardwareAddr, 6), TypeReach)
	b = append(b, op, 0, 0, 0, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint64(b, sent)
	return append(b, make([]byte, max(0, size-len(b)))...)
}

// VXLAN is a header.
func VXLAN(vni uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, vni<<8)
}

func (t Tunnel) wrap(inner []byte) []byte {
	outer := UDP(fmt.Sprintf("%s:%d", t.Src, t.Port), t.Dst+":4789").
		MACs(t.SrcMAC, t.DstMAC).NoChecksum().Payload(append(VXLAN(t.VNI), inner...))
	outer.fragment = 0x4000
	return outer.Bytes()
}

// ARP is a question: who has target?
func ARP(senderMAC, sender, target string) []byte {
	return arp(1, MAC(senderMAC), MAC("ff:ff:ff:ff:ff:ff"), MAC(senderMAC), sender, MAC("00:00:00:00:00:00"), target)
}

// ARPReply is the answer: sender is at senderMAC.
func ARPReply(senderMAC, sender, targetMAC, target string) []byte {
	return arp(2, MAC(senderMAC), MAC(targetMAC), MAC(senderMAC), sender, MAC(targetMAC), target)
}

func arp(op uint16, src, dst, senderMAC net.HardwareAddr, sender string, targetMAC net.HardwareAddr, target string) []byte {
	b := Ethernet(dst, src, TypeARP)
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, senderMAC...)
	b = append(b, netip.MustParseAddr(sender).AsSlice()...)
	b = append(b, targetMAC...)
	return append(b, netip.MustParseAddr(target).AsSlice()...)
}

func pseudo(src, dst netip.Addr, proto uint8, length int) uint32 {
	var sum uint32
	for _, a := range []netip.Addr{src, dst} {
		b := a.As4()
		sum += uint32(binary.BigEndian.Uint16(b[0:])) + uint32(binary.BigEndian.Uint16(b[2:]))
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
