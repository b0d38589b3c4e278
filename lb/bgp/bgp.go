// SPDX-License-Identifier: Apache-2.0

// Package bgp speaks BGP and BFD with the routers in front of a hypervisor.
//
// It owns the sessions, and the set of routes they carry. It never decides
// what to announce: lb/announce does, and dataplane/speaker brings the answer
// here. It accepts nothing from a router: every import is rejected. It is the
// only package that knows GoBGP.
//
// Start reading at Plan, then at Speaker.
package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Community is a standard community (RFC 1997), written "high:low".
type Community uint32

// GracefulShutdown asks the routers to prefer any other path (RFC 8326). It is
// set on what drains, so that traffic leaves before the route does.
const GracefulShutdown Community = 0xFFFF0000

func (c Community) String() string { return fmt.Sprintf("%d:%d", uint32(c)>>16, uint32(c)&0xFFFF) }

// ParseCommunity reads "high:low", both 16 bits.
func ParseCommunity(s string) (Community, error) {
	high, low, ok := strings.Cut(s, ":")
	if !ok {
		return 0, fmt.Errorf("parse community %q: want high:low", s)
	}
	h, err := strconv.ParseUint(high, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("parse community %q: %w", s, err)
	}
	l, err := strconv.ParseUint(low, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("parse community %q: %w", s, err)
	}
	return Community(h<<16 | l), nil
}

// Route is one prefix that this hypervisor wants to receive packets for. Its
// next hop is always the speaker itself.
type Route struct {
	Prefix      netip.Prefix
	Communities []Community
}

// Equal reports whether a router would see no difference between two routes.
func (r Route) Equal(o Route) bool {
	return r.Prefix == o.Prefix && slices.Equal(r.Communities, o.Communities)
}

// Peer is a router.
type Peer struct {
	Address netip.Addr
	AS      uint32
	// Port is the router's BGP port; 0 is 179.
	Port uint16
	// BFD runs single-hop BFD beside the session, BFDInterval × BFDMultiplier.
	// GoBGP does not negotiate timers: the router is configured alike.
	BFD bool
	// Passive waits for the router to connect instead of connecting to it.
	Passive bool
	// TTLSecurity sends with TTL 255 and refuses less (RFC 5082).
	TTLSecurity bool
	// Password, if set, signs the TCP segments (RFC 2385).
	Password string
}

// Config is what a speaker is started with. None of it changes while it runs:
// a session is never reset to apply a change.
type Config struct {
	LocalAS  uint32
	RouterID netip.Addr
	// LocalAddress is where sessions start from, and the next hop of every
	// IPv4 route: the uplink's address.
	LocalAddress netip.Addr
	// LocalAddress6 is the next hop of IPv6 routes; without it they are refused.
	LocalAddress6 netip.Addr
	// Interface binds sessions and BFD to a device when set.
	Interface string
	// ListenPort is where passive peers connect; 0 listens nowhere.
	ListenPort uint16
	Peers      []Peer
}

// Timers. The hold time is the slow net below BFD; 3 s is the least that
// RFC 4271 section 4.2 allows. BFDInterval × BFDMultiplier is 300 ms.
const (
	HoldTime      = 3 * time.Second
	Keepalive     = 1 * time.Second
	BFDInterval   = 100 * time.Millisecond
	BFDMultiplier = 3
	// MaxPrefixes bounds the memory that a router which leaks its table can
	// take from us. Nothing it sends is used.
	MaxPrefixes = 10_000
	// PrefixLimitPause is how long a session stays down after a router sent
	// more than MaxPrefixes.
	PrefixLimitPause = 60 * time.Second
)

// Validate names the first field that cannot work.
func (c Config) Validate() error {
	switch {
	case c.LocalAS == 0:
		return fmt.Errorf("check configuration: local AS is 0")
	case !c.RouterID.Is4():
		return fmt.Errorf("check configuration: router id %s is not an IPv4 address", c.RouterID)
	case !c.LocalAddress.Is4():
		return fmt.Errorf("check configuration: local address %s is not an IPv4 address", c.LocalAddress)
	case len(c.Peers) == 0:
		return fmt.Errorf("check configuration: no peer")
	}
	for _, p := range c.Peers {
		switch {
		case !p.Address.IsValid():
			return fmt.Errorf("check configuration: peer without address")
		case p.AS == 0:
			return fmt.Errorf("check configuration: peer %s: AS is 0", p.Address)
		case p.Passive && c.ListenPort == 0:
			return fmt.Errorf("check configuration: peer %s: passive, but nothing listens", p.Address)
		}
	}
	return nil
}

// Session is the state of one peer, for people and tests.
type Session struct {
	Peer        netip.Addr `json:"peer"`
	AS          uint32     `json:"as"`
	State       string     `json:"state"` // idle, connect, active, opensent, openconfirm, established, paused
	Established bool       `json:"established"`
	Since       time.Time  `json:"since,omitzero"` // of the present state, if known
	Flaps       uint32     `json:"flaps"`          // times it left established
	Advertised  uint64     `json:"advertised"`     // routes on this session
	Rejected    uint64     `json:"rejected"`       // routes received; none is ever used
	BFD         string     `json:"bfd,omitempty"`  // waiting for the session, down, init, up, admin-down; empty without BFD
	HoldTime    int        `json:"hold_time"`      // seconds, negotiated
}

// Step is one change to the announced set.
type Step struct {
	Verb  Verb
	Route Route
}

// Verb is what a step does.
type Verb string

// The verbs. An announce of a prefix that is already announced replaces it.
const (
	Announce Verb = "announce"
	Withdraw Verb = "withdraw"
)

func (s Step) String() string {
	var out strings.Builder
	out.WriteString(string(s.Verb) + " " + s.Route.Prefix.String())
	if s.Verb == Announce {
		for _, c := range s.Route.Communities {
			out.WriteString(" " + c.String())
		}
	}
	return out.String()
}

// Plan lists the steps that turn have into want: withdrawals first, because a
// route that should not be there draws packets into a hole, each group in the
// order of prefixes. Of two routes to one prefix the last counts.
func Plan(want, have []Route) []Step {
	wanted, had := index(want), index(have)
	var steps []Step
	for _, p := range sorted(had) {
		if _, ok := wanted[p]; !ok {
			steps = append(steps, Step{Withdraw, had[p]})
		}
	}
	for _, p := range sorted(wanted) {
		if old, ok := had[p]; !ok || !old.Equal(wanted[p]) {
			steps = append(steps, Step{Announce, wanted[p]})
		}
	}
	return steps
}

func index(routes []Route) map[netip.Prefix]Route {
	m := make(map[netip.Prefix]Route, len(routes))
	for _, r := range routes {
		r.Prefix = r.Prefix.Masked()
		m[r.Prefix] = r
	}
	return m
}

func sorted(m map[netip.Prefix]Route) []netip.Prefix {
	keys := make([]netip.Prefix, 0, len(m))
	for p := range m {
		keys = append(keys, p)
	}
	slices.SortFunc(keys, netip.Prefix.Compare)
	return keys
}
