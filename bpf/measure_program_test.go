// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

func (w *world) conn(backend uint32) (s bpf.ConnStat) {
	w.Helper()
	must(w.T, w.maps["backend_conn"].Lookup(backend, &s))
	return s
}

// connected wants nothing else counted of backend 12.
func (w *world) connected(want bpf.ConnStat) {
	w.Helper()
	if got := w.conn(backend12); got != want {
		w.Fatalf("backend 12 counts %+v, want %+v", got, want)
	}
}

var throughVIP = noted(tcpIndex, backend12, 1)

// connect brings a balanced connection from a client to its third packet.
func (w *world) connect(from string) packet.Packet {
	w.Helper()
	in := packet.TCP(from, addr5+":8080")
	fromVIP := packet.TCP(from, vip).Reply().TTL(63).SYN().ACK().Sequence(500).Acknowledge(101)
	w.into(in.SYN().Sequence(100), throughVIP)
	w.out(in.Reply().SYN().ACK().Sequence(500).Acknowledge(101), fromVIP)
	w.into(in.ACK().Sequence(101).Acknowledge(501), throughVIP)
	return in
}

func TestConnectionsAreCounted(t *testing.T) {
	key := flowKey(packet.ProtoTCP, client, addr5+":8080")
	change := func(w *world, edit func(*bpf.Ct)) {
		f, _ := w.flow(port5, key)
		edit(&f)
		w.remember(port5, key, f)
	}
	for name, c := range map[string]struct {
		end  func(w *world, in packet.Packet)
		want bpf.ConnStat
	}{
		"live": {func(*world, packet.Packet) {}, bpf.ConnStat{Opened: 1}},
		"one FIN": {func(w *world, in packet.Packet) {
			w.into(in.FIN().ACK().Sequence(101).Acknowledge(501), throughVIP)
		}, bpf.ConnStat{Opened: 1}},
		"both FINs, and what follows": {func(w *world, in packet.Packet) {
			w.into(in.FIN().ACK().Sequence(101).Acknowledge(501), throughVIP)
			w.tc("vm_in", fromVM(in.Reply().FIN().ACK().Sequence(501).Acknowledge(102)).Bytes(), skb{})
			w.into(in.ACK().Sequence(102).Acknowledge(502), throughVIP)
			w.into(in.ACK().Sequence(102).Acknowledge(502), throughVIP)
		}, bpf.ConnStat{Opened: 1, Closed: 1}},
		"RST of the client": {func(w *world, in packet.Packet) {
			w.into(in.RST().Sequence(101), throughVIP)
			w.into(in.RST().Sequence(101), throughVIP)
		}, bpf.ConnStat{Opened: 1, Closed: 1, ResetsIn: 2}},
		"RST of the instance": {func(w *world, in packet.Packet) {
			w.tc("vm_in", fromVM(in.Reply().RST().Sequence(501)).Bytes(), skb{})
		}, bpf.ConnStat{Opened: 1, Closed: 1, ResetsOut: 1}},
		"a RST that does not fit": {func(w *world, in packet.Packet) {
			w.refused(in.RST().Sequence(1<<30), throughVIP, bpf.ReasonCtInvalidRST)
		}, bpf.ConnStat{Opened: 1}},
		"swept": {func(w *world, _ packet.Packet) {
			change(w, func(f *bpf.Ct) { f.Seen = now() - 3601e9 })
			w.sweep(port5)
			w.sweep(port5)
		}, bpf.ConnStat{Opened: 1, Closed: 1}},
		"swept after its end": {func(w *world, in packet.Packet) {
			w.into(in.RST().Sequence(101), throughVIP)
			change(w, func(f *bpf.Ct) { f.Seen = now() - 3601e9 })
			w.sweep(port5)
		}, bpf.ConnStat{Opened: 1, Closed: 1, ResetsIn: 1}},
		"expired, and begun anew": {func(w *world, in packet.Packet) {
			change(w, func(f *bpf.Ct) { f.Seen = now() - 3601e9 })
			w.connect(client)
		}, bpf.ConnStat{Opened: 2, Closed: 1}},
		"half closed, and begun anew": {func(w *world, in packet.Packet) {
			w.into(in.FIN().ACK().Sequence(101).Acknowledge(501), throughVIP)
			w.connect(client)
		}, bpf.ConnStat{Opened: 2, Closed: 1}},
		"revoked": {func(w *world, in packet.Packet) {
			w.edit(port5, func(pc *bpf.PortCfg) { pc.Generation++; pc.PolicyIn = 999 })
			w.refused(in.ACK().Sequence(101).Acknowledge(501), throughVIP, bpf.ReasonPolicyIn)
		}, bpf.ConnStat{Opened: 1, Closed: 1}},
		// What a program of before, or another host, has left is counted when it speaks.
		"not counted before": {func(w *world, in packet.Packet) {
			w.put("backend_conn", backend12, &bpf.ConnStat{})
			change(w, func(f *bpf.Ct) { f.Counted = 0 })
			w.into(in.ACK().Sequence(101).Acknowledge(501), throughVIP)
			w.into(in.ACK().Sequence(101).Acknowledge(501), throughVIP)
		}, bpf.ConnStat{Opened: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.admit(web)
			c.end(w, w.connect(client))
			w.connected(c.want)
		})
	}
}

func TestWhatIsNoConnectionIsNotCounted(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	in := packet.TCP(client, addr5+":8080")
	w.into(in.SYN().Sequence(100), throughVIP) // nobody answers
	w.establish(packet.TCP("192.0.2.9:2000", addr5+":8080"))
	w.connected(bpf.ConnStat{}) // that one came directly
	if got := w.conn(0); got != (bpf.ConnStat{}) {
		t.Errorf("backend 0 counts %+v", got)
	}
}

// A translated connection has two entries, and is one.
func TestTranslatedConnectionIsCountedOnce(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.remember(port5, flowKey(packet.ProtoTCP, client, addr5+":8080"), balanced(99, bpf.CtEstablished))
	in := packet.TCP(client, addr5+":8080")
	seen := packet.TCP(w.translated(in.SYN().Sequence(100), throughVIP), addr5+":8080")
	w.tc("vm_in", fromVM(seen.Reply().SYN().ACK().Sequence(500).Acknowledge(101)).Bytes(), skb{})
	w.translated(in.ACK().Sequence(101).Acknowledge(501), throughVIP)
	w.connected(bpf.ConnStat{Opened: 1})
	s := bpf.Sweep{Port: port5, All: 1}
	_, err := w.progs["ct_sweep"].Run(runOf(&s))
	must(t, err)
	w.connected(bpf.ConnStat{Opened: 1, Closed: 1})
}

func TestDatagramFlowsAreCounted(t *testing.T) {
	w := newWorld(t)
	udp := web
	udp.proto = packet.ProtoUDP
	w.admit(udp)
	in := packet.UDP(client, addr5+":8080").Payload([]byte("q"))
	n := noted(udpIndex, backend12, 1)
	w.into(in, n)
	w.tc("vm_in", fromVM(in.Reply()).Bytes(), skb{})
	w.connected(bpf.ConnStat{})
	w.into(in, n)
	w.into(in, n)
	w.connected(bpf.ConnStat{Opened: 1})
}

func TestRetransmitsAreCounted(t *testing.T) {
	data := func(n int) []byte { return make([]byte, n) }
	for name, c := range map[string]struct {
		in, out []packet.Packet // after the handshake; in: of the client
		want    bpf.ConnStat
	}{
		"new data": {in: []packet.Packet{ack(101, 501).Payload(data(10)), ack(111, 501).Payload(data(10))}},
		"the same twice": {in: []packet.Packet{ack(101, 501).Payload(data(10)), ack(101, 501).Payload(data(10))},
			want: bpf.ConnStat{RetransmitsIn: 1}},
		"a part of it": {in: []packet.Packet{ack(101, 501).Payload(data(10)), ack(105, 501).Payload(data(3))},
			want: bpf.ConnStat{RetransmitsIn: 1}},
		"and more":         {in: []packet.Packet{ack(101, 501).Payload(data(10)), ack(101, 501).Payload(data(20))}},
		"keepalives":       {in: []packet.Packet{ack(101, 501).Payload(data(10)), ack(110, 501), ack(110, 501)}},
		"acknowledgements": {in: []packet.Packet{ack(101, 501), ack(101, 501)}},
		"of the instance": {out: []packet.Packet{ack(501, 101).Payload(data(10)), ack(501, 101).Payload(data(10)), ack(501, 101).Payload(data(10))},
			want: bpf.ConnStat{RetransmitsOut: 2}},
		"FIN": {in: []packet.Packet{ack(101, 501).FIN(), ack(101, 501).FIN()}, want: bpf.ConnStat{RetransmitsIn: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.admit(web)
			w.connect(client)
			for _, p := range c.in {
				w.into(p.From(client).To(addr5+":8080"), throughVIP)
			}
			for _, p := range c.out {
				w.tc("vm_in", fromVM(p.From(addr5+":8080").To(client)).Bytes(), skb{})
			}
			c.want.Opened = 1
			w.connected(c.want)
		})
	}
}

func ack(sequence, acknowledge uint32) packet.Packet {
	return packet.TCP(client, client).ACK().Sequence(sequence).Acknowledge(acknowledge)
}

// SYNs and their answers are said again, too; an skb of many segments is many.
func TestRetransmittedHandshake(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	in := packet.TCP(client, addr5+":8080")
	for range 3 {
		w.into(in.SYN().Sequence(100), throughVIP)
	}
	for range 2 {
		w.tc("vm_in", fromVM(in.Reply().SYN().ACK().Sequence(500).Acknowledge(101)).Bytes(), skb{})
	}
	w.connected(bpf.ConnStat{RetransmitsIn: 2, RetransmitsOut: 1})
	if got := w.latency(tcpService); sumOf(got.Count[:]) != 1 {
		t.Errorf("the answer was counted: %+v", got)
	}
	w.into(in.ACK().Sequence(101).Acknowledge(501), throughVIP)
	big := in.ACK().Sequence(101).Acknowledge(501).Payload(make([]byte, 2001))
	for range 2 {
		w.tc("uplink_in", fromRouter(big).Bytes(), skb{Cb: throughVIP.Cb, GsoSize: 1000, GsoSegs: 3})
	}
	w.connected(bpf.ConnStat{Opened: 1, RetransmitsIn: 2 + 3, RetransmitsOut: 1})
}

func (w *world) latency(service uint32) (sum bpf.Latency) {
	w.Helper()
	var perCPU []bpf.Latency
	if err := w.maps["svc_latency"].Lookup(service, &perCPU); err != nil {
		return sum
	}
	for _, l := range perCPU {
		for i, n := range l.Count {
			sum.Count[i] += n
		}
		sum.Sum += l.Sum
	}
	return sum
}

func sumOf(all []uint64) (n uint64) {
	for _, v := range all {
		n += v
	}
	return n
}

// How long the answer took is known to a factor of two. What the test itself takes
// is within it, since it asks for the middle of a bucket.
func TestLatencyOfAnswers(t *testing.T) {
	key := flowKey(packet.ProtoTCP, client, addr5+":8080")
	in := packet.TCP(client, addr5+":8080")
	synack := fromVM(in.Reply().SYN().ACK().Sequence(500).Acknowledge(101)).Bytes()
	for _, c := range []struct {
		ms     uint64
		bucket int
	}{{24, 15}, {48, 16}, {96, 17}, {192, 18}, {384, 19}, {1536, 21}, {6000, 23}, {12000, 24}, {29000, 24}} {
		w := newWorld(t)
		w.admit(web)
		w.into(in.SYN().Sequence(100), throughVIP)
		f, ok := w.flow(port5, key)
		if !ok {
			t.Fatal("no flow")
		}
		f.Created = now() - c.ms*1e6
		must(t, w.fresh[port5].Put(key, &f))
		w.tc("vm_in", synack, skb{})
		got := w.latency(tcpService)
		if got.Count[c.bucket] != 1 || sumOf(got.Count[:]) != 1 || got.Sum < c.ms*1000 || got.Sum > c.ms*1500 {
			t.Errorf("%d ms: %+v", c.ms, got)
		}
		if other := w.latency(udpService); sumOf(other.Count[:]) != 0 {
			t.Errorf("the other service counts %+v", other)
		}
	}
}

// What is no answer to a SYN that we have seen says nothing of latency.
func TestWhatHasNoLatency(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	in := packet.TCP(client, addr5+":8080")
	w.into(in.ACK().Sequence(7), throughVIP) // under way before
	w.tc("vm_in", fromVM(in.Reply().ACK().Sequence(500).Acknowledge(8)).Bytes(), skb{})
	direct := packet.TCP("192.0.2.9:2000", addr5+":8080")
	w.establish(direct)
	out := packet.TCP(addr5+":5555", client).SYN()
	w.out(out, out.TTL(63))
	w.into(out.Reply().SYN().ACK().Acknowledge(1), skb{})
	refusing := packet.TCP("192.0.2.9:2001", addr5+":8080")
	w.into(refusing.SYN().Sequence(100), throughVIP)
	w.tc("vm_in", fromVM(refusing.Reply().RST().ACK().Acknowledge(101)).Bytes(), skb{})
	for _, service := range []uint32{0, tcpService, udpService} {
		if got := w.latency(service); sumOf(got.Count[:]) != 0 {
			t.Errorf("service %d: %+v", service, got)
		}
	}
	w.connected(bpf.ConnStat{ResetsOut: 1})
}
