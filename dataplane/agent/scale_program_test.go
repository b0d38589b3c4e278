// SPDX-License-Identifier: Apache-2.0

//go:build program

package agent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"cairn/cloud/wire"
)

// big is a host with 1,000 ports, 2,000 members, 100 hosts around it and 100
// services of 32 backends.
func big() []wire.Item {
	var items []wire.Item
	for id := range uint32(100) {
		h := aHost(id + 1)
		h.Endpoint = netip.AddrFrom4([4]byte{10, 64, 1, byte(id)})
		items = append(items, h)
	}
	for id := range uint32(20) {
		items = append(items, wire.Class{ID: id + 1, Groups: []uint32{id + 1, id + 2}},
			wire.Policy{ID: id + 1, Rules: []wire.Rule{web, fromGroup(2, id+1), fromGroup(3, id+2)}})
	}
	for id := range uint32(2000) {
		items = append(items, wire.Member{Address: netip.AddrFrom4([4]byte{198, 18, byte(id >> 8), byte(id)}), Class: id%20 + 1})
	}
	for id := uint32(1); id <= 1000; id++ {
		p := aPort(id, id%20+1)
		p.MAC = [6]byte{2, 0xca, 0, 0, byte(id >> 8), byte(id)}
		p.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{198, 51, byte(id >> 8), byte(id)})}
		items = append(items, p)
	}
	for s := uint32(1); s <= 100; s++ {
		var owners [][2]uint32
		for i := range uint32(32) {
			b := aBackend(s*32+i, s, (s+i)%100+1, (s*32+i)%1000+1)
			b.MAC = [6]byte{2, 0xca, 0, 0, byte(b.Port >> 8), byte(b.Port)}
			items = append(items, b)
			owners = append(owners, [2]uint32{b.ID, 0})
		}
		items = append(items, aTable(s, 1, 2048, owners...), aService(s))
	}
	return items
}

// A change on a large host takes no longer than its part of the way may: the
// median of 200 is printed and judged with room for a loaded machine.
func TestAChangeOnALargeHost(t *testing.T) {
	onBench(t, nil, func(b *bench) {
		for id := range uint32(100) {
			b.facts.Balancer.Via[netip.AddrFrom4([4]byte{10, 64, 1, byte(id)})] = router
		}
		began := time.Now()
		b.mustApply(big())
		t.Logf("all of it: %s, %.1f MiB resident", time.Since(began), float64(resident())/(1<<20))
		var took []time.Duration
		for i := range 200 {
			table := aTable(7, uint64(i+2), 2048, [2]uint32{7 * 32, 0}, [2]uint32{7*32 + uint32(i)%31 + 1, 0})
			b.tell([]wire.Item{table})
			began := time.Now()
			if out := b.round(); len(out.Faults) > 0 {
				b.fatal(out.Faults)
			}
			took = append(took, time.Since(began))
		}
		p50, p90 := percentile(took, 50), percentile(took, 90)
		t.Logf("a change of one table: p50 %s p90 %s", p50, p90)
		if p50 > 10*time.Millisecond {
			t.Errorf("p50 %s", p50)
		}
		b.compare()
		fmt.Printf("round on a large host: p50 %s p90 %s, %.1f MiB resident\n", p50, p90, float64(resident())/(1<<20))
	})
}

func percentile(all []time.Duration, p int) time.Duration {
	sorted := append([]time.Duration(nil), all...)
	for i := range sorted {
		for j := i; j > 0 && sorted[j] < sorted[j-1]; j-- {
			sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
		}
	}
	return sorted[len(sorted)*p/100]
}
