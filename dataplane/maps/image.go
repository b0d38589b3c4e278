// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"iter"
	"maps"
	"slices"
	"strings"
)

// held is an entry in the maps. Without a unit it was found there, or waits for
// its grace period to end.
type held struct {
	value   string
	unit    string
	freeing bool
}

// Image is what the maps hold.
type Image struct {
	entries [mapEnd]map[string]held
	units   map[string]map[ID]bool
	needs   map[string][]string        // unit → what it needs
	needers map[string]map[string]bool // the reverse
}

// NewImage makes an empty one.
func NewImage() *Image {
	im := &Image{units: map[string]map[ID]bool{}, needs: map[string][]string{}, needers: map[string]map[string]bool{}}
	for m := range im.entries {
		im.entries[m] = map[string]held{}
	}
	return im
}

// Get the value of an entry.
func (im *Image) Get(id ID) (value string, ok bool) {
	h, ok := im.entries[id.Map][id.Key]
	return h.value, ok
}

// Entries of a map, those included that wait for their grace period to end:
// their numbers are not free yet.
func (im *Image) Entries(m Map) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for key, h := range im.entries[m] {
			if !yield(Entry{ID{m, key}, h.value}) {
				return
			}
		}
	}
}

// Len is the number of a map's entries.
func (im *Image) Len(m Map) int { return len(im.entries[m]) }

// Of lists the entries of a unit.
func (im *Image) Of(unit string) []Entry {
	var out []Entry
	for id := range im.units[unit] {
		out = append(out, Entry{id, im.entries[id.Map][id.Key].value})
	}
	slices.SortFunc(out, compare)
	return out
}

// Units lists the names of all units.
func (im *Image) Units() []string { return slices.Sorted(maps.Keys(im.units)) }

// Needing lists the units that need a unit.
func (im *Image) Needing(name string) []string {
	return slices.Sorted(maps.Keys(im.needers[name]))
}

// need records what a unit needs from now on.
func (im *Image) need(unit string, needs []string) {
	for _, n := range im.needs[unit] {
		delete(im.needers[n], unit)
		if len(im.needers[n]) == 0 {
			delete(im.needers, n)
		}
	}
	if len(needs) == 0 {
		delete(im.needs, unit)
		return
	}
	im.needs[unit] = needs
	for _, n := range needs {
		if im.needers[n] == nil {
			im.needers[n] = map[string]bool{}
		}
		im.needers[n][unit] = true
	}
}

// Free tells whether nothing holds the entry, not even one that is on its way
// out.
func (im *Image) Free(id ID) bool {
	_, ok := im.entries[id.Map][id.Key]
	return !ok
}

// Add an entry that was found in a map.
func (im *Image) Add(e Entry) { im.entries[e.Map][e.Key] = held{value: e.Value} }

// Orphan tells whether the entry was found in its map and no unit claims it.
func (im *Image) Orphan(id ID) bool {
	h, ok := im.entries[id.Map][id.Key]
	return ok && h.unit == "" && !h.freeing
}

// Orphans are entries that no unit claims.
func (im *Image) Orphans() []Entry {
	var out []Entry
	for _, m := range All() {
		for key, h := range im.entries[m] {
			if h.unit == "" && !h.freeing {
				out = append(out, Entry{ID{m, key}, h.value})
			}
		}
	}
	slices.SortFunc(out, compare)
	return out
}

func compare(a, b Entry) int {
	if a.Map != b.Map {
		return int(a.Map) - int(b.Map)
	}
	return strings.Compare(a.Key, b.Key)
}

// put records that the entry is in its map and belongs to the unit.
func (im *Image) put(e Entry, unit string) {
	im.disown(e.ID)
	im.entries[e.Map][e.Key] = held{value: e.Value, unit: unit}
	if unit == "" {
		return
	}
	if im.units[unit] == nil {
		im.units[unit] = map[ID]bool{}
	}
	im.units[unit][e.ID] = true
}

func (im *Image) disown(id ID) {
	h, ok := im.entries[id.Map][id.Key]
	if !ok || h.unit == "" {
		return
	}
	delete(im.units[h.unit], id)
	if len(im.units[h.unit]) == 0 {
		delete(im.units, h.unit)
	}
}

// remove records that the entry is gone.
func (im *Image) remove(id ID) {
	im.disown(id)
	delete(im.entries[id.Map], id.Key)
}

// release records that nothing names the entry any more.
func (im *Image) release(id ID) {
	im.disown(id)
	h := im.entries[id.Map][id.Key]
	im.entries[id.Map][id.Key] = held{value: h.value, freeing: true}
}

// Freeing tells whether the entry waits for its grace period to end.
func (im *Image) Freeing(id ID) bool { return im.entries[id.Map][id.Key].freeing }

// Correct takes over what was found in the maps, and lists where that differs
// from what should be in them, one line each. Units keep what is theirs, so
// that a plan for them puts back what is missing.
func (im *Image) Correct(found *Image) []string {
	var lines []string
	for _, m := range All() {
		for key, h := range im.entries[m] {
			id := ID{m, key}
			switch got, ok := found.entries[m][key]; {
			case h.freeing: // may be there or not
			case !ok:
				lines = append(lines, "missing "+Entry{id, h.value}.String())
				im.remove(id)
			case got.value != h.value:
				lines = append(lines, "changed "+Entry{id, got.value}.String())
				im.put(Entry{id, got.value}, h.unit)
			}
		}
		for key, got := range found.entries[m] {
			if _, ok := im.entries[m][key]; !ok {
				lines = append(lines, "foreign "+Entry{ID{m, key}, got.value}.String())
				im.put(Entry{ID{m, key}, got.value}, "")
			}
		}
	}
	slices.Sort(lines)
	return lines
}
