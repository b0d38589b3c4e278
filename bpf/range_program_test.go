// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"net/netip"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// allow gives a port a range to speak for; active ranges come to it, too.
func (w *world) allow(port uint32, ranges ...string) {
	w.Helper()
	for _, s := range ranges {
		p := netip.MustParsePrefix(s)
		w.put("addr_allow", bpf.AllowKey{Bits: bpf.PrefixBits(p, 32), Port: port, Ip: bpf.IP16(p.Addr())}, uint32(0))
	}
}

func (w *world) activate(port uint32, ranges ...string) {
	w.Helper()
	for _, s := range ranges {
		w.put("addr_net", prefix(s), port)
	}
}

const range4, range6 = "198.51.100.64/28", "2001:db8:5:1::/96"

// A port speaks for the ranges that it was given, and is reached at those that
// are active: both directions are one flow, for each address another.
func TestARangeOfAddresses(t *testing.T) {
	w := newWorld(t)
	w.allow(port5, range4, range6)
	w.activate(port5, range4, range6)
	w.admit(web)
	six := web
	six.cidr, six.proto = "2001:db8:9::/64", packet.ProtoUDP
	w.admit(six)
	for _, own := range []string{"198.51.100.64", "198.51.100.79"} {
		syn := packet.TCP(client, own+":8080").SYN()
		w.into(syn, skb{})
		w.out(syn.Reply().SYN().ACK(), syn.Reply().SYN().ACK().TTL(63))
		if f, ok := w.flow(port5, flowKey(packet.ProtoTCP, client, own+":8080")); !ok || f.Packets != 2 || f.Rule != 42 {
			t.Errorf("%s: flow %+v, %v", own, f, ok)
		}
	}
	for _, own := range []string{"2001:db8:5:1::", "2001:db8:5:1::ffff:ffff"} {
		asks := packet.UDP(client6, "["+own+"]:8080")
		w.into(asks, skb{})
		w.out(asks.Reply(), asks.Reply().TTL(63))
	}
	w.out(packet.UDP("198.51.100.70:1", client), packet.UDP("198.51.100.70:1", client).TTL(63))
	w.into(packet.UDP(client, "198.51.100.70:1"), skb{}) // the answer

	for _, near := range []string{"198.51.100.63", "198.51.100.80"} {
		w.dropped("vm_in", fromVM(packet.UDP(near+":1", client)).Bytes(), bpf.ReasonSpoofedIP)
		w.refused(packet.TCP(client, near+":8080").SYN(), skb{}, bpf.ReasonNoPort)
	}
	for _, near := range []string{"2001:db8:5:1:0:1::", "2001:db8:5:0:ffff:ffff:ffff:ffff"} {
		w.dropped("vm_in", fromVM(packet.UDP("["+near+"]:1", client6)).Bytes(), bpf.ReasonSpoofedIP)
		w.refused(packet.UDP(client6, "["+near+"]:8080"), skb{}, bpf.ReasonNoPort)
	}
}

// An address of its own stands before a range, and a smaller range before a
// larger one; a range that is allowed and not active comes to nobody.
func TestTheNarrowestRangeWins(t *testing.T) {
	w := newWorld(t)
	w.allow(port5, range4, "198.51.100.96/28")
	w.activate(port5, range4)
	w.activate(port6, "198.51.100.72/29")
	w.address(port6, "198.51.100.65")
	w.admit(web)
	w.into(packet.TCP(client, "198.51.100.71:8080").SYN(), skb{})
	for _, others := range []string{"198.51.100.72", "198.51.100.79", "198.51.100.65"} {
		w.refused(packet.TCP(client, others+":8080").SYN(), skb{}, bpf.ReasonPolicyIn) // port 6 has no rule
	}
	w.refused(packet.TCP(client, "198.51.100.96:8080").SYN(), skb{}, bpf.ReasonNoPort)
	w.out(packet.UDP("198.51.100.96:1", client), packet.UDP("198.51.100.96:1", client).TTL(63))

	// Taken away, the next packet of a flow is a lie or nobody's.
	w.del("addr_net", prefix(range4))
	w.refused(packet.TCP(client, "198.51.100.71:8080").SYN(), skb{}, bpf.ReasonNoPort)
	w.del("addr_allow", bpf.AllowKey{Bits: bpf.PrefixBits(netip.MustParsePrefix(range4), 32), Port: port5, Ip: ip16("198.51.100.64")})
	w.dropped("vm_in", fromVM(packet.TCP("198.51.100.71:8080", client).SYN().ACK()).Bytes(), bpf.ReasonSpoofedIP)
}

// No range holds what only the host's own services have.
func TestARangeHoldsNoAddressOfTheHost(t *testing.T) {
	w := newWorld(t)
	w.allow(port5, "0.0.0.0/0", "8000::/1")
	w.out(packet.UDP("9.9.9.9:1", client), packet.UDP("9.9.9.9:1", client).TTL(63))
	for _, src := range []string{probe, "169.254.169.254", "198.18.0.6", "127.0.0.1", "224.0.0.1", "0.1.2.3"} {
		w.dropped("vm_in", fromVM(packet.UDP(src+":1", client)).Bytes(), bpf.ReasonBadSource)
	}
	for _, src := range []string{"fe80::1", "ff02::1"} {
		w.dropped("vm_in", fromVM(packet.UDP("["+src+"]:1", client6)).Bytes(), bpf.ReasonBadSource)
	}
}

// In a private network a port speaks for its ranges, too: IP and ARP.
func TestARangeInAPrivateNetwork(t *testing.T) {
	w := newSegments(t, port20)
	p := packet.UDP("10.0.1.9:1", ip21+":2").MACs(mac20, mac21)
	ask := packet.ARP(mac20, "10.0.1.9", ip21)
	w.dropped("vm_in", p.Bytes(), bpf.ReasonSpoofedIP)
	w.dropped("vm_in", ask, bpf.ReasonSpoofedARP)
	w.allow(port20, "10.0.1.0/28")
	w.sends(p.Bytes(), bpf.ReasonToPort, bpf.GuardMark)
	w.sends(ask, bpf.ReasonARPAnswered, bpf.GuardMark)
	w.dropped("vm_in", p.From("10.0.1.16:1").Bytes(), bpf.ReasonSpoofedIP)
	w.dropped("vm_in", packet.ARP(mac20, "10.0.1.16", ip21), bpf.ReasonSpoofedARP)
	w.put("ifindex_port", uint32(loopback), port21) // it is no other port's
	w.dropped("vm_in", packet.UDP("10.0.1.9:1", ip20+":2").MACs(mac21, mac20).Bytes(), bpf.ReasonSpoofedIP)
}
