// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// tooBig runs a program with a frame and wants the sender told, by the way it came.
func (w *world) tooBig(prog string, p, answer packet.Packet, mark uint32) {
	w.Helper()
	w.expect(moved{bpf.ReasonTooBigAnswered: 1}, func() {
		w.Helper()
		action, out, after := w.tc(prog, p.Bytes(), skb{Mark: 77})
		if action != tcRedirect || after.Mark != mark {
			w.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		w.same("answer", out, answer.Bytes())
	})
}

// What comes from the network and is larger than the port takes: who may send it
// is told how much it takes, as from the instance, back to the router.
func TestTooLargeForTheInstance(t *testing.T) {
	w := newWorld(t)
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Mtu = 1400 })
	w.admit(web)
	six := web
	six.cidr, six.proto = "2001:db8:9::/64", packet.ProtoUDP
	w.admit(six)
	v4 := packet.TCP(client, addr5+":8080").SYN().Payload(make([]byte, 1361)).DF()
	answer4 := packet.ICMPError(addr5, "192.0.2.9", 3, 4, 1400, v4.IP()[:68]).MACs(uplinkMAC, routerMAC)
	w.tooBig("uplink_in", fromRouter(v4), answer4, 0)
	v6 := packet.UDP(client6, "["+addr5v6+"]:8080").Payload(make([]byte, 1353))
	answer6 := packet.ICMPError(addr5v6, "2001:db8:9::9", 2, 0, 1400, v6.IP()[:128]).MACs(uplinkMAC, routerMAC)
	w.tooBig("uplink_in", fromRouter(v6), answer6, 0)

	w.into(packet.TCP(client, addr5+":8080").SYN().Payload(make([]byte, 1360)).DF(), skb{}) // it just fits
	for name, c := range map[string]struct {
		p   packet.Packet
		ctx skb
		why bpf.Reason
	}{
		"that may be cut":       {p: packet.TCP(client, addr5+":8080").SYN().Payload(make([]byte, 1361)), why: bpf.ReasonOversize},
		"that no rule admits":   {p: packet.TCP(client, addr5+":8081").SYN().Payload(make([]byte, 1361)).DF(), why: bpf.ReasonPolicyIn},
		"that is balanced":      {p: packet.TCP(client, addr5+":8080").From("192.0.2.9:77").SYN().Payload(make([]byte, 1361)).DF(), ctx: noted(tcpIndex, backend12, 1), why: bpf.ReasonOversize},
		"an error":              {p: packet.ICMPError("192.0.2.1", addr5, 3, 1, 0, append(packet.TCP(addr5+":8080", client).IP(), make([]byte, 1400)...)).DF(), why: bpf.ReasonOversize},
		"an error about nobody": {p: packet.ICMPError("192.0.2.1", addr5, 3, 1, 0, append(packet.TCP(addr5+":8089", client).IP(), make([]byte, 1400)...)).DF(), why: bpf.ReasonICMPUnmatched},
	} {
		t.Run(name, func(t *testing.T) { w.of(t).refused(c.p, c.ctx, c.why) })
	}

	// A later fragment has no ports by which its sender would know what it is of;
	// the first one has.
	whole := packet.TCP(client, addr5+":8080").SYN().Payload(make([]byte, 1380))
	first := whole.Fragment(true, 0).DF()
	w.tooBig("uplink_in", fromRouter(first), packet.ICMPError(addr5, "192.0.2.9", 3, 4, 1400, first.IP()[:68]).MACs(uplinkMAC, routerMAC), 0)
	w.refused(packet.IP("192.0.2.9", addr5, packet.ProtoTCP, make([]byte, 1400)).Fragment(false, 175).DF(), skb{}, bpf.ReasonOversize)

	// Many packets in one skb: each of them counts, not all together.
	w.expect(moved{bpf.ReasonToPort: 2}, func() {
		w.tc("uplink_in", fromRouter(packet.TCP(client, addr5+":8080").SYN().Payload(make([]byte, 2000))).Bytes(), skb{GsoSize: 1000})
	})
}

// What an instance sends: it is told as from the one that it has asked for.
func TestTooLargeFromTheInstance(t *testing.T) {
	w := newWorld(t)
	v4 := packet.UDP(addr5+":1", client).Payload(make([]byte, 1473)).DF()
	w.tooBig("vm_in", fromVM(v4), packet.ICMPError("192.0.2.9", addr5, 3, 4, 1500, v4.IP()[:68]).MACs(gatewayMAC, mac5), bpf.GuardMark)
	v6 := packet.UDP("["+addr5v6+"]:1", client6).Payload(make([]byte, 1453))
	w.tooBig("vm_in", fromVM(v6), packet.ICMPError("2001:db8:9::9", addr5v6, 2, 0, 1500, v6.IP()[:128]).MACs(gatewayMAC, mac5), bpf.GuardMark)
	w.out(packet.UDP(addr5+":1", client).Payload(make([]byte, 1472)).DF(), packet.UDP(addr5+":1", client).Payload(make([]byte, 1472)).DF().TTL(63))

	for name, p := range map[string]struct {
		p   packet.Packet
		why bpf.Reason
	}{
		"that may be cut":    {packet.UDP(addr5+":1", client).Payload(make([]byte, 1473)), bpf.ReasonOversize},
		"an error":           {packet.ICMPError(addr5, "192.0.2.9", 3, 1, 0, make([]byte, 1600)).DF(), bpf.ReasonOversize},
		"a later fragment":   {packet.IP(addr5, "192.0.2.9", 17, make([]byte, 1600)).Fragment(false, 9).DF(), bpf.ReasonOversize},
		"of somebody else":   {packet.UDP(addr6+":1", client).Payload(make([]byte, 1473)).DF(), bpf.ReasonSpoofedIP},
		"to where none goes": {packet.UDP(addr5+":1", endpoint+":1").Payload(make([]byte, 1473)).DF(), bpf.ReasonHostAddress},
	} {
		t.Run(name, func(t *testing.T) { w.of(t).dropped("vm_in", fromVM(p.p).Bytes(), p.why) })
	}
}

// A neighbour on the same host takes less: the answer goes back to the port that
// has sent it, with the mark that lets it in.
func TestTooLargeForANeighbour(t *testing.T) {
	w := newWorld(t)
	w.edit(port6, func(pc *bpf.PortCfg) { pc.Mtu = 1300 })
	r := web
	r.policy, r.cidr = 501, addr5+"/32"
	w.admit(r)
	syn := packet.TCP(addr5+":5555", addr6+":8080").SYN().Payload(make([]byte, 1300)).DF()
	hopped := syn.TTL(63)
	w.tooBig("vm_in", fromVM(syn), packet.ICMPError(addr6, addr5, 3, 4, 1300, hopped.IP()[:68]).MACs(gatewayMAC, mac5), bpf.GuardMark)
}

// Twenty a second are answered, for each way of its own: who floods a port from
// outside keeps its instance from nothing.
func TestAnswersAboutSizeKeepTheirPace(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	in := fromRouter(packet.TCP(client, addr5+":8080").SYN().Payload(make([]byte, 1461)).DF()).Bytes()
	before := w.reasons()
	const many = 200
	for range many {
		w.tc("uplink_in", in, skb{})
	}
	after := w.reasons()
	answered, dropped := after[bpf.ReasonTooBigAnswered]-before[bpf.ReasonTooBigAnswered], after[bpf.ReasonOversize]-before[bpf.ReasonOversize]
	if answered+dropped != many || answered < 20 || answered > 60 {
		t.Errorf("%d answered, %d dropped", answered, dropped)
	}
	out := packet.UDP(addr5+":1", client).Payload(make([]byte, 1473)).DF()
	w.tooBig("vm_in", fromVM(out), packet.ICMPError("192.0.2.9", addr5, 3, 4, 1500, out.IP()[:68]).MACs(gatewayMAC, mac5), bpf.GuardMark)
}
