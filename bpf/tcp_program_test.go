// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"fmt"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

const (
	clientWindow = uint16(500)
	vmWindow     = uint16(300)
)

// Where sequence numbers begin: the VM's wrap.
var clientStart, vmStart = uint32(1000), uint32(0xfffffff0)

// talk is a connection from the client to port 5, whose group admits it.
type talk struct {
	*world
	in, out packet.Packet
	key     bpf.CtKey
}

func newTalk(t *testing.T) talk {
	w := newWorld(t)
	w.admit(web)
	in := packet.TCP(client, addr5+":8080").Window(clientWindow)
	return talk{w, in, in.Reply().Window(vmWindow), flowKey(packet.ProtoTCP, client, addr5+":8080")}
}

// sends gives both sides' packets to the programs; all must pass.
func (k talk) sends(packets ...packet.Packet) {
	k.Helper()
	for _, p := range packets {
		if p.IP()[12] == 192 { // from the client
			k.into(p, skb{})
		} else {
			k.world.out(p, p.TTL(63))
		}
	}
}

// opened is the handshake.
func (k talk) opened() talk {
	k.Helper()
	k.sends(
		k.in.SYN().Sequence(clientStart),
		k.out.SYN().ACK().Sequence(vmStart).Acknowledge(clientStart+1),
		k.in.ACK().Sequence(clientStart+1).Acknowledge(vmStart+1),
	)
	return k
}

func (k talk) state(want uint8) {
	k.Helper()
	if f, ok := k.flow(port5, k.key); !ok || f.State != want {
		k.Fatalf("state %d (%v), want %d", f.State, ok, want)
	}
}

func TestRSTEndsAFlowOnlyInsideItsWindow(t *testing.T) {
	for name, c := range map[string]struct {
		seq  uint32
		from string
		ends bool
	}{
		"the client's, exact":             {clientStart + 1, "client", true},
		"the client's, at the far end":    {clientStart + 1 + uint32(vmWindow), "client", true},
		"the client's, beyond it":         {clientStart + 2 + uint32(vmWindow), "client", false},
		"the client's, before it":         {clientStart, "client", false},
		"the client's, far away":          {clientStart + 1<<31, "client", false},
		"the VM's, exact":                 {vmStart + 1, "vm", true},
		"the VM's, behind the wrap":       {vmStart + 1 + uint32(clientWindow), "vm", true},
		"the VM's, beyond it":             {vmStart + 2 + uint32(clientWindow), "vm", false},
		"the VM's, before what was taken": {vmStart, "vm", false},
	} {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t).opened()
			prog, rst := "uplink_in", fromRouter(k.in.RST().Sequence(c.seq))
			if c.from == "vm" {
				prog, rst = "vm_in", fromVM(k.out.RST().Sequence(c.seq))
			}
			if c.ends {
				k.tc(prog, rst.Bytes(), skb{})
				k.state(bpf.CtReset)
				return
			}
			k.dropped(prog, rst.Bytes(), bpf.ReasonCtInvalidRST)
			k.state(bpf.CtEstablished)
			k.sends(k.in.ACK().Sequence(clientStart + 1).Acknowledge(vmStart + 1))
		})
	}
}

// Before an answer there is no window: a RST must name the question.
func TestRSTThatAnswersASYNNamesIt(t *testing.T) {
	k := newTalk(t)
	k.sends(k.in.SYN().Sequence(clientStart))
	k.dropped("vm_in", fromVM(k.out.RST().ACK().Acknowledge(clientStart+2)).Bytes(), bpf.ReasonCtInvalidRST)
	k.state(bpf.CtNew)
	k.sends(k.out.RST().ACK().Acknowledge(clientStart + 1))
	k.state(bpf.CtReset)
}

// RFC 7323: windows are scaled if both sides say so.
func TestWindowsAreScaled(t *testing.T) {
	scale := func(n byte) []byte { return []byte{2, 4, 5, 0xb4, 1, 3, 3, n} }
	for name, c := range map[string]struct {
		client, vm []byte
		window     uint32
	}{
		"both":        {scale(7), scale(4), uint32(vmWindow) << 4},
		"client only": {scale(7), nil, uint32(vmWindow)},
		"VM only":     {nil, scale(4), uint32(vmWindow)},
		"too much":    {scale(7), scale(200), uint32(vmWindow) << 14},
	} {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t)
			k.sends(
				k.in.SYN().Sequence(clientStart).TCPOptions(c.client),
				k.out.SYN().ACK().Sequence(vmStart).Acknowledge(clientStart+1).TCPOptions(c.vm),
				k.in.ACK().Sequence(clientStart+1).Acknowledge(vmStart+1),
				k.out.ACK().Sequence(vmStart+1).Acknowledge(clientStart+1),
			)
			rst := fromRouter(k.in.RST().Sequence(clientStart + 2 + max(c.window, uint32(vmWindow))))
			k.dropped("uplink_in", rst.Bytes(), bpf.ReasonCtInvalidRST)
			k.sends(k.in.RST().Sequence(clientStart + 1 + c.window))
			k.state(bpf.CtReset)
		})
	}
}

// Who sees nothing of a connection can neither close it nor move its window.
func TestSegmentsThatDoNotFitChangeNothing(t *testing.T) {
	k := newTalk(t).opened()
	before, _ := k.flow(port5, k.key)
	k.sends(
		k.in.FIN().ACK().Sequence(clientStart+1<<30).Acknowledge(vmStart+1),
		k.in.FIN().ACK().Sequence(clientStart+1).Acknowledge(vmStart+1<<30),
		k.in.ACK().Sequence(clientStart+1<<30).Acknowledge(vmStart+1<<30),
		k.out.ACK().Sequence(vmStart+1).Acknowledge(clientStart+1<<30),
	)
	after, _ := k.flow(port5, k.key)
	if after.State != bpf.CtEstablished || after.Side != before.Side || after.Packets != before.Packets+4 {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
	k.sends(k.in.FIN().ACK().Sequence(clientStart + 1).Acknowledge(vmStart + 1))
	k.state(bpf.CtClosing)
}

// Only who has seen the answer confirms a flow.
func TestWhatConfirmsAFlow(t *testing.T) {
	answered := func(k talk) {
		k.sends(k.in.SYN().Sequence(clientStart), k.out.SYN().ACK().Sequence(vmStart).Acknowledge(clientStart+1))
	}
	for name, c := range map[string]struct {
		third     func(talk) packet.Packet
		confirmed bool
	}{
		"acknowledges the answer": {func(k talk) packet.Packet { return k.in.ACK().Sequence(clientStart + 1).Acknowledge(vmStart + 1) }, true},
		"asks again":              {func(k talk) packet.Packet { return k.in.SYN().Sequence(clientStart) }, false},
		"guesses the number":      {func(k talk) packet.Packet { return k.in.ACK().Sequence(clientStart + 1).Acknowledge(vmStart + 2) }, false},
		"from outside the window": {func(k talk) packet.Packet { return k.in.ACK().Sequence(clientStart + 1<<29).Acknowledge(vmStart + 1) }, false},
		"a FIN, guessing":         {func(k talk) packet.Packet { return k.in.FIN().ACK().Sequence(clientStart + 1).Acknowledge(vmStart) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t)
			answered(k)
			k.sends(c.third(k))
			if got := k.confirmed(port5, k.key); got != c.confirmed {
				t.Errorf("confirmed: %v", got)
			}
		})
	}
}

func TestUnansweredAndResetFlowsAreNotConfirmed(t *testing.T) {
	k := newTalk(t)
	k.sends(k.in.SYN().Sequence(clientStart), k.in.ACK().Sequence(clientStart+1).Acknowledge(7), k.in.FIN().ACK().Sequence(clientStart+1).Acknowledge(7))
	if k.confirmed(port5, k.key) {
		t.Error("nobody has answered")
	}
	k = newTalk(t)
	k.sends(k.in.SYN().Sequence(clientStart), k.out.RST().ACK().Acknowledge(clientStart+1), k.in.ACK().Sequence(clientStart+1).Acknowledge(1))
	if k.confirmed(port5, k.key) {
		t.Error("the flow was refused")
	}
}

// Other protocols have no handshake: the third packet is the third packet.
func TestOtherProtocolsAreConfirmedByTheThirdPacket(t *testing.T) {
	for name, c := range map[string]struct {
		proto uint8
		in    packet.Packet
		key   bpf.CtKey
		lo    uint16
	}{
		"udp":  {packet.ProtoUDP, packet.UDP(client, addr5+":8080"), flowKey(packet.ProtoUDP, client, addr5+":8080"), 8080},
		"ping": {packet.ProtoICMP, packet.Ping("192.0.2.9", addr5, 7), flowKey(packet.ProtoICMP, "192.0.2.9:7", addr5+":0"), 8 << 8},
		"esp": {packet.ProtoESP, packet.IP("192.0.2.9", addr5, packet.ProtoESP, []byte("sealed")),
			flowKey(packet.ProtoESP, "192.0.2.9:0", addr5+":0"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.admit(rule{policy: 500, direction: bpf.DirectionIn, proto: uint32(c.proto), cidr: "192.0.2.0/24", lo: c.lo, hi: c.lo, id: 42})
			for i, want := range []bool{false, false, false, true} {
				if i == 2 {
					w.out(c.in.Reply(), c.in.Reply().TTL(63))
				} else {
					w.into(c.in, skb{})
				}
				if got := w.confirmed(port5, c.key); got != want {
					t.Fatalf("after %d packets: confirmed %v", i+1, got)
				}
			}
		})
	}
}

// A flood evicts its own flows, not those that somebody has confirmed.
func TestFloodLeavesConfirmedFlowsAlone(t *testing.T) {
	k := newTalk(t).opened()
	for port := range 4 * bpf.CtNewMax {
		k.into(packet.TCP(fmt.Sprintf("192.0.2.10:%d", port+1), addr5+":8080").SYN(), skb{})
	}
	if !k.confirmed(port5, k.key) {
		t.Error("the flow is gone")
	}
	n := 0
	var key bpf.CtKey
	var f bpf.Ct
	for entries := k.fresh[port5].Iterate(); entries.Next(&key, &f); n++ {
	}
	if n > bpf.CtNewMax {
		t.Errorf("%d new flows", n)
	}
	k.sends(k.out.ACK().Sequence(vmStart + 1).Acknowledge(clientStart + 1))
}

func TestStrictPortWantsASYN(t *testing.T) {
	k := newTalk(t)
	ack := k.in.ACK().Sequence(clientStart + 1).Acknowledge(vmStart + 1)
	k.edit(port5, func(pc *bpf.PortCfg) { pc.Flags |= bpf.PortStrict })
	k.dropped("uplink_in", fromRouter(ack).Bytes(), bpf.ReasonCtNoSYN)
	k.edit(port5, func(pc *bpf.PortCfg) { pc.LooseUntil = now() + 1e12 })
	k.sends(ack)
	f, _ := k.flow(port5, k.key)
	if f.Flags&bpf.CtLoose == 0 {
		t.Errorf("flow %+v", f)
	}
	// Such a flow's windows may be scaled: a RST within the largest ends it.
	k.sends(k.out.RST().Sequence(vmStart + 1 + uint32(clientWindow)<<14))
	k.state(bpf.CtReset)
}

func TestIdleTimeoutOfAPort(t *testing.T) {
	k := newTalk(t)
	k.edit(port5, func(pc *bpf.PortCfg) { pc.Established = 60 })
	k.opened()
	older := func(seconds uint64) {
		f, _ := k.flow(port5, k.key)
		f.Seen = now() - seconds*1e9
		k.remember(port5, k.key, f)
	}
	older(59)
	k.edit(port5, func(pc *bpf.PortCfg) { pc.PolicyIn, pc.PolicyOut = 999, 999 }) // no new flow
	k.sends(k.in.ACK().Sequence(clientStart + 1).Acknowledge(vmStart + 1))
	older(61)
	k.refused(k.in.ACK().Sequence(clientStart+1).Acknowledge(vmStart+1), skb{}, bpf.ReasonPolicyIn)
}

// "Keep established" is a property of the rule that admitted the flow.
func TestFlowsOfAKeepingRuleOutliveIt(t *testing.T) {
	k := newTalk(t)
	var rules bpf.Rules
	key := bpf.RulesKey{Policy: web.policy, Direction: web.direction}
	must(t, k.maps["rule_ids"].Lookup(key, &rules))
	rules.Keep = 1 << web.bit
	k.put("rule_ids", key, &rules)
	k.opened()
	k.edit(port5, func(pc *bpf.PortCfg) { pc.Generation, pc.PolicyIn = 2, 999 })
	k.sends(k.in.ACK().Sequence(clientStart + 1).Acknowledge(vmStart + 1))
	if f, _ := k.flow(port5, k.key); f.Generation != 2 || f.Rule != 42 || f.Flags&bpf.CtKeep == 0 {
		t.Errorf("flow %+v", f)
	}
	k.refused(packet.TCP("192.0.2.9:1235", addr5+":8080").SYN(), skb{}, bpf.ReasonPolicyIn)
}

// Mail leaves only from who may send any.
func TestOutboundSMTP(t *testing.T) {
	w := newWorld(t)
	mail := packet.TCP(addr5+":5555", "192.0.2.25:25").SYN()
	w.dropped("vm_in", fromVM(mail).Bytes(), bpf.ReasonSMTP)
	six := packet.TCP("["+addr5v6+"]:5555", "[2001:db8:9::25]:25").SYN()
	w.dropped("vm_in", fromVM(six).Bytes(), bpf.ReasonSMTP)
	w.out(packet.UDP(addr5+":5555", "192.0.2.25:25"), packet.UDP(addr5+":5555", "192.0.2.25:25").TTL(63))
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Flags |= bpf.PortSMTPOpen })
	w.out(mail, mail.TTL(63))
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Flags &^= bpf.PortSMTPOpen; pc.Generation++ })
	w.dropped("vm_in", fromVM(mail).Bytes(), bpf.ReasonSMTP)
	// Who answers from port 25 is a mail server, and may.
	w.admit(rule{policy: 500, direction: bpf.DirectionIn, proto: packet.ProtoTCP, cidr: "192.0.2.0/24", lo: 25, hi: 25, id: 42})
	in := packet.TCP("192.0.2.9:25", addr5+":25").SYN()
	w.into(in, skb{})
	w.out(in.Reply().SYN().ACK().Acknowledge(1), in.Reply().SYN().ACK().Acknowledge(1).TTL(63))
}

// Health checks are the host's own: no flood pushes them out.
func TestChecksAreConfirmedAtOnce(t *testing.T) {
	w := newWorld(t)
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		w.tc("svc_in", packet.TCP(probe+":40000", addr5+":8080").SYN().MACs(doorMAC, uplinkMAC).Bytes(), skb{})
	})
	if !w.confirmed(port5, flowKey(packet.ProtoTCP, probe+":40000", addr5+":8080")) {
		t.Error("not confirmed")
	}
}
