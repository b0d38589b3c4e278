// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"encoding/binary"
	"net/netip"

	"cairn/test/model/frame"
)

// Bounds of what may stand between IPv6's header and L4's.
const (
	mostExtensions     = 6
	mostExtensionBytes = 256
)

func (x *Headers) ipv6(b []byte) Reason {
	h := b[x.L3:]
	if len(h) < 40 || h[0]>>4 != 6 {
		return Malformed
	}
	x.Proto, x.TTL = h[6], h[7]
	x.Src, _ = netip.AddrFromSlice(h[8:24])
	x.Dst, _ = netip.AddrFromSlice(h[24:40])
	x.Length = 40 + int(binary.BigEndian.Uint16(h[4:]))
	x.L4 = x.L3 + 40
	if x.Length > len(h) {
		return Malformed
	}
	// An IPv4 address in disguise would pass for the IPv4 host.
	if x.Src.Is4In6() {
		return BadSource
	}
	if x.Dst.Is4In6() {
		return BadDestination
	}
	return x.extensions(b)
}

func isExtension(proto uint8) bool {
	switch proto {
	case frame.HopByHop, frame.Routing, frame.FragmentHdr, frame.Destination:
		return true
	}
	return false
}

// extensions walks to the L4 header; a later fragment has none.
func (x *Headers) extensions(b []byte) Reason {
	for n := 0; isExtension(x.Proto) && !x.later(); n++ {
		if n == mostExtensions {
			return Extensions
		}
		if why := x.extension(b, n); why != None {
			return why
		}
	}
	return None
}

func (x *Headers) extension(b []byte, n int) Reason {
	if x.L4+8 > len(b) {
		return x.short()
	}
	h, kind := b[x.L4:], x.Proto
	length := 8
	switch kind {
	case frame.HopByHop: // RFC 8200, 4.1: the first or not at all
		if n > 0 {
			return Extensions
		}
	case frame.Routing: // RFC 5095: type 0 is not served
		if h[2] == 0 {
			return Extensions
		}
	}
	if kind != frame.FragmentHdr {
		length += int(h[1]) * 8
	}
	x.Proto = h[0]
	x.L4 += length
	if x.L4 > x.L3+x.Length {
		return x.short()
	}
	if x.L4-x.L3-40 > mostExtensionBytes {
		return Extensions
	}
	if kind != frame.FragmentHdr {
		return None
	}
	if x.Piece != nil {
		return Extensions // a fragment of a fragment
	}
	word := binary.BigEndian.Uint16(h[2:])
	return x.piece(binary.BigEndian.Uint32(h[4:]), int(word&^7), word&1 != 0)
}
