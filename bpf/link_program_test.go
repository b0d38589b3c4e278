// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

const link5 = "fe80::5:5" // what port 5's VM calls itself on the link

// dropped runs a program and wants the frame dropped for a reason.
func (w *world) dropped(prog string, in []byte, why bpf.Reason) {
	w.Helper()
	w.expect(moved{why: 1}, func() {
		w.Helper()
		if action, _, _ := w.tc(prog, in, skb{}); action != tcDrop {
			w.Fatalf("action %d", action)
		}
	})
}

// There is no L2 between VMs: every IPv6 address, too, is at the gateway's MAC.
func TestEveryIPv6AddressIsTheGateways(t *testing.T) {
	w := newWorld(t)
	for name, in := range map[string]packet.Packet{
		"the gateway":        packet.Solicitation(mac5, link5, "fe80::1"),
		"from an own one":    packet.Solicitation(mac5, addr5v6, "fe80::1"),
		"a neighbour":        packet.Solicitation(mac5, addr5v6, addr6v6),
		"another link-local": packet.Solicitation(mac5, link5, "fe80::77"),
	} {
		target := map[string]string{"a neighbour": addr6v6, "another link-local": "fe80::77"}[name]
		if target == "" {
			target = "fe80::1"
		}
		src := link5
		if name != "the gateway" && name != "another link-local" {
			src = addr5v6
		}
		w.expect(moved{bpf.ReasonNDAnswered: 1}, func() {
			action, out, after := w.tc("vm_in", fromVM(in).Bytes(), skb{})
			if action != tcRedirect || after.Mark != bpf.GuardMark {
				t.Fatalf("%s: action %d, mark %#x", name, action, after.Mark)
			}
			w.same(name, out, toVM(packet.Advertisement(gatewayMAC, target, src, target, 0xe0), mac5).Bytes())
		})
	}
}

// A question without the asker's MAC is a probe of reachability; the answer is
// longer.
func TestSolicitationWithoutItsMACIsAnswered(t *testing.T) {
	w := newWorld(t)
	in := packet.Solicitation(mac5, link5, "fe80::1")
	bare := fromVM(packet.ICMPError(link5, "fe80::1", packet.NeighbourSolicitation, 0, 0, in.IP()[48:64]).TTL(255))
	w.expect(moved{bpf.ReasonNDAnswered: 1}, func() {
		_, out, _ := w.tc("vm_in", bare.Bytes(), skb{})
		w.same("answer", out, toVM(packet.Advertisement(gatewayMAC, "fe80::1", link5, "fe80::1", 0xe0), mac5).Bytes())
	})
}

func TestVMSpeaksOnItsLinkOnlyAsItself(t *testing.T) {
	w := newWorld(t)
	ask := packet.Solicitation(mac5, link5, "fe80::1")
	udp := func(src, dst string) packet.Packet { return packet.UDP(src, dst).Payload(make([]byte, 244)) }
	for name, c := range map[string]struct {
		p    packet.Packet
		want bpf.Reason
	}{
		"duplicate of an own address":    {packet.Solicitation(mac5, "::", addr5v6), bpf.ReasonNDIgnored},
		"duplicate of another's":         {packet.Solicitation(mac5, "::", addr6v6), bpf.ReasonNDIgnored},
		"asks for itself":                {packet.Solicitation(mac5, link5, addr5v6), bpf.ReasonNDIgnored},
		"asks as another":                {packet.Solicitation(mac5, addr6v6, "fe80::1"), bpf.ReasonSpoofedND},
		"asks with another's MAC":        {packet.Solicitation(mac6, link5, "fe80::1"), bpf.ReasonSpoofedND},
		"asks for a group":               {packet.Solicitation(mac5, link5, "ff02::1"), bpf.ReasonSpoofedND},
		"asks from afar":                 {ask.TTL(254), bpf.ReasonSpoofedND},
		"asks with a code":               {ask.ICMP(packet.NeighbourSolicitation, 1), bpf.ReasonSpoofedND},
		"asks behind an extension":       {ask.Extensions(packet.Extension{Proto: packet.ProtoDestination, Body: make([]byte, 6)}), bpf.ReasonSpoofedND},
		"asks in a fragment":             {ask.Split(24)[0], bpf.ReasonSpoofedND},
		"asks for half an address":       {packet.ICMPError(link5, "fe80::1", packet.NeighbourSolicitation, 0, 0, make([]byte, 8)).TTL(255), bpf.ReasonMalformed},
		"advertises itself":              {packet.Advertisement(mac5, addr5v6, "ff02::1", addr5v6, 0x20), bpf.ReasonNDIgnored},
		"advertises its link-local":      {packet.Advertisement(mac5, link5, "fe80::1", link5, 0x60), bpf.ReasonNDIgnored},
		"advertises another":             {packet.Advertisement(mac5, addr5v6, "ff02::1", addr6v6, 0x20), bpf.ReasonSpoofedND},
		"advertises as another":          {packet.Advertisement(mac5, addr6v6, "ff02::1", addr6v6, 0x20), bpf.ReasonSpoofedND},
		"advertises another's MAC":       {packet.Advertisement(mac6, addr5v6, "ff02::1", addr5v6, 0x20), bpf.ReasonSpoofedND},
		"redirects":                      {packet.Router(packet.Redirect, link5, "fe80::1"), bpf.ReasonSpoofedND},
		"would be a router":              {packet.Router(packet.RouterAdvertisement, link5, "ff02::1"), bpf.ReasonRogueRA},
		"the same, behind an extension":  {packet.Router(packet.RouterAdvertisement, link5, "ff02::1").Extensions(packet.Extension{Proto: packet.ProtoHopByHop, Body: make([]byte, 6)}), bpf.ReasonRogueRA},
		"the same, in a fragment":        {packet.Router(packet.RouterAdvertisement, link5, "ff02::1").Split(8)[0], bpf.ReasonRogueRA},
		"looks for a router":             {packet.Router(packet.RouterSolicitation, link5, "ff02::2"), bpf.ReasonPunted},
		"looks for a router as another":  {packet.Router(packet.RouterSolicitation, addr6v6, "ff02::2"), bpf.ReasonSpoofedND},
		"asks for a lease":               {udp("0.0.0.0:68", "255.255.255.255:67"), bpf.ReasonPunted},
		"renews a lease":                 {udp(addr5+":68", "169.254.0.1:67"), bpf.ReasonPunted},
		"renews another's lease":         {udp(addr6+":68", "169.254.0.1:67"), bpf.ReasonSpoofedIP},
		"asks for a lease in a fragment": {udp("0.0.0.0:68", "255.255.255.255:67").Split(64)[0], bpf.ReasonFragment},
		"would be a DHCP server":         {udp(addr5+":67", "255.255.255.255:68"), bpf.ReasonRogueDHCP},
		"the same, to another host":      {udp(addr5+":67", "192.0.2.9:68"), bpf.ReasonRogueDHCP},
		"the same, fragmented":           {udp(addr5+":67", "255.255.255.255:68").Split(64)[0], bpf.ReasonRogueDHCP},
		"asks for a lease of IPv6":       {udp("["+link5+"]:546", "[ff02::1:2]:547"), bpf.ReasonPunted},
		"asks for a lease as another":    {udp("["+addr6v6+"]:546", "[ff02::1:2]:547"), bpf.ReasonSpoofedIP},
		"would be a DHCPv6 server":       {udp("["+link5+"]:547", "[ff02::1]:546"), bpf.ReasonRogueDHCP6},
		"speaks from its link beyond it": {packet.UDP("["+link5+"]:1", client6), bpf.ReasonSpoofedIP},
		"speaks to another's link-local": {packet.UDP("["+addr5v6+"]:1", "[fe80::1]:1"), bpf.ReasonBadDestination},
		"speaks to a group":              {packet.UDP("["+addr5v6+"]:1", "[ff0e::1]:1"), bpf.ReasonBadDestination},
		"speaks to the loopback":         {packet.UDP("["+addr5v6+"]:1", "[::1]:1"), bpf.ReasonBadDestination},
		"speaks to the host":             {packet.UDP("["+addr5v6+"]:1", "[2001:db8:64::1]:1"), bpf.ReasonHostAddress},
	} {
		t.Run(name, func(t *testing.T) { w.dropped("vm_in", fromVM(c.p).Bytes(), c.want) })
	}
}

// No neighbour speaks to a port from the wire.
func TestNDFromTheWireIsIgnored(t *testing.T) {
	w := newWorld(t)
	for _, kind := range []uint8{packet.RouterAdvertisement, packet.NeighbourSolicitation, packet.NeighbourAdvertisement, packet.Redirect} {
		w.dropped("uplink_in", fromRouter(packet.Router(kind, "2001:db8:9::9", addr5v6)).Bytes(), bpf.ReasonNDIgnored)
	}
	w.dropped("uplink_in", fromRouter(packet.UDP("[fe80::9]:1", "["+addr5v6+"]:8080")).Bytes(), bpf.ReasonBadSource)
}

func TestIPv6InAndOut(t *testing.T) {
	w := newWorld(t)
	own := "[" + addr5v6 + "]:8080"
	syn := packet.TCP(client6, own).SYN()
	w.refused(syn, skb{}, bpf.ReasonPolicyIn)
	r := web
	r.cidr = "2001:db8:9::/48"
	w.admit(r)
	w.into(syn, skb{})
	w.into(packet.TCP(client6, own).ACK().Extensions(packet.Extension{Proto: packet.ProtoDestination, Body: make([]byte, 14)}), skb{})
	reply := syn.Reply().SYN().ACK()
	w.out(reply, reply.TTL(63))
	w.refused(packet.TCP("[2001:db8:a::9]:1234", own).SYN(), skb{}, bpf.ReasonPolicyIn)
	if f, ok := w.flow(port5, flowKey(packet.ProtoTCP, client6, own)); !ok || f.Rule != 42 {
		t.Errorf("flow %+v, %v", f, ok)
	}
	w.expect(moved{bpf.ReasonPolicyIn: 1}, func() {
		w.tc("vm_in", fromVM(packet.TCP("["+addr5v6+"]:1", "["+addr6v6+"]:8080").SYN()).Bytes(), skb{})
	})
}
