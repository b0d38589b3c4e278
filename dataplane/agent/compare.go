// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"

	"cairn/dataplane/debug"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

// Compare tells what an agent that finds these maps would change to program the
// view. Entries that wait for the end of their grace period are left out.
func (l *Loop) Compare(view table.View, found *maps.Image, facts Facts) debug.Diff {
	fresh := Loop{
		have: found, caps: l.caps, facts: facts, raise: map[uint32]bool{}, unsettled: map[string]string{}, started: true,
	}
	d := newDirty(view, found)
	d.all(facts)
	units, faults := fresh.build(d, facts)
	steps, conflicts := maps.Plan(found, units)
	diff := debug.Diff{Missing: []string{}, Foreign: []string{}, Faults: []string{}}
	claimed := map[maps.ID]bool{}
	for _, u := range units {
		for _, e := range u.Want {
			claimed[e.ID] = true
		}
	}
	for _, s := range steps {
		if s.Op == maps.Put && s.Old != s.Value {
			diff.Missing = append(diff.Missing, s.Entry.String()+" for "+s.Unit)
		}
	}
	for _, e := range found.Orphans() {
		if !claimed[e.ID] && !l.have.Freeing(e.ID) {
			diff.Foreign = append(diff.Foreign, e.String())
		}
	}
	for _, f := range append(faults, conflicts...) {
		diff.Faults = append(diff.Faults, f.Unit+": "+f.Reason)
	}
	slices.Sort(diff.Missing)
	slices.Sort(diff.Faults)
	return diff
}
