// SPDX-License-Identifier: Apache-2.0

package port

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

// Kinds of rule sets, each as large as a policy may be.
var large = []struct {
	name string
	rule func(i int) wire.Rule
}{
	{"each its own port, from anywhere", func(i int) wire.Rule {
		return wire.Rule{Protocol: 6, PortMin: uint16(10 * i), PortMax: uint16(10 * i), Peer: allIPv4}
	}},
	{"each its own port and network", func(i int) wire.Rule {
		return wire.Rule{Protocol: 6, PortMin: uint16(10 * i), PortMax: uint16(10 * i), Peer: network(i)}
	}},
	{"overlapping ranges and nested networks", func(i int) wire.Rule {
		return wire.Rule{Protocol: 17, PortMin: uint16(i), PortMax: uint16(60000 - i), Peer: netip.PrefixFrom(network(i/24).Addr(), 8+i%24)}
	}},
	{"groups with 16 external sources", func(i int) wire.Rule {
		r := wire.Rule{Protocol: 6, PortMin: uint16(i), PortMax: uint16(i + 3), PeerGroup: uint32(i%64 + 1)}
		for n := range 16 {
			r.Sources = append(r.Sources, network(16*(i%64)+n))
		}
		return r
	}},
}

func network(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
}

func policyOfSize(rules int, rule func(int) wire.Rule) wire.Policy {
	p := wire.Policy{ID: 3}
	for i := range rules {
		r := rule(i)
		r.ID, r.ICMPType, r.ICMPCode = uint32(i+1), -1, -1
		p.Rules = append(p.Rules, r)
	}
	return p
}

// memory of a policy's rows in the maps: of hashes an element is a link, the
// key and the value, each rounded up to 8 bytes; of the trie a node, and one
// more for where two part.
func memory(entries []maps.Entry) (total int) {
	up := func(n int) int { return (n + 7) &^ 7 }
	for _, e := range entries {
		if e.Map == maps.Cidr {
			total += 2 * (40 + len(e.Key) + len(e.Value))
			continue
		}
		total += 48 + up(len(e.Key)) + up(len(e.Value))
	}
	return total
}

// A policy of 1,000 rules is compiled within its part of the way, 10,000
// members or not, and takes no more memory than a set of groups may.
func TestLargePolicies(t *testing.T) {
	var items []wire.Item
	for i := range uint32(200) {
		items = append(items, wire.Class{ID: i + 10, Groups: []uint32{i%64 + 1, i + 65}})
	}
	for i := range uint32(10_000) {
		items = append(items, wire.Member{Address: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Class: i%200 + 10})
	}
	for _, c := range large {
		for _, n := range []int{1, 1000} {
			t.Run(fmt.Sprint(n, " rules, ", c.name), func(t *testing.T) {
				p := policyOfSize(n, c.rule)
				desired := tableOf(t, append([]wire.Item{p}, items...)...)
				defer desired.Close()
				view := desired.View()
				image(t, view, maps.NewImage()) // warm
				im := maps.NewImage()
				fresh, again := timed(t, view, im), time.Duration(0)
				image(t, view, im)
				for range 5 {
					again = timed(t, view, im)
				}
				rows := im.Of(p.Key().String())
				t.Logf("compiled in %s, found again in %s, %d rows, %d bytes", fresh, again, len(rows), memory(rows))
				if fresh > 100*time.Millisecond { // 20 on a quiet machine
					t.Errorf("compiled in %s", fresh)
				}
				if memory(rows) > 1<<20 {
					t.Errorf("%d bytes", memory(rows))
				}
			})
		}
	}
}

// timed is the least of some compilations.
func timed(t *testing.T, view table.View, have *maps.Image) time.Duration {
	t.Helper()
	var took []time.Duration
	for range 5 {
		began := time.Now()
		u, err := NewBuilder(view, Facts{}, have, nil).Unit("policy/3")
		if err != nil || len(u.Want) == 0 {
			t.Fatal(u, err)
		}
		took = append(took, time.Since(began))
	}
	return slices.Min(took)
}
