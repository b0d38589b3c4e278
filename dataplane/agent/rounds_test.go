// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

func TestRoundsKeepsTheLastThatWrote(t *testing.T) {
	var r rounds
	for i := range 2 * maxRounds {
		out := Outcome{Mark: table.Mark{Epoch: 1, Revision: uint64(i)}}
		if i%2 == 1 {
			out.Steps = make([]maps.Step, i)
		}
		r.add(out, int64(1000+i))
	}
	got := r.list()
	if len(got) != maxRounds {
		t.Fatalf("%d rounds remembered, want %d: those that wrote nothing are none", len(got), maxRounds)
	}
	r.add(Outcome{Mark: table.Mark{Revision: 1000}, Steps: make([]maps.Step, 3)}, 7)
	got = r.list()
	first, last := got[0], got[len(got)-1]
	if len(got) != maxRounds || first.Revision != 3 || last.Revision != 1000 || last.ProgrammedNS != 7 || last.Steps != 3 {
		t.Errorf("%d rounds from %+v to %+v", len(got), first, last)
	}
}
