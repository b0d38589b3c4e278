// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"slices"

	"cairn/bpf"
)

// Op is what a step does.
type Op uint8

// A Free deletes an entry that readers may still hold the number of: it is
// done once a grace period has passed.
const (
	Put Op = iota + 1
	Delete
	Free
)

func (o Op) String() string { return [...]string{Put: "put", Delete: "delete", Free: "free"}[o] }

// Step is one write. It prints as one line.
type Step struct {
	Op Op
	Entry
	Old  string // the value before, empty if there was none
	Unit string
}

func (s Step) String() string {
	line := fmt.Sprintf("%s %s", s.Op, s.Entry)
	if s.Op != Put {
		line = fmt.Sprintf("%s %s %s", s.Op, s.Map, printKey(s.ID))
	}
	if s.Unit != "" {
		line += " for " + s.Unit
	}
	return line
}

// Plan lists the steps that make the maps hold what the units want, and nothing
// else of theirs. Units that are not named keep what they have. Puts come in
// the order of the maps, then deletions in reverse; so a VIP is reachable only
// while all that it leads to is there. An entry that another unit holds and
// still wants is a fault. Plan performs nothing.
func Plan(have *Image, units []Unit) ([]Step, []Fault) {
	var steps []Step
	var faults []Fault
	wanted := map[ID]string{}
	named := map[string]bool{}
	for _, u := range units {
		named[u.Name] = true
	}
	for _, u := range units {
		if reason := claim(have, u, wanted, named, units); reason != "" {
			faults = append(faults, Fault{u.Name, reason})
			for id := range have.units[u.Name] { // what it has stays
				wanted[id] = u.Name
			}
			continue
		}
		for _, e := range u.Want {
			h, ok := have.entries[e.Map][e.Key]
			if ok && h.value == e.Value && h.unit == u.Name {
				continue
			}
			steps = append(steps, Step{Op: Put, Entry: e, Old: h.value, Unit: u.Name})
		}
	}
	for _, u := range units {
		for id := range have.units[u.Name] {
			if wanted[id] != "" {
				continue
			}
			op := Delete
			if traits[id.Map].grace {
				op = Free
			}
			value := have.entries[id.Map][id.Key].value
			steps = append(steps, Step{Op: op, Entry: Entry{id, value}, Old: value, Unit: u.Name})
		}
	}
	order(steps)
	return steps, faults
}

// claim marks what a unit wants as taken, or says who holds it.
func claim(have *Image, u Unit, wanted map[ID]string, named map[string]bool, units []Unit) string {
	for _, e := range u.Want {
		holder := wanted[e.ID]
		if holder == "" {
			if h := have.entries[e.Map][e.Key]; h.unit != "" && h.unit != u.Name && (!named[h.unit] || wants(units, h.unit, e.ID)) {
				holder = h.unit
			}
		}
		if holder != "" && holder != u.Name {
			return fmt.Sprintf("%s %s belongs to %s", e.Map, printKey(e.ID), holder)
		}
	}
	for _, e := range u.Want {
		wanted[e.ID] = u.Name
	}
	return ""
}

func wants(units []Unit, name string, id ID) bool {
	for _, u := range units {
		if u.Name == name {
			return slices.ContainsFunc(u.Want, func(e Entry) bool { return e.ID == id })
		}
	}
	return false
}

// Sweep lists the steps that delete entries which no unit claims.
func Sweep(have *Image) []Step {
	var steps []Step
	for _, e := range have.Orphans() {
		steps = append(steps, Step{Op: Delete, Entry: e, Old: e.Value})
	}
	order(steps)
	return steps
}

// closes says that a backend takes no new flows from now on. What the slots say
// comes before that: else a first packet meets a backend that refuses it, and
// slots that name nobody else.
func (s Step) closes() bool {
	if s.Map != Local || s.Op != Put || s.Old == "" {
		return false
	}
	was, is := As[bpf.Local](s.Old), As[bpf.Local](s.Value)
	return is.Flags&bpf.LocalDraining != 0 && was.Flags&bpf.LocalDraining == 0
}

// rank puts early deletions right behind the puts of their map, what closes behind
// all puts, and all other deletions behind that, downwards.
func (s Step) rank() int {
	switch {
	case s.closes():
		return 2 * int(mapEnd)
	case s.Op == Put:
		return 2 * int(s.Map)
	case traits[s.Map].early:
		return 2*int(s.Map) + 1
	}
	return 2*int(mapEnd) + int(mapEnd-s.Map)
}

func order(steps []Step) {
	slices.SortStableFunc(steps, func(a, b Step) int {
		if a.rank() != b.rank() {
			return a.rank() - b.rank()
		}
		return compare(a.Entry, b.Entry)
	})
}
