// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"slices"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// Frames that nobody should send. Each is a packet that passes, spoilt in one
// place, and is put to all ways into a host: as port 5's own, as from the network
// to port 5, as from another host to port 20 of a private network. At all of them
// every protocol is admitted from everywhere, so that nothing but the spoilt place
// keeps it out.

// Offsets in the frames.
const (
	ip  = 14
	l4  = ip + 20
	six = ip + 40 // what follows IPv6's header
)

// spoil is how a packet of a kind is made of one that passes: of a shape before it
// is written, of bytes afterwards.
type spoil struct {
	name  string
	of    string
	shape func(packet.Packet) packet.Packet
	bytes func([]byte) []byte
	why   bpf.Reason
}

// put bytes somewhere.
func put(at int, with ...byte) func([]byte) []byte {
	return func(b []byte) []byte {
		copy(b[at:], with)
		return b
	}
}

// put16 a number.
func put16(at int, n uint16) func([]byte) []byte {
	return put(at, byte(n>>8), byte(n))
}

// short of so many bytes at the end.
func short(by int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-by] } }

func both(first, then func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte { return then(first(b)) }
}

func payload(n int) func(packet.Packet) packet.Packet {
	return func(p packet.Packet) packet.Packet { return p.Payload(make([]byte, n)) }
}

// firstBytes of a datagram in fragments.
func firstBytes(n int) func(packet.Packet) packet.Packet {
	return func(p packet.Packet) packet.Packet { return p.Payload(make([]byte, 100)).Split(n)[0] }
}

func flags(f uint8) func(packet.Packet) packet.Packet {
	return func(p packet.Packet) packet.Packet { return p.Flags(f) }
}

func behind(e ...packet.Extension) func(packet.Packet) packet.Packet {
	return func(p packet.Packet) packet.Packet { return p.Extensions(e...) }
}

func about(kind, code uint8, quote ...byte) func(packet.Packet) packet.Packet {
	return func(p packet.Packet) packet.Packet { return p.ICMP(kind, code).Payload(quote) }
}

// Extension headers.
var (
	hopByHop    = packet.Extension{Proto: 0, Body: []byte{1, 4, 0, 0, 0, 0}}
	destination = packet.Extension{Proto: 60, Body: []byte{1, 4, 0, 0, 0, 0}}
	routing     = packet.Extension{Proto: 43, Body: make([]byte, 6)} // of type 0
	fragment    = packet.Extension{Proto: 44, Body: []byte{0, 1, 0, 0, 0, 9}}
	long        = packet.Extension{Proto: 60, Body: append([]byte{1, 132}, make([]byte, 132)...)}
)

// Packets to quote: of a flow that nobody has.
var (
	quote4 = packet.UDP("198.51.100.5:1", "192.0.2.9:2").Payload(make([]byte, 8)).IP()
	quote6 = packet.UDP("[2001:db8:5::5]:1", "[2001:db8:9::9]:2").Payload(make([]byte, 8)).IP()
	later4 = packet.IP("198.51.100.5", "192.0.2.9", 17, make([]byte, 16)).Fragment(false, 9).IP()
	error4 = packet.ICMPError("198.51.100.5", "192.0.2.9", 3, 1, 0, quote4).IP()
	mapped = []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 5}
)

var corpus = []spoil{
	{"version 0", "tcp4", nil, put(ip, 0x05), bpf.ReasonMalformed},
	{"version 6 behind IPv4's type", "tcp4", nil, put(ip, 0x65), bpf.ReasonMalformed},
	{"version 15", "udp4", nil, put(ip, 0xf5), bpf.ReasonMalformed},
	{"a header of 0 words", "tcp4", nil, put(ip, 0x40), bpf.ReasonMalformed},
	{"a header of 4 words", "tcp4", nil, put(ip, 0x44), bpf.ReasonMalformed},
	{"a header longer than the packet", "tcp4", nil, put(ip, 0x4f), bpf.ReasonMalformed},
	{"options over TCP's header", "tcp4", nil, put(ip, 0x4a), bpf.ReasonMalformed},
	{"length 0", "tcp4", nil, put16(ip+2, 0), bpf.ReasonMalformed},
	{"length 19", "udp4", nil, put16(ip+2, 19), bpf.ReasonMalformed},
	{"one byte longer than the frame", "tcp4", nil, put16(ip+2, 41), bpf.ReasonMalformed},
	{"length 65535", "udp4", nil, put16(ip+2, 65535), bpf.ReasonMalformed},
	{"shorter than TCP's header", "tcp4", nil, put16(ip+2, 30), bpf.ReasonMalformed},
	{"no L4 at all", "tcp4", nil, put16(ip+2, 20), bpf.ReasonMalformed},
	{"cut in TCP's header", "tcp4", nil, short(10), bpf.ReasonMalformed},
	{"cut behind IP's header", "udp4", nil, short(8), bpf.ReasonMalformed},

	{"TCP of 0 words", "tcp4", nil, put(l4+12, 0x00), bpf.ReasonMalformed},
	{"TCP of 4 words", "tcp4", nil, put(l4+12, 0x40), bpf.ReasonMalformed},
	{"TCP's options behind the end", "tcp4", nil, put(l4+12, 0xf0), bpf.ReasonMalformed},
	{"no flags", "tcp4", flags(0), nil, bpf.ReasonTCPFlags},
	{"FIN alone", "tcp4", flags(packet.FIN), nil, bpf.ReasonTCPFlags},
	{"SYN and FIN", "tcp4", flags(packet.SYN | packet.FIN), nil, bpf.ReasonTCPFlags},
	{"SYN and RST", "tcp4", flags(packet.SYN | packet.RST), nil, bpf.ReasonTCPFlags},
	{"SYN, FIN and ACK", "tcp4", flags(packet.SYN | packet.FIN | packet.ACK), nil, bpf.ReasonTCPFlags},
	{"all lights on", "tcp4", flags(0x3f), nil, bpf.ReasonTCPFlags},
	{"FIN, PSH and URG", "tcp4", flags(0x29), nil, bpf.ReasonTCPFlags},
	{"no flags, IPv6", "tcp6", flags(0), nil, bpf.ReasonTCPFlags},

	{"UDP of 0 bytes", "udp4", nil, put16(l4+4, 0), bpf.ReasonMalformed},
	{"UDP of 7 bytes", "udp4", nil, put16(l4+4, 7), bpf.ReasonMalformed},
	{"UDP longer than IP", "udp4", nil, put16(l4+4, 9), bpf.ReasonMalformed},
	{"UDP of 65535 bytes", "udp4", nil, put16(l4+4, 65535), bpf.ReasonMalformed},
	{"half of UDP's header", "udp4", nil, put16(ip+2, 24), bpf.ReasonMalformed},
	{"half of ICMP's header", "icmp4", nil, put16(ip+2, 24), bpf.ReasonMalformed},
	{"ICMPv6 over IPv4", "icmp4", nil, put(ip+9, 58), bpf.ReasonProtocol},

	{"a first fragment of odd length", "udp4", payload(5), put16(ip+6, 0x2000), bpf.ReasonMalformed},
	{"a fragment in the middle, of odd length", "udp4", payload(5), put16(ip+6, 0x2009), bpf.ReasonMalformed},
	{"a fragment behind 65535", "udp4", payload(100), put16(ip+6, 8191), bpf.ReasonMalformed},
	{"a fragment of nothing", "udp4", nil, both(put16(ip+6, 9), put16(ip+2, 20)), bpf.ReasonMalformed},
	{"a first fragment of nothing", "udp4", nil, both(put16(ip+6, 0x2000), put16(ip+2, 20)), bpf.ReasonMalformed},
	{"a fragment over TCP's header", "tcp4", payload(4), put16(ip+6, 1), bpf.ReasonFragmentShort},
	{"the first 8 bytes of TCP", "tcp4", firstBytes(8), nil, bpf.ReasonFragmentShort},
	{"TCP's options in the next fragment", "tcp4", payload(4), both(put16(ip+6, 0x2000), put(l4+12, 0xf0)), bpf.ReasonFragmentShort},
	{"a later fragment of no datagram", "udp4", payload(8), put16(ip+6, 9), bpf.ReasonFragmentEarly},
	{"a last one of no datagram", "tcp4", payload(12), put16(ip+6, 99), bpf.ReasonFragmentEarly},

	{"an error about nothing", "icmp4", about(3, 3), nil, bpf.ReasonICMPUnmatched},
	{"an error about half a header", "icmp4", about(3, 3, quote4[:12]...), nil, bpf.ReasonICMPUnmatched},
	{"an error about 4 bytes of L4", "icmp4", about(11, 0, quote4[:24]...), nil, bpf.ReasonICMPUnmatched},
	{"an error about a later fragment", "icmp4", about(3, 3, later4...), nil, bpf.ReasonICMPUnmatched},
	{"an error about an error", "icmp4", about(3, 3, error4...), nil, bpf.ReasonICMPUnmatched},
	{"an error about IPv6", "icmp4", about(3, 3, quote6...), nil, bpf.ReasonICMPUnmatched},
	{"an error about nobody's flow", "icmp4", about(12, 0, quote4...), nil, bpf.ReasonICMPUnmatched},
	{"a redirect", "icmp4", about(5, 1, quote4...), nil, bpf.ReasonICMPRedirect},
	{"a path of 68 bytes", "icmp4", about(3, 4, quote4...), put16(l4+6, 68), bpf.ReasonICMPTooSmall},
	{"a path of 0 bytes", "icmp4", about(3, 4, quote4...), put16(l4+6, 0), bpf.ReasonICMPTooSmall},
	{"an error in fragments", "icmp4", about(3, 3, quote4[:32]...), put16(ip+6, 0x2000), bpf.ReasonFragment},

	{"version 4 behind IPv6's type", "tcp6", nil, put(ip, 0x45), bpf.ReasonMalformed},
	{"version 0 behind IPv6's type", "udp6", nil, put(ip, 0x00), bpf.ReasonMalformed},
	{"IPv6 longer than the frame", "tcp6", nil, put16(ip+4, 21), bpf.ReasonMalformed},
	{"IPv6 of 65535 bytes", "udp6", nil, put16(ip+4, 65535), bpf.ReasonMalformed},
	{"IPv6 without its payload", "tcp6", nil, put16(ip+4, 0), bpf.ReasonMalformed},
	{"IPv6 shorter than TCP's header", "tcp6", nil, put16(ip+4, 12), bpf.ReasonMalformed},
	{"IPv6 cut in TCP's header", "tcp6", nil, short(4), bpf.ReasonMalformed},
	{"half of ICMPv6's header", "icmp6", nil, put16(ip+4, 4), bpf.ReasonMalformed},
	{"UDP of 0 bytes over IPv6", "udp6", nil, put16(six+4, 0), bpf.ReasonMalformed},
	{"ICMP over IPv6", "icmp6", nil, put(ip+6, 1), bpf.ReasonProtocol},
	{"a source of IPv4 in IPv6", "udp6", nil, put(ip+8, mapped...), bpf.ReasonBadSource},
	{"a destination of IPv4 in IPv6", "udp6", nil, put(ip+24, mapped...), bpf.ReasonBadDestination},
	{"a jumbogram", "udp6", behind(hopByHop), put16(ip+4, 0), bpf.ReasonMalformed},

	{"hop-by-hop options in second place", "udp6", behind(destination, hopByHop), nil, bpf.ReasonExtensions},
	{"hop-by-hop options twice", "udp6", behind(hopByHop, hopByHop), nil, bpf.ReasonExtensions},
	{"a route through others", "tcp6", behind(routing), nil, bpf.ReasonExtensions},
	{"seven headers", "udp6", behind(slices.Repeat([]packet.Extension{destination}, 7)...), nil, bpf.ReasonExtensions},
	{"300 bytes of headers", "udp6", behind(long, long, long), nil, bpf.ReasonExtensions},
	{"a header longer than the packet, IPv6", "udp6", behind(destination), put(six+1, 31), bpf.ReasonMalformed},
	{"headers without an end", "udp6", behind(destination), both(put(six, 60), put16(ip+4, 8)), bpf.ReasonMalformed},
	{"a fragment of a fragment", "udp6", func(p packet.Packet) packet.Packet {
		return p.Payload(make([]byte, 8)).Extensions(fragment, fragment)
	}, nil, bpf.ReasonExtensions},
	{"a first fragment of odd length, IPv6", "udp6", func(p packet.Packet) packet.Packet { return p.Payload(make([]byte, 5)).Extensions(fragment) },
		nil, bpf.ReasonMalformed},
	{"a fragment behind 65535, IPv6", "udp6", payloadAt(100, false, 8191), nil, bpf.ReasonMalformed},
	{"a fragment over TCP's header, IPv6", "tcp6", payloadAt(16, false, 1), nil, bpf.ReasonFragmentShort},
	{"the first 8 bytes of TCP over IPv6", "tcp6", firstBytes(8), nil, bpf.ReasonFragmentShort},
	{"headers that go on in the next fragment", "udp6", func(p packet.Packet) packet.Packet {
		return p.Payload(make([]byte, 8)).Extensions(fragment, destination)
	}, put(six+8+1, 31), bpf.ReasonFragmentShort},
	{"a later fragment of no datagram, IPv6", "udp6", payloadAt(16, false, 9), nil, bpf.ReasonFragmentEarly},
	{"a path of 1279 bytes", "icmp6", about(2, 0, quote6...), put(six+4, 0, 0, 1279>>8, 1279&0xff), bpf.ReasonICMPTooSmall},
	{"an error about nothing, IPv6", "icmp6", about(1, 4), nil, bpf.ReasonICMPUnmatched},
	{"an error about IPv4", "icmp6", about(1, 4, append(quote4, make([]byte, 30)...)...), nil, bpf.ReasonICMPUnmatched},
}

func payloadAt(n int, more bool, offset uint16) func(packet.Packet) packet.Packet {
	return func(p packet.Packet) packet.Packet { return p.Payload(make([]byte, n)).Fragment(more, offset) }
}

// way into a host, and what passes there.
type way struct {
	prog       string
	src4, dst4 string
	src6, dst6 string
	from, to   string // MACs
	ctx        skb
	passes     bpf.Reason
}

var ways = []way{
	{"vm_in", addr5, "192.0.2.9", addr5v6, "2001:db8:9::9", mac5, gatewayMAC, skb{}, bpf.ReasonToUplink},
	{"uplink_in", "192.0.2.9", addr5, "2001:db8:9::9", addr5v6, routerMAC, uplinkMAC, skb{}, bpf.ReasonToPort},
	{"overlay_in", ip22, ip20, link22, link20, mac22, mac20, arrived(managed, endpoint2), bpf.ReasonToPort},
}

// packet of a kind that passes there.
func (y way) packet(of string) packet.Packet {
	src4, dst4, src6, dst6 := y.src4+":5555", y.dst4+":8080", "["+y.src6+"]:5555", "["+y.dst6+"]:8080"
	p := map[string]packet.Packet{
		"tcp4": packet.TCP(src4, dst4).SYN(), "udp4": packet.UDP(src4, dst4), "icmp4": packet.Ping(y.src4, y.dst4, 7),
		"tcp6": packet.TCP(src6, dst6).SYN(), "udp6": packet.UDP(src6, dst6), "icmp6": packet.Ping(y.src6, y.dst6, 7),
	}[of]
	return p.MACs(y.from, y.to)
}

func (s spoil) frame(y way) []byte {
	p := y.packet(s.of)
	if s.shape != nil {
		p = s.shape(p)
	}
	b := p.Bytes()
	if s.bytes != nil {
		b = s.bytes(b)
	}
	return b
}

// newOpenWorld admits every protocol from everywhere.
func newOpenWorld(t *testing.T) *world {
	t.Helper()
	w := newSegments(t, port5)
	w.edit(port20, func(pc *bpf.PortCfg) { pc.Flags |= bpf.PortFirewall; pc.PolicyIn, pc.PolicyOut = 500, 500 })
	for _, cidr := range []string{"0.0.0.0/0", "::/0"} {
		w.admit(rule{policy: 500, direction: bpf.DirectionIn, proto: bpf.AnyProtocol, cidr: cidr, lo: 0, hi: 65535, id: 1})
	}
	// Class 0 is no rule's: every protocol has one of its own.
	for _, proto := range []uint32{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP, packet.ProtoICMPv6} {
		w.ports(rule{policy: 500, direction: bpf.DirectionIn, proto: proto, lo: 1, hi: 65535, id: 1})
	}
	return w
}

func TestMalformedFrames(t *testing.T) {
	w := newOpenWorld(t)
	seen := map[string]bool{}
	for _, s := range corpus {
		if seen[s.name] {
			t.Errorf("%s: twice", s.name)
		}
		seen[s.name] = true
		for _, y := range ways {
			t.Run(s.name+"/"+y.prog, func(t *testing.T) {
				w := w.of(t)
				w.expect(moved{s.why: 1}, func() {
					if action, _, _ := w.tc(y.prog, s.frame(y), y.ctx); action != tcDrop {
						t.Errorf("action %#x", action)
					}
				})
			})
		}
	}
	if len(seen) < 60 {
		t.Errorf("%d kinds", len(seen))
	}
	for _, port := range []uint32{port5, port20} {
		for name, m := range map[string]interface {
			NextKey(key, next any) error
		}{"confirmed": w.flows[port], "new": w.fresh[port]} {
			var key bpf.CtKey
			if m.NextKey(nil, &key) == nil {
				t.Errorf("port %d: one of them left a %s flow: %+v", port, name, key)
			}
		}
	}
}

// The control: what is not spoilt passes, all of it, at all of them.
func TestWhatIsNotSpoiltPasses(t *testing.T) {
	w := newOpenWorld(t)
	for _, of := range []string{"tcp4", "udp4", "icmp4", "tcp6", "udp6", "icmp6"} {
		for _, y := range ways {
			t.Run(of+"/"+y.prog, func(t *testing.T) {
				w := w.of(t)
				w.expect(moved{y.passes: 1}, func() {
					if action, _, _ := w.tc(y.prog, y.packet(of).Bytes(), y.ctx); action != tcRedirect {
						t.Errorf("action %#x", action)
					}
				})
			})
		}
	}
	for _, y := range ways { // with headers in between, in order
		w.expect(moved{y.passes: 1}, func() {
			w.tc(y.prog, y.packet("udp6").Extensions(hopByHop, destination).Bytes(), y.ctx)
		})
	}
}
