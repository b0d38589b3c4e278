// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

const (
	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd

	protoUDP    = 17
	protoICMPv6 = 58
)

// message is what a frame carries, and from whom.
type message struct {
	srcMAC           [6]byte
	src, dst         netip.Addr
	proto            uint8
	srcPort, dstPort uint16 // of UDP
	hops             uint8
	payload          []byte // of UDP; of ICMPv6 with its header
}

var errShort = errors.New("shorter than its headers say")

// parse a frame. The program has looked at it already; nothing of that is taken
// for granted.
func parse(frame []byte) (message, error) {
	var m message
	if len(frame) < 14 {
		return m, errShort
	}
	m.srcMAC = [6]byte(frame[6:12])
	var l4 []byte
	var err error
	switch t := binary.BigEndian.Uint16(frame[12:]); t {
	case typeIPv4:
		l4, err = m.ipv4(frame[14:])
	case typeIPv6:
		l4, err = m.ipv6(frame[14:])
	default:
		return m, fmt.Errorf("a frame of type %#x", t)
	}
	if err != nil || m.proto != protoUDP {
		m.payload = l4
		return m, err
	}
	if len(l4) < 8 || int(binary.BigEndian.Uint16(l4[4:])) < 8 || int(binary.BigEndian.Uint16(l4[4:])) > len(l4) {
		return m, errShort
	}
	m.srcPort, m.dstPort = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	m.payload = l4[8:binary.BigEndian.Uint16(l4[4:])]
	return m, nil
}

func (m *message) ipv4(b []byte) ([]byte, error) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return nil, errShort
	}
	head, length := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < 20 || length < head || length > len(b) {
		return nil, errShort
	}
	if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return nil, errors.New("a fragment")
	}
	m.proto, m.hops = b[9], b[8]
	m.src, m.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	return b[head:length], nil
}

// ipv6 skips what headers may stand before a question: of options only.
func (m *message) ipv6(b []byte) ([]byte, error) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return nil, errShort
	}
	length := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if length > len(b) {
		return nil, errShort
	}
	m.proto, m.hops = b[6], b[7]
	m.src, m.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	l4 := b[40:length]
	for m.proto == 0 || m.proto == 60 {
		if len(l4) < 8 || len(l4) < 8+8*int(l4[1]) {
			return nil, errShort
		}
		m.proto, l4 = l4[0], l4[8+8*int(l4[1]):]
	}
	return l4, nil
}

// reply is a frame to build.
type reply struct {
	srcMAC, dstMAC   [6]byte
	src, dst         netip.Addr
	proto            uint8
	srcPort, dstPort uint16
	hops             uint8
	payload          []byte
}

func (r reply) bytes() []byte {
	l4 := r.payload
	if r.proto == protoUDP {
		l4 = r.udp()
	}
	b := make([]byte, 0, 14+40+len(l4))
	b = append(append(b, r.dstMAC[:]...), r.srcMAC[:]...)
	if r.src.Is4() {
		b = binary.BigEndian.AppendUint16(b, typeIPv4)
		head := make([]byte, 20)
		head[0], head[8], head[9] = 0x45, r.hops, r.proto
		binary.BigEndian.PutUint16(head[2:], uint16(20+len(l4)))
		copy(head[12:], r.src.AsSlice())
		copy(head[16:], r.dst.AsSlice())
		binary.BigEndian.PutUint16(head[10:], checksum(0, head))
		return append(append(b, head...), l4...)
	}
	b = binary.BigEndian.AppendUint16(b, typeIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(l4)))
	b = append(b, r.proto, r.hops)
	b = append(append(b, r.src.AsSlice()...), r.dst.AsSlice()...)
	return append(b, l4...)
}

func (r reply) udp() []byte {
	b := make([]byte, 8, 8+len(r.payload))
	binary.BigEndian.PutUint16(b, r.srcPort)
	binary.BigEndian.PutUint16(b[2:], r.dstPort)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(r.payload)))
	b = append(b, r.payload...)
	pseudo := append(r.src.AsSlice(), r.dst.AsSlice()...)
	pseudo = append(pseudo, 0, r.proto)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(b)))
	sum := checksum(add(0, pseudo), b)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func checksum(sum uint32, b []byte) uint16 {
	sum = add(sum, b)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
