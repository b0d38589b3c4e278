// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// seed prints the seed of a random test; SEED=… replays it.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// The same packets, with changes of policy in between, through the programs and
// through a model in Go: verdicts, bytes and the flows that are left agree.
func TestProgramsAgreeWithTheModel(t *testing.T) {
	rnd := seed(t)
	for range 40 {
		w := newWorld(t)
		udp := web
		udp.proto = packet.ProtoUDP
		w.admit(web)
		w.admit(udp)
		f := fuzz{world: w, rnd: rnd, m: &model{
			flows: map[tuple]*mflow{}, aliases: map[wire]uint16{}, admitsIn: true, opensOut: true, generation: 1,
		}}
		for range 150 {
			f.step()
		}
		f.sameFlows()
	}
}

type fuzz struct {
	*world
	rnd *rand.Rand
	m   *model
	did []string // for the report
}

func pick[T any](rnd *rand.Rand, of ...T) T { return of[rnd.IntN(len(of))] }

func (f *fuzz) step() {
	f.Helper()
	switch n := f.rnd.IntN(100); {
	case n < 4:
		f.changePolicy()
	case n < 50:
		f.send(f.inward())
	case n < 58:
		f.send(f.check())
	default:
		f.send(f.outward())
	}
}

func (f *fuzz) changePolicy() {
	f.m.admitsIn, f.m.opensOut = f.rnd.IntN(3) > 0, f.rnd.IntN(3) > 0
	f.m.generation++
	f.did = append(f.did, fmt.Sprintf("policy: in %v, out %v", f.m.admitsIn, f.m.opensOut))
	f.edit(port5, func(pc *bpf.PortCfg) {
		pc.Generation, pc.PolicyIn, pc.Flags = f.m.generation, 999, 0
		if f.m.admitsIn {
			pc.PolicyIn = web.policy
		}
		if f.m.opensOut {
			pc.Flags = bpf.PortEgressOpen
		}
	})
}

func (f *fuzz) flags(proto uint8) uint8 {
	if proto != packet.ProtoTCP {
		return 0
	}
	return pick[uint8](f.rnd, packet.SYN, packet.SYN, packet.SYN|packet.ACK, packet.ACK, packet.ACK, packet.ACK,
		packet.FIN|packet.ACK, packet.RST, packet.RST|packet.ACK)
}

// inward is a packet from the wire: few peers, ports and services, so that they
// meet.
func (f *fuzz) inward() arrival {
	a := arrival{inward: true}
	a.proto = pick[uint8](f.rnd, packet.ProtoTCP, packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP)
	a.peer = pick(f.rnd, "192.0.2.9", "192.0.2.10", stranger1)
	a.peerPort, a.ownPort = pick[uint16](f.rnd, 1234, 1235), pick[uint16](f.rnd, 8080, 8080, 8081)
	a.flags = f.flags(a.proto)
	if a.ownPort == 8080 && f.rnd.IntN(2) == 0 {
		a.service = map[uint8]uint32{packet.ProtoTCP: tcpService, packet.ProtoUDP: udpService}[a.proto]
	}
	a.match = a.ownPort
	if a.proto == packet.ProtoICMP {
		a.ownPort, a.match = a.peerPort, 8<<8
		if f.rnd.IntN(2) == 0 {
			a.match = 0 // an answer
		}
	}
	return a
}

// check is a packet of a health check.
func (f *fuzz) check() arrival {
	a := arrival{inward: true, host: true}
	a.proto, a.peer, a.peerPort, a.ownPort, a.match = packet.ProtoTCP, probe, 40000, 8080, 8080
	a.flags = f.flags(a.proto)
	return a
}

// outward is a packet of the VM's: mostly of a flow that it knows.
func (f *fuzz) outward() arrival {
	a := f.inward()
	a.service = 0
	for known := range f.m.flows { // any one
		if f.rnd.IntN(4) > 0 {
			a.tuple = known
			a.flags = f.flags(a.proto)
		}
		break
	}
	a.inward = false
	a.door = a.peer == probe
	a.match = a.peerPort
	if a.proto == packet.ProtoICMP {
		a.match = pick[uint16](f.rnd, 0, 8<<8)
	}
	return a
}

// build makes the packet between two ends, as the arrival says.
func (a arrival) build(src, dst string) packet.Packet {
	switch a.proto {
	case packet.ProtoUDP:
		return packet.UDP(src, dst).Payload([]byte("payload"))
	case packet.ProtoICMP:
		s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
		return packet.Ping(s.Addr().String(), d.Addr().String(), a.peerPort).ICMP(uint8(a.match>>8), uint8(a.match))
	}
	return packet.TCP(src, dst).Flags(a.flags)
}

func at(addr string, port uint16) string { return fmt.Sprintf("%s:%d", addr, port) }

// send puts the packet through the program and the model.
func (f *fuzz) send(a arrival) {
	f.Helper()
	f.did = append(f.did, fmt.Sprintf("%+v", a))
	why, seen, flow, free := f.m.verdict(a)
	before := f.reasons()
	out := f.run(a)
	got := f.oneReason(before)

	want := why
	if why == bpf.ReasonNone {
		want = f.done(a, free || seen != a.tuple)
	}
	if got != want {
		f.Fatalf("%s, the model says %s, after:\n%s", got, want, f.story())
	}
	if why != bpf.ReasonNone {
		return
	}
	if free {
		seen.peerPort = binary.BigEndian.Uint16(out[34:])
		if f.m.flows[seen] != nil {
			f.Fatalf("port %d is not free, after:\n%s", seen.peerPort, f.story())
		}
	}
	flow = f.m.account(a, seen, flow)
	if want := f.outcome(a, seen, flow); string(out) != string(want) {
		f.Fatalf("bytes:\n got %x\nwant %x%s\nafter:\n%s", out, want, firstDifference(out, want), f.story())
	}
}

// done is the reason of a packet that went where it should.
func (f *fuzz) done(a arrival, translated bool) bpf.Reason {
	switch {
	case a.inward && translated:
		return bpf.ReasonToPortTranslated
	case a.inward:
		return bpf.ReasonToPort
	case a.door:
		return bpf.ReasonToDoor
	}
	return bpf.ReasonToUplink
}

// run gives the packet to the program whose it is.
func (f *fuzz) run(a arrival) []byte {
	f.Helper()
	prog, in, ctx := "vm_in", fromVM(a.build(at(addr5, a.ownPort), at(a.peer, a.peerPort))), skb{}
	if a.inward {
		prog, in = "uplink_in", fromRouter(a.build(at(a.peer, a.peerPort), at(addr5, a.ownPort)))
		switch a.service {
		case tcpService:
			ctx = noted(tcpIndex, backend12, 1)
		case udpService:
			ctx = noted(udpIndex, backend12, 1)
		}
	}
	if a.host {
		prog = "svc_in"
	}
	_, out, _ := f.tc(prog, in.Bytes(), ctx)
	return out
}

// outcome is the frame that has to come out.
func (f *fuzz) outcome(a arrival, seen tuple, flow *mflow) []byte {
	if a.inward {
		return toVM(a.build(at(a.peer, seen.peerPort), at(addr5, a.ownPort)), mac5).Bytes()
	}
	own := at(addr5, a.ownPort)
	if flow.service != 0 {
		own = vip
	}
	p := a.build(own, at(a.peer, flow.wirePort)).TTL(63)
	if a.door {
		return p.MACs(gatewayMAC, doorMAC).Bytes()
	}
	return fromVM(p).Bytes()
}

// oneReason is the only counter that moved.
func (f *fuzz) oneReason(before moved) bpf.Reason {
	f.Helper()
	var got []bpf.Reason
	for r, n := range f.reasons() {
		for range n - before[r] {
			got = append(got, r)
		}
	}
	if len(got) != 1 {
		f.Fatalf("counted %v, after:\n%s", got, f.story())
	}
	return got[0]
}

func (f *fuzz) story() (s string) {
	for _, did := range f.did {
		s += did + "\n"
	}
	return s
}

// sameFlows compares the flow table with the model's.
func (f *fuzz) sameFlows() {
	f.Helper()
	var key bpf.CtKey
	var ct bpf.Ct
	found := 0
	entries := f.world.flows[port5].Iterate()
	for entries.Next(&key, &ct) {
		if key.Alias != 0 {
			continue
		}
		found++
		at := tuple{key.Proto, key.Peer.Addr().String(), bpf.BE16(key.PeerPort), bpf.BE16(key.OwnPort)}
		want := f.m.flows[at]
		if want == nil {
			f.Fatalf("flow %+v: the model has none, after:\n%s", at, f.story())
		}
		got := mflow{
			inward: ct.Direction == uint8(bpf.DirectionIn), host: ct.Flags&bpf.CtHost != 0, state: ct.State,
			finIn: ct.Flags&bpf.CtFinIn != 0, finOut: ct.Flags&bpf.CtFinOut != 0, service: ct.Service,
			generation: ct.Generation, wirePort: bpf.BE16(ct.PeerPort), match: ct.Match, packets: ct.Packets,
		}
		if got != *want {
			f.Fatalf("flow %+v: %+v, the model has %+v, after:\n%s", at, got, *want, f.story())
		}
	}
	must(f.T, entries.Err())
	if found != len(f.m.flows) {
		f.Fatalf("%d flows, the model has %d, after:\n%s", found, len(f.m.flows), f.story())
	}
}
