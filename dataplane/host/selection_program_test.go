// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"
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

// The program and its twin in Go choose the same slot for every packet: each
// slot has a backend of its own, and the frame that comes out says which.
func TestSelectionAgreesWithItsTwin(t *testing.T) {
	rnd := seed(t)
	specs, err := bpf.LoadCollectionSpecs()
	must(t, err)
	coll, err := ebpf.NewCollection(specs.Uplink)
	must(t, err)
	defer coll.Close()
	put := func(name string, key, value any) { must(t, coll.Maps[name].Put(key, value)) }

	to := netip.MustParseAddrPort(vip)
	endpoint2 := bpf.BE32(netip.MustParseAddr(lbEndpoint))
	put("cfg", uint32(0), &bpf.Cfg{Endpoint: bpf.BE32(netip.MustParseAddr(endpoint)), LbVni: bpf.LBVNI, UplinkMac: hw(gwMAC)})
	put("nexthops", uint32(1), &bpf.Nexthop{Flags: bpf.NexthopValid})
	for i := range uint32(256) {
		put("backends", i+1, &bpf.Backend{Endpoint: endpoint2, Nexthop: 1, Flags: bpf.BackendValid, Mac: [6]uint8{2, 0, 0, 0, uint8(i)}})
		put("slots", 256+i, bpf.Slot(i+1, 0))
	}
	word, bit := bpf.VIPBit(to.Addr())
	put("vip_bits", word, bit)
	for range 4000 {
		s := bpf.Svc{Vip: bpf.IP16(to.Addr()), Port: bpf.BE16(to.Port()), Proto: packet.ProtoTCP, Id: 1,
			SlotBase: 256, SlotMask: 255, Seed: rnd.Uint32(), Flags: uint32(rnd.IntN(2)) * bpf.SvcSourceHash}
		if rnd.IntN(2) == 0 {
			s.Proto = packet.ProtoUDP
		}
		put("svc", uint32(1), &s)
		put("vip4", bpf.Vip4Key{Ip: bpf.BE32(to.Addr()), Port: s.Port, Proto: s.Proto}, uint32(1))
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32())}), uint16(rnd.Uint32()))
		p := packet.TCP(src.String(), vip)
		if s.Proto == packet.ProtoUDP {
			p = packet.UDP(src.String(), vip)
		}
		run := &ebpf.RunOptions{Data: p.MACs(gwMAC, gwMAC).Bytes(), DataOut: make([]byte, 300)}
		if action, err := coll.Programs["uplink"].Run(run); err != nil || action != 3 {
			t.Fatalf("%s: action %d, %v", src, action, err)
		}
		hash := slots.Hash(s.Seed, src.Addr(), to.Addr(), src.Port(), to.Port(), s.Proto, s.Flags == bpf.SvcSourceHash)
		if got, want := run.DataOut[50+4], byte(hash&255); got != want {
			t.Fatalf("%s to %s proto %d seed %#x flags %d: slot %d, the twin says %d", src, vip, s.Proto, s.Seed, s.Flags, got, want)
		}
	}
}
