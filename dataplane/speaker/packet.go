// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"cairn/dataplane/announce"
)

// XDP verdicts, as in linux/bpf.h.
const (
	xdpAborted  = 0
	xdpDrop     = 1
	xdpPass     = 2
	xdpTX       = 3
	xdpRedirect = 4
)

const (
	ethernet = 14
	ipv4     = 20
	udp      = 8
	tcp      = 20
	vxlan    = 8
	minFrame = 60

	protocolTCP = 6
	protocolUDP = 17
	vxlanPort   = 4789
	etherIPv4   = 0x0800
	synFlag     = 0x02
)

// probe writes the first packet of a flow from source to a VIP's service: a SYN,
// or a UDP datagram without payload. The port of the source decides which slot
// the packet falls on.
func probe(mac [6]byte, source netip.AddrPort, vip netip.Addr, s announce.Service) ([]byte, error) {
	if !vip.Is4() || !source.Addr().Is4() {
		return nil, errors.New("probes are IPv4 only")
	}
	l4 := tcp
	if s.Protocol == protocolUDP {
		l4 = udp
	}
	frame := make([]byte, max(minFrame, ethernet+ipv4+l4))
	copy(frame[0:6], mac[:])
	frame[6] = 0x02
	binary.BigEndian.PutUint16(frame[12:], etherIPv4)

	ip := frame[ethernet:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(ipv4+l4))
	ip[6] = 0x40 // do not fragment
	ip[8] = 64
	ip[9] = s.Protocol
	from, to := source.Addr().As4(), vip.As4()
	copy(ip[12:], from[:])
	copy(ip[16:], to[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip[:ipv4]))

	seg := ip[ipv4 : ipv4+l4]
	binary.BigEndian.PutUint16(seg[0:], source.Port())
	binary.BigEndian.PutUint16(seg[2:], s.Port)
	pseudo := sum(0, ip[12:20]) + uint32(s.Protocol) + uint32(l4)
	if s.Protocol == protocolUDP {
		binary.BigEndian.PutUint16(seg[4:], udp)
		binary.BigEndian.PutUint16(seg[6:], checksum(pseudo, seg))
		return frame, nil
	}
	seg[12] = tcp / 4 << 4
	seg[13] = synFlag
	binary.BigEndian.PutUint16(seg[14:], 0xFFFF)
	binary.BigEndian.PutUint16(seg[16:], checksum(pseudo, seg))
	return frame, nil
}

// sum is the one's-complement sum of RFC 1071 over an even number of bytes.
func sum(start uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		start += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return start
}

func checksum(start uint32, b []byte) uint16 {
	s := sum(start, b)
	for s > 0xFFFF {
		s = s>>16 + s&0xFFFF
	}
	return ^uint16(s)
}

// outcome says whether the program treated a probe as a packet for the VIP:
// sent on to a backend's host inside VXLAN, or passed on to uplink_in with the
// address rewritten to the instance's. The error says what it did instead.
func outcome(verdict uint32, frame []byte, vip netip.Addr) error {
	switch verdict {
	case xdpTX:
		return encapsulated(frame, vip)
	case xdpPass:
		to, ok := destination(frame, ethernet)
		if !ok {
			return errors.New("passed on, but no longer IPv4")
		}
		if to == vip {
			return errors.New("passed to the host's own stack")
		}
		return nil
	case xdpDrop:
		return errors.New("dropped")
	case xdpAborted:
		return errors.New("aborted")
	case xdpRedirect:
		return errors.New("redirected")
	}
	return fmt.Errorf("verdict %d", verdict)
}

func encapsulated(frame []byte, vip netip.Addr) error {
	const inner = ethernet + ipv4 + udp + vxlan + ethernet
	if _, ok := destination(frame, ethernet); !ok {
		return errors.New("sent, but not as IPv4")
	}
	if frame[ethernet+9] != protocolUDP || len(frame) < inner ||
		binary.BigEndian.Uint16(frame[ethernet+ipv4+2:]) != vxlanPort {
		return errors.New("sent, but not encapsulated")
	}
	to, ok := destination(frame, inner)
	if !ok || to != vip {
		return errors.New("sent, but with another packet inside")
	}
	return nil
}

// destination of the IPv4 packet that follows an Ethernet header and starts at.
func destination(frame []byte, at int) (netip.Addr, bool) {
	if len(frame) < at+ipv4 || binary.BigEndian.Uint16(frame[at-2:]) != etherIPv4 || frame[at]>>4 != 4 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(frame[at+16 : at+20])), true
}
