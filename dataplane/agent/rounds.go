// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync"

	"cairn/dataplane/debug"
)

// maxRounds is how many rounds an agent can tell of.
const maxRounds = 16

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
		copy(r.last, r.last[1:])
		r.last = r.last[:maxRounds-1]
	}
	r.last = append(r.last, debug.Round{
		Revision: out.Mark.Revision, ProgrammedNS: programmed, Steps: len(out.Steps), Faults: len(out.Faults),
	})
}

// list them.
func (r *rounds) list() []debug.Round {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]debug.Round{}, r.last...)
}
