// SPDX-License-Identifier: Apache-2.0

package slots_test

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	tables "cairn/lb/slots"
)

// A seed rotates, and while it does backends drain and die: each flow that began
// before is still with one of the two who get its packets, as long as its backend
// lives; and where nobody drained, so is each that began since.
func TestRotationKeepsFlows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		backends := make([]uint32, rapid.IntRange(1, 30).Draw(t, "backends"))
		for i := range backends {
			backends[i] = uint32(i + 1)
		}
		old, fresh := rapid.Uint32().Draw(t, "old"), rapid.Uint32().Draw(t, "new")
		type flow struct {
			hash, before uint32
			at           uint32
		}
		vip := netip.MustParseAddr("203.0.113.1")
		flows := make([]flow, 200)
		table := tables.Assign(nil, tables.Want{Backends: backends})
		for i := range flows {
			src, port := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), rapid.Uint16().Draw(t, "port")
			f := flow{hash: tables.Hash(fresh, src, vip, port, 80, 6, false), before: tables.Hash(old, src, vip, port, 80, 6, false)}
			f.at = table.Select(f.before).Cur() // it began before
			if i%2 == 1 {
				f.at = table.SelectRotating(f.hash, f.before).Cur() // or since
			}
			flows[i] = f
		}
		drained := rapid.IntRange(0, 1).Draw(t, "drains") == 1 && len(backends) > 2
		dead := []uint32{}
		if rapid.Bool().Draw(t, "dies") && len(backends) > 2 {
			dead = backends[:1]
		}
		stay := backends[len(dead):]
		if drained {
			stay = stay[1:]
		}
		// Nothing moves but what has to: the weights are what each has.
		table = tables.Assign(table, tables.Want{Backends: stay, Dead: dead, Weights: table.Shares()})
		for i, f := range flows {
			s := table.SelectRotating(f.hash, f.before)
			if slices.Contains(dead, f.at) || drained && i%2 == 1 {
				continue
			}
			if s.Cur() != f.at && s.Prev() != f.at {
				t.Fatalf("flow %d is at %d, and its packets go to %v", i, f.at, s)
			}
		}
	})
}
