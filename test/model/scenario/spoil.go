// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"net/netip"
	"slices"

	"cairn/test/model/frame"
)

// spoil makes a packet one that hardly anybody sends.
func (g *Generator) spoil(s *Send) *Send {
	switch g.rnd.IntN(11) {
	case 0:
		s.Spec.TTL = pick[uint8](g, 1, 2, 255)
	case 1:
		s.Spec.Cut = pick(g, 1, 5, 9, 21, 33)
	case 2:
		s.Spec.From = frame.MAC{0x02, 0xca, 0, 0, 0, 9}
	case 3:
		s.Spec.To = pick(g, frame.MAC{0x02, 0xaa, 0, 0, 0, 2}, frame.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	case 4:
		s.Spec.Src = netip.AddrPortFrom(g.oddAddress(s.Spec.V6()), s.Spec.Src.Port())
	case 5:
		s.Spec.Dst = netip.AddrPortFrom(g.oddAddress(s.Spec.V6()), s.Spec.Dst.Port())
	case 6:
		s.Spec.Payload = pick(g, MTU-28, MTU-20, MTU-19, MTU)
	case 7:
		s.Spec.Flags = uint8(g.rnd.IntN(32))
	case 8:
		g.stretch(&s.Spec)
	case 9:
		g.poke(&s.Spec)
	default:
		g.shatter(&s.Spec)
	}
	return s
}

func (g *Generator) oddAddress(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(pick(g, "::", "::1", "fe80::1", "ff02::1", "2001:db8:64::1", "2001:db8:5::77", "::ffff:198.51.100.5",
			"::ffff:192.0.2.9", "::192.0.2.9", "2001:db8:5::5"))
	}
	return netip.MustParseAddr(pick(g, "0.0.0.0", "127.0.0.1", "169.254.169.254", "169.254.169.253", "198.18.0.1", "198.19.255.255", "224.0.0.1",
		"255.255.255.255", "240.0.0.1", "10.64.0.1", "10.64.0.9", "198.51.100.77", "198.51.100.5", "0.1.2.3"))
}

// stretch the way to the L4 header.
func (g *Generator) stretch(s *frame.Spec) {
	if !s.V6() {
		s.Options = pick(g, 4, 20, 40)
		return
	}
	for range g.rnd.IntN(8) {
		s.Extensions = append(s.Extensions, pick[uint8](g, frame.HopByHop, frame.Destination, frame.Routing, frame.Destination, frame.Auth, frame.FragmentHdr))
	}
	s.Extensions = slices.Compact(s.Extensions)
}

// poke a header's byte.
func (g *Generator) poke(s *frame.Spec) {
	at := 12 + g.rnd.IntN(60)
	s.Pokes = append(s.Pokes, frame.Poke{At: at, Value: uint8(g.rnd.Uint32())})
}

// shatter into a fragment.
func (g *Generator) shatter(s *frame.Spec) {
	s.Payload = pick(g, 0, 3, 8, 12, 16, 32)
	s.Fragment = &frame.Fragment{ID: uint32(pick(g, 1, 2)), Offset: pick[uint16](g, 0, 0, 1, 2, 3, 4, 8191), More: g.one(2)}
	if s.V6() {
		s.Extensions = append(s.Extensions, frame.FragmentHdr)
	}
}
