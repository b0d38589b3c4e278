// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
)

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

// Types of ICMPv6 that stay on the link.
const (
	RouterSolicitation     = 133
	RouterAdvertisement    = 134
	NeighbourSolicitation  = 135
	NeighbourAdvertisement = 136
	Redirect               = 137
)

// Options of neighbour discovery.
const (
	SourceLinkAddress = 1
	TargetLinkAddress = 2
)

// Solicitation asks who has target, from a MAC and an address; the unspecified
// one looks for a duplicate.
func Solicitation(mac, src, target string) Packet {
	t := netip.MustParseAddr(target).As16()
	group := netip.AddrFrom16([16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	p := neighbour(NeighbourSolicitation, src, group.String(), 0, target)
	if netip.MustParseAddr(src).IsUnspecified() {
		return p
	}
	return p.LinkAddress(SourceLinkAddress, mac)
}

// Advertisement says that target is at a MAC. flags are its R, S and O bits,
// uppermost.
func Advertisement(mac, src, dst, target string, flags uint8) Packet {
	return neighbour(NeighbourAdvertisement, src, dst, uint32(flags)<<24, target).LinkAddress(TargetLinkAddress, mac)
}

func neighbour(kind uint8, src, dst string, rest uint32, target string) Packet {
	t := netip.MustParseAddr(target).As16()
	p := ICMPError(src, dst, kind, 0, rest, t[:])
	p.src, p.dst = netip.AddrPortFrom(p.src.Addr(), 0), netip.AddrPortFrom(p.dst.Addr(), 0)
	return p.TTL(255)
}

// LinkAddress adds an option of neighbour discovery to the payload.
func (p Packet) LinkAddress(kind uint8, mac string) Packet {
	p.payload = append(append(p.payload[:len(p.payload):len(p.payload)], kind, 1), MAC(mac)...)
	return p
}

// Router is a message from or to a router: without options.
func Router(kind uint8, src, dst string) Packet {
	p := ICMPError(src, dst, kind, 0, 0, nil)
	if kind == RouterAdvertisement {
		p.payload = make([]byte, 8)
	}
	return p.TTL(255)
}
