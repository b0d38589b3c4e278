// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"testing"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/dist"
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
)

func report(id cloud.ID, generation uint64, state string) []dist.Report {
	return []dist.Report{{Kind: wire.KindInstance, Key: string(id), Generation: generation, State: state, Reason: "because"}}
}

func TestMachine(t *testing.T) {
	if err := machine.Verify("recompile", "free"); err != nil {
		t.Fatal(err)
	}
	broken := machine
	broken.Rows = broken.Rows[:5] // nothing is destroyed any more
	if err := broken.Verify("recompile", "free"); err == nil {
		t.Error("a machine without an end passes")
	}
}

// world is what has become of an instance: whether a host has it, and whether
// its address has been given back.
type world struct{ held, freed bool }

// model is the machine with hosts that are told things twice, late and half.
func model(fence fsm.Fence) fsm.Model[world] {
	return fsm.Model[world]{
		Machine: &machine, Fence: fence, Budget: 4,
		External: []fsm.Event{Start, Stop, Reboot, operation.Delete, Up, Down, Broken, operation.Nacked},
		Apply: func(w world, e fsm.Effect) world {
			switch {
			case e.Name == "free":
				w.freed = true
			default:
				w.held = e.Args[0] == "there"
			}
			return w
		},
		Replies: func([]fsm.Effect) []fsm.Event { return []fsm.Event{operation.Acked} },
		Bad: func(s fsm.State, w world) string {
			switch {
			case w.freed && w.held:
				return "its address is free and a host has it"
			case w.freed && s != destroyed:
				return "its address is free while it is " + string(s)
			}
			return ""
		},
		Quiet: func(s fsm.State, w world) string {
			switch {
			case s == destroyed && !w.freed:
				return "destroyed and never freed"
			case s == destroying:
				return "" // its tombstone may have been refused, and stays owed
			case w.held == (s == destroyed):
				return "on a host the wrong way round: " + string(s)
			}
			return ""
		},
	}
}

// TestBadWorld searches all that can happen with generations that hosts
// compare, and finds what goes wrong without them.
func TestBadWorld(t *testing.T) {
	r, err := model(fsm.AtApply).Explore()
	if err != nil {
		t.Fatal(err)
	}
	if r.Bad > 0 || r.States < 50 {
		t.Errorf("%d states, %d bad: %+v", r.States, r.Bad, r.First)
	}
	t.Logf("%d states", r.States)
	if r, err = model(fsm.Unfenced).Explore(); err != nil || r.Bad == 0 {
		t.Errorf("without generations: %d states, %d bad, %v", r.States, r.Bad, err)
	}
}
