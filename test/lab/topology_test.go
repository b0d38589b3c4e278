// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var infrastructure = []netip.Prefix{UnderlayPrefix, ManagementPrefix, ClientPrefix, UnderlayPrefix6, ClientPrefix6}

// Whatever its size, a lab has no address twice, no link name twice in a
// namespace, nothing outside its prefixes, and each route by a link that the
// namespace has.
func TestTopologyIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hypervisors, clients := rapid.IntRange(0, maxHypervisors).Draw(t, "hypervisors"), rapid.IntRange(0, maxClients).Draw(t, "clients")
		top := plan("x", hypervisors, clients)
		if len(top.namespaces) != 2+hypervisors+clients {
			t.Fatalf("%d namespaces for %d hypervisors and %d clients", len(top.namespaces), hypervisors, clients)
		}
		addresses, links := map[netip.Addr]string{}, map[string]bool{}
		for _, l := range top.links {
			for _, e := range []end{l.a, l.b} {
				at := e.namespace + " " + e.name
				if links[at] {
					t.Fatalf("link %s twice", at)
				}
				links[at] = true
				if len(e.name) > 15 {
					t.Fatalf("link name %s is too long", e.name)
				}
				if !slices.Contains(top.namespaces, e.namespace) || !ownNamespace("x").MatchString(e.namespace) {
					t.Fatalf("link %s: no such namespace", at)
				}
				for _, p := range []netip.Prefix{e.address, e.address6} {
					if !p.IsValid() {
						continue
					}
					a := p.Addr()
					if other, ok := addresses[a]; ok {
						t.Fatalf("%s at %s and at %s", a, at, other)
					}
					addresses[a] = at
					if !slices.ContainsFunc(infrastructure, func(p netip.Prefix) bool { return p.Contains(a) }) || ElasticPrefix.Contains(a) {
						t.Fatalf("%s of %s is in no prefix of the lab", a, at)
					}
				}
			}
			for _, pair := range [][2]netip.Prefix{{l.a.address, l.b.address}, {l.a.address6, l.b.address6}} {
				if a, b := pair[0], pair[1]; a.IsValid() && b.IsValid() && a.Masked() != b.Masked() {
					t.Fatalf("link with %s and %s", a, b)
				}
			}
		}
		for _, r := range top.routes {
			if !links[r.namespace+" "+r.link] {
				t.Fatalf("route in %s by %s, which is not there", r.namespace, r.link)
			}
		}
	})
}

// Only frames that an XDP program sends or receives need finished checksums and
// a program at the other end.
func TestWhereXDPPassesAndChecksumsAreFinished(t *testing.T) {
	var passing, finishing []string
	for _, l := range plan("x", 1, 1).links {
		for _, e := range []end{l.a, l.b} {
			if e.passXDP {
				passing = append(passing, e.namespace+" "+e.name)
			}
			if e.finishChecksums {
				finishing = append(finishing, e.namespace+" "+e.name)
			}
		}
	}
	if got, want := strings.Join(passing, ", "), "x-rtr hv1, x-cli1 eth0"; got != want {
		t.Errorf("XDP passes at %s, want %s", got, want)
	}
	if got, want := strings.Join(finishing, ", "), "x-rtr hv1, x-hv1 uplink, x-rtr cli1, x-cli1 eth0"; got != want {
		t.Errorf("checksums are finished at %s, want %s", got, want)
	}
}

func TestOnlyOwnNamespacesMatch(t *testing.T) {
	for name, own := range map[string]bool{
		"a-ctl": true, "a-rtr": true, "a-hv1": true, "a-hv12-i4000000001": true, "a-hv1-n87ed078d": true, "a-cli3": true,
		"a": false, "ab-ctl": false, "a-b-ctl": false, "a-hv1-ctl": false, "a-hv": false, "a-hv1-i": false, "a-hv1-n87": false, "b-hv1": false, "a-ctl2": false,
	} {
		if got := ownNamespace("a").MatchString(name); got != own {
			t.Errorf("namespace %s belongs to lab a: %t, want %t", name, got, own)
		}
	}
}

func TestNamesAreSafe(t *testing.T) {
	for name, ok := range map[string]bool{
		"lab": true, "clab-123-1": true, "": false, "..": false, "a/b": false, "A": false, "1a": false, "a b": false, strings.Repeat("a", 25): false,
	} {
		if got := checkName(name) == nil; got != ok {
			t.Errorf("name %q accepted: %t, want %t", name, got, ok)
		}
	}
	if err := Down("../../etc"); err == nil {
		t.Error("Down takes a path")
	}
}
