// SPDX-License-Identifier: Apache-2.0

package dist

import "time"

// Leases. An agent sends its status each second; an expired lease changes what
// the others do, never what the silent agent does.
const (
	leaseLife = 5 * time.Second
	// leaseGrace is how long after its own start the control plane expires no
	// lease: agents need time to find it.
	leaseGrace = 15 * time.Second
	// leaseWindow: leases that end so close to each other are one event. When
	// they are more than half of all, the one cut off is the control plane.
	leaseWindow = 30 * time.Second
)

// lease of a hypervisor.
type lease struct {
	number     uint32
	last       time.Time // it was heard of
	lost       bool      // the lease has been declared over
	uplinkDown bool
	synced     bool   // since it was heard of again it has got all it should hold
	told       notice // what Events knows

	stream *session        // the latest
	ended  bool            // it has
	sees   map[uint32]bool // what it says on it: the hosts that it asks, and whether they answer
	missed bool            // the others' word on it
}

// notice is what Events may be told of a hypervisor.
type notice uint8

const (
	nothing notice = iota
	alive
	uplinkDown
	lost
)

// due is what Events should know by now.
func (l *lease) due() notice {
	switch {
	case l.lost:
		return lost
	case l.told == lost && l.missed:
		return lost // it talks, but no packet reaches it
	case !l.synced && l.told != alive && l.told != uplinkDown:
		return l.told // nothing is credited to it before it is in step
	case l.uplinkDown:
		return uplinkDown
	}
	return alive
}

// over lists the hypervisors whose leases are to be declared over now.
func over(leases map[string]*lease, start, now time.Time) []string {
	if now.Sub(start) < leaseGrace {
		return nil
	}
	ended := func(l *lease) bool { return l.lost || now.Sub(l.last) > leaseLife }
	var names []string
	for name, l := range leases {
		if l.lost || !ended(l) {
			continue
		}
		together := 0
		for _, other := range leases {
			if apart := l.last.Sub(other.last); ended(other) && apart.Abs() <= leaseWindow {
				together++
			}
		}
		if 2*together <= len(leases) {
			names = append(names, name)
		}
	}
	return names
}

// missed reports whether packets do not reach a hypervisor, by the word of at
// least half of the LB nodes that ask it. Only those count that talk now and
// have an uplink.
func missed(leases map[string]*lease, number uint32) bool {
	asked, silent := 0, 0
	for _, l := range leases {
		answers, asks := l.sees[number]
		if !asks || l.number == number || l.lost || l.ended || l.uplinkDown {
			continue
		}
		asked++
		if !answers {
			silent++
		}
	}
	return silent > 0 && 2*silent >= asked
}

// severed lists the hypervisors that are gone before their leases are over: the
// stream has ended, and no packet reaches them. Either alone says nothing: an
// agent that is started again, or a path of one LB node. When it would be more
// than half of all, none is.
func severed(leases map[string]*lease) []string {
	var names []string
	gone := 0
	for name, l := range leases {
		switch {
		case l.lost, l.uplinkDown:
			gone++
		case l.ended && l.missed:
			gone++
			names = append(names, name)
		}
	}
	if 2*gone > len(leases) {
		return nil
	}
	return names
}
