// SPDX-License-Identifier: Apache-2.0

package port

import (
	"fmt"
	"net/netip"
	"testing"

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

// populate holds a policy, and 10,000 members of 200 classes.
func populate(t fataler, p wire.Policy) *table.Table {
	items := []wire.Item{p}
	for i := range uint32(200) {
		items = append(items, wire.Class{ID: i + 10, Groups: []uint32{i%64 + 1, i + 65}})
	}
	for i := range uint32(10_000) {
		items = append(items, wire.Member{Address: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Class: i%200 + 10})
	}
	return tableOf(t, items...)
}

// A policy of 1,000 rules takes no more memory than a set of groups may, 10,000
// members or not.
func TestLargePolicies(t *testing.T) {
	for _, c := range large {
		for _, n := range []int{1, 1000} {
			t.Run(fmt.Sprint(n, " rules, ", c.name), func(t *testing.T) {
				p := policyOfSize(n, c.rule)
				desired := populate(t, p)
				defer desired.Close()
				im := maps.NewImage()
				image(t, desired.View(), im)
				rows := im.Of(p.Key().String())
				t.Logf("%d rows, %d bytes", len(rows), memory(rows))
				if memory(rows) > 1<<20 {
					t.Errorf("%d bytes", memory(rows))
				}
			})
		}
	}
}

// BenchmarkLargePolicies compiles policies of 1,000 rules: anew, and as they are
// found again in every round after that.
func BenchmarkLargePolicies(b *testing.B) {
	for _, c := range large {
		desired := populate(b, policyOfSize(1000, c.rule))
		known := maps.NewImage()
		image(b, desired.View(), known)
		for name, have := range map[string]*maps.Image{"anew": maps.NewImage(), "again": known} {
			b.Run(c.name+"/"+name, func(b *testing.B) {
				for b.Loop() {
					if u, err := NewBuilder(desired.View(), Facts{}, have, nil).Unit("policy/3"); err != nil || len(u.Want) == 0 {
						b.Fatal(u, err)
					}
				}
			})
		}
		desired.Close()
	}
}
