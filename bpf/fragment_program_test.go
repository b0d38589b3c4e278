// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

func datagram(src, dst string, size int) packet.Packet {
	payload := make([]byte, size)
	for i := range payload {
		payload[i] = byte(i)
	}
	return packet.UDP(src, dst).Payload(payload).ID(77)
}

// The first fragment has the ports; the others go where it went.
func TestFragmentsFollowTheFirst(t *testing.T) {
	for name, c := range map[string]struct{ client, own, cidr string }{
		"ipv4": {client, addr5 + ":8080", "192.0.2.0/24"},
		"ipv6": {client6, "[" + addr5v6 + "]:8080", "2001:db8:9::/48"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			udp := web
			udp.proto, udp.cidr = packet.ProtoUDP, c.cidr
			w.admit(udp)
			pieces := datagram(c.client, c.own, 100).Split(32)
			w.refused(pieces[1], skb{}, bpf.ReasonFragmentEarly)
			for _, order := range [][]int{{0, 1, 2, 3}, {0, 3, 1, 2}, {0, 2, 3, 1}} {
				for _, i := range order {
					w.into(pieces[i], skb{})
				}
			}
			w.refused(pieces[1], skb{}, bpf.ReasonFragmentEarly) // all of it is through
			if got := w.ruleStat(42).Packets; got != 12 {
				t.Errorf("the rule counts %d packets", got)
			}
			for _, p := range datagram(c.own, c.client, 100).Split(64) {
				w.out(p, p.TTL(63))
			}
			for i, p := range datagram(c.client, c.own[:len(c.own)-1]+"1", 100).Split(64) {
				w.refused(p, skb{}, map[int]bpf.Reason{0: bpf.ReasonPolicyIn, 1: bpf.ReasonFragmentEarly}[i])
			}
		})
	}
}

// A piece cut out of a datagram: bytes from to to, and whether more follow.
func piece(p packet.Packet, from, to int, more bool) packet.Packet {
	l4 := p.IP()[20:]
	return packet.IP("192.0.2.9", addr5, l4proto(p), l4[from:min(to, len(l4))]).ID(77).Fragment(more, uint16(from/8))
}

func l4proto(p packet.Packet) uint8 { return p.IP()[9] }

func TestFragmentsThatMustNotBe(t *testing.T) {
	whole := datagram(client, addr5+":8080", 200) // 208 bytes of L4
	segment := packet.TCP(client, addr5+":8080").SYN().TCPOptions(make([]byte, 8)).Payload(make([]byte, 180)).ID(77)
	at := func(from, to int, more bool) packet.Packet { return piece(whole, from, to, more) }
	for name, c := range map[string]struct {
		before []packet.Packet
		p      packet.Packet
		want   bpf.Reason
	}{
		"the first again":            {[]packet.Packet{at(0, 64, true)}, at(0, 64, true), bpf.ReasonFragmentOverlap},
		"the first, longer":          {[]packet.Packet{at(0, 64, true)}, at(0, 128, true), bpf.ReasonFragmentOverlap},
		"over the first":             {[]packet.Packet{at(0, 64, true)}, at(56, 96, true), bpf.ReasonFragmentOverlap},
		"over the ports":             {[]packet.Packet{at(0, 64, true)}, at(8, 208, false), bpf.ReasonFragmentOverlap},
		"over another":               {[]packet.Packet{at(0, 64, true), at(128, 192, true)}, at(184, 208, false), bpf.ReasonFragmentOverlap},
		"around another":             {[]packet.Packet{at(0, 64, true), at(96, 128, true)}, at(64, 192, true), bpf.ReasonFragmentOverlap},
		"within another":             {[]packet.Packet{at(0, 64, true), at(96, 192, true)}, at(104, 112, true), bpf.ReasonFragmentOverlap},
		"a second last":              {[]packet.Packet{at(0, 64, true), at(192, 208, false)}, at(128, 136, false), bpf.ReasonFragmentOverlap},
		"behind the last":            {[]packet.Packet{at(0, 64, true), at(64, 128, false)}, at(128, 136, true), bpf.ReasonFragmentEarly},
		"behind the last, with hole": {[]packet.Packet{at(0, 64, true), at(128, 160, false)}, at(160, 168, true), bpf.ReasonFragmentOverlap},
		"a last before others":       {[]packet.Packet{at(0, 64, true), at(128, 192, true)}, at(64, 72, false), bpf.ReasonFragmentOverlap},
		"too many holes": {
			[]packet.Packet{at(0, 32, true), at(40, 48, true), at(56, 64, true), at(72, 80, true)},
			at(88, 96, true), bpf.ReasonFragmentHoles,
		},
		"a first without ports":       {nil, piece(segment, 0, 0, true), bpf.ReasonMalformed},
		"a first with half of UDP":    {nil, packet.IP("192.0.2.9", addr5, packet.ProtoICMP, []byte{8, 0, 0, 0}).Fragment(true, 0), bpf.ReasonMalformed},
		"a first with half of TCP":    {nil, piece(segment, 0, 16, true), bpf.ReasonFragmentShort},
		"a first without its options": {nil, piece(segment, 0, 24, true), bpf.ReasonFragmentShort},
		"TCP at offset 1":             {nil, piece(segment, 8, 208, false), bpf.ReasonFragmentShort},
		"TCP at offset 2":             {nil, piece(segment, 16, 208, false), bpf.ReasonFragmentShort},
		"not a multiple of 8":         {nil, at(0, 63, true), bpf.ReasonMalformed},
		"without data":                {nil, at(64, 64, false), bpf.ReasonMalformed},
		"beyond the largest datagram": {nil, packet.IP("192.0.2.9", addr5, packet.ProtoUDP, make([]byte, 64)).Fragment(false, 8185), bpf.ReasonMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, proto := range []uint32{packet.ProtoUDP, packet.ProtoTCP} {
				r := web
				r.proto = proto
				w.admit(r)
			}
			for _, p := range c.before {
				w.into(p, skb{})
			}
			w.refused(c.p, skb{}, c.want)
			if c.want == bpf.ReasonFragmentOverlap {
				w.refused(at(200, 208, true), skb{}, bpf.ReasonFragmentOverlap) // none of it is right
			}
		})
	}
}

func TestFragmentsOfOneDatagramOnly(t *testing.T) {
	w := newWorld(t)
	udp := web
	udp.proto = packet.ProtoUDP
	w.admit(udp)
	pieces := datagram(client, addr5+":8080", 100).Split(64)
	w.into(pieces[0], skb{})
	for name, p := range map[string]packet.Packet{
		"another number":   pieces[1].ID(78),
		"another source":   pieces[1].From("192.0.2.10:1"),
		"another protocol": pieces[1].Proto(packet.ProtoESP),
		"another port":     pieces[1].To(addr6 + ":1"),
	} {
		t.Log(name)
		w.refused(p, skb{}, bpf.ReasonFragmentEarly)
	}
	w.into(pieces[1], skb{})
}

// A piece that never comes does not keep its number for long.
func TestFragmentsExpire(t *testing.T) {
	w := newWorld(t)
	udp := web
	udp.proto = packet.ProtoUDP
	w.admit(udp)
	pieces := datagram(client, addr5+":8080", 100).Split(64)
	w.into(pieces[0], skb{})
	var key bpf.FragKey
	var f bpf.Frag
	must(t, w.maps["frag"].NextKey(nil, &key))
	must(t, w.maps["frag"].Lookup(key, &f))
	f.Seen -= 3e9
	w.put("frag", key, &f)
	w.refused(pieces[1], skb{}, bpf.ReasonFragmentEarly)
	w.into(pieces[0], skb{})
	w.into(pieces[1], skb{})
}

func TestFragmentsHaveARate(t *testing.T) {
	w := newWorld(t)
	udp := web
	udp.proto = packet.ProtoUDP
	w.admit(udp)
	first := datagram(client, addr5+":8080", 100).Split(64)[0]
	w.put("pace", port5, bpf.Pace{Fragments: now() + 2e9})
	w.refused(first, skb{}, bpf.ReasonFragmentRate)
	w.put("pace", port5, bpf.Pace{})
	w.into(first, skb{})
}

// The VM's answer through a balancer may be in fragments, too.
func TestFragmentedAnswerComesFromTheVIP(t *testing.T) {
	w := newWorld(t)
	udp := web
	udp.proto = packet.ProtoUDP
	w.admit(udp)
	w.into(datagram(client, addr5+":8080", 8), noted(udpIndex, backend12, 1))
	sent := datagram(addr5+":8080", client, 100).Split(64)
	want := datagram(vip, client, 100).Split(64)
	for i := range sent {
		w.out(sent[i], want[i].TTL(63))
	}
}

func TestNoFragmentsThroughTheDoor(t *testing.T) {
	w := newWorld(t)
	first := datagram(probe+":1", addr5+":8080", 100).Split(64)[0]
	w.dropped("svc_in", first.Bytes(), bpf.ReasonFragment)
	w.dropped("vm_in", fromVM(datagram(addr5+":8080", probe+":1", 100).Split(64)[0]).Bytes(), bpf.ReasonNoDoorFlow)
}
