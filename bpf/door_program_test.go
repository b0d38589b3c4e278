// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"strconv"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

const metadata = "169.254.169.254:80"

// A guest that asks the metadata service: its device, its own address, and by
// which one the service knows it. Port 20 is of a managed private network, 30 and
// 31 of one whose addresses are the guests' own, all of them without a public one.
type guest struct {
	port                    uint32
	mac, own, known, second string
}

var (
	public5   = guest{port5, mac5, addr5 + ":1000", "198.18.0.5:1000", addr5 + ":1001"}
	private20 = guest{port20, mac20, ip20 + ":1000", "198.18.0.20:1000", ip20 + ":1001"}
	private30 = guest{port30, mac30, "10.9.9.9:1000", "198.18.0.30:1000", "10.9.9.9:1001"}
	private31 = guest{port31, mac31, "10.9.9.9:1000", "198.18.0.31:1000", "10.9.9.9:1001"} // the same address
)

// asks has the guest send to the metadata service, and wants it at the door with
// the guest's identity.
func (w *world) asks(g guest, p packet.Packet) {
	w.Helper()
	w.put("ifindex_port", uint32(loopback), g.port)
	w.expect(moved{bpf.ReasonToDoor: 1}, func() {
		w.Helper()
		action, out, after := w.tc("vm_in", p.MACs(g.mac, gatewayMAC).Bytes(), skb{Mark: 77})
		if action != tcRedirect || after.Mark != 0 {
			w.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		w.same("at the door", out, p.From(g.known).MACs(gatewayMAC, doorMAC).Bytes())
	})
}

// answered has the service answer, and wants it at the guest with its own address.
func (w *world) answered(g guest, p packet.Packet) {
	w.Helper()
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		w.Helper()
		action, out, after := w.tc("svc_in", p.To(g.known).MACs(doorMAC, uplinkMAC).Bytes(), skb{})
		if action != tcRedirect || after.Mark != bpf.GuardMark {
			w.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		w.same("at the guest", out, p.To(g.own).MACs(gatewayMAC, g.mac).Bytes())
	})
}

// at a port's device, vm_in drops.
func (w *world) keptIn(g guest, p packet.Packet, why bpf.Reason) {
	w.Helper()
	w.put("ifindex_port", uint32(loopback), g.port)
	w.dropped("vm_in", p.MACs(g.mac, gatewayMAC).Bytes(), why)
}

func (w *world) keptOut(p packet.Packet, why bpf.Reason) {
	w.Helper()
	w.dropped("svc_in", p.MACs(doorMAC, uplinkMAC).Bytes(), why)
}

// Every port has its way to the metadata service and back, whatever its network
// and its policy; guests with one address are two.
func TestTheMetadataDoor(t *testing.T) {
	for name, g := range map[string]guest{"public": public5, "private": private20, "unmanaged": private30, "the same address": private31} {
		t.Run(name, func(t *testing.T) {
			w := newSegments(t, g.port)
			w.edit(g.port, func(pc *bpf.PortCfg) { pc.Flags &^= bpf.PortEgressOpen; pc.PolicyIn, pc.PolicyOut = 0, 0 })
			for _, other := range []guest{private30, private31} { // they ask at the same time
				if other != g {
					w.asks(other, packet.TCP(other.own, metadata).SYN().Sequence(99))
				}
			}
			key := flowKey(packet.ProtoTCP, metadata, g.own)
			syn := packet.TCP(g.own, metadata).SYN().Sequence(99)
			w.asks(g, syn)
			if f, ok := w.flow(g.port, key); !ok || f.Flags&bpf.CtHost == 0 || f.State != bpf.CtNew || w.confirmed(g.port, key) {
				t.Errorf("flow %+v, %v", f, ok)
			}
			synAck := syn.Reply().SYN().ACK().Sequence(500).Acknowledge(100)
			w.answered(g, synAck)
			w.asks(g, packet.TCP(g.own, metadata).ACK().Sequence(100).Acknowledge(501).Payload([]byte("GET / HTTP/1.1\r\n\r\n")))
			if !w.confirmed(g.port, key) {
				t.Error("not confirmed")
			}
			w.answered(g, packet.TCP(metadata, g.own).ACK().Sequence(501).Acknowledge(118).Payload(make([]byte, 999)))
			// Nothing of the port's policy concerns it.
			w.edit(g.port, func(pc *bpf.PortCfg) { pc.Generation++ })
			w.asks(g, packet.TCP(g.own, metadata).FIN().ACK().Sequence(118).Acknowledge(1500))
			w.answered(g, packet.TCP(metadata, g.own).FIN().ACK().Sequence(1500).Acknowledge(119))
			if f, _ := w.flow(g.port, key); f.State != bpf.CtClosed || f.Packets != 6 {
				t.Errorf("flow %+v", f)
			}
			// The same again, from the same port of its own.
			w.asks(g, syn.Sequence(7000))
			w.answered(g, syn.Sequence(7000).Reply().SYN().ACK().Sequence(500).Acknowledge(7001))
		})
	}
}

// What is no answer to somebody who has asked stays outside, and nobody asks in
// another's name.
func TestOnlyAnswersComeThroughTheMetadataDoor(t *testing.T) {
	w := newSegments(t, port5)
	syn := packet.TCP(public5.own, metadata).SYN().Sequence(99)
	answer := packet.TCP(metadata, public5.known).SYN().ACK().Sequence(500).Acknowledge(100)
	w.keptOut(answer, bpf.ReasonDoorNoFlow)
	w.asks(public5, syn)
	for name, c := range map[string]struct {
		p   packet.Packet
		why bpf.Reason
	}{
		"to another port of the guest's": {answer.To("198.18.0.5:1001"), bpf.ReasonDoorNoFlow},
		"to another guest":               {answer.To("198.18.0.20:1000"), bpf.ReasonDoorNoFlow},
		"to a port that is not here":     {answer.To("198.18.0.7:1000"), bpf.ReasonDoorNobody},
		"to a port that cannot be":       {answer.To("198.19.255.255:1000"), bpf.ReasonDoorNobody},
		"to no port":                     {answer.To("198.18.0.0:1000"), bpf.ReasonDoorNobody},
		"to the guest's own address":     {answer.To(public5.own), bpf.ReasonBadSource},
		"to a client":                    {answer.To(client), bpf.ReasonBadSource},
		"from another port":              {answer.From("169.254.169.254:443"), bpf.ReasonDoorProtocol},
		"not TCP":                        {packet.UDP(metadata, public5.known), bpf.ReasonDoorProtocol},
		"a ping":                         {packet.Ping("169.254.169.254", "198.18.0.5", 1), bpf.ReasonDoorProtocol},
		"an error":                       {packet.ICMPError("169.254.169.254", "198.18.0.5", 3, 3, 0, syn.From(public5.known).IP()), bpf.ReasonDoorProtocol},
		"in pieces":                      {answer.Payload(make([]byte, 4)).Fragment(true, 0), bpf.ReasonFragment},
		"a forged reset":                 {packet.TCP(metadata, public5.known).RST().ACK().Sequence(1).Acknowledge(7), bpf.ReasonCtInvalidRST},
		"from nobody":                    {answer.From("169.254.169.252:80"), bpf.ReasonBadSource},
		"from an identity":               {answer.From("198.18.0.6:80"), bpf.ReasonBadSource},
	} {
		t.Run(name, func(t *testing.T) { w.of(t).keptOut(c.p, c.why) })
	}
	w.answered(public5, answer) // the control

	for name, c := range map[string]struct {
		from guest
		p    packet.Packet
		why  bpf.Reason
	}{
		"as a neighbour":            {public5, syn.From(addr6 + ":1000"), bpf.ReasonSpoofedIP},
		"as an identity":            {public5, syn.From("198.18.0.6:1000"), bpf.ReasonSpoofedIP},
		"as the service":            {public5, syn.From("169.254.169.254:1000"), bpf.ReasonSpoofedIP},
		"as a neighbour, private":   {private20, syn.From(ip21 + ":1000"), bpf.ReasonSpoofedIP},
		"as an identity, unmanaged": {private30, syn.From("198.18.0.31:1000"), bpf.ReasonBadSource},
		"as the probe, unmanaged":   {private30, syn.From(probe + ":1000"), bpf.ReasonBadSource},
		"another port of it":        {public5, syn.To("169.254.169.254:443"), bpf.ReasonDoorProtocol},
		"a ping":                    {public5, packet.Ping(addr5, "169.254.169.254", 1), bpf.ReasonDoorProtocol},
		"by UDP":                    {private20, packet.UDP(ip20+":1", metadata), bpf.ReasonDoorProtocol},
		"in pieces":                 {private20, syn.From(private20.own).Payload(make([]byte, 4)).Fragment(true, 0), bpf.ReasonFragment},
		"in the middle":             {public5, packet.TCP(public5.second, metadata).ACK(), bpf.ReasonNoDoorFlow},
		"in the middle, private":    {private20, packet.TCP(private20.second, metadata).ACK(), bpf.ReasonNoDoorFlow},
		"a neighbour's identity":    {public5, syn.To("198.18.0.6:80"), bpf.ReasonBadDestination},
		"another of the host's":     {public5, syn.To("169.254.169.251:80"), bpf.ReasonBadDestination},
		"itself, behind a VIP":      {public5, syn.To("169.254.169.252:80"), bpf.ReasonNoDoorFlow},
	} {
		t.Run(name, func(t *testing.T) { w.of(t).keptIn(c.from, c.p, c.why) })
	}
}

// The host's own addresses come from nowhere else: neither from the wire, nor from
// another host of a network, before any policy, even one that admits all.
func TestTheDoorsAddressesAreNobodyElses(t *testing.T) {
	w := newSegments(t, port20)
	all := rule{policy: 500, direction: bpf.DirectionIn, proto: packet.ProtoTCP, cidr: "0.0.0.0/0", lo: 1, hi: 65535, id: 1}
	w.admit(all)
	w.into(packet.TCP("192.0.2.77:80", addr5+":1000").SYN(), skb{}) // the control
	for _, src := range []string{metadata, probe + ":80", "169.254.0.1:80", "198.18.0.5:80", "198.19.255.255:80"} {
		w.refused(packet.TCP(src, addr5+":1000").SYN(), skb{}, bpf.ReasonBadSource)
		frame := packet.TCP(src, ip20+":1000").SYN().MACs(mac22, mac20).Bytes()
		w.expect(moved{bpf.ReasonBadSource: 1}, func() { w.tc("overlay_in", frame, arrived(managed, endpoint2)) })
		frame = packet.TCP(src, ip21+":1000").SYN().MACs(mac20, mac21).Bytes()
		w.dropped("vm_in", frame, bpf.ReasonBadSource)
	}
	w.refused(packet.TCP("[fe80::9]:80", "["+addr5v6+"]:1000").SYN(), skb{}, bpf.ReasonBadSource)
}

// The door is shut, or the port is gone.
func TestTheMetadataDoorIsShut(t *testing.T) {
	w := newSegments(t, port5)
	syn := packet.TCP(public5.own, metadata).SYN().Sequence(99)
	w.asks(public5, syn)
	var c bpf.Cfg
	must(t, w.maps["cfg"].Lookup(uint32(0), &c))
	c.Door = 0
	w.put("cfg", uint32(0), &c)
	w.keptIn(public5, syn, bpf.ReasonMetadataClosed)
	w.keptIn(private20, packet.TCP(private20.own, metadata).SYN(), bpf.ReasonMetadataClosed)
	answer := packet.TCP(metadata, public5.known).SYN().ACK().Sequence(500).Acknowledge(100)
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Ifindex = 0 })
	w.keptOut(answer, bpf.ReasonDoorNobody)
}

// In a private network the address is answered for, and what goes to a station of
// that network is the guests' own matter.
func TestMetadataByARP(t *testing.T) {
	w := newSegments(t, port30)
	ask := packet.ARP(mac30, "10.9.9.9", "169.254.169.254")
	w.expect(moved{bpf.ReasonFlooded: 1}, func() { w.tc("vm_in", ask, skb{}) }) // nobody has it yet
	w.put("neigh", bpf.NeighKey{Vni: unmanaged, Ip: ip16("169.254.169.254")}, bpf.Neigh{Mac: mac(gatewayMAC)})
	out := w.sends(ask, bpf.ReasonARPAnswered, bpf.GuardMark)
	w.same("answer", out, packet.ARPReply(gatewayMAC, "169.254.169.254", mac30, "10.9.9.9"))
	w.sends(packet.TCP(private30.own, metadata).SYN().MACs(mac30, mac31).Bytes(), bpf.ReasonToPort, bpf.GuardMark)
}

// Who asks without end pushes out only his own.
func TestMetadataFloodConfirmsNothing(t *testing.T) {
	w := newSegments(t, port5)
	for sport := range 3 * bpf.CtNewMax {
		p := packet.TCP(addr5+":"+strconv.Itoa(1000+sport), metadata).SYN()
		w.tc("vm_in", p.MACs(mac5, gatewayMAC).Bytes(), skb{})
	}
	confirmed := 0
	var key bpf.CtKey
	var f bpf.Ct
	for it := w.flows[port5].Iterate(); it.Next(&key, &f); {
		confirmed++
	}
	if confirmed != 0 {
		t.Errorf("%d flows that nobody has answered are confirmed", confirmed)
	}
}
