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
