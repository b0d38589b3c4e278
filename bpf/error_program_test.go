// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

const hop = "203.0.113.200" // a router somewhere

// unreachable is an error about a packet, to whom sent it, quoting size bytes.
func unreachable(from, to string, about packet.Packet, size int) packet.Packet {
	return packet.ICMPError(from, to, 3, 3, 0, quote(about, size))
}

func quote(p packet.Packet, size int) []byte {
	ip := p.IP()
	return ip[:min(size, len(ip))]
}

func tooBig(from, to string, mtu uint32, about packet.Packet) packet.Packet {
	return packet.ICMPError(from, to, 3, 4, mtu, quote(about, 28))
}

// An error about what the VM has sent reaches it, whoever on the way sends it.
func TestErrorsReachWhoTheyAreFor(t *testing.T) {
	for name, c := range map[string]struct {
		in  packet.Packet // the client's, which opens the flow
		lo  uint16
		err func(answer packet.Packet) packet.Packet
	}{
		"tcp, unreachable": {packet.TCP(client, addr5+":8080").SYN(), 8080, func(a packet.Packet) packet.Packet {
			return unreachable("192.0.2.9", addr5, a, 28)
		}},
		"tcp, too big, from a router": {packet.TCP(client, addr5+":8080").SYN(), 8080, func(a packet.Packet) packet.Packet {
			return tooBig(hop, addr5, 1400, a)
		}},
		"udp, time exceeded": {packet.UDP(client, addr5+":8080"), 8080, func(a packet.Packet) packet.Packet {
			return packet.ICMPError(hop, addr5, 11, 0, 0, quote(a, 28))
		}},
		"udp, parameter, all quoted": {packet.UDP(client, addr5+":8080").Payload([]byte("hello")), 8080, func(a packet.Packet) packet.Packet {
			return packet.ICMPError(hop, addr5, 12, 0, 0, quote(a, 1000))
		}},
		"with options in the quote": {packet.UDP(client, addr5+":8080"), 8080, func(a packet.Packet) packet.Packet {
			return packet.ICMPError(hop, addr5, 3, 1, 0, quote(a.Options([]byte{1, 1, 1, 0}), 32))
		}},
		"a ping": {packet.Ping("192.0.2.9", addr5, 7), 8 << 8, func(a packet.Packet) packet.Packet {
			return unreachable(hop, addr5, a, 28)
		}},
		"esp": {packet.IP("192.0.2.9", addr5, packet.ProtoESP, make([]byte, 16)), 0, func(a packet.Packet) packet.Packet {
			return unreachable(hop, addr5, a, 28)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			proto := c.in.IP()[9]
			w.admit(rule{policy: 500, direction: bpf.DirectionIn, proto: uint32(proto), cidr: "192.0.2.0/24", lo: c.lo, hi: c.lo, id: 42})
			w.into(c.in, skb{})
			key := flowKey(proto, client, addr5+":8080")
			switch proto {
			case packet.ProtoICMP:
				key = flowKey(proto, "192.0.2.9:7", addr5+":0")
			case packet.ProtoESP:
				key = flowKey(proto, "192.0.2.9:0", addr5+":0")
			}
			before, ok := w.flow(port5, key)
			if !ok {
				t.Fatal("no flow")
			}
			w.into(c.err(c.in.Reply()), skb{})
			if after, _ := w.flow(port5, key); after != before {
				t.Errorf("the flow was %+v, is %+v", before, after)
			}
			w.refused(c.err(c.in.Reply().To("192.0.2.10:1234")), skb{}, bpf.ReasonICMPUnmatched)
		})
	}
}

func TestErrorsReachWhoTheyAreForOverIPv6(t *testing.T) {
	w := newWorld(t)
	own := "[" + addr5v6 + "]:8080"
	r := web
	r.cidr = "2001:db8:9::/48"
	w.admit(r)
	syn := packet.TCP(client6, own).SYN()
	w.into(syn, skb{})
	router := "2001:db8:77::1"
	of := func(kind uint8, rest uint32, about packet.Packet) packet.Packet {
		return packet.ICMPError(router, addr5v6, kind, 0, rest, quote(about, 1000))
	}
	w.into(of(2, 1280, syn.Reply()), skb{})
	w.into(of(1, 0, syn.Reply()), skb{})
	w.into(of(3, 0, syn.Reply().Extensions(packet.Extension{Proto: packet.ProtoDestination, Body: make([]byte, 6)})), skb{})
	w.refused(of(2, 1279, syn.Reply()), skb{}, bpf.ReasonICMPTooSmall)
	w.refused(of(1, 0, syn), skb{}, bpf.ReasonICMPUnmatched)
	w.refused(of(1, 0, syn.Reply().To("[2001:db8:9::9]:1235")), skb{}, bpf.ReasonICMPUnmatched)
	w.refused(of(100, 0, syn.Reply().To("[2001:db8:9::9]:1235")), skb{}, bpf.ReasonICMPUnmatched)
	out := packet.ICMPError(addr5v6, "2001:db8:9::9", 1, 4, 0, quote(syn, 1000))
	w.out(out, out.TTL(63))
}

func TestErrorsAboutNothing(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.into(packet.TCP(client, addr5+":8080").SYN(), skb{})
	answer := packet.TCP(client, addr5+":8080").Reply().ACK()
	for name, c := range map[string]struct {
		p    packet.Packet
		want bpf.Reason
	}{
		"another flow's":           {unreachable(hop, addr5, answer.To("192.0.2.9:9"), 28), bpf.ReasonICMPUnmatched},
		"another protocol's":       {unreachable(hop, addr5, answer.Proto(packet.ProtoUDP), 28), bpf.ReasonICMPUnmatched},
		"the other way around":     {unreachable(hop, addr5, answer.Reply(), 28), bpf.ReasonICMPUnmatched},
		"another address in it":    {unreachable(hop, addr5, answer.From(addr6+":8080"), 28), bpf.ReasonICMPUnmatched},
		"for another port":         {unreachable(hop, addr6, answer, 28), bpf.ReasonICMPUnmatched},
		"too short a quote":        {unreachable(hop, addr5, answer, 27), bpf.ReasonICMPUnmatched},
		"no quote":                 {unreachable(hop, addr5, answer, 0), bpf.ReasonICMPUnmatched},
		"a quote of IPv6":          {packet.ICMPError(hop, addr5, 3, 1, 0, packet.UDP(client6, "["+addr5v6+"]:1").IP()), bpf.ReasonICMPUnmatched},
		"a later fragment quoted":  {unreachable(hop, addr5, answer.Fragment(false, 4), 28), bpf.ReasonICMPUnmatched},
		"an error about an error":  {unreachable(hop, addr5, unreachable(addr5, "192.0.2.9", answer.Reply(), 28), 28), bpf.ReasonICMPUnmatched},
		"redirect":                 {packet.ICMPError(hop, addr5, 5, 1, 0x01020304, quote(answer, 28)), bpf.ReasonICMPRedirect},
		"too small a path":         {tooBig(hop, addr5, 575, answer), bpf.ReasonICMPTooSmall},
		"a path of nothing":        {tooBig(hop, addr5, 0, answer), bpf.ReasonICMPTooSmall},
		"a fragment":               {unreachable(hop, addr5, answer, 28).Split(16)[0], bpf.ReasonFragment},
		"from the host's services": {unreachable("169.254.1.1", addr5, answer, 28), bpf.ReasonBadSource},
	} {
		t.Run(name, func(t *testing.T) { w.refused(c.p, skb{}, c.want) })
	}
	w.into(tooBig(hop, addr5, 576, answer), skb{})
	// What may not send may not be spoken of.
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Generation++; pc.PolicyIn = 999 })
	w.refused(tooBig(hop, addr5, 1400, answer), skb{}, bpf.ReasonICMPUnmatched)
}

// The VM's own errors are about packets that it has got.
func TestErrorsOfTheVM(t *testing.T) {
	w := newWorld(t)
	udp := web
	udp.proto = packet.ProtoUDP
	w.admit(udp)
	in := packet.UDP(client, addr5+":8080").Payload([]byte("q"))
	w.into(in, skb{})
	out := unreachable(addr5, "192.0.2.9", in, 1000)
	w.out(out, out.TTL(63))
	w.dropped("vm_in", fromVM(unreachable(addr5, "192.0.2.9", in.From("192.0.2.9:1"), 28)).Bytes(), bpf.ReasonICMPUnmatched)
	w.dropped("vm_in", fromVM(unreachable(addr5, "192.0.2.10", in, 28)).Bytes(), bpf.ReasonICMPUnmatched)
	w.dropped("vm_in", fromVM(packet.ICMPError(addr5, "192.0.2.9", 5, 0, 0, quote(in, 28))).Bytes(), bpf.ReasonICMPRedirect)
}

// On the wire an error about a balanced flow is about the VIP, and the VM knows
// nothing of one: both ways the quote is rewritten, and its checksums hold.
func TestErrorsAboutBalancedFlows(t *testing.T) {
	for name, c := range map[string]struct {
		in    packet.Packet // as the VM sees it
		wire  packet.Packet // and the client
		index uint32
		size  int
	}{
		"udp":             {packet.UDP(client, addr5+":8080").Payload([]byte("hi")), packet.UDP(client, vip).Payload([]byte("hi")), udpIndex, 1000},
		"udp, 8 bytes":    {packet.UDP(client, addr5+":8080").Payload([]byte("hi")), packet.UDP(client, vip).Payload([]byte("hi")), udpIndex, 28},
		"udp, unchecked":  {packet.UDP(client, addr5+":8080").NoChecksum(), packet.UDP(client, vip).NoChecksum(), udpIndex, 28},
		"tcp, 8 bytes":    {packet.TCP(client, addr5+":8080").SYN(), packet.TCP(client, vip).SYN(), tcpIndex, 28},
		"tcp, all":        {packet.TCP(client, addr5+":8080").SYN(), packet.TCP(client, vip).SYN(), tcpIndex, 1000},
		"tcp, an odd end": {packet.TCP(client, addr5+":8080").SYN(), packet.TCP(client, vip).SYN(), tcpIndex, 35},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, proto := range []uint32{packet.ProtoUDP, packet.ProtoTCP} {
				r := web
				r.proto = proto
				w.admit(r)
			}
			n := noted(c.index, backend12, 1)
			w.into(c.in, n)
			w.out(unreachable(addr5, "192.0.2.9", c.in, c.size), unreachable("203.0.113.1", "192.0.2.9", c.wire, c.size).TTL(63))

			w.expect(moved{bpf.ReasonToPort: 1}, func() {
				_, out, _ := w.tc("uplink_in", fromRouter(unreachable(hop, "203.0.113.1", c.wire.Reply(), c.size)).Bytes(), n)
				w.same("error", out, toVM(unreachable(hop, addr5, c.in.Reply(), c.size), mac5).Bytes())
			})
			w.refused(unreachable(hop, "203.0.113.1", c.wire.Reply().To("192.0.2.9:9"), c.size), n, bpf.ReasonICMPUnmatched)
			w.refused(unreachable(hop, "203.0.113.1", c.in.Reply(), c.size), n, bpf.ReasonICMPUnmatched)
		})
	}
}

// Also when the VM knows the client by another port.
func TestErrorsAboutTranslatedFlows(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	other := balanced(99, bpf.CtEstablished)
	w.remember(port5, flowKey(packet.ProtoTCP, client, addr5+":8080"), other)
	n := noted(tcpIndex, backend12, 1)
	seen := w.translated(packet.TCP(client, addr5+":8080").SYN(), n)
	w.expect(moved{bpf.ReasonToPortTranslated: 1}, func() {
		_, out, _ := w.tc("uplink_in", fromRouter(unreachable(hop, "203.0.113.1", packet.TCP(client, vip).Reply().ACK(), 40)).Bytes(), n)
		w.same("error", out, toVM(unreachable(hop, addr5, packet.TCP(seen, addr5+":8080").Reply().ACK(), 40), mac5).Bytes())
	})
	w.out(unreachable(addr5, "192.0.2.9", packet.TCP(seen, addr5+":8080").ACK(), 40),
		unreachable("203.0.113.1", "192.0.2.9", packet.TCP(client, vip).ACK(), 40).TTL(63))
}

// A port that refuses a health check says so through the door, and nothing else
// goes there.
func TestErrorsThroughTheDoor(t *testing.T) {
	w := newWorld(t)
	check := packet.UDP(probe+":40000", addr5+":8080")
	w.expect(moved{bpf.ReasonToPort: 1}, func() { w.tc("svc_in", check.MACs(doorMAC, uplinkMAC).Bytes(), skb{}) })
	refusal := unreachable(addr5, probe, check, 28)
	w.expect(moved{bpf.ReasonToDoor: 1}, func() {
		_, out, _ := w.tc("vm_in", fromVM(refusal).Bytes(), skb{})
		w.same("refusal", out, refusal.TTL(63).MACs(gatewayMAC, doorMAC).Bytes())
	})
	w.dropped("vm_in", fromVM(unreachable(addr5, probe, check.From(probe+":1"), 28)).Bytes(), bpf.ReasonICMPUnmatched)
}
