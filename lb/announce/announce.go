// SPDX-License-Identifier: Apache-2.0

// Package announce decides which prefixes a host tells its routers: from the
// set it is asked to announce and from what the tests of its own dataplane
// found. It never tests anything, speaks to nobody and keeps no clock: it is
// handed a round of results and returns the set and a reason for each member.
// (This package decides; dataplane/announce hands the wanted set over, and
// lb/bgp tells the routers.)
//
// Start at Decide.
package announce

import (
	"cmp"
	"net/netip"
	"slices"
)

// Origin says what an announced address belongs to.
type Origin uint8

// The origins.
const (
	Service  Origin = iota + 1 // the VIP of a load balancer
	Instance                   // the address of an instance on this host
)

func (o Origin) String() string {
	switch o {
	case Service:
		return "service"
	case Instance:
		return "instance"
	}
	return "unknown"
}

// Announcement is a prefix that this host is asked to announce. Who wants it
// withdrawn, such as for a drain, takes it out of the wanted set.
type Announcement struct {
	Prefix      netip.Prefix `json:"prefix"`
	Origin      Origin       `json:"origin"`
	Rank        int          `json:"rank"` // of this host among the announcers of a VIP; 0 is the last to go
	Communities []uint32     `json:"communities,omitempty"`
}

// Test is the result of one test.
type Test struct {
	OK     bool
	Reason string // why not, for people
}

// Pass is a test that went well; Fail one that did not, and why.
func Pass() Test              { return Test{OK: true} }
func Fail(reason string) Test { return Test{Reason: reason} }

// Result is what one round of tests found.
type Result struct {
	// Link is the uplink's program: attached, and the one it should be.
	Link Test
	// Prefixes holds the prefixes tested in this round, which may be a part of
	// all: for a VIP the probe packet, for an instance's address its port.
	Prefixes map[netip.Prefix]Test
}

// Failures is how many failures in a row it takes to withdraw: one can be a
// program that is being replaced at that very moment.
const Failures = 2

// history is what the tests of one thing have found so far.
type history struct {
	passed  bool // at least once
	failed  int  // in a row, up to now
	because string
}

func (h history) after(t Test) history {
	if t.OK {
		return history{passed: true}
	}
	h.failed, h.because = min(h.failed+1, Failures), t.Reason
	return h
}

// State is what Decide remembers from round to round. The zero State is that of
// a speaker that has just started: it has tested nothing and announces nothing.
type State struct {
	link     history
	prefixes map[netip.Prefix]history
}

// Verdict is the decision about one announcement.
type Verdict struct {
	Announcement
	Announce bool   `json:"announce"`
	Reason   string `json:"reason"`
}

// Decide takes one round of tests into account and returns the verdict about
// each wanted announcement, ordered by prefix, and the state for the next round.
// It changes neither of its arguments.
//
//   - Nothing is announced before a first test of it has passed, but for the
//     VIPs of rank 0, which wait for a test only.
//   - A missing link withdraws all VIPs, whatever the rank: packets would go to
//     the host itself.
//   - A failed probe withdraws its VIP, unless this host is rank 0: if all fail,
//     the routers must not lose the last way.
//   - An instance's address has one announcer only, so nothing but the loss of
//     its port withdraws it.
func Decide(s State, want []Announcement, r Result) (State, []Verdict) {
	next := State{link: s.link.after(r.Link), prefixes: make(map[netip.Prefix]history, len(want))}
	want = unique(want)
	verdicts := make([]Verdict, 0, len(want))
	for _, a := range want {
		h := s.prefixes[a.Prefix]
		if t, tested := r.Prefixes[a.Prefix]; tested {
			h = h.after(t)
		}
		next.prefixes[a.Prefix] = h
		v := Verdict{Announcement: a}
		if a.Origin == Instance {
			v.Announce, v.Reason = judgeInstance(h)
		} else {
			v.Announce, v.Reason = judgeService(a.Rank, next.link, h)
		}
		verdicts = append(verdicts, v)
	}
	return next, verdicts
}

// Set returns what of the verdicts is to be announced.
func Set(verdicts []Verdict) []Announcement {
	var set []Announcement
	for _, v := range verdicts {
		if v.Announce {
			set = append(set, v.Announcement)
		}
	}
	return set
}

func judgeInstance(h history) (bool, string) {
	switch {
	case h.failed == Failures:
		return false, "port gone: " + h.because
	case !h.passed:
		return false, untested(h)
	}
	return true, "port present"
}

func judgeService(rank int, link, probe history) (bool, string) {
	switch {
	case link.failed == Failures:
		return false, "uplink program gone: " + link.because
	case !link.passed:
		return false, untested(link)
	case probe.failed == Failures && rank == 0:
		return true, "probe failed, kept as the last announcer: " + probe.because
	case probe.failed == Failures:
		return false, "probe failed: " + probe.because
	case !probe.passed:
		return false, untested(probe)
	}
	return true, "probe passed"
}

func untested(h history) string {
	if h.failed > 0 {
		return "no test has passed yet: " + h.because
	}
	return "not tested yet"
}

// unique orders by prefix; of two for one prefix it keeps the lower rank, for
// that one is slower to withdraw.
func unique(want []Announcement) []Announcement {
	want = slices.Clone(want)
	slices.SortStableFunc(want, func(a, b Announcement) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Rank, b.Rank))
	})
	return slices.CompactFunc(want, func(a, b Announcement) bool { return a.Prefix == b.Prefix })
}
