// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// options edits the record of a service.
func (w *world) option(index uint32, edit func(*bpf.Svc)) {
	w.Helper()
	var s bpf.Svc
	must(w.T, w.maps["svc"].Lookup(index, &s))
	edit(&s)
	w.put("svc", index, &s)
}

func (w *world) sent(p packet.Packet, want packet.Tunnel) {
	w.Helper()
	in := fromRouter(p)
	w.expect(moved{bpf.ReasonSent: 1}, func() {
		w.Helper()
		action, out := w.xdp(in.Bytes())
		if action != xdpTX {
			w.Fatalf("action %d", action)
		}
		w.same("frame", out, want.Wrap(in.TTL(63)))
	})
}

// A source prefix may send what the service's rate says, and what is beyond drops
// and is counted; other prefixes, and other services, do not notice.
func TestLimitBySourcePrefix(t *testing.T) {
	for name, c := range map[string]struct {
		vip, one, neighbour, other string
		index, unlimited           uint32
	}{
		"ipv4": {vip, "192.0.2.9", "192.0.2.200", "192.0.3.9", tcpIndex, udpIndex},
		"ipv6": {vip6, "2001:db8:9:1100::9", "2001:db8:9:11ff::1", "2001:db8:9:1200::9", tcpIndex6, udpIndex6},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.option(c.index, func(s *bpf.Svc) { s.Flags, s.Rate = bpf.SvcPaced, 1 }) // each takes a second
			from := func(addr string, port int, udp bool) []byte {
				src := fmt.Sprintf("%s:%d", addr, port)
				if name == "ipv6" {
					src = fmt.Sprintf("[%s]:%d", addr, port)
				}
				if udp {
					return fromRouter(packet.UDP(src, c.vip)).Bytes()
				}
				return fromRouter(packet.TCP(src, c.vip).SYN()).Bytes()
			}
			w.pinned(func() {
				w.expect(moved{bpf.ReasonSent: 1, bpf.ReasonSourceRate: 4}, func() {
					for i := range 5 {
						addr := c.one
						if i%2 == 1 {
							addr = c.neighbour // of the same prefix
						}
						if action, _ := w.xdp(from(addr, 1000+i, false)); action != map[bool]uint32{true: xdpTX, false: xdpDrop}[i < 1] {
							t.Errorf("packet %d: action %d", i, action)
						}
					}
				})
				w.expect(moved{bpf.ReasonSent: 1}, func() { w.xdp(from(c.other, 1, false)) })
				w.expect(moved{bpf.ReasonSent: 4}, func() { // the negative control: the same sources, another service
					for i := range 4 {
						w.xdp(from(c.one, i+1, true))
					}
				})
			})
			if got := w.stat("svc_stat", tcpService).Packets + w.stat("svc_stat", tcpService6).Packets; got != 2 {
				t.Errorf("%d packets count as the service's, want 2", got)
			}
			w.option(c.index, func(s *bpf.Svc) { s.Flags = 0 }) // and without the flag there is no limit
			w.expect(moved{bpf.ReasonSent: 4}, func() {
				for i := range 4 {
					w.xdp(from(c.one, i+1, false))
				}
			})
		})
	}
}

// More prefixes than a line has places: who is forgotten may send anew, and nobody
// pays for another.
func TestLimitForgetsKindly(t *testing.T) {
	w := newWorld(t)
	w.option(tcpIndex, func(s *bpf.Svc) { s.Flags, s.Rate = bpf.SvcPaced, 1 })
	w.expect(moved{bpf.ReasonSent: 20000}, func() {
		w.pinned(func() {
			for i := range 20000 {
				src := fmt.Sprintf("%d.%d.%d.9:1", 11+i>>16, i>>8&255, i&255)
				w.xdp(fromRouter(packet.TCP(src, vip).SYN()).Bytes())
			}
		})
	})
}

// shortHeader is a QUIC packet with a short header whose connection ID is for a server.
func shortHeader(config byte, server ...byte) []byte {
	return append(append([]byte{0x40, config}, server...), 1, 2, 3, 4, 5, 6, 7, 8)
}

// A connection ID that a backend has made brings the packet there, whatever address
// the client has now; what names nobody goes by its hash.
func TestConnectionIDNamesTheBackend(t *testing.T) {
	named := tunnelTo(0, packet.Tag{})
	for name, c := range map[string]struct {
		payload []byte
		named   bool
		edit    func(*world)
	}{
		"named":                   {shortHeader(0x07, 198, 51, 100, 11), true, nil},
		"named, any length":       {shortHeader(0x1f, 198, 51, 100, 11), true, nil},
		"no fixed bit (RFC 9287)": {append([]byte{0x00}, shortHeader(0, 198, 51, 100, 11)[1:]...), true, nil},
		"the slot has moved":      {shortHeader(0x07, 198, 51, 100, 11), true, func(w *world) { w.owners(backend13, backend12) }},
		"a long header":           {append([]byte{0xc0}, shortHeader(0x07, 198, 51, 100, 11)[1:]...), false, nil},
		"not routable":            {shortHeader(0xe7, 198, 51, 100, 11), false, nil},
		"another configuration":   {shortHeader(0x27, 198, 51, 100, 11), false, nil},
		"nobody":                  {shortHeader(0x07, 198, 51, 100, 12), false, nil},
		"too short":               {shortHeader(0x07, 198, 51, 100, 11)[:5], false, nil},
		"nothing":                 {nil, false, nil},
		"a backend that is gone": {shortHeader(0x07, 198, 51, 100, 11), false, func(w *world) {
			w.put("quic", bpf.QuicKey{Service: udpService, Server: be32("198.51.100.11")}, uint32(99))
		}},
		"another service's": {shortHeader(0x07, 198, 51, 100, 11), false, func(w *world) {
			w.del("quic", bpf.QuicKey{Service: udpService, Server: be32("198.51.100.11")})
			w.put("quic", bpf.QuicKey{Service: tcpService, Server: be32("198.51.100.11")}, backend11)
		}},
		"a service without": {shortHeader(0x07, 198, 51, 100, 11), false, func(w *world) { w.option(udpIndex, func(s *bpf.Svc) { s.Flags = 0 }) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.owners(backend13, 0) // here, by the hash
			w.option(udpIndex, func(s *bpf.Svc) { s.Flags = bpf.SvcQuic })
			w.put("quic", bpf.QuicKey{Service: udpService, Server: be32("198.51.100.11")}, backend11)
			if c.edit != nil {
				c.edit(w)
			}
			for _, src := range []string{client, "203.0.113.200:4433"} { // before and after it has moved
				p := packet.UDP(src, vip).Payload(c.payload)
				hash := hashOf(src, vip, packet.ProtoUDP, 0)
				if c.named {
					want := named
					want.Port = tunnelTo(hash, packet.Tag{}).Port
					w.sent(p, want)
					continue
				}
				w.expect(moved{bpf.ReasonDelivered: 1}, func() {
					_, out := w.xdp(fromRouter(p).Bytes())
					w.same("frame", out, append(note(udpIndex, backend13, hash), fromRouter(p).To(addr6+":8080").Bytes()...))
				})
			}
		})
	}
}

// At the backend's host a named packet of no known flow is its backend's: it is not
// handed on to who has the hash's slot. Without a connection ID it is.
func TestConnectionIDAtTheBackendsHost(t *testing.T) {
	w := newWorld(t)
	w.owners(backend11, 0)
	w.option(udpIndex, func(s *bpf.Svc) { s.Flags = bpf.SvcQuic })
	w.put("quic", bpf.QuicKey{Service: udpService, Server: be32(addr5)}, backend12)
	moving := packet.UDP("203.0.113.200:4433", vip)
	in := moving.Payload(shortHeader(0x07, 198, 51, 100, 5))
	w.expect(moved{bpf.ReasonDelivered: 1}, func() {
		_, out := w.xdp(tunnelFrom(mac5, packet.Tag{}).Wrap(in))
		want := in.To(addr5+":8080").MACs(routerMAC, uplinkMAC)
		w.same("frame", out, append(note(udpIndex, backend12, hashOf("203.0.113.200:4433", vip, packet.ProtoUDP, 0)), want.Bytes()...))
	})
	w.expect(moved{bpf.ReasonForwarded: 1}, func() {
		w.xdp(tunnelFrom(mac5, packet.Tag{}).Wrap(moving.Payload(shortHeader(0xe7, 198, 51, 100, 5))))
	})
}

// While the seed rotates a packet goes to the slot's owner under the new seed, and
// names who had the flow under the old one.
func TestRotatingSeedNamesTheOwnerBefore(t *testing.T) {
	const before = 0xb4b4
	for name, c := range map[string]struct {
		src, vip string
		index    uint32
		base     uint32
	}{
		"ipv4": {client, vip, tcpIndex, 256},
		"ipv6": {client6, vip6, tcpIndex6, 0},
	} {
		t.Run(name, func(t *testing.T) {
			hash := hashOf(c.src, c.vip, packet.ProtoTCP, 0)
			old := hashBy(before, c.src, c.vip, packet.ProtoTCP, 0)
			if hash&255 == old&255 {
				t.Fatal("the same slot by both seeds: this test needs two")
			}
			for what, slot := range map[string]struct {
				was  uint64
				now  uint64
				want uint32
			}{
				"another":                      {bpf.Slot(backend12, 0), bpf.Slot(backend11, 0), backend12},
				"the same":                     {bpf.Slot(backend11, 0), bpf.Slot(backend11, 0), 0},
				"one that has moved since":     {bpf.Slot(backend11, backend12), bpf.Slot(backend11, 0), backend12},
				"nobody":                       {bpf.Slot(0, 0), bpf.Slot(backend11, 0), 0},
				"before the slot's own":        {bpf.Slot(backend12, 0), bpf.Slot(backend11, backend13), backend12},
				"the slot's own, but for that": {bpf.Slot(backend11, 0), bpf.Slot(backend11, backend13), backend13},
			} {
				t.Run(what, func(t *testing.T) {
					w := newWorld(t)
					var s bpf.Svc
					must(t, w.maps["svc"].Lookup(c.index, &s))
					w.put("slots", s.SlotBase+hash&255, slot.now)
					w.put("slots", s.SlotBase+old&255, slot.was)
					p := packet.TCP(c.src, c.vip).ACK()
					w.option(c.index, func(s *bpf.Svc) { s.Flags, s.PrevSeed = bpf.SvcRotating, before })
					w.sent(p, tunnelTo(hash, packet.Tag{Other: slot.want}))
					w.option(c.index, func(s *bpf.Svc) { s.Flags = 0 }) // and no more when it is over
					w.sent(p, tunnelTo(hash, packet.Tag{Other: uint32(slot.now >> 32)}))
				})
			}
		})
	}
}

// A host that is sent a packet without a predecessor finds the owner before by its
// own record, and so a node that has not heard of the rotation breaks nothing.
func TestRotatingSeedAtTheBackendsHost(t *testing.T) {
	const before = 0xb4b4
	hash, old := hashOf(client, vip, packet.ProtoTCP, 0), hashBy(before, client, vip, packet.ProtoTCP, 0)
	p := packet.TCP(client, vip).ACK()
	for name, c := range map[string]struct {
		now, was uint64
		tag      packet.Tag
		want     bpf.Reason
	}{
		"named by the sender":       {bpf.Slot(backend12, 0), bpf.Slot(backend11, 0), packet.Tag{Other: backend11}, bpf.ReasonForwarded},
		"by the own record":         {bpf.Slot(backend12, 0), bpf.Slot(backend11, 0), packet.Tag{}, bpf.ReasonForwarded},
		"sent by the old seed":      {bpf.Slot(backend11, 0), bpf.Slot(backend12, 0), packet.Tag{}, bpf.ReasonForwarded},
		"this one under both":       {bpf.Slot(backend12, 0), bpf.Slot(backend12, 0), packet.Tag{}, bpf.ReasonDelivered},
		"handed on, not once again": {bpf.Slot(backend11, 0), bpf.Slot(backend12, 0), packet.Tag{Hop: 1}, bpf.ReasonDelivered},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.put("slots", 256+hash&255, c.now)
			w.put("slots", 256+old&255, c.was)
			w.option(tcpIndex, func(s *bpf.Svc) { s.Flags, s.PrevSeed = bpf.SvcRotating, before })
			w.expect(moved{c.want: 1}, func() { w.xdp(tunnelFrom(mac5, c.tag).Wrap(p)) })
		})
	}
}

// One packet in so many is told of while somebody looks, and nothing otherwise.
func TestSampledPackets(t *testing.T) {
	w := newWorld(t)
	in := fromRouter(packet.UDP(client, vip).Payload([]byte("x"))).Bytes()
	want := bpf.Event{
		Packets: 1, Bytes: 29, Src: ip16("192.0.2.9"), Dst: ip16("203.0.113.1"), Sport: bpf.BE16(1234), Dport: bpf.BE16(80), Type: bpf.BE16(0x800),
		Proto: packet.ProtoUDP, Kind: bpf.EventSampled, Audience: bpf.EventForSample, Service: udpService, From: backend11,
	}
	soon := now() + uint64(time.Minute)
	for name, c := range map[string]struct {
		flags, sample uint32
		watch         bpf.Watch
		want          []bpf.Event
	}{
		"all":                {bpf.SvcSampled, 1, bpf.Watch{SamplesUntil: soon}, []bpf.Event{want}},
		"of the service":     {bpf.SvcSampled, 1, bpf.Watch{SamplesUntil: soon, SamplesService: udpService}, []bpf.Event{want}},
		"of another service": {bpf.SvcSampled, 1, bpf.Watch{SamplesUntil: soon, SamplesService: tcpService}, nil},
		"nobody looks":       {bpf.SvcSampled, 1, bpf.Watch{}, nil},
		"no more":            {bpf.SvcSampled, 1, bpf.Watch{SamplesUntil: now()}, nil},
		"none":               {bpf.SvcSampled, 0, bpf.Watch{SamplesUntil: soon}, nil},
		"not flagged":        {0, 1, bpf.Watch{SamplesUntil: soon}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.of(t)
			w.option(udpIndex, func(s *bpf.Svc) { s.Flags, s.Sample = c.flags, c.sample })
			w.put("watch", uint32(0), &c.watch)
			w.tells(c.want, func() { w.expect(moved{bpf.ReasonSent: 1}, func() { w.xdp(in) }) })
		})
	}
	// One in 64 of 2,048 is about 32: outside of 8 and 80 once in 10^7 runs.
	w.option(udpIndex, func(s *bpf.Svc) { s.Flags, s.Sample = bpf.SvcSampled, 64 })
	w.put("watch", uint32(0), &bpf.Watch{SamplesUntil: soon})
	told := 0
	for range 64 { // the ring has room for 39
		told += len(w.told(func() {
			for range 32 {
				w.xdp(in)
			}
		}))
	}
	if told < 8 || told > 80 {
		t.Errorf("%d of 2,048 packets are told of, one in 64 was asked for", told)
	}
}

// A frame with a VLAN's tag is another network's, whatever is in it: it passes as it
// is, to the kernel's own device of that VLAN. Without the tag it is the VIP's.
func TestTaggedFramesPassUntouched(t *testing.T) {
	w := newWorld(t)
	for name, p := range map[string]packet.Packet{
		"for a VIP":     packet.TCP(client, vip).SYN(),
		"for a VIP, v6": packet.TCP(client6, vip6).SYN(),
		"a fragment":    packet.UDP(client, vip).Payload(make([]byte, 64)).Fragment(true, 0),
		"the tunnel's":  packet.UDP(endpoint2+":50000", endpoint+":4789").Payload(make([]byte, 64)),
	} {
		plain := fromRouter(p).Bytes()
		for kind, tags := range map[string][]byte{
			"802.1Q":   {0x81, 0, 0, 7},
			"priority": {0x81, 0, 0xe0, 0},
			"802.1ad":  {0x88, 0xa8, 0, 9, 0x81, 0, 0, 7},
		} {
			t.Run(name+", "+kind, func(t *testing.T) {
				w := w.of(t)
				in := slices.Concat(plain[:12], tags, plain[12:])
				w.expect(moved{bpf.ReasonPassNotInet: 1}, func() {
					action, out := w.xdp(in)
					if action != xdpPass {
						t.Errorf("action %d", action)
					}
					w.same("frame", out, in)
				})
			})
		}
	}
	w.expect(moved{bpf.ReasonSent: 1}, func() { w.xdp(fromRouter(packet.TCP(client, vip).SYN()).Bytes()) })
}
