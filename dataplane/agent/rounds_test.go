// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

func TestRoundsKeepsTheLastThatWrote(t *testing.T) {
	var r rounds
	for i := range 2 * maxTold {
		out := Outcome{Mark: table.Mark{Epoch: 1, Revision: uint64(i)}}
		if i%2 == 1 {
			out.Steps = make([]maps.Step, i)
		}
		r.add(out, int64(1000+i))
	}
	got := r.list()
	if len(got) != maxTold {
		t.Fatalf("%d rounds told, want %d: those that wrote nothing are none", len(got), maxTold)
	}
	r.add(Outcome{Mark: table.Mark{Revision: 1000}, Steps: make([]maps.Step, 3)}, 7000)
	got = r.list()
	first, last := got[0], got[len(got)-1]
	if len(got) != maxTold || first.Revision != 3 || last.Revision != 1000 || last.ProgrammedNS != 7000 || last.Steps != 3 {
		t.Errorf("%d rounds from %+v to %+v", len(got), first, last)
	}
}

func TestRevisionAtATime(t *testing.T) {
	var r rounds
	if got := r.at(5); got != 0 {
		t.Errorf("revision %d before any round", got)
	}
	write := func(revision uint64, at int64) {
		r.add(Outcome{Mark: table.Mark{Epoch: 1, Revision: revision}, Steps: make([]maps.Step, 1)}, at)
	}
	write(3, 100)
	write(7, 200)
	for at, want := range map[int64]uint64{99: 0, 100: 3, 199: 3, 200: 7, 1 << 40: 7} {
		if got := r.at(at); got != want {
			t.Errorf("revision %d at %d, want %d", got, at, want)
		}
	}
	for i := range int64(3 * maxRounds) {
		write(uint64(1000+i), 1000+i)
	}
	if got := len(r.last); got > maxRounds {
		t.Errorf("%d rounds are remembered", got)
	}
	if at := int64(1000 + 3*maxRounds - 1); r.at(at) != uint64(at) || r.at(200) != 0 {
		t.Errorf("revisions %d and %d", r.at(at), r.at(200))
	}
}
