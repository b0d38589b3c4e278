// SPDX-License-Identifier: Apache-2.0

package port

import (
	"fmt"
	"net/netip"
	"slices"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

// compiled is a policy as map entries, under an id of this host's own.
type compiled struct {
	id         uint32
	egressOpen bool
	entries    []maps.Entry
}

// policy compiles a policy. Rules are written once under an id: other rules
// take another id, which the port's configuration names at last. Only the rows
// of classes come and go under a living id, since they only add to what members
// of a class that did not exist may do.
func (b *Builder) policy(p wire.Policy) *compiled {
	if c, ok := b.compiled[p.ID]; ok {
		return c
	}
	c := &compiled{egressOpen: true}
	for _, r := range p.Rules {
		c.egressOpen = c.egressOpen && r.Direction != wire.Egress
	}
	c.id = b.policyID(p)
	c.entries = append(rules(p, c.id), b.classRows(p, c.id)...)
	b.compiled[p.ID] = c
	return c
}

// policyID keeps the id under which the same rules lie already, be it from
// before a restart, or finds a free one.
func (b *Builder) policyID(p wire.Policy) uint32 {
	if b.rows == nil {
		b.rows = ruleRows(b.have)
	}
	for _, id := range b.candidates(p) {
		if id != 0 && !b.taken[id] && b.same(p, id) {
			b.taken[id] = true
			return id
		}
	}
	id := uint32(1)
	for b.taken[id] || b.rows[id] != nil {
		id++
	}
	b.taken[id] = true
	return id
}

// candidates are ids under which the policy may lie: those it has, else those
// that its ports name, else those that nobody names.
func (b *Builder) candidates(p wire.Policy) []uint32 {
	var ids []uint32
	for _, own := range b.have.Of(p.Key().String()) { // of two ids when a port could not be told of the new one
		if id := policyOf(own.ID); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 {
		return ids
	}
	named := map[uint32]bool{}
	for port := range table.All[wire.Port](b.view) {
		value, ok := b.have.Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(port.ID)})
		if !ok {
			continue
		}
		id := maps.As[bpf.PortCfg](value).PolicyIn
		named[id] = true
		if port.Policy == p.ID {
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 {
		return ids
	}
	for id := range b.rows { // no port names it: any that no port names will do
		if !named[id] && !b.freeing(id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (b *Builder) freeing(id uint32) bool {
	return b.have.Freeing(maps.ID{Map: maps.RuleIDs, Key: maps.Bytes(bpf.RulesKey{Policy: id})})
}

// policyOf the rows of a policy: all of their keys name it.
func policyOf(id maps.ID) uint32 {
	if id.Map == maps.Cidr {
		return maps.As[bpf.CidrKey](id.Key).Policy
	}
	return maps.As[uint32](id.Key[:4]) // the first field of the other keys
}

// ruleRows are all rows that are written once, by policy id.
func ruleRows(have *maps.Image) map[uint32]map[maps.ID]string {
	rows := map[uint32]map[maps.ID]string{}
	for _, m := range []maps.Map{maps.RuleIDs, maps.PortBounds, maps.PortBM, maps.CidrBM, maps.Cidr, maps.PeerBM} {
		for e := range have.Entries(m) {
			id := policyOf(e.ID)
			if rows[id] == nil {
				rows[id] = map[maps.ID]string{}
			}
			if m != maps.PeerBM { // not written once, but an id that has any is not free
				rows[id][e.ID] = e.Value
			}
		}
	}
	return rows
}

func (b *Builder) same(p wire.Policy, id uint32) bool {
	want := rules(p, id)
	if len(want) != len(b.rows[id]) {
		return false
	}
	for _, e := range want {
		if value, ok := b.rows[id][e.ID]; !ok || value != e.Value {
			return false
		}
	}
	return true
}

// rules are the rows of both directions but for those of classes. The rules'
// ids are always there, so that an id is in use even without rules.
func rules(p wire.Policy, id uint32) []maps.Entry {
	var out []maps.Entry
	for _, d := range []wire.Direction{wire.Ingress, wire.Egress} {
		rules := directed(p, d)
		out = append(out, ruleIDs(rules, id, d))
		out = append(out, portRows(rules, id, d)...)
	}
	return append(out, cidrRows(p, id)...)
}

func directed(p wire.Policy, d wire.Direction) []wire.Rule {
	var out []wire.Rule
	for _, r := range p.Rules {
		if r.Direction == d {
			out = append(out, r)
		}
	}
	return out
}

func ruleIDs(rules []wire.Rule, id uint32, d wire.Direction) maps.Entry {
	var ids bpf.Rules
	for i, r := range rules {
		ids.Id[i] = r.ID
	}
	return maps.Make(maps.RuleIDs, bpf.RulesKey{Policy: id, Direction: uint32(d)}, ids)
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
			return 0, 0xffff
		case r.ICMPCode < 0:
			return uint16(r.ICMPType) << 8, uint16(r.ICMPType)<<8 | 0xff
		}
		at := uint16(r.ICMPType)<<8 | uint16(r.ICMPCode)
		return at, at
	}
	return 0, 0xffff
}

// anyProtocol of a rule; the programs know carried alone.
const anyProtocol = 0

var carried = []uint8{1, 6, 17}

func speaksOf(r wire.Rule, protocol uint8) bool {
	return r.Protocol == protocol || r.Protocol == anyProtocol
}

// portRows cuts the port axis of each protocol where a rule begins or ends.
func portRows(rules []wire.Rule, id uint32, d wire.Direction) []maps.Entry {
	var out []maps.Entry
	protocols := map[uint8]bool{}
	for _, r := range rules {
		if r.Protocol != anyProtocol {
			protocols[r.Protocol] = true
			continue
		}
		for _, proto := range carried {
			protocols[proto] = true
		}
	}
	for proto := range protocols {
		var cuts []uint16
		for _, r := range rules {
			if speaksOf(r, proto) {
				from, to := span(r)
				cuts = append(cuts, from)
				if to < 0xffff {
					cuts = append(cuts, to+1)
				}
			}
		}
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		bounds := bpf.Bounds{N: uint32(len(cuts))}
		copy(bounds.Bound[:], cuts)
		out = append(out, maps.Make(maps.PortBounds, bpf.BoundsKey{Policy: id, Direction: uint32(d), Proto: uint32(proto)}, bounds))
		for i, at := range cuts {
			var bits uint64
			for n, r := range rules {
				if from, to := span(r); speaksOf(r, proto) && from <= at && at <= to {
					bits |= 1 << n
				}
			}
			if bits != 0 {
				key := bpf.PortBmKey{Policy: id, Direction: uint32(d), Proto: uint32(proto), Interval: uint32(i + 1)}
				out = append(out, maps.Make(maps.PortBM, key, bits))
			}
		}
	}
	return out
}

var allIPv4 = netip.MustParsePrefix("0.0.0.0/0")

// cidrRows gives each prefix of a policy a class and the rules of all prefixes
// that hold it. In the map an IPv4 address lies inside of ::/0, so all of IPv4
// gets a class of its own wherever a rule for IPv6 is that wide.
func cidrRows(p wire.Policy, id uint32) []maps.Entry {
	var prefixes []netip.Prefix
	for _, r := range p.Rules {
		if r.PeerGroup != 0 {
			continue
		}
		peer := r.Peer.Masked()
		prefixes = append(prefixes, peer)
		if peer.Addr().Is6() && peer.Bits() <= 96 && peer.Contains(netip.AddrFrom16(netip.IPv4Unspecified().As16())) {
			prefixes = append(prefixes, allIPv4)
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	prefixes = slices.Compact(prefixes)
	var out []maps.Entry
	for i, prefix := range prefixes {
		class := uint32(i + 1)
		key := bpf.CidrKey{Bits: bpf.PrefixBits(prefix, 32), Policy: id, Ip: bpf.IP16(prefix.Addr())}
		out = append(out, maps.Make(maps.Cidr, key, class))
		for _, d := range []wire.Direction{wire.Ingress, wire.Egress} {
			var bits uint64
			for n, r := range directed(p, d) {
				if r.PeerGroup == 0 && r.Peer.Bits() <= prefix.Bits() && r.Peer.Masked().Contains(prefix.Addr()) {
					bits |= 1 << n
				}
			}
			if bits != 0 {
				out = append(out, maps.Make(maps.CidrBM, bpf.BmKey{Policy: id, Direction: uint32(d), Class: class}, bits))
			}
		}
	}
	return out
}

// classRows say what members of each class may. A row that lost its last rule
// is zeroed at once rather than freed later.
func (b *Builder) classRows(p wire.Policy, id uint32) []maps.Entry {
	var out []maps.Entry
	for _, d := range []wire.Direction{wire.Ingress, wire.Egress} {
		byGroup := map[uint32]uint64{}
		for n, r := range directed(p, d) {
			if r.PeerGroup != 0 {
				byGroup[r.PeerGroup] |= 1 << n
			}
		}
		for class := range table.All[wire.Class](b.view) {
			var bits uint64
			for _, g := range class.Groups {
				bits |= byGroup[g]
			}
			e := maps.Make(maps.PeerBM, bpf.BmKey{Policy: id, Direction: uint32(d), Class: class.ID}, bits)
			if bits != 0 || !b.have.Free(e.ID) {
				out = append(out, e)
			}
		}
	}
	return out
}

// Rule that a policy of this host's own id has at a bit, for people.
func Rule(have *maps.Image, policy uint32, d wire.Direction, bit int) (uint32, error) {
	value, ok := have.Get(maps.ID{Map: maps.RuleIDs, Key: maps.Bytes(bpf.RulesKey{Policy: policy, Direction: uint32(d)})})
	if !ok {
		return 0, fmt.Errorf("policy %d has no rules in the map", policy)
	}
	return maps.As[bpf.Rules](value).Id[bit], nil
}
