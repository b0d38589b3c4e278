// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// told runs f and gives the events that came of it, without their times and
// those of whom they were for.
func (w *world) told(f func()) (events []bpf.Event) {
	w.Helper()
	ring, err := ringbuf.NewReader(w.maps["events"])
	must(w.T, err)
	defer ring.Close()
	read := func() (events []bpf.Event) {
		for {
			ring.SetDeadline(time.Unix(1, 0)) // what is there, and no waiting
			record, err := ring.Read()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return events
			}
			must(w.T, err)
			var e bpf.Event
			must(w.T, binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &e))
			if n := now(); e.At > n || e.At < n-uint64(time.Minute) {
				w.Errorf("an event of %d, at %d", e.At, n)
			}
			e.At = 0
			events = append(events, e)
		}
	}
	read() // of the test before
	f()
	return read()
}

func (w *world) tells(want []bpf.Event, f func()) {
	w.Helper()
	got := w.told(f)
	if len(got) != len(want) {
		w.Fatalf("%d events, want %d:\n%+v", len(got), len(want), got)
	}
	for i := range want {
		if want[i].Opened != 0 && got[i].Opened != 0 {
			want[i].Opened = got[i].Opened
		}
		if got[i] != want[i] {
			w.Errorf("event %d:\n got %+v\nwant %+v", i, got[i], want[i])
		}
	}
}

func (w *world) logFlows(port uint32) {
	w.edit(port, func(pc *bpf.PortCfg) { pc.Flags |= bpf.PortFlowLog })
}

// ofWeb is an event of the flow from client to port 5's own 8080, by rule 42.
func ofWeb(kind uint8, change func(*bpf.Event)) bpf.Event {
	e := bpf.Event{
		Opened: 1, Packets: 1, Bytes: 40, Src: ip16("192.0.2.9"), Dst: ip16(addr5), Sport: bpf.BE16(1234), Dport: bpf.BE16(8080),
		Port: port5, Rule: 42, Proto: packet.ProtoTCP, Kind: kind, Direction: uint8(bpf.DirectionIn), State: bpf.CtNew, Audience: bpf.EventForLog,
	}
	change(&e)
	return e
}

func TestFlowsAreTold(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.logFlows(port5)
	in := packet.TCP(client, addr5+":8080")
	key := flowKey(packet.ProtoTCP, client, addr5+":8080")
	w.tells([]bpf.Event{ofWeb(bpf.EventOpened, func(*bpf.Event) {})}, func() { w.establish(in) })
	w.tells(nil, func() { w.sweep(port5) })
	f, _ := w.flow(port5, key)
	f.Seen, f.Idle = now()-uint64(10*time.Second), 5
	w.remember(port5, key, f)
	w.tells([]bpf.Event{ofWeb(bpf.EventClosed, func(e *bpf.Event) {
		e.State, e.Packets, e.Bytes = bpf.CtEstablished, f.Packets, f.Bytes
	})}, func() { w.sweep(port5) })
}

// A flow that comes through a service names it, and one out of the port begins
// there.
func TestFlowsAreToldAsTheirFirstPacketWas(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.logFlows(port5)
	w.tells([]bpf.Event{ofWeb(bpf.EventOpened, func(e *bpf.Event) { e.Service = tcpService })}, func() {
		w.into(packet.TCP(client, addr5+":8080").SYN(), noted(tcpIndex, backend12, 1))
	})
	ask := packet.UDP(addr5+":999", "9.9.9.9:53")
	w.tells([]bpf.Event{{
		Opened: 1, Packets: 1, Bytes: 28, Src: ip16(addr5), Dst: ip16("9.9.9.9"), Sport: bpf.BE16(999), Dport: bpf.BE16(53), Port: port5,
		Proto: packet.ProtoUDP, Kind: bpf.EventOpened, Direction: uint8(bpf.DirectionOut), State: bpf.CtNew, Audience: bpf.EventForLog,
	}}, func() { w.out(ask, ask.TTL(63)) })
}

func TestFlowsThatEndEarlyAreTold(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.logFlows(port5)
	syn := packet.TCP(client, addr5+":8080").SYN()
	w.into(syn, skb{})
	t.Run("its rule is gone", func(t *testing.T) {
		w := w.of(t)
		w.edit(port5, func(pc *bpf.PortCfg) { pc.PolicyIn, pc.Generation = 999, 2 })
		w.tells([]bpf.Event{
			ofWeb(bpf.EventClosed, func(e *bpf.Event) { e.Reason = uint32(bpf.ReasonPolicyIn) }),
			ofWeb(bpf.EventDenied, func(e *bpf.Event) {
				e.Opened, e.State, e.Reason, e.TcpFlags, e.Type = 0, 0, uint32(bpf.ReasonPolicyIn), packet.SYN, bpf.BE16(0x800)
			}),
		}, func() { w.refused(syn, skb{}, bpf.ReasonPolicyIn) })
		w.edit(port5, func(pc *bpf.PortCfg) { pc.PolicyIn, pc.Generation = 500, 3 })
	})
	t.Run("another takes its place", func(t *testing.T) {
		w := w.of(t)
		w.remember(port5, flowKey(packet.ProtoTCP, client, addr5+":8080"), balanced(99, bpf.CtClosed))
		closed := ofWeb(bpf.EventClosed, func(e *bpf.Event) {
			e.Opened, e.Packets, e.Bytes, e.Service, e.State, e.Rule, e.Sport = 0, 0, 0, 99, bpf.CtClosed, 0, 0
		})
		w.tells([]bpf.Event{closed, ofWeb(bpf.EventOpened, func(*bpf.Event) {})}, func() { w.into(syn, skb{}) })
	})
	t.Run("its port goes", func(t *testing.T) {
		w := w.of(t)
		s := bpf.Sweep{Port: port5, All: 1}
		w.tells([]bpf.Event{ofWeb(bpf.EventClosed, func(e *bpf.Event) { e.Reason = uint32(bpf.ReasonNoPort) })}, func() {
			_, err := w.progs["ct_sweep"].Run(&ebpf.RunOptions{Context: &s, ContextOut: &s})
			must(w.T, err)
		})
		if s.Live != 0 || s.Expired != 1 {
			t.Errorf("the pass says %+v", s)
		}
	})
}

func TestNothingIsToldUnasked(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.tells(nil, func() {
		w.establish(packet.TCP(client, addr5+":8080"))
		w.refused(packet.TCP(client, addr5+":81").SYN(), skb{}, bpf.ReasonPolicyIn)
		w.dropped("vm_in", packet.UDP("9.9.9.9:1", client).MACs(mac5, gatewayMAC).Bytes(), bpf.ReasonSpoofedIP)
		w.sweep(port5)
	})
	w.logFlows(port5)
	w.tells(nil, func() { // a log is of flows and of what the policy says
		w.dropped("vm_in", packet.UDP("9.9.9.9:1", client).MACs(mac5, gatewayMAC).Bytes(), bpf.ReasonSpoofedIP)
	})
}

func TestDropsAreToldToWhoWatches(t *testing.T) {
	w := newWorld(t)
	spoofed := packet.UDP("9.9.9.9:1", client).MACs(mac5, gatewayMAC).Bytes()
	drop := func() { w.dropped("vm_in", spoofed, bpf.ReasonSpoofedIP) }
	want := bpf.Event{
		Packets: 1, Bytes: 28, Src: ip16("9.9.9.9"), Dst: ip16("192.0.2.9"), Sport: bpf.BE16(1), Dport: bpf.BE16(1234), Port: port5,
		Reason: uint32(bpf.ReasonSpoofedIP), Type: bpf.BE16(0x800), Proto: packet.ProtoUDP, Kind: bpf.EventDropped,
		Direction: uint8(bpf.DirectionOut), Audience: bpf.EventForWatch,
	}
	in := now() + uint64(time.Minute)
	for name, c := range map[string]struct {
		watch bpf.Watch
		want  []bpf.Event
	}{
		"all":             {bpf.Watch{DropsUntil: in}, []bpf.Event{want}},
		"of the port":     {bpf.Watch{DropsUntil: in, DropsPort: port5, DropsReason: uint32(bpf.ReasonSpoofedIP)}, []bpf.Event{want}},
		"of another port": {bpf.Watch{DropsUntil: in, DropsPort: port6}, nil},
		"another reason":  {bpf.Watch{DropsUntil: in, DropsReason: uint32(bpf.ReasonPolicyIn)}, nil},
		"no more":         {bpf.Watch{DropsUntil: now()}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.of(t)
			w.put("watch", uint32(0), &c.watch)
			w.tells(c.want, drop)
		})
	}
	w.put("watch", uint32(0), &bpf.Watch{DropsUntil: in})
	w.tells([]bpf.Event{{
		Packets: 1, Bytes: 40, Src: ip16("192.0.2.9"), Dst: ip16("203.0.113.1"), Sport: bpf.BE16(1234), Dport: bpf.BE16(81),
		Reason: uint32(bpf.ReasonNoService), Type: bpf.BE16(0x800), Proto: packet.ProtoTCP, Kind: bpf.EventDropped, TcpFlags: packet.SYN,
		Audience: bpf.EventForWatch,
	}}, func() { w.xdp(fromRouter(packet.TCP(client, "203.0.113.1:81").SYN()).Bytes()) })
	w.tells([]bpf.Event{{
		Packets: 1, Reason: uint32(bpf.ReasonGuard), Kind: bpf.EventDropped, Audience: bpf.EventForWatch,
	}}, func() { w.tc("vm_guard", spoofed, skb{}) })
}

// From port 5 to port 6: it left the one and was refused by the other.
func TestDropAtTheNeighbour(t *testing.T) {
	w := newWorld(t)
	w.put("watch", uint32(0), &bpf.Watch{DropsUntil: now() + uint64(time.Minute)})
	w.tells([]bpf.Event{{
		Packets: 1, Bytes: 28, Src: ip16(addr5), Dst: ip16(addr6), Sport: bpf.BE16(1), Dport: bpf.BE16(2), Port: port6, From: port5,
		Reason: uint32(bpf.ReasonPolicyIn), Type: bpf.BE16(0x800), Proto: packet.ProtoUDP, Kind: bpf.EventDenied, Audience: bpf.EventForWatch,
	}}, func() {
		w.dropped("vm_in", fromVM(packet.UDP(addr5+":1", addr6+":2")).Bytes(), bpf.ReasonPolicyIn)
	})
	w.counts(port5, bpf.PortStat{PacketsOut: 1, BytesOut: 28})
	w.counts(port6, bpf.PortStat{PacketsDropped: 1})
}

// counts compares a port's counters, but for its events.
func (w *world) counts(port uint32, want bpf.PortStat) {
	w.Helper()
	var perCPU []bpf.PortStat
	must(w.T, w.maps["port_stat"].Lookup(port, &perCPU))
	var got bpf.PortStat
	for _, s := range perCPU {
		got.PacketsIn += s.PacketsIn
		got.BytesIn += s.BytesIn
		got.PacketsOut += s.PacketsOut
		got.BytesOut += s.BytesOut
		got.PacketsDropped += s.PacketsDropped
	}
	if got != want {
		w.Errorf("port %d counts %+v, want %+v", port, got, want)
	}
}

func TestPortsCountTheirPackets(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.into(packet.TCP(client, addr5+":8080").SYN(), skb{})
	w.into(packet.TCP(client, addr5+":8080").SYN().Payload(make([]byte, 100)), skb{})
	w.refused(packet.TCP(client, addr5+":81").SYN(), skb{}, bpf.ReasonPolicyIn)
	ask := packet.UDP(addr5+":999", "9.9.9.9:53").Payload(make([]byte, 10))
	w.out(ask, ask.TTL(63))
	w.dropped("vm_in", packet.UDP("9.9.9.9:1", client).MACs(mac5, gatewayMAC).Bytes(), bpf.ReasonSpoofedIP)
	w.counts(port5, bpf.PortStat{PacketsIn: 2, BytesIn: 180, PacketsOut: 1, BytesOut: 38, PacketsDropped: 2})
	w.counts(port6, bpf.PortStat{})
	w.del("port_stat", port5) // as when its agent was of a version before these counters
	w.into(packet.TCP(client, addr5+":8080").SYN(), skb{})
}

func TestLostEventsAreCounted(t *testing.T) {
	w := newWorld(t)
	w.logFlows(port5)
	denied := fromRouter(packet.TCP(client, addr5+":81").SYN()).Bytes()
	flood := func(n int) (told int) {
		return len(w.told(func() {
			for range n {
				w.tc("uplink_in", denied, skb{})
			}
		}))
	}
	const room = 39 // of records of 96 and 8 bytes in a ring of 4,096
	if told := flood(60); told != room {
		t.Errorf("%d events, want %d", told, room)
	}
	if got := w.eventStat(); got != (bpf.EventStat{Told: room, Lost: 60 - room}) {
		t.Errorf("counted %+v", got)
	}
	full := make([]bpf.PortStat, ebpf.MustPossibleCPU())
	for i := range full {
		full[i].Due = now() + uint64(time.Minute)
	}
	w.put("port_stat", port5, full) // its rate is used up
	if told := flood(7); told != 0 {
		t.Errorf("%d events beyond the rate", told)
	}
	if got := w.eventStat(); got != (bpf.EventStat{Told: room, Lost: 60 - room, Muted: 7}) {
		t.Errorf("counted %+v", got)
	}
}

// Who sends a port what it refuses, all the time, does not keep its flows from
// being told.
func TestRefusedPacketsLeaveRoomForFlows(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.logFlows(port5)
	half := make([]bpf.PortStat, ebpf.MustPossibleCPU())
	for i := range half {
		half[i].Due = now() + uint64(700*time.Millisecond)
	}
	w.put("port_stat", port5, half)
	events := w.told(func() {
		w.refused(packet.TCP(client, addr5+":81").SYN(), skb{}, bpf.ReasonPolicyIn)
		w.into(packet.TCP(client, addr5+":8080").SYN(), skb{})
	})
	if len(events) != 1 || events[0].Kind != bpf.EventOpened {
		t.Errorf("told of %+v, want the flow alone", events)
	}
	if got := w.eventStat(); got != (bpf.EventStat{Told: 1, Muted: 1}) {
		t.Errorf("counted %+v", got)
	}
}

func (w *world) eventStat() (sum bpf.EventStat) {
	w.Helper()
	var perCPU []bpf.EventStat
	must(w.T, w.maps["event_stat"].Lookup(uint32(0), &perCPU))
	for _, s := range perCPU {
		sum.Told += s.Told
		sum.Lost += s.Lost
		sum.Muted += s.Muted
	}
	return sum
}
