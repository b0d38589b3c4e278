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

var (
	target6 = "[" + addr5v6 + "]:8080"
	probe6  = "[fe80::a9fe:a9fd]:40000"
	web6    = rule{policy: 500, direction: bpf.DirectionIn, proto: packet.ProtoTCP, cidr: "2001:db8:9::/48", lo: 8080, hi: 8080, bit: 3, id: 42}
)

// A connection to a VIP of IPv6 at its port: the group sees the client's own
// address, the client sees the VIP alone.
func TestBalancedConnectionOfIPv6(t *testing.T) {
	w := newWorld(t)
	w.admit(web6)
	in := packet.TCP(client6, target6)
	reply, fromVIP := in.Reply(), packet.TCP(client6, vip6).Reply().TTL(63)
	n := noted(tcpIndex6, backend12, 0xabcdef)
	w.into(in.SYN().Sequence(100), n)
	w.out(reply.SYN().ACK().Sequence(500).Acknowledge(101), fromVIP.SYN().ACK().Sequence(500).Acknowledge(101))
	w.into(in.ACK().Sequence(101).Acknowledge(501), n)
	key := flowKey(packet.ProtoTCP, client6, target6)
	if !w.confirmed(port5, key) {
		t.Error("the third packet has not confirmed the flow")
	}
	hello := []byte("hello")
	w.out(reply.ACK().Sequence(501).Acknowledge(101).Payload(hello), fromVIP.ACK().Sequence(501).Acknowledge(101).Payload(hello))
	// What stands between the headers stays there.
	w.out(reply.ACK().Sequence(506).Acknowledge(101).Extensions(destination), fromVIP.ACK().Sequence(506).Acknowledge(101).Extensions(destination))
	f, _ := w.flow(port5, key)
	if f.Service != tcpService6 || f.Backend != backend12 || f.Hash != 0xabcdef || f.Vip != ip16(vip6Addr) ||
		f.VipPort != bpf.BE16(80) || f.PeerPort != bpf.BE16(1234) || f.Rule != 42 || f.Packets != 5 {
		t.Errorf("flow %+v", f)
	}
}

func TestBalancedDatagramsOfIPv6(t *testing.T) {
	w := newWorld(t)
	udp := web6
	udp.proto = packet.ProtoUDP
	w.admit(udp)
	in := packet.UDP(client6, target6).Payload([]byte("q"))
	w.into(in, noted(udpIndex6, backend12, 1))
	fromVIP := packet.UDP(client6, vip6).Reply().TTL(63)
	w.out(in.Reply().Payload([]byte("answer")), fromVIP.Payload([]byte("answer")))
	// A datagram in fragments: each of them is the VIP's.
	whole, want := in.Reply().Payload(make([]byte, 64)).ID(7), fromVIP.Payload(make([]byte, 64)).ID(7)
	for i, f := range whole.Split(48) {
		w.out(f, want.Split(48)[i])
	}
}

func TestBalancedConnectionOfIPv6NeedsARule(t *testing.T) {
	w := newWorld(t)
	w.admit(web) // of IPv4
	w.refused(packet.TCP(client6, target6).SYN(), noted(tcpIndex6, backend12, 1), bpf.ReasonPolicyIn)
	w.refused(packet.TCP("[fe80::9]:1", target6).SYN(), noted(tcpIndex6, backend12, 1), bpf.ReasonBadSource)
}

func TestResetOfAnUnknownFlowOfIPv6ComesFromTheVIP(t *testing.T) {
	w := newWorld(t)
	w.admit(web6)
	w.into(packet.TCP(client6, target6).ACK(), noted(tcpIndex6, backend12, 1))
	w.out(packet.TCP(client6, target6).Reply().RST(), packet.TCP(client6, vip6).Reply().RST().TTL(63))
}

// Two services of IPv6 give a client one tuple: the VM sees another port, the
// client its own.
func TestTupleOfALiveFlowOfIPv6IsTranslated(t *testing.T) {
	w := newWorld(t)
	w.admit(web6)
	key := flowKey(packet.ProtoTCP, client6, target6)
	other := families[1].balanced(99, bpf.CtEstablished)
	w.remember(port5, key, other)
	in, n := packet.TCP(client6, target6), noted(tcpIndex6, backend12, 1)
	var seen string
	w.expect(moved{bpf.ReasonToPortTranslated: 1}, func() {
		_, out, _ := w.tc("uplink_in", fromRouter(in.SYN()).Bytes(), n)
		seen = fmt.Sprintf("[2001:db8:9::9]:%d", binary.BigEndian.Uint16(out[54:]))
		w.same("delivered", out, toVM(in.SYN().From(seen), mac5).Bytes())
	})
	w.out(packet.TCP(seen, target6).Reply().ACK(), packet.TCP(client6, vip6).Reply().ACK().TTL(63))
	if f, _ := w.flow(port5, key); f != other {
		t.Errorf("the other flow became %+v", f)
	}
	// uplink knows it, too: it does not hand it on.
	w.owners(backend12, backend11)
	hash := hashOf(client6, vip6, packet.ProtoTCP, 0)
	w.expect(moved{bpf.ReasonDelivered: 1}, func() {
		_, out := w.xdp(tunnelFrom(mac5, packet.Tag{Other: backend11}).Wrap(fromRouter(packet.TCP(client6, vip6).ACK())))
		w.same("known", out, append(note(tcpIndex6, backend12, hash), fromRouter(in.ACK()).Bytes()...))
	})
}

// A health check of IPv6 comes through the door as one of IPv4 does.
func TestDoorOfIPv6(t *testing.T) {
	w := newWorld(t)
	syn := packet.TCP(probe6, target6).SYN()
	answer := syn.Reply().SYN().ACK()
	closed := func(name, prog string, frame []byte, why bpf.Reason) {
		t.Helper()
		w.expect(moved{why: 1}, func() {
			if action, _, _ := w.tc(prog, frame, skb{}); action != tcDrop {
				t.Fatalf("%s: action %d", name, action)
			}
		})
	}
	closed("an answer to nobody", "vm_in", fromVM(answer).Bytes(), bpf.ReasonNoDoorFlow)
	closed("a guest that asks the host", "vm_in", fromVM(syn.Reply().SYN()).Bytes(), bpf.ReasonNoDoorFlow)
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		action, out, after := w.tc("svc_in", syn.MACs(doorMAC, uplinkMAC).Bytes(), skb{})
		if action != tcRedirect || after.Mark != bpf.GuardMark {
			t.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		w.same("probe", out, toVM(syn, mac5).Bytes())
	})
	if f, ok := w.flow(port5, flowKey(packet.ProtoTCP, probe6, target6)); !ok || f.Flags&bpf.CtHost == 0 {
		t.Fatalf("flow %+v, %v", f, ok)
	}
	w.expect(moved{bpf.ReasonToDoor: 1}, func() {
		_, out, _ := w.tc("vm_in", fromVM(answer).Bytes(), skb{})
		w.same("answer", out, answer.TTL(63).MACs(gatewayMAC, doorMAC).Bytes())
	})
	closed("another link-local address", "svc_in", syn.From("[fe80::a9fe:a9fe]:1").Bytes(), bpf.ReasonBadSource)
	closed("the last word alone", "svc_in", syn.From("[2001:db8::a9fe:a9fd]:1").Bytes(), bpf.ReasonBadSource)
	closed("to nobody", "svc_in", syn.To(client6).Bytes(), bpf.ReasonNoPort)
	closed("another link-local destination", "vm_in", fromVM(answer.To("[fe80::a9fe:a9fe]:1")).Bytes(), bpf.ReasonBadDestination)
	// From the wire it is a forgery.
	w.refused(syn, skb{}, bpf.ReasonBadSource)
}
