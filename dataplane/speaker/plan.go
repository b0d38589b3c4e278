// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"net/netip"
	"slices"

	judge "cairn/lb/announce"
	"cairn/lb/bgp"

	"cairn/dataplane/announce"
)

// choose picks the indexes of what a round tests: all that were never tested,
// and up to budget of the others, going on at turn. It returns where the next
// round goes on. The order of want is the order of prefixes, so that everything
// has its turn as long as the set does not change faster than rounds go by.
func choose(want []announce.Wanted, tested map[netip.Prefix]bool, turn, budget int) ([]int, int) {
	var chosen []int
	for i, w := range want {
		if !tested[w.Prefix] {
			chosen = append(chosen, i)
		}
	}
	if len(want) == 0 {
		return nil, 0
	}
	turn %= len(want)
	next := turn
	for k := 0; k < len(want) && budget > 0; k++ {
		i := (turn + k) % len(want)
		next = (i + 1) % len(want)
		if tested[want[i].Prefix] {
			chosen = append(chosen, i)
			budget--
		}
	}
	return chosen, next
}

// toJudge states the wanted set in the words of lb/announce. A drain is told to
// the routers by a community; it is no reason to withdraw.
func toJudge(want []announce.Wanted) []judge.Announcement {
	out := make([]judge.Announcement, 0, len(want))
	for _, w := range want {
		a := judge.Announcement{Prefix: w.Prefix, Origin: judge.Service, Rank: w.Rank, Communities: w.Communities}
		if w.Origin == announce.Instance {
			a.Origin = judge.Instance
		}
		if w.Drain {
			a.Communities = append(slices.Clone(w.Communities), uint32(bgp.GracefulShutdown))
		}
		out = append(out, a)
	}
	return out
}

// routes of what is to be announced.
func routes(verdicts []judge.Verdict) []bgp.Route {
	var out []bgp.Route
	for _, a := range judge.Set(verdicts) {
		r := bgp.Route{Prefix: a.Prefix}
		for _, c := range a.Communities {
			r.Communities = append(r.Communities, bgp.Community(c))
		}
		out = append(out, r)
	}
	return out
}
