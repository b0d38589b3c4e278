// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// toVM is how a packet enters a port.
func toVM(p packet.Packet, hw string) packet.Packet { return p.MACs(gatewayMAC, hw) }

// fromVM is how port 5's VM sends.
func fromVM(p packet.Packet) packet.Packet { return p.MACs(mac5, gatewayMAC) }

var web = rule{policy: 500, direction: bpf.DirectionIn, proto: packet.ProtoTCP, cidr: "192.0.2.0/24", lo: 8080, hi: 8080, bit: 3, id: 42}

func (w *world) ruleStat(id uint32) (sum bpf.RuleStat) {
	w.Helper()
	var perCPU []bpf.RuleStat
	must(w.T, w.maps["rule_stats"].Lookup(id, &perCPU))
	for _, s := range perCPU {
		sum.Packets += s.Packets
		sum.Bytes += s.Bytes
	}
	return sum
}

// into runs uplink_in and wants the packet delivered to port 5.
func (w *world) into(p packet.Packet, ctx skb) {
	w.Helper()
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		action, out, after := w.tc("uplink_in", fromRouter(p).Bytes(), ctx)
		if action != tcRedirect || after.Mark != bpf.GuardMark {
			w.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		w.same("delivered", out, toVM(p, mac5).Bytes())
	})
}

// refused runs uplink_in and wants the packet dropped.
func (w *world) refused(p packet.Packet, ctx skb, why bpf.Reason) {
	w.Helper()
	w.expect(moved{why: 1}, func() {
		if action, _, _ := w.tc("uplink_in", fromRouter(p).Bytes(), ctx); action != tcDrop {
			w.Fatalf("action %d", action)
		}
	})
}

// out runs vm_in and wants the packet sent to the uplink as want.
func (w *world) out(p, want packet.Packet) {
	w.Helper()
	w.expect(moved{bpf.ReasonToUplink: 1}, func() {
		action, out, after := w.tc("vm_in", fromVM(p).Bytes(), skb{Mark: 77})
		if action != tcRedirect || after.Mark != 0 {
			w.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		w.same("sent", out, fromVM(want).Bytes())
	})
}

func TestIngressIsDeniedByDefault(t *testing.T) {
	w := newWorld(t)
	syn := packet.TCP(client, addr5+":8080").SYN()
	w.refused(syn, skb{}, bpf.ReasonPolicyIn)
	if _, ok := w.flow(port5, flowKey(packet.ProtoTCP, client, addr5+":8080")); ok {
		t.Error("a denied packet left a flow")
	}
	w.edit(port5, func(pc *bpf.PortCfg) { pc.PolicyIn = 0 })
	w.refused(syn, skb{}, bpf.ReasonNoPolicy)
}

func TestRuleAdmitsWhatItNames(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.into(packet.TCP(client, addr5+":8080").SYN(), skb{})
	f, ok := w.flow(port5, flowKey(packet.ProtoTCP, client, addr5+":8080"))
	if !ok || f.Rule != 42 || f.State != bpf.CtNew || f.Service != 0 || f.Match != 8080 || f.Packets != 1 {
		t.Errorf("flow %+v, %v", f, ok)
	}
	if got := w.ruleStat(42); got != (bpf.RuleStat{Packets: 1, Bytes: 40}) {
		t.Errorf("rule 42: %+v", got)
	}
	for name, p := range map[string]packet.Packet{
		"port below":     packet.TCP(client, addr5+":8079").SYN(),
		"port above":     packet.TCP(client, addr5+":8081").SYN(),
		"other protocol": packet.UDP(client, addr5+":8080"),
		"other source":   packet.TCP("192.0.3.1:1", addr5+":8080").SYN(),
		"other port's":   packet.TCP(client, addr6+":8080").SYN(),
		"ping":           packet.Ping("192.0.2.9", addr5, 1),
	} {
		t.Run(name, func(t *testing.T) { w.refused(p, skb{}, bpf.ReasonPolicyIn) })
	}
}

func TestMembersOfAGroupAreAdmitted(t *testing.T) {
	w := newWorld(t)
	const class = 9
	r := web
	w.put("members", bpf.MemberKey{Scope: bpf.ScopePublic, Ip: ip16("192.0.2.9")}, uint32(class))
	w.put("peer_bm", bpf.BmKey{Policy: r.policy, Direction: r.direction, Class: class}, r.bitmap())
	w.ports(r)
	w.into(packet.TCP(client, addr5+":8080").SYN(), skb{})
	w.refused(packet.TCP("192.0.2.8:1234", addr5+":8080").SYN(), skb{}, bpf.ReasonPolicyIn)
}

func TestICMPIsJudgedByTypeAndCode(t *testing.T) {
	w := newWorld(t)
	w.admit(rule{policy: 500, direction: bpf.DirectionIn, proto: packet.ProtoICMP, cidr: "0.0.0.0/0", lo: 8 << 8, hi: 8 << 8, bit: 63, id: 50})
	w.into(packet.Ping("192.0.2.9", addr5, 7), skb{})
	w.out(packet.Ping("192.0.2.9", addr5, 7).Reply(), packet.Ping("192.0.2.9", addr5, 7).Reply().TTL(63))
	w.refused(packet.Ping("192.0.2.9", addr5, 8).ICMP(13, 0), skb{}, bpf.ReasonPolicyIn)
}

func TestUplinkInLeavesOthersAlone(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		in     []byte
		action uint32
		want   bpf.Reason
	}{
		"host's own":      {fromRouter(packet.TCP(client, endpoint+":179").SYN()).Bytes(), tcNext, bpf.ReasonPassHost},
		"host's fragment": {fromRouter(packet.UDP(client, endpoint+":1").Fragment(true, 0)).Bytes(), tcNext, bpf.ReasonPassHost},
		"arp":             {packet.ARP(routerMAC, "10.64.0.0", endpoint), tcNext, bpf.ReasonPassNotIP},
		"other station":   {packet.TCP(client, addr5+":8080").SYN().MACs(routerMAC, mac6).Bytes(), tcNext, bpf.ReasonPassOtherMAC},
		"no port":         {fromRouter(packet.TCP(client, "198.51.100.77:80").SYN()).Bytes(), tcDrop, bpf.ReasonNoPort},
		"link-local":      {fromRouter(packet.TCP(probe+":1", addr5+":8080").SYN()).Bytes(), tcDrop, bpf.ReasonBadSource},
		"identity range":  {fromRouter(packet.TCP("198.18.0.1:1", addr5+":8080").SYN()).Bytes(), tcDrop, bpf.ReasonBadSource},
		"gre":             {fromRouter(packet.TCP(client, addr5+":1").Proto(47)).Bytes(), tcDrop, bpf.ReasonPolicyIn},
	} {
		t.Run(name, func(t *testing.T) {
			w.expect(moved{c.want: 1}, func() {
				action, out, _ := w.tc("uplink_in", c.in, skb{})
				if action != c.action {
					t.Fatalf("action %#x", action)
				}
				w.same(name, out, c.in)
			})
		})
	}
}

func TestEgressPolicy(t *testing.T) {
	w := newWorld(t)
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Flags = 0 })
	drop := func(p packet.Packet, why bpf.Reason) {
		t.Helper()
		w.expect(moved{why: 1}, func() {
			if action, _, _ := w.tc("vm_in", fromVM(p).Bytes(), skb{}); action != tcDrop {
				t.Fatalf("action %d", action)
			}
		})
	}
	dns := packet.UDP(addr5+":5555", "192.0.2.53:53")
	drop(dns, bpf.ReasonNoPolicy)
	w.edit(port5, func(pc *bpf.PortCfg) { pc.PolicyOut = 500 })
	drop(dns, bpf.ReasonPolicyOut)
	w.admit(rule{policy: 500, direction: bpf.DirectionOut, proto: packet.ProtoUDP, cidr: "192.0.2.53/32", lo: 53, hi: 53, bit: 0, id: 60})
	w.out(dns, dns.TTL(63))
	drop(dns.To("192.0.2.54:53"), bpf.ReasonPolicyOut)
	drop(dns.To("192.0.2.53:54"), bpf.ReasonPolicyOut)
}

func TestVMMaySendOnlyAsItself(t *testing.T) {
	ok := packet.TCP(addr5+":5555", client).SYN()
	for name, c := range map[string]struct {
		in    []byte
		setup func(*world)
		want  bpf.Reason
	}{
		"other MAC":                {in: ok.MACs(mac6, gatewayMAC).Bytes(), want: bpf.ReasonSpoofedMAC},
		"other address":            {in: fromVM(ok.From(addr6 + ":5555")).Bytes(), want: bpf.ReasonSpoofedIP},
		"other, a fragment":        {in: fromVM(ok.From(addr6+":5555").Payload(make([]byte, 4)).Fragment(true, 0)).Bytes(), want: bpf.ReasonSpoofedIP},
		"the VIP":                  {in: fromVM(ok.From(vip)).Bytes(), want: bpf.ReasonSpoofedIP},
		"the door":                 {in: fromVM(ok.From(probe + ":5555")).Bytes(), want: bpf.ReasonSpoofedIP},
		"icmp of the other family": {in: fromVM(ok.Proto(58)).Bytes(), want: bpf.ReasonProtocol},
		"short":                    {in: fromVM(ok).Bytes()[:50], want: bpf.ReasonMalformed},
		"version 4 in ipv6":        {in: fromVM(ok).EtherType(0x86dd).Bytes(), want: bpf.ReasonMalformed},
		"vlan":                     {in: fromVM(ok).EtherType(0x8899).Bytes(), want: bpf.ReasonNotIP},
		"to the underlay":          {in: fromVM(ok.To(endpoint2 + ":4789")).Bytes(), want: bpf.ReasonHostAddress},
		"to the host":              {in: fromVM(ok.To(endpoint + ":22")).Bytes(), want: bpf.ReasonHostAddress},
		"to link-local":            {in: fromVM(ok.To("169.254.0.1:1")).Bytes(), want: bpf.ReasonBadDestination},
		"to loopback":              {in: fromVM(ok.To("127.0.0.1:1")).Bytes(), want: bpf.ReasonBadDestination},
		"to multicast":             {in: fromVM(ok.To("224.0.0.1:1")).Bytes(), want: bpf.ReasonBadDestination},
		"to broadcast":             {in: fromVM(ok.To("255.255.255.255:1")).Bytes(), want: bpf.ReasonBadDestination},
		"to the door, asking":      {in: fromVM(ok.To(probe + ":1")).Bytes(), want: bpf.ReasonNoDoorFlow},
		"ttl":                      {in: fromVM(ok.TTL(1)).Bytes(), want: bpf.ReasonTTL},
		"oversize":                 {in: fromVM(ok.Payload(make([]byte, 1461))).Bytes(), want: bpf.ReasonOversize},
		"device of no port": {in: fromVM(ok).Bytes(), setup: func(w *world) {
			w.del("ifindex_port", uint32(loopback))
		}, want: bpf.ReasonNoPort},
		"port without record": {in: fromVM(ok).Bytes(), setup: func(w *world) {
			w.put("port_cfg", port5, &bpf.PortCfg{})
		}, want: bpf.ReasonNoPort},
		"port without flows": {in: fromVM(ok).Bytes(), setup: func(w *world) {
			w.del("ct_est", port5)
		}, want: bpf.ReasonNoCt},
		"arp, other MAC inside": {in: arpFrom(mac6, addr5, "169.254.0.1"), want: bpf.ReasonSpoofedARP},
		"arp, other address":    {in: arpFrom(mac5, addr6, "169.254.0.1"), want: bpf.ReasonSpoofedARP},
		"arp, own address":      {in: packet.ARP(mac5, addr5, addr5), want: bpf.ReasonARPIgnored},
		"arp, duplicate probe":  {in: packet.ARP(mac5, "0.0.0.0", addr5), want: bpf.ReasonARPIgnored},
		"arp, an answer":        {in: packet.ARPReply(mac5, addr5, gatewayMAC, "169.254.0.1"), want: bpf.ReasonARPIgnored},
		"arp, short":            {in: packet.ARP(mac5, addr5, "169.254.0.1")[:30], want: bpf.ReasonMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if c.setup != nil {
				c.setup(w)
			}
			w.expect(moved{c.want: 1}, func() {
				if action, _, _ := w.tc("vm_in", c.in, skb{}); action != tcDrop {
					t.Fatalf("action %d", action)
				}
			})
		})
	}
}

// arpFrom is a question whose Ethernet source is the port's MAC, whatever it
// says inside.
func arpFrom(sender, ip, target string) []byte {
	b := packet.ARP(sender, ip, target)
	copy(b[6:12], packet.MAC(mac5))
	return b
}

// There is no L2 between VMs: every address is at the gateway's MAC.
func TestEveryAddressIsTheGateways(t *testing.T) {
	w := newWorld(t)
	for _, target := range []string{"169.254.0.1", addr6, "198.51.100.200"} {
		w.expect(moved{bpf.ReasonARPAnswered: 1}, func() {
			action, out, after := w.tc("vm_in", packet.ARP(mac5, addr5, target), skb{})
			if action != tcRedirect || after.Mark != bpf.GuardMark {
				t.Fatalf("action %d, mark %#x", action, after.Mark)
			}
			w.same("answer", out, packet.ARPReply(gatewayMAC, target, mac5, addr5))
		})
	}
}

func TestGuard(t *testing.T) {
	w := newWorld(t)
	in := toVM(packet.TCP(client, addr5+":8080").SYN(), mac5).Bytes()
	w.expect(moved{bpf.ReasonGuard: 1}, func() {
		if action, _, _ := w.tc("vm_guard", in, skb{}); action != tcDrop {
			t.Fatalf("action %d", action)
		}
	})
	w.expect(moved{bpf.ReasonGuard: 1}, func() {
		if action, _, _ := w.tc("vm_guard", in, skb{Mark: bpf.GuardMark + 1}); action != tcDrop {
			t.Fatalf("action %d", action)
		}
	})
	w.expect(moved{bpf.ReasonGuardAdmitted: 1}, func() {
		if action, _, _ := w.tc("vm_guard", in, skb{Mark: bpf.GuardMark}); action != tcNext {
			t.Fatalf("action %#x", action)
		}
	})
}

// A neighbour on the same host is judged at both ports.
func TestNeighbourOnTheSameHost(t *testing.T) {
	w := newWorld(t)
	syn := packet.TCP(addr5+":5555", addr6+":8080").SYN()
	w.expect(moved{bpf.ReasonPolicyIn: 1}, func() {
		if action, _, _ := w.tc("vm_in", fromVM(syn).Bytes(), skb{}); action != tcDrop {
			t.Fatalf("action %d", action)
		}
	})
	r := web
	r.policy, r.cidr = 501, addr5+"/32"
	w.admit(r)
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		action, out, after := w.tc("vm_in", fromVM(syn).Bytes(), skb{})
		if action != tcRedirect || after.Mark != bpf.GuardMark {
			t.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		w.same("delivered", out, toVM(syn.TTL(63), mac6).Bytes())
	})
	if f, ok := w.flow(port5, flowKey(packet.ProtoTCP, addr6+":8080", addr5+":5555")); !ok || f.Direction != uint8(bpf.DirectionOut) {
		t.Errorf("sender's flow %+v, %v", f, ok)
	}
	if f, ok := w.flow(port6, flowKey(packet.ProtoTCP, addr5+":5555", addr6+":8080")); !ok || f.Direction != uint8(bpf.DirectionIn) {
		t.Errorf("receiver's flow %+v, %v", f, ok)
	}
}

// Health checks come through the door: no rule admits them, none is needed, and
// nobody else may look like them.
func TestDoor(t *testing.T) {
	w := newWorld(t)
	syn := packet.TCP(probe+":40000", addr5+":8080").SYN()
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		action, out, after := w.tc("svc_in", syn.MACs(doorMAC, uplinkMAC).Bytes(), skb{})
		if action != tcRedirect || after.Mark != bpf.GuardMark {
			t.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		w.same("probe", out, toVM(syn, mac5).Bytes())
	})
	key := flowKey(packet.ProtoTCP, probe+":40000", addr5+":8080")
	if f, ok := w.flow(port5, key); !ok || f.Flags&bpf.CtHost == 0 {
		t.Fatalf("flow %+v, %v", f, ok)
	}
	answer := syn.Reply().SYN().ACK()
	w.expect(moved{bpf.ReasonToDoor: 1}, func() {
		action, out, _ := w.tc("vm_in", fromVM(answer).Bytes(), skb{})
		if action != tcRedirect {
			t.Fatalf("action %d", action)
		}
		w.same("answer", out, answer.TTL(63).MACs(gatewayMAC, doorMAC).Bytes())
	})
	// A change of policy does not concern it.
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Generation++ })
	w.expect(moved{bpf.ReasonToDoor: 1}, func() {
		w.tc("vm_in", fromVM(answer).Bytes(), skb{})
	})
	for name, c := range map[string]struct {
		p    packet.Packet
		want bpf.Reason
	}{
		"not the probe's address": {syn.From("169.254.169.254:1"), bpf.ReasonBadSource},
		"not a port":              {syn.To(client), bpf.ReasonNoPort},
		"fragment":                {syn.Payload(make([]byte, 4)).Fragment(true, 0), bpf.ReasonFragment},
		"arp":                     {syn.EtherType(packet.TypeARP), bpf.ReasonNotIP},
	} {
		t.Run(name, func(t *testing.T) {
			w.expect(moved{c.want: 1}, func() {
				if action, _, _ := w.tc("svc_in", c.p.Bytes(), skb{}); action != tcDrop {
					t.Fatalf("action %d", action)
				}
			})
		})
	}
}
