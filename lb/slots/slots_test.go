// SPDX-License-Identifier: Apache-2.0

package slots_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	tables "cairn/lb/slots"
)

func ExampleAssign() {
	t := tables.Assign(nil, tables.Want{Backends: []uint32{1, 2, 3}})
	fmt.Println(len(t), t.Shares())
	more := tables.Assign(t, tables.Want{Backends: []uint32{1, 2, 3, 4}})
	fmt.Println(tables.Moves(t, more), more.Shares(), more.Draining())
	drained := tables.Assign(more, tables.Want{Backends: []uint32{1, 2, 3}})
	fmt.Println(drained.Draining()[4], tables.Moves(drained, t))
	// Output:
	// 256 map[1:86 2:85 3:85]
	// 64 map[1:64 2:64 3:64 4:64] map[1:22 2:21 3:21]
	// 64 0
}

func TestSlot(t *testing.T) {
	s := tables.Make(7, 9)
	if s.Cur() != 7 || s.Prev() != 9 || s != 0x0000000900000007 || s.String() != "{7,9}" {
		t.Errorf("got %v, %#x", s, uint64(s))
	}
	if b := (tables.Table{s}).Encode(); !slices.Equal(b, []byte{7, 0, 0, 0, 9, 0, 0, 0}) {
		t.Errorf("on the wire %v", b)
	}
}

func TestSize(t *testing.T) {
	for backends, want := range map[int]int{0: 256, 1: 256, 7: 256, 8: 512, 15: 512, 16: 1024, 100: 4096, 511: 16384, 512: 16384, 5000: 16384} {
		if got := tables.Size(backends); got != want {
			t.Errorf("%d backends: %d slots, want %d", backends, got, want)
		}
	}
}

func TestSelect(t *testing.T) {
	table := tables.Assign(nil, tables.Want{Backends: []uint32{1, 2}})
	for _, hash := range []uint32{0, 255, 256, 0xffffffff} {
		if got := table.Select(hash); got != table[hash%256] {
			t.Errorf("hash %d: %v", hash, got)
		}
	}
}

// What becomes of one slot, seen through a table of them that are all equal.
func TestWhatIsRemembered(t *testing.T) {
	all := func(s tables.Slot) tables.Table {
		return slices.Repeat(tables.Table{s}, 256)
	}
	more := func(owner uint32) func(int, uint32) int {
		return func(_ int, o uint32) int {
			if o == owner {
				return 5
			}
			return 3
		}
	}
	cases := []struct {
		name string
		slot tables.Slot
		want tables.Want
		gets tables.Slot
	}{
		{"drained", tables.Make(1, 0), tables.Want{Backends: []uint32{2}}, tables.Make(2, 1)},
		{"dead", tables.Make(1, 0), tables.Want{Backends: []uint32{2}, Dead: []uint32{1}}, tables.Make(2, 0)},
		{"dead wins over wanted", tables.Make(1, 0), tables.Want{Backends: []uint32{1, 2}, Dead: []uint32{1}}, tables.Make(2, 0)},
		{"owner before dead", tables.Make(1, 3), tables.Want{Backends: []uint32{1}, Dead: []uint32{3}}, tables.Make(1, 0)},
		{"dead, but the one before lives", tables.Make(1, 3), tables.Want{Backends: []uint32{2}, Dead: []uint32{1}}, tables.Make(2, 3)},
		{"dead, back to the one before", tables.Make(1, 3), tables.Want{Backends: []uint32{3}, Dead: []uint32{1}}, tables.Make(3, 0)},
		{"drained twice, the older stays", tables.Make(1, 3), tables.Want{Backends: []uint32{2}}, tables.Make(2, 3)},
		{"drained twice, the newer has more", tables.Make(1, 3), tables.Want{Backends: []uint32{2}, Flows: more(1)}, tables.Make(2, 1)},
		{"drained twice, the older has more", tables.Make(1, 3), tables.Want{Backends: []uint32{2}, Flows: more(3)}, tables.Make(2, 3)},
		{"drained, the one before comes back", tables.Make(1, 3), tables.Want{Backends: []uint32{3}}, tables.Make(3, 1)},
		{"nobody left, draining", tables.Make(1, 3), tables.Want{}, tables.Make(1, 3)},
		{"nobody left, dead", tables.Make(1, 3), tables.Want{Dead: []uint32{1}}, tables.Make(3, 0)},
		{"nobody left, both dead", tables.Make(1, 3), tables.Want{Dead: []uint32{1, 3}}, 0},
		{"somebody comes to an empty table", 0, tables.Want{Backends: []uint32{2}}, tables.Make(2, 0)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := tables.Assign(all(c.slot), c.want)
			for _, s := range got {
				if s != c.gets {
					t.Fatalf("%v became %v, want %v", c.slot, s, c.gets)
				}
			}
		})
	}
}

// A backend that is away for a while gets its own slots back, and nobody else
// notices.
func TestFlapMovesOnlyItsOwn(t *testing.T) {
	backends := []uint32{1, 2, 3, 4}
	start := tables.Assign(nil, tables.Want{Backends: backends})
	away := tables.Assign(start, tables.Want{Backends: backends[1:]})
	back := tables.Assign(away, tables.Want{Backends: backends})
	if moves := tables.Moves(start, back); moves != 0 {
		t.Errorf("%d slots have another owner than before", moves)
	}
}

func TestSettle(t *testing.T) {
	table := tables.Table{tables.Make(1, 2), tables.Make(2, 1), tables.Make(3, 2), tables.Make(2, 0)}
	got := tables.Settle(table, 2)
	if want := (tables.Table{tables.Make(1, 0), tables.Make(2, 1), tables.Make(3, 0), tables.Make(2, 0)}); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	got = tables.Settle(table, 2, 2, 3, 99, -1)
	if want := (tables.Table{tables.Make(1, 2), tables.Make(2, 1), tables.Make(3, 0), tables.Make(2, 0)}); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if table[0] != tables.Make(1, 2) {
		t.Error("the argument was changed")
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, n := range []int{1, 7, 9, 24, 8 * 255, 8 * 32768} {
		if table, err := tables.Decode(make([]byte, n)); err == nil {
			t.Errorf("%d bytes were read as %d slots", n, len(table))
		}
	}
}

// One backend more or less moves at most its share, rounded up; a rerun, another
// order and doubles move nothing.
func TestMinimalMoves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 600).Draw(t, "backends")
		backends := make([]uint32, n+1)
		for i := range backends {
			backends[i] = uint32(i + 1)
		}
		joining := rapid.SampledFrom(backends).Draw(t, "joining")
		without := slices.DeleteFunc(slices.Clone(backends), func(b uint32) bool { return b == joining })
		for _, start := range []int{n, n + 1} { // the size of a table that never grows under us
			size := make(tables.Table, tables.Size(n+1))
			before, after := without, backends
			if start == n+1 {
				before, after = backends, without
			}
			a := tables.Assign(size, tables.Want{Backends: before})
			b := tables.Assign(a, tables.Want{Backends: after})
			if moves, bound := tables.Moves(a, b), (len(b)+n-1)/n; moves > bound {
				t.Fatalf("%d to %d backends: %d of %d slots moved, want at most %d", len(before), len(after), moves, len(b), bound)
			}
			again := append(slices.Clone(after), after...)
			slices.Reverse(again)
			if c := tables.Assign(b, tables.Want{Backends: again}); !slices.Equal(b, c) {
				t.Fatal("the same want again moves slots")
			}
		}
	})
}

// A service through any life of joining, draining, dying and settling.
func TestAnyLife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table tables.Table
		ever := map[uint32]bool{}
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			old := table
			backends := rapid.SliceOfNDistinct(rapid.Uint32Range(1, 40), 0, 20, rapid.ID[uint32]).Draw(t, "backends")
			dead := rapid.SliceOfN(rapid.Uint32Range(1, 40), 0, 4).Draw(t, "dead")
			table = tables.Assign(old, tables.Want{Backends: backends, Dead: dead})
			usable := slices.DeleteFunc(slices.Clone(backends), func(b uint32) bool { return slices.Contains(dead, b) })
			for _, b := range usable {
				ever[b] = true
			}
			checkTable(t, old, table, usable, dead)
			back, err := tables.Decode(table.Encode())
			if err != nil || !slices.Equal(back, table) {
				t.Fatalf("through bytes: %v", err)
			}
			if rapid.Bool().Draw(t, "settle") {
				table = tables.Settle(table, rapid.Uint32Range(1, 40).Draw(t, "settled"))
			}
		}
	})
}

func checkTable(t *rapid.T, old, table tables.Table, usable, dead []uint32) {
	if len(table) < len(old) || len(table) < tables.Size(len(usable)) || len(table)&(len(table)-1) != 0 {
		t.Fatalf("%d slots out of %d for %d backends", len(table), len(old), len(usable))
	}
	shares := table.Shares()
	low := len(table) / max(1, len(usable))
	for owner, n := range shares {
		switch {
		case len(usable) == 0:
		case !slices.Contains(usable, owner):
			t.Fatalf("%d owns %d slots, and is not to", owner, n)
		case n != low && n != low+1:
			t.Fatalf("%d owns %d slots of %d among %d", owner, n, len(table), len(usable))
		}
	}
	if len(usable) > 0 && low > 0 && len(shares) != len(usable) {
		t.Fatalf("%d owners, want %d", len(shares), len(usable))
	}
	for i, s := range table {
		if slices.Contains(dead, s.Cur()) || slices.Contains(dead, s.Prev()) {
			t.Fatalf("slot %d is %v, of a dead one", i, s)
		}
		if s.Cur() == s.Prev() && s != 0 {
			t.Fatalf("slot %d is %v", i, s)
		}
		if len(old) == 0 {
			continue
		}
		// Whoever had the slot and lives is remembered, two of three at least.
		was := old[i&(len(old)-1)]
		var alive []uint32
		for _, o := range []uint32{was.Cur(), was.Prev()} {
			if o != 0 && !slices.Contains(dead, o) {
				alive = append(alive, o)
			}
		}
		lost := 0
		for _, o := range alive {
			if o != s.Cur() && o != s.Prev() {
				lost++
			}
		}
		if lost > 1 || lost == 1 && len(alive) == 1 {
			t.Fatalf("slot %d was %v, is %v: a living owner is forgotten", i, was, s)
		}
	}
}
