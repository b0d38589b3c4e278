// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func route(prefix string, communities ...Community) Route {
	return Route{Prefix: netip.MustParsePrefix(prefix), Communities: communities}
}

func TestPlan(t *testing.T) {
	a, b, c := route("203.0.113.1/32"), route("203.0.113.2/32"), route("198.51.100.7/32")
	tests := []struct {
		name       string
		want, have []Route
		steps      string
	}{
		{"nothing", nil, nil, ""},
		{"first", []Route{a}, nil, "announce 203.0.113.1/32"},
		{"same", []Route{a, b}, []Route{b, a}, ""},
		{"withdraw before announce", []Route{c}, []Route{a, b},
			"withdraw 203.0.113.1/32\nwithdraw 203.0.113.2/32\nannounce 198.51.100.7/32"},
		{"drain replaces", []Route{route("203.0.113.1/32", GracefulShutdown)}, []Route{a},
			"announce 203.0.113.1/32 65535:0"},
		{"end of drain replaces", []Route{a}, []Route{route("203.0.113.1/32", GracefulShutdown)},
			"announce 203.0.113.1/32"},
		{"host bits do not matter", []Route{route("203.0.113.9/24")}, []Route{route("203.0.113.1/24")}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var lines []string
			for _, s := range Plan(tt.want, tt.have) {
				lines = append(lines, s.String())
			}
			if got := strings.Join(lines, "\n"); got != tt.steps {
				t.Errorf("Plan:\n%s\nwant:\n%s", got, tt.steps)
			}
		})
	}
}

func TestPlanReachesWant(t *testing.T) {
	routes := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Route {
		r := route(fmt.Sprintf("203.0.113.%d/32", rapid.IntRange(0, 20).Draw(t, "host")))
		if rapid.Bool().Draw(t, "drain") {
			r.Communities = []Community{GracefulShutdown}
		}
		return r
	}), 0, 20)
	rapid.Check(t, func(t *rapid.T) {
		want, have := routes.Draw(t, "want"), routes.Draw(t, "have")
		steps := Plan(want, have)
		state := index(have)
		for _, s := range steps {
			if s.Verb == Withdraw {
				delete(state, s.Route.Prefix)
			} else {
				state[s.Route.Prefix] = s.Route
			}
		}
		wanted := index(want)
		if len(state) != len(wanted) {
			t.Fatalf("plan ends with %d routes, want %d", len(state), len(wanted))
		}
		for p, r := range wanted {
			if !state[p].Equal(r) {
				t.Fatalf("plan ends with %v, want %v", state[p], r)
			}
		}
		if again := Plan(want, values(state)); len(again) != 0 {
			t.Fatalf("a second plan is not empty: %v", again)
		}
	})
}

func values(m map[netip.Prefix]Route) []Route {
	var out []Route
	for _, r := range m {
		out = append(out, r)
	}
	return out
}

func TestCommunity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Community(rapid.Uint32().Draw(t, "community"))
		back, err := ParseCommunity(c.String())
		if err != nil || back != c {
			t.Fatalf("%s reads back as %s, %v", c, back, err)
		}
	})
	for _, bad := range []string{"", "1", "1:", ":1", "65536:0", "0:65536", "-1:0", "1:2:3", "a:b"} {
		if c, err := ParseCommunity(bad); err == nil {
			t.Errorf("ParseCommunity(%q) = %s, want an error", bad, c)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Config{
		LocalAS:      65001,
		RouterID:     netip.MustParseAddr("10.64.0.1"),
		LocalAddress: netip.MustParseAddr("10.64.0.1"),
		Peers:        []Peer{{Address: netip.MustParseAddr("10.64.0.0"), AS: 65000}},
	}
	if err := good.Validate(); err != nil {
		t.Fatalf("a good configuration: %v", err)
	}
	tests := map[string]func(*Config){
		"local AS":      func(c *Config) { c.LocalAS = 0 },
		"router id":     func(c *Config) { c.RouterID = netip.MustParseAddr("2001:db8::1") },
		"local address": func(c *Config) { c.LocalAddress = netip.Addr{} },
		"no peer":       func(c *Config) { c.Peers = nil },
		"AS is 0":       func(c *Config) { c.Peers = []Peer{{Address: netip.MustParseAddr("10.64.0.0")}} },
		"passive": func(c *Config) {
			c.Peers = []Peer{{Address: netip.MustParseAddr("10.64.0.0"), AS: 65000, Passive: true}}
		},
	}
	for word, spoil := range tests {
		c := good
		spoil(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("Validate = %v, want an error with %q", err, word)
		}
	}
}
