// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"bytes"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// told is what a client reads of its packet, as the router gets it.
func told(kind, code uint8, mtu uint32, about packet.Packet, size int) []byte {
	return packet.ICMPError(vipAddr, "192.0.2.9", kind, code, mtu, quote(about, size)).TTL(64).MACs(uplinkMAC, routerMAC).Bytes()
}

// toldEnough has a VIP's rate used up.
func toldEnough(vip string) func(*world) {
	return func(w *world) { w.put("vip_pace", ip16(vip), bpf.VipPace{Told: now() + 2e9}) }
}

// A packet that is larger than the way to its backend, and must not be cut, is
// answered from the VIP; one whose hops are spent as well. What was counted and
// hashed is nobody's affair.
func TestClientsAreTold(t *testing.T) {
	syn, udp := packet.TCP(client, vip).SYN(), packet.UDP(client, vip)
	large := func(p packet.Packet, ip int) packet.Packet {
		for i := range 64 {
			if q := p.Payload(make([]byte, ip-20-i)); len(q.IP()) == ip {
				return q
			}
		}
		panic("no such size")
	}
	here := func(w *world) { w.owners(backend12, 0) }
	small := func(w *world) { here(w); w.edit(port5, func(pc *bpf.PortCfg) { pc.Mtu = 1400 }) }
	late := packet.TCP(client, vip).ACK().Payload([]byte("x"))
	for name, c := range map[string]struct {
		setup func(*world)
		p     packet.Packet
		want  bpf.Reason
		mtu   uint32 // that is told; 0: of hops
		size  int    // of the quote; 0: nothing is told
	}{
		"as large as may be":          {p: large(syn, 1500).DF(), want: bpf.ReasonSent},
		"tcp, too large":              {p: large(syn, 1501).DF(), want: bpf.ReasonTooBigAnswered, mtu: 1500, size: 68},
		"udp, too large":              {p: large(udp, 3000).DF(), want: bpf.ReasonTooBigAnswered, mtu: 1500, size: 68},
		"with options":                {p: large(udp.Options(options), 1501).DF(), want: bpf.ReasonTooBigAnswered, mtu: 1500, size: 68},
		"may be cut":                  {p: large(udp, 1501), want: bpf.ReasonOversize},
		"too large for the port":      {setup: small, p: large(syn, 1401).DF(), want: bpf.ReasonTooBigAnswered, mtu: 1400, size: 68},
		"for the port, may be cut":    {setup: small, p: large(syn, 1401), want: bpf.ReasonOversize},
		"not too large for the port":  {setup: small, p: large(syn, 1400).DF(), want: bpf.ReasonDelivered},
		"last hop, syn":               {p: syn.TTL(1), want: bpf.ReasonTTLAnswered, size: 28},
		"no hop":                      {p: syn.TTL(0), want: bpf.ReasonTTLAnswered, size: 28},
		"last hop, udp":               {p: udp.TTL(1), want: bpf.ReasonTTLAnswered, size: 28},
		"last hop, more":              {p: large(udp, 68).TTL(1), want: bpf.ReasonTTLAnswered, size: 68},
		"last hop, little, options":   {p: syn.Options(options).TTL(1), want: bpf.ReasonTTL},
		"last hop, here":              {setup: here, p: late.TTL(1), want: bpf.ReasonDelivered},
		"last hop, of the self-test":  {p: packet.TCP(selfTest+":1", vip).SYN().TTL(1), want: bpf.ReasonProbed},
		"last hop, nobody serves it":  {p: packet.TCP(client, vipAddr+":81").TTL(1), want: bpf.ReasonNoService},
		"too large, an ICMP error":    {p: unreachable(hop, vipAddr, large(answerOf(packet.ProtoTCP), 1600), 1600).DF(), want: bpf.ReasonOversize},
		"too large, nobody serves it": {p: large(packet.TCP(client, vipAddr+":81"), 1501).DF(), want: bpf.ReasonNoService},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if c.setup != nil {
				c.setup(w)
			}
			in := fromRouter(c.p)
			w.expect(moved{c.want: 1}, func() {
				action, out := w.xdp(in.Bytes())
				switch {
				case c.size == 0:
				case c.mtu != 0:
					w.same("answer", out, told(3, 4, c.mtu, in, c.size))
				default:
					w.same("answer", out, told(11, 0, 0, in, c.size))
				}
				if c.size != 0 && action != xdpTX {
					t.Fatalf("action %d", action)
				}
			})
		})
	}
}

// A hypervisor tells, too: of what came through the tunnel and is too large for
// the port, and of what would go on to the slot's other owner.
func TestClientsAreToldByTheBackendsHost(t *testing.T) {
	w := newWorld(t)
	w.owners(backend12, 0)
	w.edit(port5, func(pc *bpf.PortCfg) { pc.Mtu = 1400 })
	in := packet.TCP(client, vip).ACK().Payload(make([]byte, 1361)).DF()
	w.expect(moved{bpf.ReasonTooBigAnswered: 1}, func() {
		_, out := w.xdp(tunnelFrom(mac5, packet.Tag{}).Wrap(in))
		w.same("answer", out, told(3, 4, 1400, in, 68))
	})
	w.expect(moved{bpf.ReasonTTLAnswered: 1}, func() {
		_, out := w.xdp(tunnelFrom(mac5, packet.Tag{Other: backend11}).Wrap(in.TTL(1)))
		w.same("answer", out, told(11, 0, 0, in.TTL(1), 68))
	})
}

// A VIP's clients are told so often and no more; another VIP's are told all the same.
func TestClientsAreToldAtAPace(t *testing.T) {
	w := newWorld(t)
	in := fromRouter(packet.TCP(client, vip).SYN().TTL(1)).Bytes()
	big := fromRouter(packet.UDP(client, vip).Payload(make([]byte, 2000)).DF()).Bytes()
	w.put("vip_pace", ip16("203.0.113.2"), bpf.VipPace{Told: now() + 2e9})
	w.expect(moved{bpf.ReasonTTLAnswered: 1}, func() { w.xdp(bytes.Clone(in)) })
	w.put("vip_pace", ip16(vipAddr), bpf.VipPace{Told: now() + 2e9})
	w.expect(moved{bpf.ReasonTTL: 1}, func() {
		if action, _ := w.xdp(in); action != xdpDrop {
			t.Errorf("action %d", action)
		}
	})
	w.expect(moved{bpf.ReasonOversize: 1}, func() { w.xdp(big) })
}

// Over IPv6 no packet may be cut.
func TestClientsOfIPv6AreTold(t *testing.T) {
	answer := func(kind uint8, mtu uint32, about packet.Packet, size int) []byte {
		return packet.ICMPError(vip6Addr, "2001:db8:9::9", kind, 0, mtu, quote(about, size)).TTL(64).MACs(uplinkMAC, routerMAC).Bytes()
	}
	syn, udp := packet.TCP(client6, vip6).SYN(), packet.UDP(client6, vip6)
	for name, c := range map[string]struct {
		p    packet.Packet
		want bpf.Reason
		out  func(packet.Packet) []byte
	}{
		"as large as may be": {syn.Payload(make([]byte, 1440)), bpf.ReasonSent, nil},
		"tcp, too large": {syn.Payload(make([]byte, 1441)), bpf.ReasonTooBigAnswered, func(p packet.Packet) []byte {
			return answer(2, 1500, p, 128)
		}},
		"udp, too large": {udp.Payload(make([]byte, 3000)), bpf.ReasonTooBigAnswered, func(p packet.Packet) []byte {
			return answer(2, 1500, p, 128)
		}},
		"extensions": {udp.Extensions(destination).Payload(make([]byte, 1500)), bpf.ReasonTooBigAnswered, func(p packet.Packet) []byte {
			return answer(2, 1500, p, 128)
		}},
		"last hop":       {udp.TTL(1), bpf.ReasonTTLAnswered, func(p packet.Packet) []byte { return answer(3, 0, p, 48) }},
		"last hop, more": {udp.Payload(make([]byte, 80)).TTL(1), bpf.ReasonTTLAnswered, func(p packet.Packet) []byte { return answer(3, 0, p, 128) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			in := fromRouter(c.p)
			w.expect(moved{c.want: 1}, func() {
				_, out := w.xdp(in.Bytes())
				if c.out != nil {
					w.same("answer", out, c.out(in))
				}
			})
		})
	}
}
