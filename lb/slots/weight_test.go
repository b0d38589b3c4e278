// SPDX-License-Identifier: Apache-2.0

package slots_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	tables "cairn/lb/slots"
)

func ExampleWant_weights() {
	t := tables.Assign(nil, tables.Want{Backends: []uint32{1, 2, 3}, Weights: map[uint32]int{1: 2}})
	fmt.Println(t.Shares())
	even := tables.Assign(t, tables.Want{Backends: []uint32{1, 2, 3}})
	fmt.Println(even.Shares(), tables.Moves(t, even))
	// Output:
	// map[1:128 2:64 3:64]
	// map[1:86 2:85 3:85] 42
}

// Through any changes of weights and backends, each has its weight's share
// within one slot, and not a slot moves more than these shares take.
func TestSharesFollowTheWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table tables.Table
		for range rapid.IntRange(1, 8).Draw(t, "changes") {
			backends := rapid.SliceOfNDistinct(rapid.Uint32Range(1, 60), 1, 40, rapid.ID[uint32]).Draw(t, "backends")
			weights := map[uint32]int{}
			total := 0
			for _, b := range backends {
				if w := rapid.IntRange(-1, 100).Draw(t, "weight"); w != 1 {
					weights[b] = w
				}
				total += max(1, weights[b])
			}
			before := table
			table = tables.Assign(before, tables.Want{Backends: backends, Weights: weights})
			shares := table.Shares()
			for _, b := range backends {
				exact := float64(len(table)) * float64(max(1, weights[b])) / float64(total)
				if off := math.Abs(float64(shares[b]) - exact); off >= 1 {
					t.Fatalf("backend %d has %d slots, its weight's share is %.2f", b, shares[b], exact)
				}
			}
			if before != nil {
				grown := slices.Repeat(before, len(table)/len(before))
				least, had := 0, tables.Table(grown).Shares()
				for b, n := range shares {
					least += max(0, n-had[b])
				}
				if moved := tables.Moves(before, table); moved != least {
					t.Fatalf("%d slots moved, %d had to", moved, least)
				}
			}
			if again := tables.Assign(table, tables.Want{Backends: backends, Weights: weights}); !slices.Equal(again, table) {
				t.Fatal("the same want again moves slots")
			}
			for _, b := range backends { // drains end, or the next one may have nowhere to go
				table = tables.Settle(table, b)
			}
		}
	})
}
