// SPDX-License-Identifier: Apache-2.0

package packet_test

import (
	"encoding/binary"
	"encoding/hex"
	"testing"

	"cairn/bpf/packet"
)

// The header of the example in RFC 1071's usual illustration: its checksum is
// b861.
func TestIPChecksumOfAKnownHeader(t *testing.T) {
	got := packet.UDP("192.168.0.1:1", "192.168.0.199:1").Fragment(false, 0x4000).Payload(make([]byte, 0x73-28)).IP()
	if want := "45000073000040004011b861c0a80001c0a800c7"; hex.EncodeToString(got[:20]) != want {
		t.Errorf("%x, want %s", got[:20], want)
	}
}

// A receiver sums all 16-bit words, the checksum's own included, and finds ffff.
func TestChecksumsSumToOnes(t *testing.T) {
	for name, c := range map[string]struct {
		p      packet.Packet
		pseudo bool
	}{
		"tcp":      {packet.TCP("192.0.2.1:1", "203.0.113.1:2").SYN().Payload([]byte("odd")), true},
		"udp":      {packet.UDP("192.0.2.1:1", "203.0.113.1:2").Payload([]byte("even")), true},
		"icmp":     {packet.Ping("192.0.2.1", "203.0.113.1", 7).Payload([]byte("odd")), false},
		"options":  {packet.TCP("192.0.2.1:1", "203.0.113.1:2").Options([]byte{1, 1, 1, 0}), true},
		"answered": {packet.Ping("192.0.2.1", "203.0.113.1", 7).Reply(), false},
	} {
		ip := c.p.IP()
		header := int(ip[0]&15) * 4
		if got := sum(0, ip[:header]); got != 0xffff {
			t.Errorf("%s: IP sums to %#x", name, got)
		}
		start := uint32(0)
		if c.pseudo {
			start = uint32(sum(uint32(ip[9])+uint32(len(ip)-header), ip[12:20]))
		}
		if got := sum(start, ip[header:]); got != 0xffff {
			t.Errorf("%s: L4 sums to %#x", name, got)
		}
	}
	if got := packet.UDP("192.0.2.1:1", "203.0.113.1:2").NoChecksum().IP(); got[26] != 0 || got[27] != 0 {
		t.Errorf("a checksum that was left out is %x", got[26:28])
	}
}

// ICMPv6's covers the addresses too, and extension headers lie before all L4.
func TestChecksumsOfIPv6SumToOnes(t *testing.T) {
	for name, c := range map[string]struct {
		p     packet.Packet
		proto uint8
		at    int
	}{
		"tcp":  {packet.TCP("[2001:db8::1]:1", "[2001:db8::2]:2").SYN().TCPOptions([]byte{3, 3, 7, 0}), packet.ProtoTCP, 40},
		"ping": {packet.Ping("2001:db8::1", "2001:db8::2", 7).Payload([]byte("odd")), packet.ProtoICMPv6, 40},
		"nd":   {packet.Solicitation("02:00:00:00:00:01", "fe80::2", "fe80::1"), packet.ProtoICMPv6, 40},
		"extension": {packet.UDP("[2001:db8::1]:1", "[2001:db8::2]:2").
			Extensions(packet.Extension{Proto: packet.ProtoDestination, Body: make([]byte, 14)}), packet.ProtoUDP, 56},
	} {
		ip := c.p.IP()
		start := uint32(sum(uint32(c.proto)+uint32(len(ip)-c.at), ip[8:40]))
		if got := sum(start, ip[c.at:]); got != 0xffff {
			t.Errorf("%s: L4 sums to %#x in %x", name, got, ip)
		}
	}
}

func TestFragmentsMakeUpThePacket(t *testing.T) {
	whole := packet.UDP("[2001:db8::1]:1", "[2001:db8::2]:2").Payload(make([]byte, 100)).ID(7)
	var data []byte
	for i, f := range whole.Split(48) {
		ip := f.IP()
		if got := binary.BigEndian.Uint16(ip[42:]); ip[6] != packet.ProtoFragment || int(got&^7) != len(data) {
			t.Errorf("fragment %d: next header %d, offset %#x", i, ip[6], got)
		}
		data = append(data, ip[48:]...)
	}
	if want := whole.IP()[40:]; string(data) != string(want) {
		t.Errorf("%x, want %x", data, want)
	}
}

func sum(start uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		start += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	for start>>16 != 0 {
		start = start&0xffff + start>>16
	}
	return uint16(start)
}

func TestTagIsTheInnerSourceMAC(t *testing.T) {
	got := packet.Tag{Generation: 9, Hop: 2, Other: 0x01020304}.MAC().String()
	if got != "0a:26:01:02:03:04" {
		t.Errorf("%s", got)
	}
}
