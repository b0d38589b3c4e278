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

// Backends that join one after the other, before the drains of the one before
// have ended, cut no flow: no slot forgets an owner. Once the drains have ended
// the shares are equal. Without patience flows are cut, which is why it exists.
func TestPatienceForgetsNobody(t *testing.T) {
	cut := 0
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.IntRange(1, 20).Draw(t, "first")
		var backends []uint32
		for i := range first {
			backends = append(backends, uint32(i+1))
		}
		table := tables.Assign(make(tables.Table, tables.Size(first+4)), tables.Want{Backends: backends})
		for range rapid.IntRange(1, 4).Draw(t, "more") {
			backends = append(backends, uint32(len(backends)+1))
			old := table
			cut += forgotten(old, tables.Assign(old, tables.Want{Backends: backends}))
			table = tables.Assign(old, tables.Want{Backends: backends, Patient: true})
			if n := forgotten(old, table); n > 0 {
				t.Fatalf("%d slots forget an owner when backend %d joins", n, len(backends))
			}
			if again := tables.Assign(table, tables.Want{Backends: backends, Patient: true}); !slices.Equal(again, table) {
				t.Fatal("the same want again moves slots")
			}
		}
		for range backends { // each round of drains may let the next ones move
			for _, b := range backends {
				table = tables.Settle(table, b)
			}
			table = tables.Assign(table, tables.Want{Backends: backends, Patient: true})
		}
		low := len(table) / len(backends)
		for b, n := range table.Shares() {
			if n != low && n != low+1 {
				t.Fatalf("%d owns %d slots of %d among %d once all drains have ended", b, n, len(table), len(backends))
			}
		}
	})
	if cut == 0 {
		t.Error("no flow would have been cut without patience either")
	}
}

// forgotten counts the slots of which an owner is remembered no more.
func forgotten(old, table tables.Table) (n int) {
	for i, s := range table {
		was := old[i&(len(old)-1)]
		for _, o := range []uint32{was.Cur(), was.Prev()} {
			if o != 0 && o != s.Cur() && o != s.Prev() {
				n++
			}
		}
	}
	return n
}
