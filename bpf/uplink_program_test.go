// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"

	"github.com/cilium/ebpf"
)

// hashOf is the hash of a packet to the test's services, as the kernel's jhash2
// has it (Bob Jenkins' lookup3). That program and control plane agree over any
// packet is tested where both may be imported.
func hashOf(src, dst string, proto uint8, flags uint32) uint32 {
	return hashBy(0x5eed, src, dst, proto, flags)
}

func hashBy(seed uint32, src, dst string, proto uint8, flags uint32) uint32 {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	ports := uint32(bpf.BE16(d.Port()))<<16 | uint32(bpf.BE16(s.Port()))
	if flags&bpf.SvcSourceHash != 0 {
		ports = 0
	}
	words := append(wordsOf(s.Addr()), wordsOf(d.Addr())...)
	words = append(words, ports)
	start := uint32(0xdeadbeef) + uint32(len(words))<<2 + (seed ^ uint32(proto))
	a, b, c := start, start, start
	type step struct {
		to, from, then *uint32
		rotate         int
	}
	for ; len(words) > 3; words = words[3:] {
		a, b, c = a+words[0], b+words[1], c+words[2]
		for _, m := range []step{{&a, &c, &b, 4}, {&b, &a, &c, 6}, {&c, &b, &a, 8}, {&a, &c, &b, 16}, {&b, &a, &c, 19}, {&c, &b, &a, 4}} {
			*m.to = (*m.to - *m.from) ^ bits.RotateLeft32(*m.from, m.rotate)
			*m.from += *m.then
		}
	}
	a, b, c = a+words[0], b+words[1], c+words[2]
	for _, m := range []step{{&c, &b, nil, 14}, {&a, &c, nil, 11}, {&b, &a, nil, 25}, {&c, &b, nil, 16}, {&a, &c, nil, 4}, {&b, &a, nil, 14}, {&c, &b, nil, 24}} {
		*m.to = (*m.to ^ *m.from) - bits.RotateLeft32(*m.from, m.rotate)
	}
	return c
}

// wordsOf an address as they lie in memory.
func wordsOf(a netip.Addr) (words []uint32) {
	for b := a.AsSlice(); len(b) > 0; b = b[4:] {
		words = append(words, binary.NativeEndian.Uint32(b))
	}
	return words
}

// fromRouter gives a packet the MACs it has on the uplink.
func fromRouter(p packet.Packet) packet.Packet { return p.MACs(routerMAC, uplinkMAC) }

// tunnelTo is what uplink puts around a packet for backend 11.
func tunnelTo(hash uint32, tag packet.Tag) packet.Tunnel {
	tag.Generation = 9
	return packet.Tunnel{
		SrcMAC: uplinkMAC, DstMAC: routerMAC, Src: endpoint, Dst: endpoint2,
		Port: uint16(49152 + hash>>18), VNI: bpf.LBVNI, Backend: mac11, Tag: tag,
	}
}

// tunnelFrom is how host 2 sends to the port with this MAC.
func tunnelFrom(backend string, tag packet.Tag) packet.Tunnel {
	return packet.Tunnel{
		SrcMAC: routerMAC, DstMAC: uplinkMAC, Src: endpoint2, Dst: endpoint,
		Port: 50000, VNI: bpf.LBVNI, Backend: backend, Tag: tag,
	}
}

func TestPacketToVIPIsSentToItsBackend(t *testing.T) {
	w := newWorld(t)
	for name, p := range map[string]packet.Packet{
		"syn":     packet.TCP(client, vip).SYN(),
		"ack":     packet.TCP(client, vip).ACK().Payload([]byte("hello")),
		"options": packet.TCP(client, vip).SYN().Options([]byte{1, 1, 1, 0}),
	} {
		in := fromRouter(p)
		hash := hashOf(client, vip, packet.ProtoTCP, 0)
		w.expect(moved{bpf.ReasonSent: 1}, func() {
			action, out := w.xdp(in.Bytes())
			if action != xdpTX {
				t.Fatalf("%s: action %d", name, action)
			}
			w.same(name, out, tunnelTo(hash, packet.Tag{}).Wrap(in.TTL(63)))
		})
	}
	if got := w.stat("svc_stat", tcpService); got.Packets != 3 || got.Opened != 2 || got.Bytes != 40+45+44 {
		t.Errorf("svc_stat: %+v", got)
	}
	if got := w.backendStat(backend11); got.Packets != 3 || got.Opened != 2 {
		t.Errorf("backend_stat: %+v", got)
	}
}

func (w *world) stat(name string, id uint32) (sum bpf.Stat) {
	w.Helper()
	var perCPU []bpf.Stat
	must(w.T, w.maps[name].Lookup(id, &perCPU))
	for _, s := range perCPU {
		sum.Packets += s.Packets
		sum.Bytes += s.Bytes
		sum.Opened += s.Opened
		sum.Forwarded += s.Forwarded
	}
	return sum
}

func (w *world) backendStat(id uint32) (sum bpf.Stat) {
	w.Helper()
	var perCPU []bpf.StatPage
	must(w.T, w.maps["backend_stat"].Lookup(id/bpf.StatsPerPage, &perCPU))
	for _, page := range perCPU {
		s := page.Of[id%bpf.StatsPerPage]
		sum.Packets += s.Packets
		sum.Bytes += s.Bytes
		sum.Opened += s.Opened
		sum.Forwarded += s.Forwarded
	}
	return sum
}

func TestPredecessorIsNamedInTheEncapsulation(t *testing.T) {
	w := newWorld(t)
	w.owners(backend11, backend12)
	in := fromRouter(packet.UDP(client, vip))
	hash := hashOf(client, vip, packet.ProtoUDP, 0)
	w.expect(moved{bpf.ReasonSent: 1}, func() {
		_, out := w.xdp(in.Bytes())
		w.same("frame", out, tunnelTo(hash, packet.Tag{Other: backend12}).Wrap(in.TTL(63)))
	})
}

func TestSourceHashLeavesPortsOut(t *testing.T) {
	w := newWorld(t)
	var s bpf.Svc
	must(t, w.maps["svc"].Lookup(tcpIndex, &s))
	s.Flags = bpf.SvcSourceHash
	w.put("svc", tcpIndex, &s)
	hash := hashOf(client, vip, packet.ProtoTCP, bpf.SvcSourceHash)
	for _, src := range []string{client, "192.0.2.9:4321"} {
		in := fromRouter(packet.TCP(src, vip).SYN())
		w.expect(moved{bpf.ReasonSent: 1}, func() {
			_, out := w.xdp(in.Bytes())
			w.same("frame", out, tunnelTo(hash, packet.Tag{}).Wrap(in.TTL(63)))
		})
	}
}

func TestLocalBackendIsDeliveredAtOnce(t *testing.T) {
	w := newWorld(t)
	w.owners(backend12, 0)
	for name, c := range map[string]struct {
		p     packet.Packet
		index uint32
	}{
		"tcp":             {packet.TCP(client, vip).SYN(), tcpIndex},
		"tcp, options":    {packet.TCP(client, vip).SYN().Options([]byte{1, 1, 1, 1, 1, 1, 1, 0}), tcpIndex},
		"udp":             {packet.UDP(client, vip).Payload([]byte("x")), udpIndex},
		"udp, unchecked":  {packet.UDP(client, vip).Payload([]byte("x")).NoChecksum(), udpIndex},
		"udp, longer one": {packet.UDP(client, vip).Payload(make([]byte, 1000)), udpIndex},
	} {
		in := fromRouter(c.p)
		proto := uint8(packet.ProtoTCP)
		if c.index == udpIndex {
			proto = packet.ProtoUDP
		}
		w.expect(moved{bpf.ReasonDelivered: 1}, func() {
			action, out := w.xdp(in.Bytes())
			if action != xdpPass {
				t.Fatalf("%s: action %d", name, action)
			}
			want := append(note(c.index, backend12, hashOf(client, vip, proto, 0)), in.To(addr5+":8080").Bytes()...)
			w.same(name, out, want)
		})
	}
}

func TestUplinkLeavesOthersAlone(t *testing.T) {
	w := newWorld(t)
	// Same bit of vip_bits, another address: a false positive of the filter.
	twin := collision(netip.MustParseAddrPort(vip).Addr())
	for name, c := range map[string]struct {
		in   []byte
		want moved
	}{
		"host's own":          {fromRouter(packet.TCP(client, endpoint+":179").SYN()).Bytes(), moved{bpf.ReasonPassHost: 1}},
		"filter's other":      {fromRouter(packet.TCP(client, twin.String()+":80").SYN()).Bytes(), moved{bpf.ReasonPassHost: 1}},
		"arp":                 {packet.ARP(routerMAC, "10.64.0.0", endpoint), moved{bpf.ReasonPassNotInet: 1}},
		"vlan":                {fromRouter(packet.TCP(client, vip)).EtherType(packet.TypeVLAN).Bytes(), moved{bpf.ReasonPassNotInet: 1}},
		"other vni":           {otherVNI(tunnelFrom(mac5, packet.Tag{}), 42).Wrap(packet.TCP(client, vip)), moved{bpf.ReasonPassOtherVNI: 1}},
		"other station":       {packet.TCP(client, vip).SYN().MACs(routerMAC, "02:aa:00:00:00:77").Bytes(), moved{bpf.ReasonPassOtherMAC: 1}},
		"4789, not to us":     {fromRouter(packet.UDP(endpoint2+":1", addr5+":4789")).Bytes(), moved{bpf.ReasonPassHost: 1}},
		"instance's fragment": {fromRouter(packet.UDP(client, addr5+":53").Fragment(true, 0)).Bytes(), moved{bpf.ReasonPassHost: 1}},
		"gre to nobody":       {fromRouter(packet.TCP(client, endpoint+":1").Proto(47)).Bytes(), moved{bpf.ReasonPassHost: 1}},
	} {
		w.expect(c.want, func() {
			action, out := w.xdp(c.in)
			if action != xdpPass {
				t.Fatalf("%s: action %d", name, action)
			}
			w.same(name, out, c.in)
		})
	}
}

func otherVNI(t packet.Tunnel, vni uint32) packet.Tunnel { t.VNI = vni; return t }

// collision finds an address whose bit in vip_bits is the same.
func collision(vip netip.Addr) netip.Addr {
	word, mask := bpf.VIPBit(vip)
	a := netip.MustParseAddr("100.64.0.0")
	for {
		a = a.Next()
		if w, m := bpf.VIPBit(a); w == word && m == mask {
			return a
		}
	}
}

func TestUplinkDrops(t *testing.T) {
	syn := fromRouter(packet.TCP(client, vip).SYN())
	in := syn.Bytes()
	for name, c := range map[string]struct {
		in    []byte
		setup func(*world)
		want  bpf.Reason
	}{
		"unserved port":      {in: fromRouter(packet.TCP(client, "203.0.113.1:81").SYN()).Bytes(), want: bpf.ReasonNoService},
		"other protocol":     {in: fromRouter(packet.TCP(client, vip).Proto(47)).Bytes(), want: bpf.ReasonProtocol},
		"fragment of a ping": {in: fromRouter(packet.Ping("192.0.2.9", vipAddr, 1).Fragment(true, 0)).Bytes(), want: bpf.ReasonFragment},
		"later fragment":     {in: fromRouter(packet.UDP(client, vip).Fragment(false, 4)).Bytes(), want: bpf.ReasonFragmentEarly},
		"icmp error":         {in: fromRouter(packet.Ping("192.0.2.9", "203.0.113.1", 1).ICMP(3, 1)).Bytes(), want: bpf.ReasonVIPICMP},
		"short":              {in: in[:40], want: bpf.ReasonMalformed},
		"link-local source":  {in: fromRouter(packet.TCP("169.254.1.1:1", vip).SYN()).Bytes(), want: bpf.ReasonBadSource},
		"forged probe":       {in: fromRouter(packet.TCP(probe+":1", vip).SYN()).Bytes(), want: bpf.ReasonBadSource},
		"benchmark source":   {in: fromRouter(packet.TCP("198.19.0.1:1", vip).SYN()).Bytes(), want: bpf.ReasonBadSource},
		"ttl, told enough":   {in: syn.TTL(1).Bytes(), setup: toldEnough(vipAddr), want: bpf.ReasonTTL},
		"oversize":           {in: syn.Payload(make([]byte, 1461)).Bytes(), want: bpf.ReasonOversize},
		"empty slot":         {in: in, setup: func(w *world) { w.owners(0, 0) }, want: bpf.ReasonNoBackend},
		"backend of nobody":  {in: in, setup: func(w *world) { w.owners(99, 0) }, want: bpf.ReasonNoBackend},
		"backend out of map": {in: in, setup: func(w *world) { w.owners(1<<20, 0) }, want: bpf.ReasonNoBackend},
		"no next hop": {in: in, setup: func(w *world) {
			w.put("nexthops", uint32(1), &bpf.Nexthop{Mac: mac(routerMAC)})
		}, want: bpf.ReasonNoNexthop},
		"record of another service": {in: in, setup: func(w *world) {
			w.put("svc", tcpIndex, &bpf.Svc{Vip: ip16("203.0.113.2"), Port: bpf.BE16(80), Proto: 6, Id: 9})
		}, want: bpf.ReasonStaleService},
		"slots outside the map": {in: in, setup: func(w *world) {
			w.put("svc", tcpIndex, &bpf.Svc{Vip: ip16("203.0.113.1"), Port: bpf.BE16(80), Proto: 6, Id: 7, SlotBase: 1 << 30})
		}, want: bpf.ReasonNoSlot},
		"backend gone from here": {in: in, setup: func(w *world) {
			w.owners(backend12, 0)
			w.del("local", bpf.LocalKey{Service: tcpService, Port: port5})
		}, want: bpf.ReasonNoLocal},
		"stranger's tunnel": {in: stranger().Wrap(packet.TCP(client, vip).SYN()), want: bpf.ReasonUnknownEndpoint},
		"tunnel to a MAC of nobody": {
			in:   tunnelFrom("02:ca:00:00:00:99", packet.Tag{}).Wrap(packet.TCP(client, vip).SYN()),
			want: bpf.ReasonNoLocal},
		"tunnel for no service": {
			in:   tunnelFrom(mac5, packet.Tag{}).Wrap(packet.TCP(client, "203.0.113.1:81").SYN()),
			want: bpf.ReasonNoService},
		"tunnelled link-local source": {
			in:   tunnelFrom(mac5, packet.Tag{}).Wrap(packet.TCP(probe+":1", vip).SYN()),
			want: bpf.ReasonBadSource},
		"tunnelled later fragment": {
			in:   tunnelFrom(mac5, packet.Tag{}).Wrap(packet.UDP(client, vip).Fragment(false, 4)),
			want: bpf.ReasonFragmentEarly},
		"cut tunnel packet": {
			in:   tunnelFrom(mac5, packet.Tag{}).Wrap(packet.TCP(client, vip).SYN())[:60],
			want: bpf.ReasonMalformed},
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

func stranger() packet.Tunnel {
	t := tunnelFrom(mac5, packet.Tag{})
	t.Src = "10.64.0.77"
	return t
}

func TestWithoutConfigurationAllPasses(t *testing.T) {
	w := newWorld(t)
	w.put("cfg", uint32(0), &bpf.Cfg{})
	w.expect(moved{bpf.ReasonNoConfig: 1}, func() {
		if action, _ := w.xdp(fromRouter(packet.TCP(client, vip).SYN()).Bytes()); action != xdpPass {
			t.Fatalf("action %d", action)
		}
	})
}

func TestPingOfAVIPIsAnswered(t *testing.T) {
	w := newWorld(t)
	in := fromRouter(packet.Ping("192.0.2.9", "203.0.113.1", 77).TTL(3).Payload([]byte("abcdefgh")))
	w.expect(moved{bpf.ReasonEchoed: 1}, func() {
		action, out := w.xdp(in.Bytes())
		if action != xdpTX {
			t.Fatalf("action %d", action)
		}
		w.same("answer", out, in.Reply().TTL(64).Bytes())
	})
	other := fromRouter(packet.Ping("192.0.2.9", collision(netip.MustParseAddr("203.0.113.1")).String(), 77))
	w.expect(moved{bpf.ReasonPassHost: 1}, func() {
		if action, _ := w.xdp(other.Bytes()); action != xdpPass {
			t.Fatalf("action %d", action)
		}
	})
}

func TestSelfTestIsCountedApart(t *testing.T) {
	w := newWorld(t)
	in := fromRouter(packet.TCP(selfTest+":1", vip).SYN())
	w.expect(moved{bpf.ReasonProbed: 1}, func() {
		if action, _ := w.xdp(in.Bytes()); action != xdpTX {
			t.Fatalf("action %d", action)
		}
	})
	if got := w.stat("svc_stat", tcpService); got != (bpf.Stat{}) {
		t.Errorf("svc_stat counts the self-test: %+v", got)
	}
	// Out of the wire the same packet is a forgery. The wire is the uplink, and
	// here that is the test run's own device.
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

// Hosts ask each other through the tunnel; XDP answers, and writes answers down.
func TestReach(t *testing.T) {
	w := newWorld(t)
	for _, size := range []int{0, 1550} {
		w.expect(moved{bpf.ReasonReachAnswered: 1}, func() {
			action, out := w.xdp(tunnelFrom(mac5, packet.Tag{}).WrapReach(bpf.ReachAsk, 4711, size))
			if action != xdpTX {
				t.Fatalf("action %d", action)
			}
			back := tunnelTo(0, packet.Tag{})
			back.Port = 50000
			w.same("answer", out, back.WrapReach(bpf.ReachAnswer, 4711, size))
		})
	}
	before := now()
	w.expect(moved{bpf.ReasonReached: 1}, func() {
		if action, _ := w.xdp(tunnelFrom(mac5, packet.Tag{}).WrapReach(bpf.ReachAnswer, 4711, 0)); action != xdpDrop {
			t.Fatalf("action %d", action)
		}
	})
	var got bpf.Reach
	must(t, w.maps["vtep_seen"].Lookup(uint32(2), &got))
	if got.Sent != 4711 || got.Seen < before || got.Seen > now() {
		t.Errorf("vtep_seen: %+v, between %d and %d", got, before, now())
	}
	w.expect(moved{bpf.ReasonUnknownEndpoint: 1}, func() { w.xdp(stranger().WrapReach(bpf.ReachAsk, 1, 0)) })
	w.expect(moved{bpf.ReasonMalformed: 1}, func() {
		w.xdp(tunnelFrom(mac5, packet.Tag{}).WrapReach(3, 1, 0))
	})
}

// What a host does with a packet from an LB node, case by case: the flow known
// or not, the backend's state, the other owner, how often it was handed on.
func TestSecondHop(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { secondHop(t, f) })
	}
}

func secondHop(t *testing.T, f family) {
	const (
		known = 1 << iota
		knownElsewhere
		closing
		expired
	)
	const draining, unhealthy, ready = bpf.LocalDraining, uint16(0), bpf.LocalReady
	type verdict struct {
		reason bpf.Reason
		tag    packet.Tag // when forwarded
	}
	deliver := verdict{reason: bpf.ReasonDelivered}
	forward := func(hop uint8) verdict {
		return verdict{bpf.ReasonForwarded, packet.Tag{Hop: hop, Other: backend12}}
	}
	refuse := verdict{reason: bpf.ReasonRefused}
	syn, ack := packet.TCP(f.client, f.vip).SYN(), packet.TCP(f.client, f.vip).ACK()
	synack, udp := packet.TCP(f.client, f.vip).SYN().ACK(), packet.UDP(f.client, f.vip)

	for name, c := range map[string]struct {
		p     packet.Packet
		flow  int
		state uint16
		panic bool
		tag   packet.Tag
		own   [2]uint32 // this host's slot record; zero: backend 12 alone
		want  verdict
	}{
		"known, syn":              {p: syn, flow: known, state: draining, tag: packet.Tag{Other: backend11}, want: deliver},
		"known, ack":              {p: ack, flow: known, state: draining, tag: packet.Tag{Other: backend11}, want: deliver},
		"known, udp":              {p: udp, flow: known, state: unhealthy, tag: packet.Tag{Other: backend11}, want: deliver},
		"other service's, ack":    {p: ack, flow: knownElsewhere, state: ready, tag: packet.Tag{Other: backend11}, want: forward(1)},
		"expired, ack":            {p: ack, flow: known | expired, state: ready, tag: packet.Tag{Other: backend11}, want: forward(1)},
		"closing, ack":            {p: ack, flow: known | closing, state: ready, tag: packet.Tag{Other: backend11}, want: deliver},
		"closing, syn, ready":     {p: syn, flow: known | closing, state: ready, tag: packet.Tag{Other: backend11}, want: deliver},
		"closing, syn, draining":  {p: syn, flow: known | closing, state: draining, tag: packet.Tag{Other: backend11}, want: forward(1)},
		"syn, ready":              {p: syn, state: ready, tag: packet.Tag{Other: backend11}, want: deliver},
		"syn, panic":              {p: syn, state: unhealthy, panic: true, tag: packet.Tag{Other: backend11}, want: deliver},
		"syn, unhealthy":          {p: syn, state: unhealthy, tag: packet.Tag{Other: backend11}, want: forward(1)},
		"syn, draining":           {p: syn, state: draining, tag: packet.Tag{Other: backend11}, want: forward(1)},
		"syn, draining, hop 1":    {p: syn, state: draining, tag: packet.Tag{Hop: 1, Other: backend11}, want: forward(2)},
		"syn, draining, hop 2":    {p: syn, state: draining, tag: packet.Tag{Hop: 2, Other: backend11}, want: refuse},
		"syn, unhealthy, hop 2":   {p: syn, state: unhealthy, tag: packet.Tag{Hop: 2, Other: backend11}, want: deliver},
		"syn, unhealthy, alone":   {p: syn, state: unhealthy, want: deliver},
		"syn, draining, alone":    {p: syn, state: draining, want: refuse},
		"syn, draining, record":   {p: syn, state: draining, own: [2]uint32{backend12, backend11}, want: forward(1)},
		"syn-ack, unknown, next":  {p: synack, state: ready, tag: packet.Tag{Other: backend11}, want: forward(1)},
		"ack, next named":         {p: ack, state: ready, tag: packet.Tag{Other: backend11}, want: forward(1)},
		"ack, next in record":     {p: ack, state: ready, own: [2]uint32{backend12, backend11}, want: forward(1)},
		"ack, record owns not us": {p: ack, state: ready, own: [2]uint32{backend11, 0}, want: forward(1)},
		"ack, alone":              {p: ack, state: ready, want: deliver},
		"ack, we are named":       {p: ack, state: ready, tag: packet.Tag{Other: backend12}, want: deliver},
		"ack, hop 1":              {p: ack, state: ready, tag: packet.Tag{Hop: 1, Other: backend11}, want: deliver},
		"udp, next":               {p: udp, state: ready, tag: packet.Tag{Other: backend11}, want: forward(1)},
		"udp, hop 1 goes back":    {p: udp, state: ready, tag: packet.Tag{Hop: 1, Other: backend11}, want: forward(2)},
		"udp, hop 2 stays":        {p: udp, state: ready, tag: packet.Tag{Hop: 2, Other: backend11}, want: deliver},
		"udp, alone":              {p: udp, state: ready, want: deliver},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.local(port5, backend12, c.state)
			if c.own == [2]uint32{} {
				c.own[0] = backend12
			}
			w.owners(c.own[0], c.own[1])
			in := fromRouter(c.p)
			index, service, proto := f.tcpIndex, f.tcpService, uint8(packet.ProtoTCP)
			if bytes.Equal(c.p.Bytes(), udp.Bytes()) {
				index, service, proto = f.udpIndex, f.udpService, packet.ProtoUDP
			}
			if c.panic {
				var s bpf.Svc
				must(t, w.maps["svc"].Lookup(index, &s))
				s.Flags |= bpf.SvcPanic
				w.put("svc", index, &s)
			}
			if c.flow != 0 {
				known := f.balanced(service, bpf.CtEstablished)
				if c.flow&knownElsewhere != 0 {
					known.Service = 99
				}
				if c.flow&closing != 0 {
					known.State = bpf.CtClosed
				}
				if c.flow&expired != 0 {
					known.State, known.Seen = bpf.CtReset, now()-11e9
				}
				w.remember(port5, flowKey(proto, f.client, f.target5), known)
			}
			hash := hashOf(f.client, f.vip, proto, 0)
			w.expect(moved{c.want.reason: 1}, func() {
				action, out := w.xdp(tunnelFrom(mac5, c.tag).Wrap(in))
				switch c.want.reason {
				case bpf.ReasonDelivered:
					w.same("delivered", out, append(note(index, backend12, hash), in.To(f.target5).Bytes()...))
				case bpf.ReasonForwarded:
					w.same("forwarded", out, tunnelTo(hash, c.want.tag).Wrap(in.TTL(63)))
				}
				if c.want.reason == bpf.ReasonRefused {
					w.same("refused", out, in.Reply().RST().ACK().Acknowledge(1).Window(0).Bytes())
				}
				want := map[bpf.Reason]uint32{bpf.ReasonDelivered: xdpPass, bpf.ReasonForwarded: xdpTX, bpf.ReasonRefused: xdpTX}
				if action != want[c.want.reason] {
					t.Fatalf("action %d", action)
				}
			})
			forwarded := uint64(0)
			if c.want.reason == bpf.ReasonForwarded {
				forwarded = 1
			}
			if got := w.stat("svc_stat", service).Forwarded; got != forwarded {
				t.Errorf("forwarded %d, want %d", got, forwarded)
			}
		})
	}
}

func TestNextOwnerOnThisHostIsTriedInTheSamePass(t *testing.T) {
	w := newWorld(t)
	ack := fromRouter(packet.TCP(client, vip).ACK())
	hash := hashOf(client, vip, packet.ProtoTCP, 0)
	w.owners(backend12, backend13)
	w.remember(port6, flowKey(packet.ProtoTCP, client, addr6+":8080"), balanced(tcpService, bpf.CtEstablished))
	want := append(note(tcpIndex, backend13, hash), ack.To(addr6+":8080").Bytes()...)

	w.expect(moved{bpf.ReasonDelivered: 1}, func() { // as LB node
		_, out := w.xdp(ack.Bytes())
		w.same("selected here", out, want)
	})
	w.expect(moved{bpf.ReasonDelivered: 1}, func() { // as the host of both
		_, out := w.xdp(tunnelFrom(mac5, packet.Tag{}).Wrap(ack))
		w.same("from the tunnel", out, want)
	})
}

// A SYN that nobody wants, on a host that has both owners, ends: it must not
// go round for ever.
func TestRefusedByAllOwnersEnds(t *testing.T) {
	w := newWorld(t)
	w.owners(backend12, backend13)
	w.local(port5, backend12, bpf.LocalDraining)
	w.local(port6, backend13, bpf.LocalDraining)
	syn := fromRouter(packet.TCP(client, vip).SYN().Sequence(0xffffffff).Payload([]byte("early")))
	w.expect(moved{bpf.ReasonRefused: 1}, func() {
		action, out := w.xdp(syn.Bytes())
		if action != xdpTX {
			t.Fatalf("action %d", action)
		}
		w.same("RST", out, fromRouter(packet.TCP(client, vip)).Reply().RST().ACK().Window(0).Bytes())
	})
	w.expect(moved{bpf.ReasonDraining: 1}, func() { // there is no room for the answer
		w.xdp(syn.Options([]byte{1, 1, 1, 0}).Bytes())
	})
}

// RSTs have a rate: a flood is dropped.
func TestRefusalsAreLimited(t *testing.T) {
	w := newWorld(t)
	w.owners(backend12, 0)
	w.local(port5, backend12, bpf.LocalDraining)
	perCPU := make([]bpf.Refusals, ebpf.MustPossibleCPU())
	for i := range perCPU {
		perCPU[i] = bpf.Refusals{Since: now(), Sent: 999}
	}
	w.put("refusals", uint32(0), perCPU)
	in := fromRouter(packet.TCP(client, vip).SYN()).Bytes()
	run := &ebpf.RunOptions{Data: in, Repeat: 1}
	for _, want := range []bpf.Reason{bpf.ReasonRefused, bpf.ReasonDraining} {
		w.expect(moved{want: 1}, func() {
			w.pinned(func() { _, err := w.progs["uplink"].Run(run); must(t, err) })
		})
	}
}
