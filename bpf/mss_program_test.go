// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

func mss(n uint16) []byte { return []byte{2, 4, byte(n >> 8), byte(n)} }

func joined(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// Services of the test hand 1,500 bytes to a backend; here 1,450, as over a network
// of 1,500.
func (w *world) narrow() {
	w.Helper()
	for _, index := range []uint32{tcpIndex, udpIndex} {
		var s bpf.Svc
		must(w.T, w.maps["svc"].Lookup(index, &s))
		s.Mtu = 1450
		w.put("svc", index, &s)
	}
}

// The segment size that the two sides of a balanced connection agree on fits into
// the tunnel, whatever else the SYN says; nothing else of it changes.
func TestSegmentsFitTheTunnel(t *testing.T) {
	nop := []byte{1}
	scale, sack := []byte{3, 3, 7}, []byte{4, 2}
	stamps := joined([]byte{8, 10}, make([]byte, 8))
	for name, c := range map[string]struct {
		options, want []byte // nil: as they are
	}{
		"alone":               {mss(1460), mss(1410)},
		"jumbo":               {mss(8960), mss(1410)},
		"largest":             {mss(65535), mss(1410)},
		"just fits":           {mss(1410), nil},
		"one more":            {mss(1411), mss(1410)},
		"small":               {mss(536), nil},
		"none":                {nil, nil},
		"as Linux writes it":  {joined(mss(1460), sack, stamps, nop, scale), joined(mss(1410), sack, stamps, nop, scale)},
		"behind others":       {joined(sack, stamps, mss(1460), nop, scale), joined(sack, stamps, mss(1410), nop, scale)},
		"at an odd place":     {joined(nop, mss(1460), scale), joined(nop, mss(1410), scale)},
		"at the end":          {joined(stamps, stamps, stamps, sack, mss(1460), sack, nop, nop)[:40], joined(stamps, stamps, stamps, sack, mss(1410), sack, nop, nop)[:40]},
		"only the first":      {joined(mss(1460), mss(1460)), joined(mss(1410), mss(1460))},
		"behind the end":      {joined([]byte{0, 0, 0, 0}, mss(1460)), nil},
		"of another length":   {[]byte{2, 3, 255, 1, 2, 4, 5, 180}, nil},
		"cut":                 {joined(nop, nop, nop, nop, nop, []byte{2, 4, 255}), nil},
		"an option of size 0": {joined([]byte{30, 0}, mss(1460), nop, nop), nil},
		"an option of size 1": {joined([]byte{30, 1}, mss(1460), nop, nop), nil},
		"an option too long":  {joined([]byte{30, 200}, mss(1460), nop, nop), nil},
		"forty NOPs":          {joined(stamps[:0], make40(1)), nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.admit(web)
			w.narrow()
			if c.want == nil {
				c.want = c.options
			}
			in := packet.TCP(client, addr5+":8080")
			w.expect(moved{bpf.ReasonToPort: 1}, func() {
				_, out, _ := w.tc("uplink_in", fromRouter(in.SYN().TCPOptions(c.options)).Bytes(), throughVIP)
				w.same("SYN", out, toVM(in.SYN().TCPOptions(c.want), mac5).Bytes())
			})
			answer := in.Reply().SYN().ACK().Sequence(500).Acknowledge(1)
			fromVIP := packet.TCP(client, vip).Reply().SYN().ACK().Sequence(500).Acknowledge(1).TTL(63)
			w.out(answer.TCPOptions(c.options), fromVIP.TCPOptions(c.want))
		})
	}
}

func make40(b byte) (all []byte) {
	for range 40 {
		all = append(all, b)
	}
	return all
}

// What is not a balanced SYN is left alone, and so are services without a bound.
func TestSegmentsOfOthersStay(t *testing.T) {
	w := newWorld(t)
	w.admit(web)
	w.narrow()
	direct := packet.TCP("192.0.2.9:2000", addr5+":8080")
	w.into(direct.SYN().TCPOptions(mss(1460)), skb{})
	w.out(direct.Reply().SYN().ACK().Acknowledge(1).TCPOptions(mss(1460)), direct.Reply().SYN().ACK().Acknowledge(1).TCPOptions(mss(1460)).TTL(63))
	out := packet.TCP(addr5+":5555", client).SYN().TCPOptions(mss(1460))
	w.out(out, out.TTL(63))

	in := packet.TCP(client, addr5+":8080")
	w.into(in.SYN(), throughVIP)
	w.into(in.ACK().TCPOptions(mss(1460)), throughVIP) // no SYN: no such option is heeded

	var s bpf.Svc
	must(t, w.maps["svc"].Lookup(tcpIndex, &s))
	s.Mtu = 0
	w.put("svc", tcpIndex, &s)
	w.into(packet.TCP("192.0.2.9:2001", addr5+":8080").SYN().TCPOptions(mss(1460)), throughVIP)
}
