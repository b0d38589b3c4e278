// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"slices"
)

// Store is where entries live: the pinned maps, or memory in a test.
type Store interface {
	// Put writes an entry. In a map that is mapped into memory only the words
	// that differ from old are stored, each at once.
	Put(e Entry, old string) error
	// Delete removes an entry; one that is not there is no error.
	Delete(e Entry) error
	// Get reads an entry of the size of e back; an array's record of zeros is
	// not there.
	Get(e Entry) (value string, ok bool, err error)
	// Load reads all entries of a map.
	Load(m Map, found func(Entry)) error
}

// Load reads the image of a store.
func Load(store Store) (*Image, error) {
	im := NewImage()
	for _, m := range All() {
		if err := store.Load(m, im.Add); err != nil {
			return nil, fmt.Errorf("load %s: %w", m, err)
		}
	}
	return im, nil
}

// Apply takes the steps in order, reads each back, and keeps the image in step
// with the store. A step that fails holds back all later ones of its unit and
// of the units that need it, and the deletions of what a failed unit still
// names. Frees are not done but returned: they are for Release, a grace period
// later.
func Apply(store Store, have *Image, units []Unit, steps []Step, faults []Fault) (later []Step, failed []Fault) {
	a := applying{store: store, have: have, failed: map[string]string{}, units: map[string]Unit{}}
	for _, u := range units {
		a.units[u.Name] = u
	}
	for _, f := range faults {
		a.fail(f.Unit, f.Reason)
	}
	for _, s := range steps {
		if reason := a.heldBack(s); reason != "" {
			a.fail(s.Unit, reason)
			continue
		}
		if s.Op == Free {
			have.release(s.ID)
			later = append(later, s)
			continue
		}
		if err := a.step(s); err != nil {
			a.fail(s.Unit, err.Error())
		}
	}
	for _, u := range units {
		switch reason := a.failed[u.Name]; {
		case reason != "":
			failed = append(failed, Fault{u.Name, reason})
			// Half of it may be written: it names what it named and what it wants.
			have.need(u.Name, union(have.needs[u.Name], u.Needs))
		case len(u.Want) == 0:
			have.need(u.Name, nil)
		default:
			have.need(u.Name, u.Needs)
		}
	}
	return later, failed
}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// Release does the frees whose grace period has passed, but for entries that a
// unit claimed again meanwhile. It returns those that could not be done.
func Release(store Store, have *Image, steps []Step) (again []Step) {
	for _, s := range steps {
		if !have.Freeing(s.ID) {
			continue
		}
		if err := store.Delete(s.Entry); err != nil {
			again = append(again, s)
			continue
		}
		have.remove(s.ID)
	}
	return again
}

type applying struct {
	store  Store
	have   *Image
	units  map[string]Unit
	failed map[string]string
}

func (a *applying) fail(unit, reason string) {
	if unit == "" || a.failed[unit] != "" {
		return
	}
	a.failed[unit] = reason
	if group := a.units[unit].Group; group != "" && a.failed[group] == "" {
		a.failed[group] = reason
	}
}

// heldBack says why a step is not taken.
func (a *applying) heldBack(s Step) string {
	if len(a.failed) == 0 {
		return ""
	}
	if reason := a.failed[s.Unit]; reason != "" {
		return reason
	}
	for _, need := range a.units[s.Unit].Needs {
		if reason := a.failed[need]; reason != "" {
			return fmt.Sprintf("waits for %s: %s", need, reason)
		}
	}
	if s.Op == Put {
		return ""
	}
	for unit, reason := range a.failed {
		if slices.Contains(a.have.needs[unit], s.Unit) {
			return fmt.Sprintf("still named by %s: %s", unit, reason)
		}
	}
	return ""
}

func (a *applying) step(s Step) error {
	if s.Op == Delete {
		if err := a.store.Delete(s.Entry); err != nil {
			return fmt.Errorf("delete %s %s: %w", s.Map, printKey(s.ID), err)
		}
		a.have.remove(s.ID)
		return nil
	}
	if s.Old != s.Value {
		if err := a.store.Put(s.Entry, s.Old); err != nil {
			return fmt.Errorf("put %s %s: %w", s.Map, printKey(s.ID), err)
		}
		got, ok, err := a.store.Get(s.Entry)
		if err != nil {
			return fmt.Errorf("read back %s %s: %w", s.Map, printKey(s.ID), err)
		}
		if !ok || got != s.Value {
			return fmt.Errorf("read back %s %s: it holds something else", s.Map, printKey(s.ID))
		}
	}
	a.have.put(s.Entry, s.Unit)
	return nil
}
