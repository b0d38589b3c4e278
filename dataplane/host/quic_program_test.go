// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/dataplane/maps"
	"cairn/lb/slots"
)

// The program and its twin in Go read the same connection IDs, whatever bytes come.
func TestConnectionIDsAgreeWithTheirTwin(t *testing.T) {
	rnd := seed(t)
	b := newSelection(t)
	to := netip.MustParseAddrPort(vip)
	b.address(to.Addr())
	b.record = bpf.Svc{Vip: bpf.IP16(to.Addr()), Port: bpf.BE16(to.Port()), Proto: packet.ProtoUDP, Id: 1,
		SlotBase: 256, SlotMask: 255, Seed: rnd.Uint32(), Flags: bpf.SvcQuic}
	b.put("svc", uint32(1), &b.record)
	id := maps.ServiceID(to, b.record.Proto)
	b.put(id.Map.String(), []byte(id.Key), uint32(1))
	server := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}) }
	for i := range 8 { // half of the servers that are named are there
		b.put("quic", bpf.QuicKey{Service: 1, Server: bpf.BE32(server(i))}, uint32(100+i))
	}
	named := 0
	for range 50_000 {
		payload := append([]byte{byte(rnd.Uint32())}, slots.ConnectionID(server(rnd.IntN(16)), 9+rnd.IntN(12))...)
		if rnd.IntN(4) == 0 {
			payload[1] |= byte(rnd.Uint32()) & 0xe0
		}
		payload = append(payload, 1, 2, 3, 4)[:rnd.IntN(10)]
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(rnd.Uint32())}), uint16(1+rnd.IntN(65000)))
		b.run.Data, b.run.DataOut = packet.UDP(src.String(), vip).Payload(payload).MACs(gwMAC, gwMAC).Bytes(), b.run.DataOut[:cap(b.run.DataOut)]
		if action, err := b.Programs["uplink"].Run(&b.run); err != nil || action != 3 {
			t.Fatalf("%x: action %d, %v", payload, action, err)
		}
		want := slots.Slot(slots.Hash(b.record.Seed, src.Addr(), to.Addr(), src.Port(), to.Port(), b.record.Proto, false)&255 + 1)
		if a, ok := slots.ServerOf(payload); ok && a.As4()[3] < 8 {
			want = slots.Slot(100 + uint32(a.As4()[3]))
			named++
		}
		if got, other := uint32(b.run.DataOut[50+4])+1, binary.BigEndian.Uint32(b.run.DataOut[50+8:]); got != want.Cur() || other != 0 {
			t.Fatalf("%x from %s: backend %d and %d, the twin says %v", payload, src, got, other, want)
		}
	}
	if named < 1000 {
		t.Errorf("only %d packets named a backend", named)
	}
}
