// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"cmp"
	"slices"
)

// Want is what a table should become.
type Want struct {
	// Backends share the slots, equally unless Weights says otherwise. Order and
	// doubles do not matter.
	Backends []uint32

	// Weights of backends, relative to each other; 1 for who is not named, or
	// named with less. They are quotas: nothing is drawn by chance.
	Weights map[uint32]int

	// Dead are gone with their flows: their port does not exist any more, or
	// their host cannot be reached. A backend that is neither here nor in
	// Backends drains: it loses its slots and keeps its flows.
	Dead []uint32

	// Flows, if set, counts the live flows that an owner has in a slot. It is
	// asked only where a slot moves that has two owners to remember already.
	Flows func(slot int, owner uint32) int

	// Patient leaves a slot with two owners to remember where it is, if nothing
	// but balance would move it: it would forget one of them, and cut its flows.
	// Shares differ until such drains have ended.
	Patient bool
}

// Assign makes the table that w wants out of the old one, nil for none, with
// the fewest moves; it does not change old.
//
//   - Each backend gets its weight's share of the slots, within one slot, which may
//     be none for a weight that is small beside the others.
//   - A slot that moves keeps its former owner as prev, unless that is dead; if
//     it had a prev already, the one with more flows stays, the older one if
//     nobody counts. Such slots are the last that are taken for balance, but
//     for those that can go back to their prev.
//   - A table grows by repetition until it has Size slots, which moves no flow,
//     and never shrinks.
//   - Without any backend only the dead lose their slots.
//
// The same want again moves nothing.
func Assign(old Table, w Want) Table {
	table := assign(old, w)
	for w.Patient {
		// Who has to keep more than its share leaves the odd slots to others, so
		// that one of these may have to give one more.
		again := assign(table, w)
		if slices.Equal(again, table) {
			break
		}
		table = again
	}
	return table
}

func assign(old Table, w Want) Table {
	a := &assignment{want: w, dead: map[uint32]bool{0: true}, quota: map[uint32]int{}, inherited: map[int]bool{}}
	for _, d := range w.Dead {
		a.dead[d] = true
	}
	backends := slices.DeleteFunc(slices.Clone(w.Backends), func(b uint32) bool { return a.dead[b] })
	slices.Sort(backends)
	backends = slices.Compact(backends)
	a.table = grow(old, len(backends))
	a.bury()
	if len(backends) > 0 {
		a.share(backends)
		free := a.disinherit()
		a.giveBack()
		free = append(free, a.spare()...)
		slices.Sort(free)
		a.move(free, backends)
	}
	return a.table
}

type assignment struct {
	table Table
	want  Want
	dead  map[uint32]bool // 0 is
	quota map[uint32]int  // slots that a backend is short of; negative: has to give

	inherited map[int]bool // slots that went from a dead owner to the one before
}

// grow repeats the old table; a new one is all zeros.
func grow(old Table, backends int) Table {
	t := append(Table(nil), old...)
	if len(t) == 0 {
		return make(Table, Size(backends))
	}
	for size := Size(backends); len(t) < size; {
		t = append(t, t...)
	}
	return t
}

// bury takes the dead out of the table. An owner before a dead one still holds
// its flows: it owns the slot until somebody else does.
func (a *assignment) bury() {
	for i, s := range a.table {
		cur, prev := s.Cur(), s.Prev()
		if a.dead[prev] {
			prev = 0
		}
		if a.dead[cur] {
			cur, prev = prev, 0
			a.inherited[i] = cur != 0
		}
		a.table[i] = Make(cur, prev)
	}
}

// share sets the quotas: by weight, rounded down. The odd slots go one each to
// those whose share is no whole number, first to those who have most already, so
// that nothing moves for their sake.
func (a *assignment) share(backends []uint32) {
	total := 0
	for _, b := range backends {
		total += a.weight(b)
	}
	has := a.table.Shares()
	var order []uint32
	odd := len(a.table)
	for _, b := range backends {
		part := len(a.table) * a.weight(b)
		a.quota[b] = part/total - has[b]
		odd -= part / total
		if part%total != 0 {
			order = append(order, b)
		}
	}
	slices.SortFunc(order, func(x, y uint32) int { return cmp.Or(cmp.Compare(a.quota[x], a.quota[y]), cmp.Compare(x, y)) })
	for _, b := range order[:odd] {
		a.quota[b]++
	}
}

func (a *assignment) weight(b uint32) int { return max(1, a.want.Weights[b]) }

// disinherit lists slots to be given away out of what backends above their
// quota have inherited: those have moved already, so that nothing else has to.
func (a *assignment) disinherit() []int {
	var free []int
	for i, s := range a.table {
		have, usable := a.quota[s.Cur()]
		if !a.inherited[i] || !usable || have >= 0 {
			a.inherited[i] = false
			continue
		}
		a.quota[s.Cur()]++
		free = append(free, i)
	}
	return free
}

// giveBack returns slots to the owner before, where that is short and the owner
// has to give: both stay remembered, whatever the flows, and a backend that was
// away for a while gets its own slots again.
func (a *assignment) giveBack() {
	for _, away := range []bool{true, false} {
		for i, s := range a.table {
			have, usable := a.quota[s.Cur()]
			if usable == away || usable && have >= 0 || a.quota[s.Prev()] <= 0 {
				continue
			}
			if usable {
				a.quota[s.Cur()]++
			}
			a.quota[s.Prev()]--
			a.table[i] = Make(s.Prev(), s.Cur())
		}
	}
}

// spare lists the slots to be given away: those whose owner is no backend, and
// from each backend above its quota as many as that, slots with a prev last.
func (a *assignment) spare() []int {
	var free []int
	for _, entangled := range []bool{false, true} {
		for i, s := range a.table {
			have, usable := a.quota[s.Cur()]
			if a.inherited[i] || entangled != (s.Prev() != 0) || usable && have >= 0 {
				continue
			}
			if usable && entangled && a.want.Patient {
				continue
			}
			if usable {
				a.quota[s.Cur()]++
			}
			free = append(free, i)
		}
	}
	return free
}

// move gives the spare slots to the backends that are short, in turn.
func (a *assignment) move(spare []int, backends []uint32) {
	next := 0
	for _, i := range spare {
		for a.quota[backends[next]] <= 0 {
			next = (next + 1) % len(backends)
		}
		to := backends[next]
		a.quota[to]--
		next = (next + 1) % len(backends)
		a.table[i] = Make(to, a.remember(i))
	}
}

// remember says who of the two owners of a slot that moves stays as prev.
func (a *assignment) remember(i int) uint32 {
	cur, prev := a.table[i].Cur(), a.table[i].Prev()
	if prev == 0 {
		return cur
	}
	if a.want.Flows != nil && a.want.Flows(i, cur) > a.want.Flows(i, prev) {
		return cur
	}
	return prev
}
