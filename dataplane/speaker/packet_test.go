// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/dataplane/announce"
)

var (
	vip    = netip.MustParseAddr("203.0.113.1")
	prober = netip.MustParseAddrPort("192.0.2.9:1025")
	web    = announce.Service{Port: 80, Protocol: protocolTCP}
	dns    = announce.Service{Port: 53, Protocol: protocolUDP}
)

func TestProbeIsAWholePacket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := announce.Service{Port: rapid.Uint16().Draw(t, "port"), Protocol: protocolTCP}
		if rapid.Bool().Draw(t, "udp") {
			s.Protocol = protocolUDP
		}
		from := netip.AddrPortFrom(prober.Addr(), rapid.Uint16().Draw(t, "source"))
		frame, err := probe([6]byte{2, 0xCA, 0, 0, 0, 1}, from, vip, s)
		if err != nil {
			t.Fatal(err)
		}
		length := int(binary.BigEndian.Uint16(frame[ethernet+2:]))
		if len(frame) < minFrame || len(frame) < ethernet+length {
			t.Fatalf("frame of %d bytes for a packet of %d", len(frame), length)
		}
		ip := frame[ethernet : ethernet+length]
		if checksum(0, ip[:ipv4]) != 0 {
			t.Error("IPv4 checksum does not verify")
		}
		pseudo := sum(0, ip[12:20]) + uint32(s.Protocol) + uint32(length-ipv4)
		if got := checksum(pseudo, ip[ipv4:]); got != 0 {
			t.Errorf("%s checksum does not verify: %x", s, got)
		}
		if to, ok := destination(frame, ethernet); !ok || to != vip {
			t.Errorf("destination %s", to)
		}
		if got := binary.BigEndian.Uint16(ip[ipv4+2:]); got != s.Port {
			t.Errorf("destination port %d, want %d", got, s.Port)
		}
	})
	if _, err := probe([6]byte{}, prober, netip.MustParseAddr("2001:db8::1"), web); err == nil {
		t.Error("an IPv6 probe was made")
	}
}

// wrap puts a frame into VXLAN, as the program on the uplink does.
func wrap(inner []byte, port uint16) []byte {
	outer := make([]byte, ethernet+ipv4+udp+vxlan, ethernet+ipv4+udp+vxlan+len(inner))
	binary.BigEndian.PutUint16(outer[12:], etherIPv4)
	outer[ethernet] = 0x45
	outer[ethernet+9] = protocolUDP
	binary.BigEndian.PutUint16(outer[ethernet+ipv4+2:], port)
	return append(outer, inner...)
}

func TestOutcome(t *testing.T) {
	plain, err := probe([6]byte{}, prober, vip, dns)
	if err != nil {
		t.Fatal(err)
	}
	delivered := append([]byte{}, plain...)
	copy(delivered[ethernet+16:], []byte{198, 51, 100, 7})
	notIPv4 := append([]byte{}, plain...)
	notIPv4[12] = 0x86
	tests := []struct {
		name    string
		verdict uint32
		frame   []byte
		reason  string // empty: passes
	}{
		{"sent to a backend's host", xdpTX, wrap(plain, vxlanPort), ""},
		{"delivered here", xdpPass, delivered, ""},
		{"a program that only passes", xdpPass, plain, "own stack"},
		{"a program that only bounces", xdpTX, plain, "not encapsulated"},
		{"another tunnel", xdpTX, wrap(plain, 4790), "not encapsulated"},
		{"another inner packet", xdpTX, wrap(delivered, vxlanPort), "another packet"},
		{"cut in the tunnel", xdpTX, wrap(plain[:ethernet+4], vxlanPort), "another packet"},
		{"cut before the tunnel", xdpTX, wrap(plain, vxlanPort)[:ethernet+ipv4+4], "not encapsulated"},
		{"sent as something else", xdpTX, notIPv4, "not as IPv4"},
		{"passed as something else", xdpPass, notIPv4, "no longer IPv4"},
		{"drop", xdpDrop, plain, "dropped"},
		{"abort", xdpAborted, plain, "aborted"},
		{"redirect", xdpRedirect, plain, "redirected"},
		{"unheard of", 77, plain, "verdict 77"},
		{"nothing", xdpTX, nil, "not as IPv4"},
	}
	for _, tt := range tests {
		err := outcome(tt.verdict, tt.frame, vip)
		switch {
		case tt.reason == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.reason != "" && (err == nil || !strings.Contains(err.Error(), tt.reason)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.reason)
		}
	}
}

func TestOutcomeReadsAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frame := rapid.SliceOf(rapid.Byte()).Draw(t, "frame")
		if err := outcome(rapid.Uint32Range(0, 6).Draw(t, "verdict"), frame, vip); err == nil && len(frame) < ethernet+ipv4 {
			t.Error("a stump passed for a packet")
		}
	})
}
