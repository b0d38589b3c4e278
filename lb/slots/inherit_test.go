// SPDX-License-Identifier: Apache-2.0

package slots_test

import (
	"testing"

	tables "cairn/lb/slots"
)

// All that a dead backend had goes to one owner before, which has to share it:
// it gives away what it has inherited, and no slot besides.
func TestInheritedSlotsAreSharedFirst(t *testing.T) {
	table := tables.Assign(nil, tables.Want{Backends: []uint32{2}})
	table = tables.Assign(table, tables.Want{Backends: []uint32{1, 2}})
	table = tables.Assign(table, tables.Want{Backends: []uint32{1, 2, 3}})
	if got := table.Draining(); len(got) != 1 || got[2] == 0 {
		t.Fatalf("owners before: %v, want 2 alone", got)
	}
	after := tables.Assign(table, tables.Want{Backends: []uint32{1, 2}, Dead: []uint32{3}})
	had := table.Shares()[3]
	if moved := tables.Moves(table, after); moved != had {
		t.Errorf("%d slots moved, the dead backend had %d", moved, had)
	}
	if got := after.Shares(); got[1] != 128 || got[2] != 128 {
		t.Errorf("shares %v", got)
	}
}
