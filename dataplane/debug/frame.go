// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"cairn/cloud/firewall"
)

// DescribeFrame is a frame in one line, as far as its bytes tell; within VXLAN
// also the frame inside.
func DescribeFrame(frame []byte) string {
	if len(frame) < 14 {
		return fmt.Sprintf("%d bytes", len(frame))
	}
	macs := fmt.Sprintf("%s > %s", net.HardwareAddr(frame[6:12]), net.HardwareAddr(frame[:6]))
	switch kind := binary.BigEndian.Uint16(frame[12:]); kind {
	case 0x0800, 0x86dd:
		return macs + ", " + describeIP(frame[14:])
	case 0x0806:
		return macs + ", " + describeARP(frame[14:])
	default:
		return fmt.Sprintf("%s, type %#04x", macs, kind)
	}
}

func describeARP(b []byte) string {
	if len(b) < 28 {
		return "arp"
	}
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	if b[7] == 1 {
		return fmt.Sprintf("arp: who has %s? tell %s", target, sender)
	}
	return fmt.Sprintf("arp: %s is at %s", sender, net.HardwareAddr(b[8:14]))
}

func describeIP(b []byte) string {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && len(b) >= int(b[0]&15)*4:
		offset := binary.BigEndian.Uint16(b[6:]) & 0x1fff
		src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		return describeL4(b[9], src, dst, b[8], b[int(b[0]&15)*4:], offset != 0)
	case len(b) >= 40 && b[0]>>4 == 6:
		return describeL4(b[6], netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[7], b[40:], false)
	}
	return "ip, cut off"
}

func describeL4(proto uint8, src, dst netip.Addr, ttl uint8, b []byte, later bool) string {
	name := firewall.ProtocolName(proto)
	if later {
		return fmt.Sprintf("%s %s > %s, a later fragment", name, src, dst)
	}
	hops := fmt.Sprintf(", ttl %d", ttl)
	switch {
	case firewall.HasPorts(proto) && len(b) >= 8:
		from, to := netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
		text := fmt.Sprintf("%s %s > %s", name, from, to)
		switch {
		case proto == 6 && len(b) >= 14:
			text += " [" + FlagNames(b[13]) + "]"
		case proto == 17 && to.Port() == 4789 && len(b) >= 16+14:
			return fmt.Sprintf("%s%s, vxlan %d: %s", text, hops, binary.BigEndian.Uint32(b[12:])>>8, DescribeFrame(b[16:]))
		}
		return text + hops
	case firewall.IsICMP(proto) && len(b) >= 2:
		return fmt.Sprintf("%s %d/%d %s > %s%s", name, b[0], b[1], src, dst, hops)
	}
	return fmt.Sprintf("%s %s > %s%s", name, src, dst, hops)
}

// flagLetters of TCP, from the lowest bit.
const flagLetters = "FSRPAU"

// FlagNames are TCP's flags as letters: "SA".
func FlagNames(flags uint8) string {
	var out strings.Builder
	for i, letter := range flagLetters {
		if flags>>i&1 != 0 {
			out.WriteRune(letter)
		}
	}
	return out.String()
}

// ParseFlags is the reverse of FlagNames.
func ParseFlags(s string) (flags uint8, err error) {
	for _, letter := range strings.ToUpper(s) {
		at := strings.IndexRune(flagLetters, letter)
		if at < 0 {
			return 0, fmt.Errorf("%q has a letter that is none of %s", s, flagLetters)
		}
		flags |= 1 << at
	}
	return flags, nil
}
