// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// look lets a sight ask hosts once each period; answers says who answers a
// question before the next is asked.
func look(s sight, now *time.Time, rounds int, answers map[uint32]bool) (said []string) {
	for range rounds {
		for id, g := range s {
			ago := 10 * askPeriod // the last answer of long ago is still written down
			if answers[id] {
				ago = askPeriod / 2
			}
			g.ask(*now, ago, true)
		}
		for _, id := range s.news() {
			s[id].said = s[id].state
			said = append(said, fmt.Sprintf("%d %s", id, s[id].said))
		}
		*now = now.Add(askPeriod)
	}
	return said
}

func hosts(ids ...uint32) map[uint32]netip.Addr {
	m := map[uint32]netip.Addr{}
	for _, id := range ids {
		m[id] = netip.AddrFrom4([4]byte{10, 64, 0, byte(id)})
	}
	return m
}

func TestSightSaysWhatChanged(t *testing.T) {
	now, s := time.Now(), sight{}
	all := map[uint32]bool{2: true, 3: true}
	check := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	s.turn(hosts(2, 3))
	check("before an answer could come", look(s, &now, 1, all))
	check("answered", look(s, &now, 1, all), "2 reached", "3 reached")
	check("and again", look(s, &now, 5, all))
	check("two questions are lost", look(s, &now, askMisses-1, map[uint32]bool{3: true}))
	check("the third is not", look(s, &now, 5, all))
	check("three are lost", look(s, &now, askMisses, map[uint32]bool{3: true}), "2 missed")
	check("more are", look(s, &now, 5, map[uint32]bool{3: true}))
	check("it is back", look(s, &now, 1, all), "2 reached")
	if left := s.turn(hosts(3)); !slices.Equal(left, []uint32{2}) || len(s) != 1 {
		t.Errorf("left %v, still asked %v", left, s)
	}
}

func TestSightOfOneCutOff(t *testing.T) {
	for _, test := range []struct {
		others, missed int
		says           bool
	}{
		{1, 1, true}, // one of two: the other LB nodes and its stream decide
		{2, 1, true}, {2, 2, false}, {4, 2, true}, {4, 3, false}, {5, 3, true}, {5, 4, false},
	} {
		now, s, ids, answers := time.Now(), sight{}, []uint32(nil), map[uint32]bool{}
		for id := range uint32(test.others) {
			ids = append(ids, id+2)
			answers[id+2] = true
		}
		s.turn(hosts(ids...))
		look(s, &now, 2, answers)
		for _, id := range ids[:test.missed] {
			answers[id] = false
		}
		if said := look(s, &now, 2*askMisses, answers); len(said) > 0 != test.says {
			t.Errorf("%d of %d missed: says %q", test.missed, test.others, said)
		}
		for _, id := range ids {
			answers[id] = true
		}
		look(s, &now, 2, answers)
		for _, id := range ids {
			if s[id].said != hostReached {
				t.Errorf("%d of %d missed, all back: host %d is said to be %s", test.missed, test.others, id, s[id].said)
			}
		}
	}
}

// TestSightWithoutUplink: nobody is missed for what was asked of a dead cable.
func TestSightWithoutUplink(t *testing.T) {
	now, s := time.Now(), sight{}
	all := map[uint32]bool{2: true, 3: true}
	s.turn(hosts(2, 3))
	look(s, &now, 2, all)
	look(s, &now, askMisses-1, map[uint32]bool{3: true})
	s.close()
	if said := look(s, &now, askMisses, map[uint32]bool{3: true}); len(said) > 0 {
		t.Errorf("said %q after %d questions", said, askMisses-1)
	}
}
