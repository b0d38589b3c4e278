// SPDX-License-Identifier: Apache-2.0

// Package announce hands the set of wanted announcements from the agent to the
// speaker: lb/announce decides, dataplane/announce hands over.
//
// It owns one file, which outlives the agent: the speaker goes on with it while
// the agent is away and after its own restart. It never judges whether a prefix
// may be announced, and never talks to a router. Start reading at Set, then at
// Collect for how an agent makes one.
package announce

import (
	"fmt"
	"net/netip"
	"slices"
)

// Set is everything this host is wanted to announce. Revision is the control
// plane's, and never goes back.
type Set struct {
	Revision uint64   `json:"revision"`
	Wanted   []Wanted `json:"wanted"` // ascending by prefix, no prefix twice
}

// Origin says why a prefix is announced, and with it when it is withdrawn.
type Origin string

// Origins. A vip goes when its probe fails or the uplink's program is gone, an
// instance's address only when its port is gone.
const (
	VIP      Origin = "vip"
	Instance Origin = "instance"
)

// Wanted is one prefix.
type Wanted struct {
	Prefix      netip.Prefix `json:"prefix"`
	Origin      Origin       `json:"origin"`
	Communities []uint32     `json:"communities,omitempty"`
	// Rank of this host among the announcers of a VIP. Rank 0 never withdraws
	// because of a probe.
	Rank int `json:"rank,omitempty"`
	// Drain keeps the route but asks the routers to prefer any other.
	Drain bool `json:"drain,omitempty"`
	// Services of a VIP that this host can forward now: each is probed.
	Services []Service `json:"services,omitempty"`
	// Port of an instance's address.
	Port uint32 `json:"port,omitempty"`
}

// Service is what a probe is addressed to.
type Service struct {
	Port     uint16 `json:"port"`
	Protocol uint8  `json:"protocol"` // 6 or 17
}

func (s Service) String() string {
	switch s.Protocol {
	case protocolTCP:
		return fmt.Sprintf("%d/tcp", s.Port)
	case protocolUDP:
		return fmt.Sprintf("%d/udp", s.Port)
	}
	return fmt.Sprintf("%d/%d", s.Port, s.Protocol)
}

const (
	protocolTCP = 6
	protocolUDP = 17
)

// Validate names the first entry that no speaker could use.
func (s Set) Validate() error {
	for i, w := range s.Wanted {
		switch {
		case !w.Prefix.IsValid() || w.Prefix != w.Prefix.Masked():
			return fmt.Errorf("check wanted %d: prefix %s is not one", i, w.Prefix)
		case i > 0 && s.Wanted[i-1].Prefix.Compare(w.Prefix) >= 0:
			return fmt.Errorf("check wanted %d: prefix %s is not above %s", i, w.Prefix, s.Wanted[i-1].Prefix)
		case w.Rank < 0:
			return fmt.Errorf("check wanted %s: rank %d", w.Prefix, w.Rank)
		case w.Origin == Instance && w.Port == 0:
			return fmt.Errorf("check wanted %s: instance without a port", w.Prefix)
		case w.Origin != Instance && w.Origin != VIP:
			return fmt.Errorf("check wanted %s: origin %q is not known", w.Prefix, w.Origin)
		}
		for _, service := range w.Services {
			if service.Protocol != protocolTCP && service.Protocol != protocolUDP {
				return fmt.Errorf("check wanted %s: service %s: protocol is neither tcp nor udp", w.Prefix, service)
			}
		}
	}
	return nil
}

func (s *Set) sort() {
	slices.SortFunc(s.Wanted, func(a, b Wanted) int { return a.Prefix.Compare(b.Prefix) })
}
