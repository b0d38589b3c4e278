// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"

	"github.com/cilium/ebpf"
)

func runOf(s *bpf.Sweep) *ebpf.RunOptions { return &ebpf.RunOptions{Context: s, ContextOut: s} }

// limit sets how many connections each backend of the TCP service takes.
func (w *world) limit(n uint32) {
	w.Helper()
	var s bpf.Svc
	must(w.T, w.maps["svc"].Lookup(tcpIndex, &s))
	s.Limit = n
	w.put("svc", tcpIndex, &s)
}

// A backend takes as many connections as its service's limit says; then the SYN
// goes to the slot's other owner, or is answered with a RST.
func TestConnectionLimit(t *testing.T) {
	syn := fromRouter(packet.TCP("192.0.2.77:5", vip).SYN())
	known := fromRouter(packet.TCP(client, vip))
	ack, again := known.ACK(), known.SYN()
	for name, c := range map[string]struct {
		limit     uint32
		live      bpf.ConnStat
		state     uint16
		panic     bool
		tag       packet.Tag
		p         *packet.Packet // nil: the SYN of another client
		want      bpf.Reason
		refused   uint64
		exhausted bool // this second's RSTs
	}{
		"no limit":                   {limit: 0, live: bpf.ConnStat{Opened: 1000}, want: bpf.ReasonDelivered},
		"below":                      {limit: 3, live: bpf.ConnStat{Opened: 9, Closed: 7}, want: bpf.ReasonDelivered},
		"at it, alone":               {limit: 3, live: bpf.ConnStat{Opened: 9, Closed: 6}, want: bpf.ReasonRefused, refused: 1},
		"beyond it, alone":           {limit: 3, live: bpf.ConnStat{Opened: 9}, want: bpf.ReasonRefused, refused: 1},
		"at it, beyond RSTs' rate":   {limit: 3, live: bpf.ConnStat{Opened: 3}, want: bpf.ReasonLimit, refused: 1, exhausted: true},
		"draining, beyond the rate":  {limit: 3, state: bpf.LocalDraining, want: bpf.ReasonDraining, refused: 1, exhausted: true},
		"at it, another owner":       {limit: 3, live: bpf.ConnStat{Opened: 3}, tag: packet.Tag{Other: backend11}, want: bpf.ReasonForwarded, refused: 1},
		"at it, hop 1":               {limit: 3, live: bpf.ConnStat{Opened: 3}, tag: packet.Tag{Hop: 1, Other: backend11}, want: bpf.ReasonForwarded, refused: 1},
		"at it, hop 2":               {limit: 3, live: bpf.ConnStat{Opened: 3}, tag: packet.Tag{Hop: 2, Other: backend11}, want: bpf.ReasonRefused, refused: 1},
		"at it, panic":               {limit: 3, live: bpf.ConnStat{Opened: 3}, panic: true, want: bpf.ReasonDelivered},
		"at it, no SYN":              {limit: 3, live: bpf.ConnStat{Opened: 3}, p: &ack, want: bpf.ReasonDelivered},
		"at it, SYN of a known flow": {limit: 3, live: bpf.ConnStat{Opened: 3}, p: &again, want: bpf.ReasonDelivered},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.owners(backend12, 0)
			w.local(port5, backend12, bpf.LocalReady|c.state)
			w.remember(port5, flowKey(packet.ProtoTCP, client, addr5+":8080"), balanced(tcpService, bpf.CtEstablished))
			w.limit(c.limit)
			if c.panic {
				var s bpf.Svc
				must(t, w.maps["svc"].Lookup(tcpIndex, &s))
				s.Flags |= bpf.SvcPanic
				w.put("svc", tcpIndex, &s)
			}
			if c.exhausted {
				w.exhaust()
			}
			w.put("backend_conn", backend12, &c.live)
			in := syn
			if c.p != nil {
				in = *c.p
			}
			w.expect(moved{c.want: 1}, func() {
				w.pinned(func() {
					action, out := w.xdp(tunnelFrom(mac5, c.tag).Wrap(in))
					if c.want == bpf.ReasonRefused {
						if action != xdpTX {
							t.Fatalf("action %d", action)
						}
						w.same("RST", out, in.Reply().RST().ACK().Acknowledge(1).Window(0).Bytes())
					}
				})
			})
			c.live.Refused = c.refused
			w.connected(c.live)
		})
	}
}

// exhaust this second's RSTs.
func (w *world) exhaust() {
	w.Helper()
	perCPU := make([]bpf.Refusals, ebpf.MustPossibleCPU())
	for i := range perCPU {
		perCPU[i] = bpf.Refusals{Since: now(), Sent: 1000}
	}
	w.put("refusals", uint32(0), perCPU)
}

// What a backend at its limit does not take, a next owner on the same host does,
// if it may.
func TestConnectionLimitOfBothOwnersHere(t *testing.T) {
	w := newWorld(t)
	w.owners(backend12, backend13)
	w.limit(2)
	w.put("backend_conn", backend12, &bpf.ConnStat{Opened: 2})
	syn := fromRouter(packet.TCP(client, vip).SYN())
	w.expect(moved{bpf.ReasonDelivered: 1}, func() {
		_, out := w.xdp(syn.Bytes())
		w.same("delivered", out, append(note(tcpIndex, backend13, hashOf(client, vip, packet.ProtoTCP, 0)), syn.To(addr6+":8080").Bytes()...))
	})
	w.put("backend_conn", backend13, &bpf.ConnStat{Opened: 2})
	w.expect(moved{bpf.ReasonRefused: 1}, func() { w.xdp(syn.Bytes()) })
	// Each look at a backend that does not take it counts there: two, one, and back.
	if a, b := w.conn(backend12).Refused, w.conn(backend13).Refused; a != 3 || b != 1 {
		t.Errorf("refused: %d and %d, want 3 and 1", a, b)
	}
}

// Without an agent nobody sweeps: connections that have expired do not keep new
// ones out.
func TestExpiredConnectionsDoNotCountAtTheLimit(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.owners(backend12, 0)
	w.limit(1)
	w.connect(client)
	w.connected(bpf.ConnStat{Opened: 1})
	syn := fromRouter(packet.TCP("192.0.2.77:5", vip).SYN())
	w.expect(moved{bpf.ReasonRefused: 1}, func() { w.xdp(syn.Bytes()) })
	key := flowKey(packet.ProtoTCP, client, addr5+":8080")
	f, _ := w.flow(port5, key)
	f.Seen = now() - 3601e9
	w.remember(port5, key, f)
	w.put("ct_swept", port5, now()-2e9)
	w.expect(moved{bpf.ReasonDelivered: 1}, func() { w.xdp(syn.Bytes()) })
	w.connected(bpf.ConnStat{Opened: 1, Closed: 1, Refused: 1})
}

// The SYN's way from the limit to the last connection's end, through the programs.
func TestConnectionLimitFollowsConnections(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.owners(backend12, 0)
	w.limit(2)
	syn := fromRouter(packet.TCP("192.0.2.77:5", vip).SYN())
	first := w.connect("192.0.2.9:1001")
	w.expect(moved{bpf.ReasonDelivered: 1}, func() { w.xdp(syn.Bytes()) })
	w.connect("192.0.2.9:1002")
	w.expect(moved{bpf.ReasonRefused: 1}, func() { w.xdp(syn.Bytes()) })
	w.into(first.RST().Sequence(101), throughVIP)
	w.expect(moved{bpf.ReasonDelivered: 1}, func() { w.xdp(syn.Bytes()) })
	w.connected(bpf.ConnStat{Opened: 2, Closed: 1, Refused: 1, ResetsIn: 1})
}
