// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/dataplane/maps"
	"cairn/lb/slots"

	"github.com/cilium/ebpf"
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

// The program and its twin in Go choose the same slot for a million packets, of
// either family: each slot has a backend of its own, and the frame that comes out
// says which.
func TestSelectionAgreesWithItsTwin(t *testing.T) {
	const records, packets = 1000, 500 // of each family
	rnd := seed(t)
	b := newSelection(t)
	for _, to := range []netip.AddrPort{netip.MustParseAddrPort(vip), netip.MustParseAddrPort("[2001:db8:ee::1]:80")} {
		b.address(to.Addr())
		for range records {
			b.serve(to, rnd)
			frame, sourceAt := b.frame(to)
			for range packets {
				b.agree(to, frame, sourceAt, rnd)
			}
		}
	}
	if b.agreed != 2*records*packets || b.agreed < 1_000_000 {
		t.Errorf("%d packets", b.agreed)
	}
}

// The negative control: a twin that takes the ports the other way round is found out.
func TestSelectionDiffersFromAnotherHash(t *testing.T) {
	rnd := seed(t)
	b := newSelection(t)
	for _, to := range []netip.AddrPort{netip.MustParseAddrPort(vip), netip.MustParseAddrPort("[2001:db8:ee::1]:80")} {
		b.address(to.Addr())
		b.serve(to, rnd)
		b.record.Flags = 0
		b.put("svc", uint32(1), &b.record)
		frame, sourceAt := b.frame(to)
		same := 0
		for range 1000 {
			slot, src := b.choose(frame, sourceAt, rnd)
			if uint32(slot) == slots.Hash(b.record.Seed, src.Addr(), to.Addr(), to.Port(), src.Port(), b.record.Proto, false)&255 {
				same++
			}
		}
		if same > 50 { // 4 by chance
			t.Errorf("%s: %d of 1000 are the same", to, same)
		}
	}
}

// selection is the program with one service of 256 slots.
type selection struct {
	*testing.T
	*ebpf.Collection
	record bpf.Svc
	table  slots.Table
	run    ebpf.RunOptions
	agreed int
}

func newSelection(t *testing.T) *selection {
	t.Helper()
	specs, err := bpf.LoadCollectionSpecs()
	must(t, err)
	coll, err := ebpf.NewCollection(specs.Uplink)
	must(t, err)
	t.Cleanup(coll.Close)
	b := &selection{T: t, Collection: coll, run: ebpf.RunOptions{DataOut: make([]byte, 300)}}
	endpoint2 := bpf.BE32(netip.MustParseAddr(lbEndpoint))
	b.put("cfg", uint32(0), &bpf.Cfg{Endpoint: bpf.BE32(netip.MustParseAddr(endpoint)), LbVni: bpf.LBVNI, UplinkMac: hw(gwMAC)})
	b.put("nexthops", uint32(1), &bpf.Nexthop{Flags: bpf.NexthopValid})
	for i := range uint32(256) {
		b.put("backends", i+1, &bpf.Backend{Endpoint: endpoint2, Nexthop: 1, Flags: bpf.BackendValid, Mac: [6]uint8{2, 0, 0, 0, uint8(i)}})
		b.put("slots", 256+i, bpf.Slot(i+1, 0))
		b.table = append(b.table, slots.Make(i+1, 0))
	}
	return b
}

func (b *selection) put(name string, key, value any) {
	b.Helper()
	must(b.T, b.Maps[name].Put(key, value))
}

// address lets the filter know the VIP.
func (b *selection) address(vip netip.Addr) {
	word, bit := bpf.VIPBit(vip)
	var bits uint64
	must(b.T, b.Maps["vip_bits"].Lookup(word, &bits))
	b.put("vip_bits", word, bits|bit)
}

// serve makes a record of the service, with another seed, protocol and strategy; the
// seed of every second one rotates.
func (b *selection) serve(to netip.AddrPort, rnd *rand.Rand) {
	b.record = bpf.Svc{Vip: bpf.IP16(to.Addr()), Port: bpf.BE16(to.Port()), Proto: packet.ProtoTCP, Id: 1,
		SlotBase: 256, SlotMask: 255, Seed: rnd.Uint32(), Flags: uint32(rnd.IntN(2)) * bpf.SvcSourceHash}
	if rnd.IntN(2) == 0 {
		b.record.Proto = packet.ProtoUDP
	}
	if rnd.IntN(2) == 0 {
		b.record.Flags, b.record.PrevSeed = b.record.Flags|bpf.SvcRotating, rnd.Uint32()
	}
	b.put("svc", uint32(1), &b.record)
	id := maps.ServiceID(to, b.record.Proto)
	b.put(id.Map.String(), []byte(id.Key), uint32(1))
}

// frame is a packet to the service, whose source stands at sourceAt.
func (b *selection) frame(to netip.AddrPort) (frame []byte, sourceAt int) {
	from, sourceAt := "192.0.2.1:1", 14+12
	if to.Addr().Is6() {
		from, sourceAt = "[2001:db8::1]:1", 14+8
	}
	p := packet.TCP(from, to.String())
	if b.record.Proto == packet.ProtoUDP {
		p = packet.UDP(from, to.String())
	}
	return p.MACs(gwMAC, gwMAC).Bytes(), sourceAt
}

// choose sends a packet of another client, and says which slot it got.
func (b *selection) choose(frame []byte, sourceAt int, rnd *rand.Rand) (slot byte, src netip.AddrPort) {
	b.Helper()
	length, portAt := 4, sourceAt+8
	if sourceAt == 14+8 {
		length, portAt = 16, sourceAt+32
	}
	for i := range length + 2 {
		at := sourceAt + i
		if i >= length {
			at = portAt + i - length
		}
		frame[at] = byte(rnd.Uint32())
	}
	frame[sourceAt] = 0x20 // 32.0.0.0/8 and 2000::/8: nobody's own
	addr, _ := netip.AddrFromSlice(frame[sourceAt : sourceAt+length])
	src = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(frame[portAt:]))
	b.run.Data, b.run.DataOut = frame, b.run.DataOut[:cap(b.run.DataOut)]
	if action, err := b.Programs["uplink"].Run(&b.run); err != nil || action != 3 {
		b.Fatalf("%s: action %d, %v", src, action, err)
	}
	return b.run.DataOut[50+4], src
}

func (b *selection) agree(to netip.AddrPort, frame []byte, sourceAt int, rnd *rand.Rand) {
	b.Helper()
	got, src := b.choose(frame, sourceAt, rnd)
	s := &b.record
	by := func(seed uint32) uint32 {
		return slots.Hash(seed, src.Addr(), to.Addr(), src.Port(), to.Port(), s.Proto, s.Flags&bpf.SvcSourceHash != 0)
	}
	want := b.table.Select(by(s.Seed))
	if s.Flags&bpf.SvcRotating != 0 {
		want = b.table.SelectRotating(by(s.Seed), by(s.PrevSeed))
	}
	if other := binary.BigEndian.Uint32(b.run.DataOut[50+8:]); uint32(got)+1 != want.Cur() || other != want.Prev() {
		b.Fatalf("%s to %s proto %d seed %#x, before %#x, flags %d: backend %d and %d, the twin says %v", src, to, s.Proto, s.Seed, s.PrevSeed, s.Flags, got+1, other, want)
	}
	b.agreed++
}
