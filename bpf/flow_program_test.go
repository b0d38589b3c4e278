// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The whole life of a balanced connection at its port: the group sees the
// client, the reply comes from the VIP, the flow follows TCP's states.
func TestBalancedConnection(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	key := flowKey(packet.ProtoTCP, client, addr5+":8080")
	in := packet.TCP(client, addr5+":8080")
	reply := in.Reply()
	fromVIP := packet.TCP(client, vip).Reply().TTL(63)
	n := noted(tcpIndex, backend12, 0xabcdef)

	state := func(want uint8) {
		t.Helper()
		f, ok := w.flow(port5, key)
		if !ok || f.State != want {
			t.Fatalf("state %d (%v), want %d", f.State, ok, want)
		}
	}
	w.into(in.SYN().Sequence(100), n)
	state(bpf.CtNew)
	w.out(reply.SYN().ACK().Sequence(500).Acknowledge(101), fromVIP.SYN().ACK().Sequence(500).Acknowledge(101))
	state(bpf.CtReplied)
	if w.confirmed(port5, key) {
		t.Error("the answer alone has confirmed the flow")
	}
	w.into(in.ACK().Sequence(101).Acknowledge(501), n)
	state(bpf.CtEstablished)
	if !w.confirmed(port5, key) {
		t.Error("the third packet has not confirmed the flow")
	}
	hello := []byte("hello")
	w.out(reply.ACK().Sequence(501).Acknowledge(101).Payload(hello), fromVIP.ACK().Sequence(501).Acknowledge(101).Payload(hello))
	w.into(in.FIN().ACK().Sequence(101).Acknowledge(506), n)
	state(bpf.CtClosing)
	w.out(reply.FIN().ACK().Sequence(506).Acknowledge(102), fromVIP.FIN().ACK().Sequence(506).Acknowledge(102))
	state(bpf.CtClosed)
	w.into(in.SYN().Sequence(9000), n) // the client uses its port again
	state(bpf.CtNew)
	if w.confirmed(port5, key) {
		t.Error("the new connection is confirmed")
	}
	w.out(reply.RST().ACK().Acknowledge(9001), fromVIP.RST().ACK().Acknowledge(9001))
	state(bpf.CtReset)

	f, _ := w.flow(port5, key)
	if f.Service != tcpService || f.Backend != backend12 || f.Hash != 0xabcdef || f.Vip != ip16("203.0.113.1") ||
		f.VipPort != bpf.BE16(80) || f.PeerPort != bpf.BE16(1234) || f.Rule != 42 {
		t.Errorf("flow %+v", f)
	}
	if got := w.ruleStat(42); got.Packets != 8 {
		t.Errorf("rule 42 counts %d packets, want 8", got.Packets)
	}
}

func TestBalancedDatagrams(t *testing.T) {
	w := newWorld(t)
	udp := web
	udp.proto = packet.ProtoUDP
	w.admit(udp)
	in := packet.UDP(client, addr5+":8080").Payload([]byte("q"))
	w.into(in, noted(udpIndex, backend12, 1))
	w.out(in.Reply().Payload([]byte("answer")), packet.UDP(client, vip).Reply().Payload([]byte("answer")).TTL(63))
	w.out(in.Reply().NoChecksum(), packet.UDP(client, vip).Payload([]byte("q")).Reply().NoChecksum().TTL(63))
}

func TestBalancedConnectionNeedsARule(t *testing.T) {
	w := newWorld(t)
	w.refused(packet.TCP(client, addr5+":8080").SYN(), noted(tcpIndex, backend12, 1), bpf.ReasonPolicyIn)
}

// A RST that answers a packet of an unknown flow finds its way back as the
// VIP's.
func TestResetOfAnUnknownFlowComesFromTheVIP(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.into(packet.TCP(client, addr5+":8080").ACK(), noted(tcpIndex, backend12, 1))
	w.out(packet.TCP(client, addr5+":8080").Reply().RST(), packet.TCP(client, vip).Reply().RST().TTL(63))
}

// A later flow with the tuple of another service's takes it over if that one is
// over or was never confirmed, and only with a SYN.
func TestTupleOfAFlowThatIsOver(t *testing.T) {
	in := packet.TCP(client, addr5+":8080")
	key := flowKey(packet.ProtoTCP, client, addr5+":8080")
	for name, state := range map[string]uint8{
		"unconfirmed": bpf.CtNew, "closing": bpf.CtClosing, "closed": bpf.CtClosed, "reset": bpf.CtReset,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.admit(web)
			w.remember(port5, key, balanced(99, state))
			w.into(in.SYN(), noted(tcpIndex, backend12, 1))
			if f, _ := w.flow(port5, key); f.Service != tcpService || f.Packets != 1 {
				t.Errorf("the flow is %+v", f)
			}
		})
	}
}

// Otherwise the VM sees another port of the client's, and the client never
// knows.
func TestTupleOfALiveFlowIsTranslated(t *testing.T) {
	in := packet.TCP(client, addr5+":8080")
	key := flowKey(packet.ProtoTCP, client, addr5+":8080")
	balance := noted(tcpIndex, backend12, 1)
	for name, c := range map[string]struct {
		service uint32 // whose flow is there
		state   uint8
		first   packet.Packet
		ctx     skb
		reply   packet.Packet // as the client must see it
	}{
		"balanced, syn":       {99, bpf.CtEstablished, in.SYN(), balance, packet.TCP(client, vip).Reply()},
		"balanced, ack":       {99, bpf.CtEstablished, in.ACK(), balance, packet.TCP(client, vip).Reply()},
		"unconfirmed, ack":    {99, bpf.CtNew, in.ACK(), balance, packet.TCP(client, vip).Reply()},
		"balanced after none": {0, bpf.CtEstablished, in.SYN(), balance, packet.TCP(client, vip).Reply()},
		"none after balanced": {tcpService, bpf.CtEstablished, in.SYN(), skb{}, in.Reply()},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.admit(web)
			other := balanced(c.service, c.state)
			if c.service == 0 {
				other.Vip, other.VipPort = bpf.Ip16{}, 0
			}
			w.remember(port5, key, other)
			seen := w.translated(c.first, c.ctx)
			if again := w.translated(in.ACK(), c.ctx); again != seen {
				t.Fatalf("the VM sees %s, then %s", seen, again)
			}
			w.out(packet.TCP(seen, addr5+":8080").Reply().ACK(), c.reply.ACK().TTL(63))
			if f, _ := w.flow(port5, flowKey(packet.ProtoTCP, seen, addr5+":8080")); f.PeerPort != bpf.BE16(1234) || f.Packets != 3 {
				t.Errorf("the flow is %+v", f)
			}
			if f, _ := w.flow(port5, key); f != other {
				t.Errorf("the other flow became %+v", f)
			}
		})
	}
}

// translated runs uplink_in and wants the packet delivered from another port,
// which it returns with the client's address.
func (w *world) translated(p packet.Packet, ctx skb) (seen string) {
	w.Helper()
	w.expect(moved{bpf.ReasonToPortTranslated: 1}, func() {
		action, out, after := w.tc("uplink_in", fromRouter(p).Bytes(), ctx)
		if action != tcRedirect || after.Mark != bpf.GuardMark {
			w.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		sport := binary.BigEndian.Uint16(out[34:])
		if sport < 32768 {
			w.Fatalf("port %d", sport)
		}
		seen = fmt.Sprintf("192.0.2.9:%d", sport)
		w.same("delivered", out, toVM(p.From(seen), mac5).Bytes())
	})
	return seen
}

func TestNoPortLeftToTranslateTo(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	flows, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 40, ValueSize: 112, MaxEntries: 40000, Flags: unix.BPF_F_NO_PREALLOC})
	must(t, err)
	defer flows.Close()
	w.put("ct_est", port5, flows)
	other := balanced(99, bpf.CtEstablished)
	key := flowKey(packet.ProtoTCP, client, addr5+":8080")
	must(t, flows.Put(key, &other))
	for port := 32768; port < 65536; port++ {
		key.PeerPort = bpf.BE16(uint16(port))
		must(t, flows.Put(key, &other))
	}
	w.refused(packet.TCP(client, addr5+":8080").SYN(), noted(tcpIndex, backend12, 1), bpf.ReasonCtCollision)
}

// uplink knows a translated flow, too: it does not hand it on.
func TestTranslatedFlowIsKnownToUplink(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.remember(port5, flowKey(packet.ProtoTCP, client, addr5+":8080"), balanced(99, bpf.CtEstablished))
	w.owners(backend12, backend11)
	ack := fromRouter(packet.TCP(client, vip).ACK())
	w.expect(moved{bpf.ReasonForwarded: 1}, func() { w.xdp(ack.Bytes()) })
	w.translated(packet.TCP(client, addr5+":8080").SYN(), noted(tcpIndex, backend12, 1))
	w.expect(moved{bpf.ReasonDelivered: 1}, func() { w.xdp(ack.Bytes()) })
}

func TestExpiredFlowIsGone(t *testing.T) {
	in := packet.TCP(client, addr5+":8080").ACK()
	key := flowKey(packet.ProtoTCP, client, addr5+":8080")
	const second = uint64(1e9)
	for name, c := range map[string]struct {
		state uint8
		after uint64
	}{
		"new": {bpf.CtNew, 30}, "replied": {bpf.CtReplied, 60}, "established": {bpf.CtEstablished, 3600},
		"closing": {bpf.CtClosing, 3600}, "closed": {bpf.CtClosed, 60}, "reset": {bpf.CtReset, 10},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t) // no rule: only the flow admits
			f := balanced(0, c.state)
			f.Vip, f.VipPort = bpf.Ip16{}, 0
			f.Seen = now() - (c.after-1)*second
			w.remember(port5, key, f)
			w.into(in, skb{})
			f.Seen = now() - (c.after+1)*second
			w.remember(port5, key, f)
			w.refused(in, skb{}, bpf.ReasonPolicyIn)
		})
	}
}

func TestRevocationAtTheNextPacket(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	in := packet.TCP(client, addr5+":8080")
	w.into(in.SYN(), skb{})
	w.out(in.Reply().SYN().ACK(), in.Reply().SYN().ACK().TTL(63))

	// A change that leaves the rule in place: judged again, goes on.
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Generation++ })
	w.into(in.ACK(), skb{})
	if f, _ := w.flow(port5, flowKey(packet.ProtoTCP, client, addr5+":8080")); f.Generation != 2 {
		t.Errorf("generation %d, want 2", f.Generation)
	}
	// A policy without it: the reply is judged as part of the client's flow.
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Generation++; pc.PolicyIn = 999 })
	w.expect(moved{bpf.ReasonPolicyIn: 1}, func() {
		if action, _, _ := w.tc("vm_in", fromVM(in.Reply().ACK()).Bytes(), skb{}); action != tcDrop {
			t.Fatalf("action %d", action)
		}
	})
	w.refused(in.ACK(), skb{}, bpf.ReasonPolicyIn)
	if _, ok := w.flow(port5, flowKey(packet.ProtoTCP, client, addr5+":8080")); ok {
		t.Error("the revoked flow is still there")
	}
}

func TestFlowOutOpensTheWayBack(t *testing.T) {
	w := newWorld(t)
	syn := packet.TCP(addr5+":5555", client).SYN()
	w.refused(syn.Reply().SYN().ACK(), skb{}, bpf.ReasonPolicyIn)
	w.out(syn, syn.TTL(63))
	w.into(syn.Reply().SYN().ACK(), skb{})
	w.refused(packet.TCP(client, addr5+":5556").SYN().ACK(), skb{}, bpf.ReasonPolicyIn)
}

// GRO and TSO hand over many packets in one skb: they are counted one by one.
func TestPacketsAreCountedNotSkbs(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	big := packet.TCP(client, addr5+":8080").ACK().Payload(make([]byte, 2*1000+1))
	w.expect(moved{bpf.ReasonToPort: 3}, func() {
		w.tc("uplink_in", fromRouter(big).Bytes(), skb{GsoSize: 1000, GsoSegs: 1})
	})
	if f, _ := w.flow(port5, flowKey(packet.ProtoTCP, client, addr5+":8080")); f.Packets != 3 {
		t.Errorf("the flow counts %d packets", f.Packets)
	}
}

func TestSweepDeletesOnlyTheExpired(t *testing.T) {
	w := newWorld(t)
	for i := range 100 {
		f := balanced(0, bpf.CtEstablished)
		if i%2 == 0 {
			f.State, f.Seen = bpf.CtClosed, now()-61e9
		}
		key := flowKey(packet.ProtoTCP, client, addr5+":8080")
		key.PeerPort = uint16(i)
		w.remember(port5, key, f)
	}
	s := w.sweep(port5)
	if s.Live != 50 || s.Expired != 50 {
		t.Errorf("first sweep: %+v", s)
	}
	if s := w.sweep(port5); s.Live != 50 || s.Expired != 0 {
		t.Errorf("second sweep: %+v", s)
	}
}

// establish sends the three packets that confirm a flow.
func (w *world) establish(in packet.Packet) {
	w.Helper()
	w.into(in.SYN().Sequence(100), skb{})
	answer := in.Reply().SYN().ACK().Sequence(500).Acknowledge(101)
	w.out(answer, answer.TTL(63))
	w.into(in.ACK().Sequence(101).Acknowledge(501), skb{})
}

// Without an agent nobody sweeps: a full table makes room of expired flows by
// itself. When all are live, the flow stays among the new ones, and goes on.
func TestFullTableMakesRoom(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	fill := func(seen uint64) {
		t.Helper()
		f := balanced(0, bpf.CtEstablished)
		f.Seen = seen
		key := flowKey(packet.ProtoTCP, "192.0.2.200:1", addr5+":8080")
		for i := range uint16(bpf.CtQuota) {
			key.PeerPort = i
			w.remember(port5, key, f)
		}
	}
	full := func(in packet.Packet) {
		t.Helper()
		w.into(in.SYN().Sequence(100), skb{})
		answer := in.Reply().SYN().ACK().Sequence(500).Acknowledge(101)
		w.out(answer, answer.TTL(63))
		for range 2 {
			w.expect(moved{bpf.ReasonToPort: 1, bpf.ReasonCtQuota: 1}, func() {
				w.tc("uplink_in", fromRouter(in.ACK().Sequence(101).Acknowledge(501)).Bytes(), skb{})
			})
		}
		if f, ok := w.flow(port5, flowKey(packet.ProtoTCP, client, addr5+":8080")); !ok || f.State != bpf.CtEstablished {
			t.Errorf("flow %+v, %v", f, ok)
		}
	}
	fill(now())
	full(packet.TCP(client, addr5+":8080"))
	fill(now() - 3601e9)
	// It was swept less than a second ago.
	full(packet.TCP("192.0.2.9:1235", addr5+":8080"))
	w.put("ct_swept", port5, now()-2e9)
	for port := range 200 {
		peer := fmt.Sprintf("192.0.2.9:%d", port+2000)
		w.establish(packet.TCP(peer, addr5+":8080"))
		if !w.confirmed(port5, flowKey(packet.ProtoTCP, peer, addr5+":8080")) {
			t.Fatalf("%s found no room", peer)
		}
	}
}
