// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"sort"
	"sync"

	"cairn/dataplane/debug"
)

// maxRounds is how many rounds an agent remembers, and maxTold of how many it
// tells who asks for all.
const (
	maxRounds = 4096
	maxTold   = 16
)

// rounds remembers the last rounds that wrote to maps, the latest last.
type rounds struct {
	mu   sync.Mutex
	last []debug.Round
}

// add a round; one that wrote nothing is none.
func (r *rounds) add(out Outcome, programmed int64) {
	if len(out.Steps) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.last) == maxRounds {
		r.last = slices.Delete(r.last, 0, maxRounds/2)
	}
	r.last = append(r.last, debug.Round{
		Revision: out.Mark.Revision, ProgrammedNS: programmed, Steps: len(out.Steps), Faults: len(out.Faults),
	})
}

// list the latest.
func (r *rounds) list() []debug.Round {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]debug.Round{}, r.last[max(0, len(r.last)-maxTold):]...)
}

// at is the revision that the maps held at a time of CLOCK_MONOTONIC, 0 if that
// is longer ago than it remembers.
func (r *rounds) at(ns int64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	later := sort.Search(len(r.last), func(i int) bool { return r.last[i].ProgrammedNS > ns })
	if later == 0 {
		return 0
	}
	return r.last[later-1].Revision
}
