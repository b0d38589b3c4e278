// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"net/netip"
	"slices"

	"cairn/test/model/firewall"
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
		s.Spec.Payload, s.Spec.DF = pick(g, MTU-28, MTU-20, MTU-19, MTU), g.one(2)
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

// piece of a packet whose other pieces come, or have come.
func (g *Generator) piece(h *firewall.Host) *Send {
	if g.broken == nil || g.one(6) {
		g.broken = g.another(h)
		g.broken.Spec.Payload = 24
		if g.broken.Spec.V6() {
			g.broken.Spec.Extensions = []uint8{frame.FragmentHdr}
		}
	}
	s := *g.broken
	at := pick[uint16](g, 0, 0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
	if at > 0 {
		s.Spec.Payload = pick(g, 8, 8, 8, 16, 3)
	}
	s.Spec.Fragment = &frame.Fragment{ID: pick[uint32](g, 7, 7, 7, 8), Offset: at, More: at == 0 || !g.one(4)}
	if s.Spec.Fragment.More && s.Spec.Payload == 3 {
		s.Spec.Fragment.More = false
	}
	if at == 0 && s.Spec.Proto == frame.TCP {
		s.Spec.Payload, s.Spec.Scale = 4, 0
	}
	return &s
}

// failure is an ICMP error about something that a port has sent or got.
func (g *Generator) failure(s *Send) *Send {
	about := s.Spec
	if !g.one(10) {
		about.Fragment = nil
	}
	about.Pokes, about.Cut, about.Options = nil, pick(g, 0, 0, 0, 1, 8), pick(g, 0, 0, 20)
	if about.V6() {
		about.Options = 0
	}
	to := about.Src.Addr()
	from := pick(g, about.Dst.Addr(), g.peer(about.V6()))
	e := &Send{Spec: frame.Spec{Proto: frame.ICMP, Type: 3, Code: 3, Inner: &about}}
	switch {
	case about.V6():
		e.Spec.Proto = frame.ICMPv6
		e.Spec.Type, e.Spec.Code = pick[uint8](g, 1, 2, 3, 4, 100), 0
	default:
		e.Spec.Type, e.Spec.Code = pick[uint8](g, 3, 3, 3, 4, 5, 11, 12), pick[uint8](g, 0, 3, 4)
	}
	e.Spec.MTU = pick[uint16](g, 1400, 1400, 1280, 1279, 576, 575, 0)
	if g.one(10) {
		to = g.peer(about.V6()) // not who has sent what it is about
	}
	switch s.Hook {
	case VM: // about what the port has sent: it comes from the network
		e.Hook = Uplink
	default:
		e.Hook, e.Port = VM, Ports[0]
		for _, p := range Ports {
			if slices.Contains(Addresses(p), about.Dst.Addr()) {
				e.Port = p
				from = about.Dst.Addr()
			}
		}
	}
	e.Spec.Src, e.Spec.Dst = netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0)
	return e
}
