// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"encoding/binary"
	"testing"

	"cairn/lb/slots"
)

// nowhere has the tables of stories without programs.
type nowhere struct{}

func (nowhere) Slot(Host, uint8, int, slots.Slot) error { return nil }
func (nowhere) Member(Backend, Member) error            { return nil }

func anyHash(f Flow) uint32 {
	a := f.Client.Addr().As4()
	return slots.Hash(7, f.Client.Addr(), f.Client.Addr(), f.Client.Port(), binary.BigEndian.Uint16(a[2:]), f.Proto, false)
}

// play a story to the model alone, and return the first flow that is lost.
func play(t *testing.T, seed uint64, hasty bool) error {
	t.Helper()
	s, err := NewStory(seed, anyHash, nowhere{})
	if err != nil {
		t.Fatal(err)
	}
	s.Hasty = hasty
	for range 400 {
		if err := s.Change(); err != nil {
			t.Fatal(err)
		}
		p := s.Packet()
		if err := s.Check(p, s.Zone.Judge(p)); err != nil {
			return err
		}
	}
	return nil
}

// The description keeps every flow where it is, whatever moves; if a slot's old
// owner is forgotten while it has flows, some are lost.
func TestMovesLoseNoFlow(t *testing.T) {
	lost := 0
	for seed := range uint64(300) {
		if err := play(t, seed, false); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if play(t, seed, true) != nil {
			lost++
		}
	}
	if lost == 0 {
		t.Error("0 of 300 stories without patience lose a flow")
	}
	t.Logf("%d of 300 stories without patience lose a flow", lost)
}
