// SPDX-License-Identifier: Apache-2.0

// Package slots decides which backend gets a flow. It owns the slot table of a
// service: how it is assigned with the fewest moves, how it is written on the
// wire and in maps, where in the map it lies, and the selection, in agreement
// with the program in the packet's way to the bit. It does no I/O, keeps no
// state and never judges whether a backend is well.
//
// A slot names its owner and the owner before it, because flows outlive a move:
// a packet of a flow that the owner does not know is handed on to the one
// before. Start at Assign; hash.go is the selection, ranges.go the map's space.
package slots

import (
	"encoding/binary"
	"fmt"
)

// Slot names a backend, cur, and the one that had the slot before, prev, 0 for
// none. It is one word, so that one store changes both and no reader sees a new
// owner without its predecessor.
type Slot uint64

// Make makes a slot.
func Make(cur, prev uint32) Slot { return Slot(cur) | Slot(prev)<<32 }

// Cur is who gets the slot's new flows; 0 is nobody.
func (s Slot) Cur() uint32 { return uint32(s) }

// Prev is who may still hold flows of it; 0 is nobody.
func (s Slot) Prev() uint32 { return uint32(s >> 32) }

func (s Slot) String() string { return fmt.Sprintf("{%d,%d}", s.Cur(), s.Prev()) }

// Table is the slots of a service: a power of two of them, or none at all.
type Table []Slot

// Bounds of a table. 32 slots a backend keep the error of a share at 3 %, and
// the tables of a hundred backends at 32 KiB, which a cache can hold.
const (
	MinSize    = 256
	MaxSize    = 16384
	PerBackend = 32
)

// Size is how many slots a new table for so many backends has: the power of two
// above PerBackend each, within the bounds.
func Size(backends int) int {
	size := MinSize
	for size <= PerBackend*backends && size < MaxSize {
		size *= 2
	}
	return size
}

// Select returns the slot of a flow. The table must not be empty.
func (t Table) Select(hash uint32) Slot { return t[hash&uint32(len(t)-1)] }

// Shares counts the slots of each owner; 0 counts those without one.
func (t Table) Shares() map[uint32]int {
	shares := map[uint32]int{}
	for _, s := range t {
		shares[s.Cur()]++
	}
	return shares
}

// Draining counts, for each backend, the slots in which it is the owner before.
func (t Table) Draining() map[uint32]int {
	shares := map[uint32]int{}
	for _, s := range t {
		if s.Prev() != 0 {
			shares[s.Prev()]++
		}
	}
	return shares
}

// Moves counts the slots whose owner differs. Tables of two sizes are compared
// as flows see them: the shorter one repeated.
func Moves(a, b Table) int {
	if len(a) == 0 || len(b) == 0 {
		return max(len(a), len(b))
	}
	moves := 0
	for i := range max(len(a), len(b)) {
		if a[i&(len(a)-1)].Cur() != b[i&(len(b)-1)].Cur() {
			moves++
		}
	}
	return moves
}

// Settle returns the table without owner as the one before: its host has found
// no live flow of these slots left there. Without slots it is taken out of all.
func Settle(t Table, owner uint32, slots ...int) Table {
	settled := append(Table(nil), t...)
	clear := func(i int) {
		if settled[i].Prev() == owner {
			settled[i] = Make(settled[i].Cur(), 0)
		}
	}
	for _, i := range slots {
		if i >= 0 && i < len(settled) {
			clear(i)
		}
	}
	for i := range settled {
		if len(slots) == 0 {
			clear(i)
		}
	}
	return settled
}

// Encode writes the table as it stands in the map: 8 bytes a slot, cur then
// prev, little-endian.
func (t Table) Encode() []byte {
	b := make([]byte, 0, 8*len(t))
	for _, s := range t {
		b = binary.LittleEndian.AppendUint64(b, uint64(s))
	}
	return b
}

// Decode reads what Encode wrote. It refuses what is no table.
func Decode(b []byte) (Table, error) {
	n := len(b) / 8
	if len(b)%8 != 0 || n&(n-1) != 0 || n > MaxSize {
		return nil, fmt.Errorf("decode slots: %d bytes are no power of two of slots up to %d", len(b), MaxSize)
	}
	t := make(Table, n)
	for i := range t {
		t[i] = Slot(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return t, nil
}

// SelectRotating returns the slot of a flow while the seed rotates, as its packets
// are to be sent: hash is by the new seed, before by the old one. Its prev is who had
// the flow before, for as long as that is another; if the slot of before has moved
// since, its flows from before are with the owner before.
func (t Table) SelectRotating(hash, before uint32) Slot {
	now, was := t.Select(hash), t.Select(before)
	other := was.Prev()
	if other == 0 {
		other = was.Cur()
	}
	if other == 0 || other == now.Cur() {
		return now
	}
	return Make(now.Cur(), other)
}
