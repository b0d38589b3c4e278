// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

const vipAddr = "203.0.113.1"

// options are three to carry and an end.
var options = []byte{1, 1, 1, 0, 1, 1, 1, 0}

// answerOf is what a backend sends through the VIP, as an error quotes it.
func answerOf(proto uint8) packet.Packet {
	if proto == packet.ProtoUDP {
		return packet.UDP(vip, client).Payload([]byte("answer"))
	}
	return packet.TCP(vip, client).ACK().Payload([]byte("answer"))
}

// An error for a VIP takes the way of its flow, from whichever node it comes to.
func TestErrorForAVIPIsSentToTheFlowsBackend(t *testing.T) {
	for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
		answer := answerOf(proto)
		for name, p := range map[string]packet.Packet{
			"port unreachable, from the client": unreachable("192.0.2.9", vipAddr, answer, 28),
			"host unreachable":                  packet.ICMPError(hop, vipAddr, 3, 1, 0, quote(answer, 28)),
			"too big":                           tooBig(hop, vipAddr, 1400, answer),
			"time exceeded":                     packet.ICMPError(hop, vipAddr, 11, 0, 0, quote(answer, 28)),
			"parameter, all quoted":             packet.ICMPError(hop, vipAddr, 12, 0, 0, quote(answer, 1000)),
			"options in the quote":              packet.ICMPError(hop, vipAddr, 3, 1, 0, quote(answer.Options(options), 36)),
			"options before the error":          tooBig(hop, vipAddr, 1400, answer).Options(options),
			"a first fragment quoted":           packet.ICMPError(hop, vipAddr, 11, 1, 0, quote(answer.Fragment(true, 0), 28)),
		} {
			for rule, flags := range map[string]uint32{"5-tuple": 0, "source-hash": bpf.SvcSourceHash} {
				t.Run(name+", "+rule, func(t *testing.T) {
					w := newWorld(t)
					w.strategy(flags)
					hash := hashOf(client, vip, proto, flags)
					// One slot alone has an owner: the flow's.
					w.owners(0, 0)
					base := map[uint8]uint32{packet.ProtoTCP: 256, packet.ProtoUDP: 512}[proto]
					w.put("slots", base+hash&255, bpf.Slot(backend11, 0))
					in := fromRouter(p)
					w.expect(moved{bpf.ReasonSent: 1}, func() {
						action, out := w.xdp(in.Bytes())
						if action != xdpTX {
							t.Fatalf("action %d", action)
						}
						w.same("frame", out, tunnelTo(hash, packet.Tag{}).Wrap(in.TTL(63)))
					})
					for _, id := range []uint32{tcpService, udpService} {
						if got := w.stat("svc_stat", id); got != (bpf.Stat{}) {
							t.Errorf("an error counts as traffic of the service: %+v", got)
						}
					}
				})
			}
		}
	}
}

// strategy sets both services' flags.
func (w *world) strategy(flags uint32) {
	w.Helper()
	for _, index := range []uint32{tcpIndex, udpIndex} {
		var s bpf.Svc
		must(w.T, w.maps["svc"].Lookup(index, &s))
		s.Flags = flags
		w.put("svc", index, &s)
	}
}

func TestErrorForAVIPAboutNothing(t *testing.T) {
	answer := answerOf(packet.ProtoTCP)
	whole := fromRouter(unreachable(hop, vipAddr, answer, 28)).Bytes()
	for name, c := range map[string]struct {
		in   []byte
		want bpf.Reason
	}{
		"redirect":                    {fromRouter(packet.ICMPError(hop, vipAddr, 5, 1, 0, quote(answer, 28))).Bytes(), bpf.ReasonVIPICMP},
		"source quench":               {fromRouter(packet.ICMPError(hop, vipAddr, 4, 0, 0, quote(answer, 28))).Bytes(), bpf.ReasonVIPICMP},
		"no quote":                    {fromRouter(packet.ICMPError(hop, vipAddr, 3, 1, 0, nil)).Bytes(), bpf.ReasonVIPICMP},
		"too short a quote":           {whole[:len(whole)-1], bpf.ReasonVIPICMP},
		"a later fragment quoted":     {fromRouter(unreachable(hop, vipAddr, answer.Fragment(false, 4), 28)).Bytes(), bpf.ReasonVIPICMP},
		"another address quoted":      {fromRouter(unreachable(hop, vipAddr, answer.From("203.0.113.2:80"), 28)).Bytes(), bpf.ReasonVIPICMP},
		"the other way around":        {fromRouter(unreachable(hop, vipAddr, answer.Reply(), 28)).Bytes(), bpf.ReasonVIPICMP},
		"a ping's answer quoted":      {fromRouter(unreachable(hop, vipAddr, packet.Ping("192.0.2.9", vipAddr, 1).Reply(), 28)).Bytes(), bpf.ReasonVIPICMP},
		"an error about an error":     {fromRouter(unreachable(hop, vipAddr, unreachable(vipAddr, hop, answer, 28), 28)).Bytes(), bpf.ReasonVIPICMP},
		"a port that is not served":   {fromRouter(unreachable(hop, vipAddr, answer.From(vipAddr+":81"), 28)).Bytes(), bpf.ReasonNoService},
		"from the host's services":    {fromRouter(unreachable("169.254.1.1", vipAddr, answer, 28)).Bytes(), bpf.ReasonBadSource},
		"about the host's services":   {fromRouter(unreachable(hop, vipAddr, answer.To("169.254.1.1:1"), 28)).Bytes(), bpf.ReasonBadSource},
		"as the self-test":            {fromRouter(unreachable(selfTest, vipAddr, answer, 28)).Bytes(), bpf.ReasonProbed},
		"with its last hop":           {fromRouter(unreachable(hop, vipAddr, answer, 28)).TTL(1).Bytes(), bpf.ReasonTTL},
		"tunnelled, about nothing":    {tunnelFrom(mac5, packet.Tag{}).Wrap(unreachable(hop, vipAddr, answer.Reply(), 28)), bpf.ReasonNoService},
		"tunnelled, of the host's":    {tunnelFrom(mac5, packet.Tag{}).Wrap(unreachable(probe, vipAddr, answer, 28)), bpf.ReasonBadSource},
		"tunnelled, not served":       {tunnelFrom(mac5, packet.Tag{}).Wrap(unreachable(hop, vipAddr, answer.From(vipAddr+":81"), 28)), bpf.ReasonNoService},
		"a quote of IPv6":             {fromRouter(packet.ICMPError(hop, vipAddr, 3, 1, 0, packet.UDP(client6, "["+addr5v6+"]:1").IP())).Bytes(), bpf.ReasonVIPICMP},
		"a quote with a wrong length": {fromRouter(packet.ICMPError(hop, vipAddr, 3, 1, 0, append([]byte{0x44}, quote(answer, 28)[1:]...))).Bytes(), bpf.ReasonVIPICMP},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.expect(moved{c.want: 1}, func() {
				if action, _ := w.xdp(c.in); action != xdpDrop {
					t.Fatalf("action %d", action)
				}
			})
		})
	}
	// For an address that is nobody's VIP it is the host's own affair.
	w := newWorld(t)
	mine := fromRouter(unreachable(hop, endpoint, packet.TCP(endpoint+":179", "10.64.0.0:1"), 28))
	w.expect(moved{bpf.ReasonPassHost: 1}, func() { w.xdp(mine.Bytes()) })
}

// What a host does with an error from an LB node: the flow known here, with the
// slot's other owner, or nowhere.
func TestErrorAtTheBackendsHost(t *testing.T) {
	answer := answerOf(packet.ProtoTCP)
	hash := hashOf(client, vip, packet.ProtoTCP, 0)
	forward := packet.Tag{Hop: 1, Other: backend12}
	for name, c := range map[string]struct {
		known  bool
		of     uint32 // the flow's service
		tag    packet.Tag
		own    [2]uint32
		want   bpf.Reason
		onward packet.Tag
	}{
		"known":                    {known: true, of: tcpService, want: bpf.ReasonDelivered},
		"known, another named":     {known: true, of: tcpService, tag: packet.Tag{Other: backend11}, want: bpf.ReasonDelivered},
		"another service's":        {known: true, of: 99, want: bpf.ReasonICMPUnmatched},
		"unknown":                  {want: bpf.ReasonICMPUnmatched},
		"unknown, another named":   {tag: packet.Tag{Other: backend11}, want: bpf.ReasonForwarded, onward: forward},
		"unknown, by the record":   {own: [2]uint32{backend12, backend11}, want: bpf.ReasonForwarded, onward: forward},
		"unknown, handed on":       {tag: packet.Tag{Hop: 1, Other: backend11}, want: bpf.ReasonICMPUnmatched},
		"unknown, we are the next": {tag: packet.Tag{Other: backend12}, want: bpf.ReasonICMPUnmatched},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if c.own == [2]uint32{} {
				c.own[0] = backend12
			}
			w.owners(c.own[0], c.own[1])
			key := flowKey(packet.ProtoTCP, client, addr5+":8080")
			flow := balanced(c.of, bpf.CtEstablished)
			if c.known {
				w.remember(port5, key, flow)
			}
			in := fromRouter(tooBig(hop, vipAddr, 1400, answer))
			w.expect(moved{c.want: 1}, func() {
				action, out := w.xdp(tunnelFrom(mac5, c.tag).Wrap(in))
				switch c.want {
				case bpf.ReasonDelivered: // untouched: uplink_in finds the flow
					w.same("error", out, append(note(tcpIndex, backend12, hash), in.Bytes()...))
				case bpf.ReasonForwarded:
					w.same("error", out, tunnelTo(hash, c.onward).Wrap(in.TTL(63)))
				default:
					if action != xdpDrop {
						t.Fatalf("action %d", action)
					}
				}
			})
			after, ok := w.flow(port5, key)
			if ok != c.known || ok && after != flow {
				t.Errorf("the flow was %+v, is %+v (%v)", flow, after, ok)
			}
		})
	}
}

// From the wire to the VM, through both programs: the VM reads of its own
// address and port, and of a path that is worth believing.
func TestErrorForAVIPReachesTheVM(t *testing.T) {
	for name, proto := range map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.owners(backend12, 0)
			rule := web
			rule.proto = uint32(proto)
			w.admit(rule)
			opening, answer := packet.TCP(client, vip).SYN(), packet.TCP(vip, client).SYN().ACK()
			if proto == packet.ProtoUDP {
				opening, answer = packet.UDP(client, vip), packet.UDP(vip, client)
			}
			w.through(opening, bpf.ReasonToPort)
			w.through(tooBig(hop, vipAddr, 576, answer), bpf.ReasonToPort)
			out := w.through(tooBig(hop, vipAddr, 1400, answer), bpf.ReasonToPort)
			w.same("error", out, toVM(tooBig(hop, addr5, 1400, answer.From(addr5+":8080")), mac5).Bytes())
			w.through(tooBig(hop, vipAddr, 575, answer), bpf.ReasonICMPTooSmall)
		})
	}
}

// through puts what the router sends through uplink and, noted, uplink_in.
func (w *world) through(p packet.Packet, want bpf.Reason) (out []byte) {
	w.Helper()
	w.expect(moved{bpf.ReasonDelivered: 1, want: 1}, func() {
		_, frame := w.xdp(fromRouter(p).Bytes())
		if len(frame) < 16 {
			w.Fatalf("a frame of %d bytes", len(frame))
		}
		word := func(i int) uint32 {
			return uint32(frame[i]) | uint32(frame[i+1])<<8 | uint32(frame[i+2])<<16 | uint32(frame[i+3])<<24
		}
		_, out, _ = w.tc("uplink_in", frame[16:], skb{Cb: [5]uint32{word(0), word(4), word(8), word(12)}})
	})
	return out
}

// Options of IPv4 are carried to the backend and stay the inner packet's: what is
// around it has none of them, and none of its fragment bits.
func TestOptionsAreCarried(t *testing.T) {
	full := make([]byte, 40)
	for i := range full {
		full[i] = 1
	}
	for name, p := range map[string]packet.Packet{
		"tcp":              packet.TCP(client, vip).SYN().Options(options),
		"tcp, 40 bytes":    packet.TCP(client, vip).ACK().Payload([]byte("x")).Options(full),
		"udp":              packet.UDP(client, vip).Options(options),
		"udp, unchecked":   packet.UDP(client, vip).NoChecksum().Options(full),
		"not to be cut":    packet.UDP(client, vip).Options(options).DF().ID(4711),
		"without, but DF":  packet.TCP(client, vip).SYN().DF().ID(4711),
		"a number of 4711": packet.TCP(client, vip).SYN().ID(4711),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			in := fromRouter(p)
			proto, index := in.IP()[9], tcpIndex
			if proto == packet.ProtoUDP {
				index = udpIndex
			}
			hash := hashOf(client, vip, proto, 0)
			w.expect(moved{bpf.ReasonSent: 1}, func() {
				_, out := w.xdp(in.Bytes())
				w.same("frame", out, tunnelTo(hash, packet.Tag{}).Wrap(in.TTL(63)))
				if out[14] != 0x45 || out[18] != 0 || out[19] != 0 || out[20] != 0x40 || out[21] != 0 {
					t.Errorf("the outer header begins %x", out[14:22])
				}
			})
			w.owners(backend12, 0)
			w.expect(moved{bpf.ReasonDelivered: 1}, func() {
				_, out := w.xdp(tunnelFrom(mac5, packet.Tag{}).Wrap(in.TTL(63)))
				w.same("rewritten", out, append(note(index, backend12, hash), in.TTL(63).To(addr5+":8080").Bytes()...))
			})
		})
	}
	w := newWorld(t)
	ping := fromRouter(packet.Ping("192.0.2.9", vipAddr, 7).Options(options))
	w.expect(moved{bpf.ReasonEchoed: 1}, func() {
		_, out := w.xdp(ping.Bytes())
		w.same("answer", out, ping.Reply().TTL(64).Bytes())
	})
	broken := fromRouter(packet.TCP(client, vip).SYN()).Bytes()
	broken[14] = 0x44
	w.expect(moved{bpf.ReasonMalformed: 1}, func() { w.xdp(broken) })
}
