// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"fmt"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"

	"github.com/cilium/ebpf"
)

// arrival is a packet that the host of backend 12 gets from another host, and all
// that decides what becomes of it.
type arrival struct {
	kind               string // syn, ack, udp
	known              bool
	state              string // ready, unhealthy, draining, full
	panic              bool
	named, remembered  uint32 // the other owner: in the encapsulation, in this host's slot
	hop                uint8
	nextTakes, nextHas bool // backend 13, if it is the next: on this host, too
}

func (a arrival) String() string {
	return fmt.Sprintf("%s known=%v %s panic=%v named=%d own=%d hop=%d next takes=%v has=%v",
		a.kind, a.known, a.state, a.panic, a.named, a.remembered, a.hop, a.nextTakes, a.nextHas)
}

// outcome by the table: the reason, and where it goes.
type outcome struct {
	reason  bpf.Reason
	backend uint32
	tag     packet.Tag // when it is handed to another host
	handed  uint64     // how often it was handed on
	refused uint64     // by both backends
}

// decide is the table of what a host does with a packet from an LB node, row by row
// and owner by owner. It shares nothing with the program.
func (a arrival) decide() outcome {
	at, other, hop := backend12, a.named, a.hop
	o := outcome{}
	for range 4 {
		known, state := a.known, a.state
		if at == backend13 {
			known, state = a.nextHas, "draining"
			if a.nextTakes {
				state = "ready"
			}
		}
		next := other
		if next == at {
			next = 0
		}
		if next == 0 && hop == 0 {
			next = a.remembered
		}
		if next == at {
			next = 0
		}
		switch {
		case known,
			a.kind == "syn" && (state == "ready" || a.panic),
			a.kind == "syn" && (next == 0 || hop >= 2) && state == "unhealthy":
			return outcome{bpf.ReasonDelivered, at, packet.Tag{}, o.handed, o.refused}
		case a.kind == "syn" && (next == 0 || hop >= 2):
			return outcome{bpf.ReasonRefused, at, packet.Tag{}, o.handed, o.refused + 1}
		case a.kind == "syn":
			o.refused++
		case next == 0, hop >= 2, hop == 1 && a.kind != "udp":
			return outcome{bpf.ReasonDelivered, at, packet.Tag{}, o.handed, o.refused}
		}
		hop++
		o.handed++
		if next == backend11 {
			return outcome{bpf.ReasonForwarded, next, packet.Tag{Hop: hop, Other: at}, o.handed, o.refused}
		}
		at, other = next, at
	}
	panic("goes round")
}

func TestEveryArrival(t *testing.T) {
	var all []arrival
	for _, kind := range []string{"syn", "ack", "udp"} {
		for _, known := range []bool{false, true} {
			for _, state := range []string{"ready", "unhealthy", "draining", "full"} {
				for _, panics := range []bool{false, true} {
					for _, named := range []uint32{0, backend11, backend12, backend13} {
						for _, remembered := range []uint32{0, backend11, backend13} {
							for hop := range uint8(3) {
								for next := range 4 {
									if next > 0 && named != backend13 && remembered != backend13 {
										continue // nobody asks
									}
									all = append(all, arrival{kind, known, state, panics, named, remembered, hop, next&1 == 0, next&2 != 0})
								}
							}
						}
					}
				}
			}
		}
	}
	w := newWorld(t)
	outcomes := map[bpf.Reason]int{}
	for _, a := range all {
		want := a.decide()
		outcomes[want.reason]++
		a.try(w, want)
	}
	if outcomes[bpf.ReasonDelivered] < 500 || outcomes[bpf.ReasonForwarded] < 200 || outcomes[bpf.ReasonRefused] < 50 {
		t.Errorf("%d arrivals: %v", len(all), outcomes)
	}
}

// try puts the world as a has it, and the packet through.
func (a arrival) try(w *world, want outcome) {
	w.Helper()
	p, proto, index, service := packet.TCP(client, vip).ACK(), uint8(packet.ProtoTCP), tcpIndex, tcpService
	switch a.kind {
	case "syn":
		p = packet.TCP(client, vip).SYN()
	case "udp":
		p, proto, index, service = packet.UDP(client, vip), packet.ProtoUDP, udpIndex, udpService
	}
	hash := hashOf(client, vip, proto, 0)
	var s bpf.Svc
	must(w.T, w.maps["svc"].Lookup(index, &s))
	s.Limit, s.Flags = 5, 0
	if a.panic {
		s.Flags = bpf.SvcPanic
	}
	w.put("svc", index, &s)
	w.put("slots", s.SlotBase+hash&255, bpf.Slot(backend12, a.remembered))
	w.local(port5, backend12, map[string]uint16{"ready": bpf.LocalReady, "full": bpf.LocalReady, "draining": bpf.LocalDraining}[a.state])
	w.local(port6, backend13, map[bool]uint16{true: bpf.LocalReady, false: bpf.LocalDraining}[a.nextTakes])
	here := bpf.ConnStat{}
	if a.state == "full" {
		here.Opened = 5
	}
	w.put("backend_conn", backend12, &here)
	w.put("backend_conn", backend13, &bpf.ConnStat{})
	for _, f := range []struct {
		port uint32
		own  string
		has  bool
	}{{port5, addr5, a.known}, {port6, addr6, a.nextHas}} {
		key := flowKey(proto, client, f.own+":8080")
		_ = w.flows[f.port].Delete(key)
		if f.has {
			w.remember(f.port, key, balanced(service, bpf.CtEstablished))
		}
	}
	w.put("svc_stat", service, make([]bpf.Stat, ebpf.MustPossibleCPU()))
	w.put("refusals", uint32(0), make([]bpf.Refusals, ebpf.MustPossibleCPU()))

	in := fromRouter(p)
	defer func() {
		if w.Failed() {
			w.Log(a)
		}
	}()
	w.expect(moved{want.reason: 1}, func() {
		_, out := w.xdp(tunnelFrom(mac5, packet.Tag{Hop: a.hop, Other: a.named}).Wrap(in))
		switch want.reason {
		case bpf.ReasonDelivered:
			at := map[uint32]string{backend12: addr5, backend13: addr6}[want.backend]
			w.same("delivered", out, append(note(index, want.backend, hash), in.To(at+":8080").Bytes()...))
		case bpf.ReasonForwarded:
			w.same("forwarded", out, tunnelTo(hash, want.tag).Wrap(in.TTL(63)))
		case bpf.ReasonRefused:
			w.same("refused", out, in.Reply().RST().ACK().Acknowledge(1).Window(0).Bytes())
		}
	})
	if got := w.stat("svc_stat", service).Forwarded; got != want.handed {
		w.Fatalf("handed on %d times, want %d", got, want.handed)
	}
	if got := w.conn(backend12).Refused + w.conn(backend13).Refused; got != want.refused {
		w.Fatalf("refused %d times, want %d", got, want.refused)
	}
}
