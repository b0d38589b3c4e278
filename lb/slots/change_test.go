// SPDX-License-Identifier: Apache-2.0

package slots_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	tables "cairn/lb/slots"
)

// One backend more or less moves one share, whatever came before: also where
// all slots of a dead one fall to a single owner before, which has to give what
// it has inherited away again and nothing besides.
func TestOneChangeMovesOneShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table tables.Table
		var backends, draining []uint32
		next := uint32(1)
		take := func(from *[]uint32) uint32 {
			if len(*from) == 0 {
				t.Skip("nobody")
			}
			i := rapid.IntRange(0, len(*from)-1).Draw(t, "which")
			one := (*from)[i]
			*from = slices.Delete(*from, i, i+1)
			return one
		}
		assign := func(share int, dead ...uint32) {
			before := table
			table = tables.Assign(before, tables.Want{Backends: backends, Dead: dead})
			bound := 0
			if share > 0 {
				bound = (len(table) + share - 1) / share
			}
			if moved := tables.Moves(before, table); before != nil && moved > bound {
				t.Fatalf("%d slots of %d moved, at most %d should: backends %v, draining %v, dead %v", moved, len(table), bound, backends, draining, dead)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"more": func(*rapid.T) {
				backends = append(backends, next)
				next++
				assign(len(backends))
			},
			"drains": func(*rapid.T) {
				draining = append(draining, take(&backends))
				assign(len(backends) + 1)
			},
			"comes back": func(*rapid.T) {
				backends = append(backends, take(&draining))
				assign(len(backends))
			},
			"dies": func(*rapid.T) {
				dead := take(&backends)
				assign(len(backends)+1, dead)
			},
			"dies draining": func(*rapid.T) {
				dead := take(&draining)
				if len(backends) == 0 {
					assign(1, dead) // it may have had all slots that nobody could take over
					return
				}
				assign(0, dead)
			},
		})
	})
}
