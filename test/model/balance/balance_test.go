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

// play a story to the model alone: how many flows lose their backend, of how many.
func play(t *testing.T, seed uint64, change func(*Story)) (lost, flows int) {
	t.Helper()
	s, err := NewStory(seed, anyHash, nowhere{})
	if err != nil {
		t.Fatal(err)
	}
	change(s)
	gone := map[Flow]bool{}
	for range 400 {
		if err := s.Change(); err != nil {
			t.Fatal(err)
		}
		p := s.Packet()
		if s.Check(p, s.Zone.Judge(p)) != nil {
			gone[p.Flow] = true
		}
	}
	return len(gone), len(s.home)
}

// The description keeps every flow where it is, whatever moves. If a slot's old
// owner is forgotten while it has flows, some are lost; and some of those that
// wander from node to node, if one of the nodes never hears of a move.
func TestMovesLoseNoFlow(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Story)
		loses  bool
	}{
		{"as designed", func(*Story) {}, false},
		{"without patience", func(s *Story) { s.Hasty = true }, true},
		{"with a node that hears of no move", func(s *Story) { s.Deaf = true }, true},
	} {
		lost, flows := 0, 0
		for seed := range uint64(300) {
			l, n := play(t, seed, c.change)
			lost, flows = lost+l, flows+n
		}
		t.Logf("%s: %d of %d flows lost", c.name, lost, flows)
		if c.loses != (lost > 0) {
			t.Errorf("%s: %d of %d flows lost", c.name, lost, flows)
		}
	}
}
