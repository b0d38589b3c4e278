// SPDX-License-Identifier: Apache-2.0

// Package place decides on which hypervisor an instance is to run. It is pure:
// who asks brings the hypervisors as they are, and writes the answer down in
// the same transaction, or two requests get the same room. It never moves what
// is placed.
//
// Start at Place.
package place

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Candidate is a hypervisor as it is now.
type Candidate struct {
	ID string

	Joined   bool // has a certificate and has said Hello
	InLease  bool // has been heard of lately
	Draining bool // takes nothing new
	Drivers  []string

	CPUs, UsedCPUs     int
	Memory, UsedMemory int64 // bytes

	Instances int      // that are placed here
	Siblings  int      // of them of the same pool as the request
	Groups    []string // ids of the anti-affinity groups that they are in
}

// Group is an anti-affinity group.
type Group struct{ ID, Name string }

// Request is an instance to be placed.
type Request struct {
	CPUs   int
	Memory int64 // bytes
	Driver string
	Groups []Group // no two instances of one of them share a hypervisor
}

// The reasons why nothing fits. Every error is ErrUnavailable; one that is
// ErrAntiAffinity too would have found room without its groups.
var (
	ErrUnavailable  = errors.New("no hypervisor left")
	ErrAntiAffinity = errors.New("anti-affinity group")
)

// Place returns the id of the hypervisor to take: of those that fit the one with
// the fewest siblings, then the one least loaded once the request is there, then
// the one with the fewest instances, then the first by id. The order of the
// candidates does not matter.
func Place(r Request, candidates []Candidate) (string, error) {
	refusals := map[string]int{}
	var fit, apart []Candidate
	for _, c := range candidates {
		if why := refuse(r, c); why != "" {
			refusals[why]++
			continue
		}
		fit = append(fit, c)
		if len(shared(r, c)) == 0 {
			apart = append(apart, c)
		}
	}
	if len(apart) > 0 {
		return slices.MinFunc(apart, func(a, b Candidate) int {
			return cmp.Or(cmp.Compare(a.Siblings, b.Siblings), cmp.Compare(load(r, a), load(r, b)),
				cmp.Compare(a.Instances, b.Instances), cmp.Compare(a.ID, b.ID))
		}).ID, nil
	}
	if len(fit) > 0 {
		return "", antiAffinity{r, fit, refusals}
	}
	return "", fmt.Errorf("%w%s", ErrUnavailable, tally(refusals))
}

// refuse says why a hypervisor cannot take the request, its groups left aside.
func refuse(r Request, c Candidate) string {
	switch {
	case !c.Joined:
		return "not joined"
	case !c.InLease:
		return "silent"
	case c.Draining:
		return "draining"
	case !slices.Contains(c.Drivers, r.Driver):
		return "without driver " + r.Driver
	case c.UsedCPUs+r.CPUs > c.CPUs:
		return "without cpus"
	case c.UsedMemory+r.Memory > c.Memory:
		return "without memory"
	}
	return ""
}

// shared lists the groups of the request that have an instance there.
func shared(r Request, c Candidate) (groups []Group) {
	for _, g := range r.Groups {
		if slices.Contains(c.Groups, g.ID) {
			groups = append(groups, g)
		}
	}
	return groups
}

// load is the fuller of cpus and memory with the request in place, 0 to 1.
func load(r Request, c Candidate) float64 {
	return max(share(int64(c.UsedCPUs+r.CPUs), int64(c.CPUs)), share(c.UsedMemory+r.Memory, c.Memory))
}

func share(used, all int64) float64 {
	if all == 0 {
		return 0
	}
	return float64(used) / float64(all)
}

// antiAffinity says which group cannot be met.
type antiAffinity struct {
	request  Request
	fit      []Candidate
	refusals map[string]int
}

func (e antiAffinity) Is(target error) bool {
	return target == ErrAntiAffinity || target == ErrUnavailable
}

// Error names the groups that stand in the way: one that alone excludes all that
// would fit, if there is one, else all that exclude any.
func (e antiAffinity) Error() string {
	var names []string
	for _, g := range e.request.Groups {
		n := 0
		for _, c := range e.fit {
			if slices.Contains(c.Groups, g.ID) {
				n++
			}
		}
		if n == len(e.fit) {
			names = []string{g.Name}
			break
		}
		if n > 0 {
			names = append(names, g.Name)
		}
	}
	refusals := map[string]int{"with an instance of it": len(e.fit)}
	maps.Copy(refusals, e.refusals)
	return fmt.Sprintf("%v %s: %v%s", ErrAntiAffinity, strings.Join(names, ", "), ErrUnavailable, tally(refusals))
}

// tally prints refusals as ": 2 draining, 1 silent", the most frequent first.
func tally(refusals map[string]int) string {
	if len(refusals) == 0 {
		return ""
	}
	var whys []string
	for why := range refusals {
		whys = append(whys, why)
	}
	slices.SortFunc(whys, func(a, b string) int {
		return cmp.Or(cmp.Compare(refusals[b], refusals[a]), cmp.Compare(a, b))
	})
	for i, why := range whys {
		whys[i] = fmt.Sprintf("%d %s", refusals[why], why)
	}
	return ": " + strings.Join(whys, ", ")
}
