// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

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
	w := newWorld(t)
	rnd := seed(t)
	for i := range uint32(256) {
		// Another MAC for each backend, so that the inner destination names it.
		hw := mac(mac11)
		hw[4] = uint8(i)
		if i == 0 {
			continue // 0 is no backend
		}
		w.put("backends", i, &bpf.Backend{Endpoint: be32(endpoint2), Nexthop: 1, Flags: bpf.BackendValid, Mac: hw})
	}
	for i := range uint32(256) {
		w.put("slots", 256+i, bpf.Slot(max(i, 1), 0))
		w.put("slots", 512+i, bpf.Slot(max(i, 1), 0))
	}
	for range 4000 {
		proto, index := uint8(packet.ProtoTCP), tcpIndex
		if rnd.IntN(2) == 0 {
			proto, index = packet.ProtoUDP, udpIndex
		}
		var s bpf.Svc
		must(t, w.maps["svc"].Lookup(index, &s))
		s.Seed, s.Flags = rnd.Uint32(), uint32(rnd.IntN(2))
		w.put("svc", index, &s)

		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32())}), uint16(rnd.Uint32()))
		p := packet.TCP(src.String(), vip)
		if proto == packet.ProtoUDP {
			p = packet.UDP(src.String(), vip)
		}
		_, out := w.xdp(fromRouter(p).Bytes())
		to := netip.MustParseAddrPort(vip)
		hash := slots.Hash(s.Seed, src.Addr(), to.Addr(), src.Port(), to.Port(), proto, s.Flags&bpf.SvcSourceHash != 0)
		want := byte(max(hash&255, 1))
		if got := out[50+4]; got != want {
			t.Fatalf("%s to %s proto %d seed %#x flags %d: slot %d, the twin says %d", src, vip, proto, s.Seed, s.Flags, got, want)
		}
	}
}
