// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

const (
	own  = addr5 + ":5555"        // an instance behind the VIP, as a client of it
	seen = "169.254.169.252:5555" // what it sees itself at
	self = addr5 + ":8080"        // and the same one as a backend
)

// newHairpin is a world in which the instance at port 5 may be asked by itself.
func newHairpin(t *testing.T, proto uint8) *world {
	w := newWorld(t)
	rule := web
	rule.proto, rule.cidr = uint32(proto), addr5+"/32"
	w.admit(rule)
	w.owners(backend12, 0)
	return w
}

// back wants a packet of the backend to itself come back from the VIP, through both flows.
func (w *world) back(p, want packet.Packet) {
	w.Helper()
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		action, out, after := w.tc("vm_in", fromVM(p).Bytes(), skb{})
		if action != tcRedirect || after.Mark != bpf.GuardMark {
			w.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		w.same("back", out, toVM(want, mac5).TTL(63).Bytes())
	})
}

// A whole connection of an instance to itself, through its own VIP: out, to the LB
// node (here the same host), in, and the answers.
func TestHairpin(t *testing.T) {
	w := newHairpin(t, packet.ProtoTCP)
	call, at := packet.TCP(own, vip), packet.TCP(seen, self)
	answer, fromVIP := packet.TCP(own, self).Reply(), packet.TCP(own, vip).Reply()
	hash := hashOf(own, vip, packet.ProtoTCP, 0)
	asks := func(change func(packet.Packet) packet.Packet) {
		t.Helper()
		w.out(change(call), change(call).TTL(63))
		w.expect(moved{bpf.ReasonDelivered: 1}, func() {
			_, out := w.xdp(fromRouter(change(call)).Bytes())
			w.same("noted", out, append(note(tcpIndex, backend12, hash), fromRouter(change(call).To(self)).Bytes()...))
		})
		w.expect(moved{bpf.ReasonToPort: 1}, func() {
			_, out, _ := w.tc("uplink_in", fromRouter(change(call).To(self)).Bytes(), noted(tcpIndex, backend12, hash))
			w.same("delivered", out, toVM(change(at), mac5).Bytes())
		})
	}
	answers := func(change func(packet.Packet) packet.Packet) {
		t.Helper()
		w.back(change(answer.To(seen)), change(fromVIP))
	}
	asks(func(p packet.Packet) packet.Packet { return p.SYN().Sequence(100).TCPOptions(mss(1460)) })
	answers(func(p packet.Packet) packet.Packet {
		return p.SYN().ACK().Sequence(500).Acknowledge(101).TCPOptions(mss(1460))
	})
	asks(func(p packet.Packet) packet.Packet {
		return p.ACK().Sequence(101).Acknowledge(501).Payload([]byte("hello"))
	})
	answers(func(p packet.Packet) packet.Packet {
		return p.ACK().Sequence(501).Acknowledge(106).Payload([]byte("self"))
	})

	// Both flows are there: the service's, and the client side's own.
	f, ok := w.flow(port5, flowKey(packet.ProtoTCP, seen, self))
	if !ok || f.Service != tcpService || f.Direction != uint8(bpf.DirectionIn) || f.State != bpf.CtEstablished {
		t.Errorf("the service's flow: %+v, %v", f, ok)
	}
	f, ok = w.flow(port5, flowKey(packet.ProtoTCP, vip, own))
	if !ok || f.Service != 0 || f.Direction != uint8(bpf.DirectionOut) || f.State != bpf.CtEstablished {
		t.Errorf("the client's flow: %+v, %v", f, ok)
	}
	w.connected(bpf.ConnStat{Opened: 1})

	// XDP knows the flow, too: it does not hand it on.
	w.owners(backend12, backend11)
	w.expect(moved{bpf.ReasonDelivered: 1}, func() { w.xdp(fromRouter(call.ACK()).Bytes()) })
	w.expect(moved{bpf.ReasonForwarded: 1}, func() { w.xdp(fromRouter(packet.TCP(addr5+":5556", vip).ACK()).Bytes()) })
}

func TestHairpinOfDatagrams(t *testing.T) {
	w := newHairpin(t, packet.ProtoUDP)
	n := noted(udpIndex, backend12, 1)
	for _, p := range []packet.Packet{packet.UDP(own, self).Payload([]byte("q")), packet.UDP(own, self).NoChecksum()} {
		w.out(p.To(vip), p.To(vip).TTL(63))
		w.expect(moved{bpf.ReasonToPort: 1}, func() {
			_, out, _ := w.tc("uplink_in", fromRouter(p).Bytes(), n)
			w.same("delivered", out, toVM(p.From(seen), mac5).Bytes())
		})
		w.back(p.Reply().To(seen), p.To(vip).Reply())
	}
}

// The group is asked about the instance's own address, not about the one that the
// instance sees.
func TestHairpinNeedsARule(t *testing.T) {
	w := newHairpin(t, packet.ProtoTCP)
	in := packet.TCP(own, self)
	w.edit(port5, func(pc *bpf.PortCfg) { pc.PolicyIn = 999 })
	w.refused(in.SYN(), throughVIP, bpf.ReasonPolicyIn)
	other := web
	other.policy, other.cidr = 999, "169.254.0.0/16"
	w.admit(other)
	w.refused(in.SYN(), throughVIP, bpf.ReasonPolicyIn)
	w.edit(port5, func(pc *bpf.PortCfg) { pc.PolicyIn = web.policy })
	w.expect(moved{bpf.ReasonToPort: 1}, func() { w.tc("uplink_in", fromRouter(in.SYN()).Bytes(), throughVIP) })
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Generation++; pc.PolicyIn = 999 })
	w.refused(in.ACK(), throughVIP, bpf.ReasonPolicyIn) // and so when it is asked again
}

// Two connections of one port, to two services of the same instance.
func TestHairpinsOfOneTuple(t *testing.T) {
	w := newHairpin(t, packet.ProtoTCP)
	ways := newEntrances(w, packet.ProtoTCP)
	for i, way := range ways[:2] {
		w.out(packet.TCP(own, way.via).SYN(), packet.TCP(own, way.via).SYN().TTL(63))
		why, as := bpf.ReasonToPort, seen
		if i > 0 {
			why = bpf.ReasonToPortTranslated
			f := balanced(30, bpf.CtEstablished) // the first one is under way
			f.Vip, f.VipPort = flowKey(packet.ProtoTCP, own, ways[0].via).Own, bpf.BE16(81)
			w.remember(port5, flowKey(packet.ProtoTCP, seen, self), f)
		}
		w.expect(moved{why: 1}, func() {
			_, out, _ := w.tc("uplink_in", fromRouter(packet.TCP(own, self).SYN()).Bytes(), way.ctx)
			if i > 0 {
				as = fmt.Sprintf("169.254.169.252:%d", binary.BigEndian.Uint16(out[34:]))
			}
			w.same(way.name, out, toVM(packet.TCP(as, self).SYN(), mac5).Bytes())
		})
		w.back(packet.TCP(as, self).Reply().SYN().ACK().Acknowledge(1), packet.TCP(own, way.via).Reply().SYN().ACK().Acknowledge(1))
	}
}

// To that address an instance can only answer, and nobody else has it.
func TestTheHairpinsAddressIsNobodys(t *testing.T) {
	w := newHairpin(t, packet.ProtoTCP)
	dropped := func(p packet.Packet, why bpf.Reason) {
		t.Helper()
		w.dropped("vm_in", fromVM(p).Bytes(), why)
	}
	dropped(packet.TCP(own, seen).SYN(), bpf.ReasonNoDoorFlow)
	dropped(packet.TCP(self, seen).ACK(), bpf.ReasonNoDoorFlow)
	dropped(packet.UDP(own, seen).Payload(make([]byte, 16)).Fragment(true, 0), bpf.ReasonFragment)
	dropped(packet.TCP("169.254.169.252:1", client).SYN(), bpf.ReasonSpoofedIP)
	w.refused(packet.TCP("169.254.169.252:1", self).SYN(), skb{}, bpf.ReasonBadSource)
	w.refused(packet.TCP("169.254.169.252:1", self).SYN(), throughVIP, bpf.ReasonBadSource)
	w.refused(packet.UDP(own, self).Payload(make([]byte, 16)).Fragment(true, 0), noted(udpIndex, backend12, 1), bpf.ReasonFragment)
	w.expect(moved{bpf.ReasonBadSource: 1}, func() { w.xdp(fromRouter(packet.TCP("169.254.169.252:1", vip).SYN()).Bytes()) })
}

// Where the VIP chooses another instance than the one that asks, both see each other
// as any two do: on one host, and on two.
func TestVMThroughItsVIPToAnother(t *testing.T) {
	w := newHairpin(t, packet.ProtoTCP)
	rule := web
	rule.policy, rule.cidr = 501, addr5+"/32"
	w.admit(rule)
	w.owners(backend13, 0)
	call, there := packet.TCP(own, vip), packet.TCP(own, addr6+":8080")
	w.out(call.SYN(), call.SYN().TTL(63))
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		_, out, _ := w.tc("uplink_in", fromRouter(there.SYN()).Bytes(), noted(tcpIndex, backend13, 1))
		w.same("delivered", out, toVM(there.SYN(), mac6).Bytes())
	})
	w.put("ifindex_port", uint32(loopback), port6)
	answer := there.Reply().SYN().ACK().Acknowledge(1)
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		_, out, _ := w.tc("vm_in", answer.MACs(mac6, gatewayMAC).Bytes(), skb{})
		w.same("answer", out, toVM(call.Reply().SYN().ACK().Acknowledge(1), mac5).TTL(63).Bytes())
	})
	w.into(call.Reply().ACK().Acknowledge(1), skb{}) // and from another host
}

func TestHairpinOverIPv6(t *testing.T) {
	const own6, seen6, self6 = "[" + addr5v6 + "]:5555", "[fe80::a9fe:a9fc]:5555", "[" + addr5v6 + "]:8080"
	w := newWorld(t)
	rule := web
	rule.cidr = addr5v6 + "/128"
	w.admit(rule)
	w.owners(backend12, 0)
	call, n := packet.TCP(own6, vip6), noted(tcpIndex6, backend12, 1)
	w.out(call.SYN(), call.SYN().TTL(63))
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		_, out, _ := w.tc("uplink_in", fromRouter(call.To(self6).SYN()).Bytes(), n)
		w.same("delivered", out, toVM(packet.TCP(seen6, self6).SYN(), mac5).Bytes())
	})
	w.back(packet.TCP(seen6, self6).Reply().SYN().ACK().Acknowledge(1), call.Reply().SYN().ACK().Acknowledge(1))
	w.dropped("vm_in", fromVM(packet.TCP(own6, seen6).SYN()).Bytes(), bpf.ReasonNoDoorFlow)
	// The VM asks where that address is, and is told, as of any other.
	w.expect(moved{bpf.ReasonNDAnswered: 1}, func() {
		w.tc("vm_in", packet.Solicitation(mac5, addr5v6, "fe80::a9fe:a9fc").MACs(mac5, "33:33:ff:fe:a9:fc").Bytes(), skb{})
	})
}
