// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"net/netip"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

var (
	// A datagram that is whole, and a way that nobody refuses.
	atomic = packet.Extension{Proto: packet.ProtoFragment, Body: []byte{0, 0, 1, 2, 3, 4}}
	type4  = packet.Extension{Proto: packet.ProtoRouting, Body: []byte{4, 0, 0, 0, 0, 0}}
)

const vip6Addr = "2001:db8:ee::1"

// The client's packet travels as it came, in the tunnel that IPv4's has.
func TestPacketToVIPOfIPv6IsSentToItsBackend(t *testing.T) {
	w := newWorld(t)
	var bytes uint64
	cases := map[string]packet.Packet{
		"syn":        packet.TCP(client6, vip6).SYN(),
		"ack":        packet.TCP(client6, vip6).ACK().Payload([]byte("hello")),
		"extensions": packet.TCP(client6, vip6).SYN().Extensions(hopByHop, destination, atomic),
		"routed":     packet.TCP(client6, vip6).ACK().Extensions(type4),
	}
	for name, p := range cases {
		in := fromRouter(p)
		bytes += uint64(len(p.IP()))
		hash := hashOf(client6, vip6, packet.ProtoTCP, 0)
		w.expect(moved{bpf.ReasonSent: 1}, func() {
			action, out := w.xdp(in.Bytes())
			if action != xdpTX {
				t.Fatalf("%s: action %d", name, action)
			}
			w.same(name, out, tunnelTo(hash, packet.Tag{}).Wrap(in.TTL(63)))
		})
	}
	if got := w.stat("svc_stat", tcpService6); got.Packets != 4 || got.Opened != 2 || got.Bytes != bytes {
		t.Errorf("svc_stat: %+v, want %d bytes", got, bytes)
	}
	if got := w.stat("svc_stat", tcpService); got != (bpf.Stat{}) {
		t.Errorf("svc_stat of IPv4's: %+v", got)
	}
}

// Whatever differs in a tuple changes the hash, but for the ports if the service
// is of source-hash.
func TestFlowHashOfIPv6(t *testing.T) {
	for name, c := range map[string]struct {
		src, vip string
		proto    uint8
	}{
		"another port":   {"[2001:db8:9::9]:4321", vip6, packet.ProtoTCP},
		"first word":     {"[3001:db8:9::9]:1234", vip6, packet.ProtoTCP},
		"second word":    {"[2001:db8:8::9]:1234", vip6, packet.ProtoTCP},
		"third word":     {"[2001:db8:9::1:0:9]:1234", vip6, packet.ProtoTCP},
		"another source": {"[2001:db8:9::8]:1234", vip6, packet.ProtoTCP},
		"udp":            {client6, vip6, packet.ProtoUDP},
	} {
		for rule, flags := range map[string]uint32{"5-tuple": 0, "source-hash": bpf.SvcSourceHash} {
			t.Run(name+", "+rule, func(t *testing.T) {
				w := newWorld(t)
				index, p := tcpIndex6, packet.TCP(c.src, c.vip)
				if c.proto == packet.ProtoUDP {
					index, p = udpIndex6, packet.UDP(c.src, c.vip)
				}
				var s bpf.Svc
				must(t, w.maps["svc"].Lookup(index, &s))
				s.Flags = flags
				w.put("svc", index, &s)
				hash := hashOf(c.src, c.vip, c.proto, flags)
				w.expect(moved{bpf.ReasonSent: 1}, func() {
					_, out := w.xdp(fromRouter(p).Bytes())
					w.same("frame", out, tunnelTo(hash, packet.Tag{}).Wrap(fromRouter(p).TTL(63)))
				})
			})
		}
	}
}

func TestLocalBackendOfIPv6IsDeliveredAtOnce(t *testing.T) {
	w := newWorld(t)
	w.owners(backend12, 0)
	long := make([]byte, 1000)
	for name, c := range map[string]struct {
		p     packet.Packet
		index uint32
	}{
		"tcp":             {packet.TCP(client6, vip6).SYN(), tcpIndex6},
		"tcp, extensions": {packet.TCP(client6, vip6).SYN().Extensions(hopByHop, destination), tcpIndex6},
		"udp":             {packet.UDP(client6, vip6).Payload([]byte("x")), udpIndex6},
		"udp, extensions": {packet.UDP(client6, vip6).Extensions(atomic).Payload([]byte("xyz")), udpIndex6},
		"udp, longer one": {packet.UDP(client6, vip6).Payload(long), udpIndex6},
	} {
		in := fromRouter(c.p)
		proto := uint8(packet.ProtoTCP)
		if c.index == udpIndex6 {
			proto = packet.ProtoUDP
		}
		hash := hashOf(client6, vip6, proto, 0)
		want := append(note(c.index, backend12, hash), in.To("["+addr5v6+"]:8080").Bytes()...)
		for from, frame := range map[string][]byte{"client": in.Bytes(), "tunnel": tunnelFrom(mac5, packet.Tag{}).Wrap(in)} {
			w.expect(moved{bpf.ReasonDelivered: 1}, func() {
				action, out := w.xdp(frame)
				if action != xdpPass {
					t.Fatalf("%s from the %s: action %d", name, from, action)
				}
				w.same(name+" from the "+from, out, want)
			})
		}
	}
}

// A checksum that would become 0 is written as 0xffff: 0 says that there is none.
func TestChecksumOfADatagramIsNeverZero(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			w.owners(backend12, 0)
			// The payload's last word makes up what is left to 0xffff.
			probe := fromRouter(packet.UDP(f.client, f.vip).Payload([]byte{0, 0}))
			l4 := len(probe.Bytes()) - 10
			sum := probe.To(f.target5).Bytes()[l4+6:]
			in := probe.Payload([]byte{sum[0], sum[1]})
			want := in.To(f.target5).Bytes()
			if want[l4+6] != 0xff || want[l4+7] != 0xff {
				t.Fatalf("the packet's checksum is %x", want[l4+6:l4+8])
			}
			w.expect(moved{bpf.ReasonDelivered: 1}, func() {
				_, out := w.xdp(in.Bytes())
				w.same("delivered", out[16:], want)
			})
		})
	}
}

func TestUplinkLeavesOtherIPv6Alone(t *testing.T) {
	w := newWorld(t)
	twin := collision6(netip.MustParseAddr(vip6Addr))
	for name, c := range map[string]struct {
		in   []byte
		want bpf.Reason
	}{
		"host's own":           {fromRouter(packet.TCP(client6, "[2001:db8:64::1]:179").SYN()).Bytes(), bpf.ReasonPassHost},
		"filter's other":       {fromRouter(packet.TCP(client6, "["+twin.String()+"]:80").SYN()).Bytes(), bpf.ReasonPassHost},
		"neighbour discovery":  {fromRouter(packet.Advertisement(routerMAC, "fe80::1", "fe80::2", "fe80::1", 0x60)).Bytes(), bpf.ReasonPassHost},
		"to a group":           {packet.Solicitation(routerMAC, "fe80::1", "fe80::2").MACs(routerMAC, "33:33:ff:00:00:02").Bytes(), bpf.ReasonPassOtherMAC},
		"other station":        {packet.TCP(client6, vip6).SYN().MACs(routerMAC, "02:aa:00:00:00:77").Bytes(), bpf.ReasonPassOtherMAC},
		"instance's fragment":  {fromRouter(packet.UDP(client6, "["+addr5v6+"]:53").Fragment(true, 0)).Bytes(), bpf.ReasonPassHost},
		"gre to nobody":        {fromRouter(packet.IP("2001:db8:9::9", addr5v6, packet.ProtoGRE, make([]byte, 8))).Bytes(), bpf.ReasonPassHost},
		"extensions, too many": {fromRouter(packet.TCP(client6, "["+addr5v6+"]:80").Extensions(destination, destination, destination, destination, destination, destination, destination)).Bytes(), bpf.ReasonPassHost},
		"VIP of IPv4, mapped":  {fromRouter(packet.TCP(client6, "[::ffff:203.0.113.1]:80").SYN()).Bytes(), bpf.ReasonPassHost},
	} {
		t.Run(name, func(t *testing.T) {
			w.expect(moved{c.want: 1}, func() {
				action, out := w.xdp(c.in)
				if action != xdpPass {
					t.Fatalf("action %d", action)
				}
				w.same(name, out, c.in)
			})
		})
	}
}

// collision6 finds an address whose bit in vip_bits is the same.
func collision6(vip netip.Addr) netip.Addr {
	word, mask := bpf.VIPBit(vip)
	for a := netip.MustParseAddr("2001:db8:ff::"); ; a = a.Next() {
		if w, m := bpf.VIPBit(a); w == word && m == mask {
			return a
		}
	}
}

func TestUplinkDropsOfIPv6(t *testing.T) {
	syn := fromRouter(packet.TCP(client6, vip6).SYN())
	in := syn.Bytes()
	lying := syn.Bytes()
	lying[19]++ // payload length: one byte more than there is
	empty := syn.Bytes()
	empty[18], empty[19] = 0, 0
	older := syn.Bytes()
	older[14] = 5 << 4
	from := func(src string) []byte { return fromRouter(packet.TCP(src, vip6).SYN()).Bytes() }
	behind := func(e ...packet.Extension) []byte { return syn.Extensions(e...).Bytes() }
	tunnelled := func(p packet.Packet) []byte { return tunnelFrom(mac5, packet.Tag{}).Wrap(p) }
	big := packet.Extension{Proto: packet.ProtoDestination, Body: make([]byte, 262)}
	for name, c := range map[string]struct {
		in    []byte
		setup func(*world)
		want  bpf.Reason
	}{
		"unserved port":          {in: fromRouter(packet.TCP(client6, "["+vip6Addr+"]:81").SYN()).Bytes(), want: bpf.ReasonNoService},
		"other protocol":         {in: fromRouter(packet.IP("2001:db8:9::9", vip6Addr, packet.ProtoGRE, make([]byte, 40))).Bytes(), want: bpf.ReasonProtocol},
		"ICMP of IPv4":           {in: fromRouter(packet.IP("2001:db8:9::9", vip6Addr, packet.ProtoICMP, make([]byte, 8))).Bytes(), want: bpf.ReasonProtocol},
		"ICMPv6 in IPv4":         {in: fromRouter(packet.IP("192.0.2.9", vipAddr, packet.ProtoICMPv6, make([]byte, 8))).Bytes(), want: bpf.ReasonProtocol},
		"fragment of a ping":     {in: fromRouter(packet.Ping("2001:db8:9::9", vip6Addr, 1).Fragment(true, 0)).Bytes(), want: bpf.ReasonFragment},
		"later fragment":         {in: fromRouter(packet.UDP(client6, vip6).Fragment(false, 4)).Bytes(), want: bpf.ReasonFragmentEarly},
		"echo reply":             {in: fromRouter(packet.Ping("2001:db8:9::9", vip6Addr, 1).ICMP(129, 0)).Bytes(), want: bpf.ReasonVIPICMP},
		"solicitation":           {in: fromRouter(packet.Solicitation(routerMAC, "2001:db8:9::9", vip6Addr).To("[" + vip6Addr + "]:0")).Bytes(), want: bpf.ReasonVIPICMP},
		"short":                  {in: in[:60], want: bpf.ReasonMalformed},
		"length that lies":       {in: lying, want: bpf.ReasonMalformed},
		"no length":              {in: empty, want: bpf.ReasonMalformed},
		"another version":        {in: older, want: bpf.ReasonMalformed},
		"a length of 12":         {in: fromRouter(packet.IP("2001:db8:9::9", vip6Addr, packet.ProtoTCP, make([]byte, 12))).Bytes(), want: bpf.ReasonMalformed},
		"udp without checksum":   {in: fromRouter(packet.UDP(client6, vip6).NoChecksum()).Bytes(), want: bpf.ReasonNoChecksum},
		"link-local source":      {in: from("[fe80::9]:1"), want: bpf.ReasonBadSource},
		"forged probe":           {in: from("[fe80::a9fe:a9fd]:1"), want: bpf.ReasonBadSource},
		"source of a group":      {in: from("[ff0e::9]:1"), want: bpf.ReasonBadSource},
		"loopback":               {in: from("[::1]:1"), want: bpf.ReasonBadSource},
		"source of IPv4":         {in: from("[::ffff:192.0.2.9]:1"), want: bpf.ReasonBadSource},
		"hop limit, told enough": {in: syn.TTL(1).Bytes(), setup: toldEnough(vip6Addr), want: bpf.ReasonTTL},
		"oversize, told enough":  {in: syn.Payload(make([]byte, 1441)).Bytes(), setup: toldEnough(vip6Addr), want: bpf.ReasonOversize},
		"seven extensions":       {in: behind(destination, destination, destination, destination, destination, destination, destination), want: bpf.ReasonExtensions},
		"hop-by-hop, second":     {in: behind(destination, hopByHop), want: bpf.ReasonExtensions},
		"routing of type 0":      {in: behind(routing), want: bpf.ReasonExtensions},
		"extensions, too large":  {in: behind(big), want: bpf.ReasonExtensions},
		"cut in an extension":    {in: behind(destination)[:58], want: bpf.ReasonMalformed},
		"empty slot":             {in: in, setup: func(w *world) { w.owners(0, 0) }, want: bpf.ReasonNoBackend},
		"record of another service": {in: in, setup: func(w *world) {
			w.put("svc", tcpIndex6, &bpf.Svc{Vip: ip16("2001:db8:ef::1"), Port: bpf.BE16(80), Proto: 6, Id: 9})
		}, want: bpf.ReasonStaleService},
		"record of the last word alone": {in: in, setup: func(w *world) {
			w.put("svc", tcpIndex6, &bpf.Svc{Vip: ip16("::1"), Port: bpf.BE16(80), Proto: 6, Id: 9})
		}, want: bpf.ReasonStaleService},
		"stranger's tunnel":           {in: stranger().Wrap(packet.TCP(client6, vip6).SYN()), want: bpf.ReasonUnknownEndpoint},
		"tunnel for no service":       {in: tunnelled(packet.TCP(client6, "["+vip6Addr+"]:81").SYN()), want: bpf.ReasonNoService},
		"tunnelled link-local source": {in: tunnelled(packet.TCP("[fe80::a9fe:a9fd]:1", vip6).SYN()), want: bpf.ReasonBadSource},
		"tunnelled later fragment":    {in: tunnelled(packet.UDP(client6, vip6).Fragment(false, 4)), want: bpf.ReasonFragmentEarly},
		"tunnelled IPv4 as IPv6":      {in: tunnelled(packet.TCP(client, vip).SYN().EtherType(packet.TypeIPv6)), want: bpf.ReasonMalformed},
		"tunnelled IPv6 as IPv4":      {in: tunnelled(packet.TCP(client6, vip6).SYN().EtherType(packet.TypeIPv4)), want: bpf.ReasonMalformed},
		"tunnelled ARP":               {in: tunnelled(packet.TCP(client6, vip6).SYN().EtherType(packet.TypeARP)), want: bpf.ReasonMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if c.setup != nil {
				c.setup(w)
			}
			w.expect(moved{c.want: 1}, func() {
				if action, _ := w.xdp(c.in); action != xdpDrop {
					t.Fatalf("action %d", action)
				}
			})
		})
	}
}

func TestPingOfAVIPOfIPv6IsAnswered(t *testing.T) {
	w := newWorld(t)
	for name, ping := range map[string]packet.Packet{
		"plain":      packet.Ping("2001:db8:9::9", vip6Addr, 77).TTL(3).Payload([]byte("abcdefgh")),
		"extensions": packet.Ping("2001:db8:9::9", vip6Addr, 77).TTL(3).Extensions(hopByHop).Payload([]byte("abc")),
	} {
		in := fromRouter(ping)
		w.expect(moved{bpf.ReasonEchoed: 1}, func() {
			action, out := w.xdp(in.Bytes())
			if action != xdpTX {
				t.Fatalf("%s: action %d", name, action)
			}
			w.same(name, out, in.Reply().TTL(64).Bytes())
		})
	}
	other := fromRouter(packet.Ping("2001:db8:9::9", collision6(netip.MustParseAddr(vip6Addr)).String(), 77))
	w.expect(moved{bpf.ReasonPassHost: 1}, func() {
		if action, _ := w.xdp(other.Bytes()); action != xdpPass {
			t.Fatalf("action %d", action)
		}
	})
}

func TestSelfTestOfIPv6IsCountedApart(t *testing.T) {
	w := newWorld(t)
	in := fromRouter(packet.TCP("["+selfTest6+"]:1", vip6).SYN())
	w.expect(moved{bpf.ReasonProbed: 1}, func() {
		if action, _ := w.xdp(in.Bytes()); action != xdpTX {
			t.Fatalf("action %d", action)
		}
	})
	if got := w.stat("svc_stat", tcpService6); got != (bpf.Stat{}) {
		t.Errorf("svc_stat counts the self-test: %+v", got)
	}
	// The last word alone makes no probe.
	w.expect(moved{bpf.ReasonSent: 1}, func() { w.xdp(in.From("[2001:db8:9::a9fe:a9fb]:1").Bytes()) })
	var c bpf.Cfg
	must(t, w.maps["cfg"].Lookup(uint32(0), &c))
	c.Uplink = loopback
	w.put("cfg", uint32(0), &c)
	w.expect(moved{bpf.ReasonBadSource: 1}, func() {
		if action, _ := w.xdp(in.Bytes()); action != xdpDrop {
			t.Fatalf("action %d", action)
		}
	})
}

// A SYN that nobody wants is answered from the VIP.
func TestRefusalOfIPv6(t *testing.T) {
	w := newWorld(t)
	w.owners(backend12, backend13)
	w.local(port5, backend12, bpf.LocalDraining)
	w.local(port6, backend13, bpf.LocalDraining)
	syn := fromRouter(packet.TCP(client6, vip6).SYN().Sequence(0xffffffff).Payload([]byte("early")))
	w.expect(moved{bpf.ReasonRefused: 1}, func() {
		action, out := w.xdp(syn.Bytes())
		if action != xdpTX {
			t.Fatalf("action %d", action)
		}
		w.same("RST", out, fromRouter(packet.TCP(client6, vip6)).Reply().RST().ACK().Window(0).Bytes())
	})
	w.expect(moved{bpf.ReasonDraining: 1}, func() { w.xdp(syn.Extensions(destination).Bytes()) })
}
