// SPDX-License-Identifier: Apache-2.0

package elasticip

import (
	"slices"
	"time"

	"cairn/controlplane/store"
)

// fact is what is known of a place beside its verdict.
type fact struct {
	runs      bool // its instance runs, or is about to
	reachable bool // its host is
}

func (f fact) alive() bool { return f.runs && f.reachable }

// judge says to which of its places an elastic IP comes. One without a health
// check comes to all whose instance runs, on each host to one of them. One with a
// check comes to exactly one, and moves only away from a place that is not well,
// and only to one that is:
//
//   - Unknown is not unhealthy: a place without a verdict keeps it.
//   - None is healthy: it stays where it is. From a place that is dead it goes
//     to the best of the others, whatever that is.
func judge(managed bool, places []store.ElasticPlace, facts map[uint32]fact, now time.Time) []store.ElasticPlace {
	after := slices.Clone(places)
	active := map[uint32]bool{}
	if managed {
		if i := one(after, facts); i >= 0 {
			active[after[i].Port] = true
		}
	} else {
		active = all(after, facts)
	}
	for i := range after {
		if p := &after[i]; p.Active != active[p.Port] {
			p.Active, p.Since = active[p.Port], now
		}
	}
	return after
}

// one is the index of the place that a managed elastic IP comes to, -1 if it has
// none.
func one(places []store.ElasticPlace, facts map[uint32]fact) int {
	now := slices.IndexFunc(places, func(p store.ElasticPlace) bool { return p.Active })
	alive := now >= 0 && facts[places[now].Port].alive()
	if alive && places[now].Verdict != store.VerdictFailure {
		return now
	}
	verdicts := []string{store.VerdictSuccess}
	if !alive {
		verdicts = []string{store.VerdictSuccess, store.VerdictInitial, store.VerdictFailure}
	}
	for _, v := range verdicts {
		for i, p := range places {
			if p.Verdict == v && facts[p.Port].alive() {
				return i
			}
		}
	}
	if now < 0 && len(places) > 0 {
		return 0
	}
	return now
}

// all are the ports that an elastic IP without a check comes to: a host hands a
// packet to one port, so of several on one host the first is taken. If nothing
// runs it comes to where it would run.
func all(places []store.ElasticPlace, facts map[uint32]fact) map[uint32]bool {
	running := slices.ContainsFunc(places, func(p store.ElasticPlace) bool { return facts[p.Port].runs })
	first := map[uint32]uint32{} // by host
	for _, p := range places {
		if running && !facts[p.Port].runs {
			continue
		}
		if have, ok := first[p.Host]; !ok || p.Port < have {
			first[p.Host] = p.Port
		}
	}
	active := map[uint32]bool{}
	for _, port := range first {
		active[port] = true
	}
	return active
}
