// SPDX-License-Identifier: Apache-2.0

package port

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
)

var directions = []wire.Direction{wire.Ingress, wire.Egress}

// rows of a policy, of both directions, but for those of classes: what is
// written once. They are made for policy 0. The ids of the first rules are
// always there, so that an id is in use even without rules.
func rows(p wire.Policy) []maps.Entry {
	var out []maps.Entry
	for _, d := range directions {
		rules := directed(p, d)
		out = append(out, ruleIDs(rules, d)...)
		out = append(out, portRows(rules, d)...)
	}
	return append(out, prefixRows(p)...)
}

// directed lists the rules of a direction: a rule's place in it is its bit.
func directed(p wire.Policy, d wire.Direction) []wire.Rule {
	var out []wire.Rule
	for _, r := range p.Rules {
		if r.Direction == d {
			out = append(out, r)
		}
	}
	return out
}

func set(b *bpf.Bitmap, bit int) { b.Word[bit/64] |= 1 << (bit % 64) }

func unset(b *bpf.Bitmap, bit int) { b.Word[bit/64] &^= 1 << (bit % 64) }

// merge adds the bits of other to b.
func merge(b, other *bpf.Bitmap) {
	for i, w := range other.Word {
		b.Word[i] |= w
	}
}

func ruleIDs(rules []wire.Rule, d wire.Direction) []maps.Entry {
	var out []maps.Entry
	for word := 0; word == 0 || word*64 < len(rules); word++ {
		var ids bpf.Rules
		for i, r := range rules[word*64 : min(word*64+64, len(rules))] {
			ids.Id[i] = r.ID
			if r.Keep {
				ids.Keep |= 1 << i
			}
		}
		out = append(out, maps.Make(maps.RuleIDs, bpf.RulesKey{Direction: uint32(d), Word: uint32(word)}, ids))
	}
	return out
}

// Rule that a policy of this host's own id has at a bit, for people.
func Rule(have *maps.Image, policy uint32, d wire.Direction, bit int) (uint32, error) {
	key := bpf.RulesKey{Policy: policy, Direction: uint32(d), Word: uint32(bit / 64)}
	value, ok := have.Get(maps.ID{Map: maps.RuleIDs, Key: maps.Bytes(key)})
	if !ok {
		return 0, fmt.Errorf("policy %d has no rule %d in the map", policy, bit)
	}
	return maps.As[bpf.Rules](value).Id[bit%64], nil
}

// span of the port axis that a rule admits; ICMP puts type and code there, and
// protocols without ports lie on all of it.
func span(r wire.Rule) (from, to uint16) {
	switch r.Protocol {
	case 6, 17:
		return r.PortMin, r.PortMax
	case 1, 58:
		switch {
		case r.ICMPType < 0:
			return 0, math.MaxUint16
		case r.ICMPCode < 0:
			return uint16(r.ICMPType) << 8, uint16(r.ICMPType)<<8 | 0xff
		}
		at := uint16(r.ICMPType)<<8 | uint16(r.ICMPCode)
		return at, at
	}
	return 0, math.MaxUint16
}

// whole tells whether a rule takes all ports there are: there is no port 0 to
// ask for. Such a rule admits also what does not tell its port.
func whole(r wire.Rule) bool {
	from, to := span(r)
	return from <= 1 && to == math.MaxUint16
}

// classes numbers distinct bitmaps from 1 in order of their appearance; that of
// no rule is 0.
type classes struct {
	number  map[bpf.Bitmap]uint16
	inOrder []bpf.Bitmap
}

func (c *classes) of(b bpf.Bitmap) uint16 {
	if b == (bpf.Bitmap{}) {
		return 0
	}
	n, ok := c.number[b]
	if !ok {
		c.inOrder = append(c.inOrder, b)
		n = uint16(len(c.inOrder))
		c.number[b] = n
	}
	return n
}

// portRows cut the port axis of each protocol where a rule begins or ends, and
// give what lies between a class: that of the rules that admit it.
func portRows(rules []wire.Rule, d wire.Direction) []maps.Entry {
	var protocols []uint8
	for _, r := range rules {
		protocols = append(protocols, r.Protocol)
	}
	slices.Sort(protocols)
	known := classes{number: map[bpf.Bitmap]uint16{}}
	var out []maps.Entry
	for _, proto := range slices.Compact(protocols) {
		cuts, all := cut(rules, proto, &known)
		key := bpf.BoundsKey{Direction: uint32(d), Proto: uint32(proto)}
		out = append(out, boundsRows(key, cuts, all)...)
	}
	for i, bits := range known.inOrder {
		out = append(out, maps.Make(maps.PortBM, bpf.BmKey{Direction: uint32(d), Class: uint32(i + 1)}, bits))
	}
	return out
}

// cut the axis of a protocol. The second answer is the class of the rules that
// take all of it.
func cut(rules []wire.Rule, proto uint8, known *classes) ([]bpf.Cut, uint16) {
	type edge struct {
		at    uint16
		bit   int
		opens bool
	}
	var edges []edge
	var now, all bpf.Bitmap // now: from the start of the axis
	for bit, r := range rules {
		if r.Protocol != proto && r.Protocol != bpf.AnyProtocol {
			continue
		}
		if whole(r) {
			set(&all, bit)
		}
		from, to := span(r)
		if from == 0 {
			set(&now, bit)
		} else {
			edges = append(edges, edge{from, bit, true})
		}
		if to < math.MaxUint16 {
			edges = append(edges, edge{to + 1, bit, false})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	cuts := []bpf.Cut{{From: 0, Class: known.of(now)}}
	for i, e := range edges {
		if e.opens {
			set(&now, e.bit)
		} else {
			unset(&now, e.bit)
		}
		if i+1 < len(edges) && edges[i+1].at == e.at {
			continue
		}
		if class := known.of(now); class != cuts[len(cuts)-1].Class {
			cuts = append(cuts, bpf.Cut{From: e.at, Class: class})
		}
	}
	return cuts, known.of(all)
}

// boundsRows lay cuts out: in a root, or in leaves under one.
func boundsRows(key bpf.BoundsKey, cuts []bpf.Cut, whole uint16) []maps.Entry {
	if len(cuts) <= bpf.CutsMax {
		return []maps.Entry{maps.Make(maps.PortBounds, key, bounds(cuts, whole, 0))}
	}
	var out []maps.Entry
	var roots []bpf.Cut
	for leaf := range slices.Chunk(cuts, bpf.CutsMax) {
		key.Leaf = uint32(len(roots) + 1)
		roots = append(roots, bpf.Cut{From: leaf[0].From, Class: uint16(key.Leaf)})
		out = append(out, maps.Make(maps.PortBounds, key, bounds(leaf, 0, 0)))
	}
	key.Leaf = 0
	return append(out, maps.Make(maps.PortBounds, key, bounds(roots, whole, uint16(len(roots)))))
}

func bounds(cuts []bpf.Cut, whole, leaves uint16) bpf.Bounds {
	b := bpf.Bounds{Leaves: leaves, Whole: whole}
	for i := range b.Cut {
		b.Cut[i] = bpf.Cut{From: math.MaxUint16, Class: cuts[len(cuts)-1].Class}
	}
	copy(b.Cut[:], cuts)
	return b
}

var allIPv4 = netip.MustParsePrefix("0.0.0.0/0")

// byDirection are rules of both directions.
type byDirection [2]bpf.Bitmap

// ruled is a prefix and the rules that name it or one that holds it.
type ruled struct {
	netip.Prefix
	rules byDirection
}

// prefixRows give each prefix of a policy a class: that of the rules of all
// prefixes that hold it.
func prefixRows(p wire.Policy) []maps.Entry {
	number := map[byDirection]uint32{}
	var out []maps.Entry
	for _, prefix := range inherit(named(p)) {
		class, ok := number[prefix.rules]
		if !ok {
			class = uint32(len(number) + 1)
			number[prefix.rules] = class
			for _, d := range directions {
				if bits := prefix.rules[d]; bits != (bpf.Bitmap{}) {
					out = append(out, maps.Make(maps.CidrBM, bpf.BmKey{Direction: uint32(d), Class: class}, bits))
				}
			}
		}
		key := bpf.CidrKey{Bits: bpf.PrefixBits(prefix.Prefix, 32), Ip: bpf.IP16(prefix.Addr())}
		out = append(out, maps.Make(maps.Cidr, key, class))
	}
	return out
}

// named are the prefixes that rules name, sorted: what holds another comes
// before it. In the map an IPv4 address lies inside of ::/0, so wherever a rule
// for IPv6 is that wide all of IPv4 is there too, on its own.
func named(p wire.Policy) []ruled {
	at := map[netip.Prefix]*byDirection{}
	of := func(prefix netip.Prefix) *byDirection {
		if at[prefix] == nil {
			at[prefix] = &byDirection{}
		}
		return at[prefix]
	}
	for _, d := range directions {
		for bit, r := range directed(p, d) {
			peers := r.Sources
			if r.PeerGroup == 0 {
				peers = []netip.Prefix{r.Peer}
			}
			for _, peer := range peers {
				peer = peer.Masked()
				if peer.Addr().Is4In6() {
					continue // no packet has such an address
				}
				set(&of(peer)[d], bit)
				if peer.Addr().Is6() && peer.Overlaps(mapped) {
					of(allIPv4)
				}
			}
		}
	}
	out := make([]ruled, 0, len(at))
	for prefix, rules := range at {
		out = append(out, ruled{prefix, *rules})
	}
	slices.SortFunc(out, func(a, b ruled) int { return a.Compare(b.Prefix) })
	return out
}

// mapped is where IPv4 lies in keys that hold addresses.
var mapped = netip.MustParsePrefix("::ffff:0:0/96")

// inherit adds to each prefix the rules of those that hold it. One that gains
// nothing by being there is left out.
func inherit(sorted []ruled) []ruled {
	var out, holding []ruled
	for _, p := range sorted {
		for len(holding) > 0 && !holding[len(holding)-1].Contains(p.Addr()) {
			holding = holding[:len(holding)-1]
		}
		if len(holding) > 0 {
			outer := holding[len(holding)-1]
			for d := range p.rules {
				merge(&p.rules[d], &outer.rules[d])
			}
			if p.rules == outer.rules {
				continue
			}
		}
		holding = append(holding, p)
		out = append(out, p)
	}
	return out
}
