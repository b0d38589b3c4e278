// SPDX-License-Identifier: Apache-2.0

package port

import (
	"slices"
	"unsafe"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

// policyMaps hold rows of policies. All but those of PeerBM are written once.
var policyMaps = []maps.Map{maps.RuleIDs, maps.PortBounds, maps.PortBM, maps.CidrBM, maps.Cidr, maps.PeerBM}

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
	want := rows(p)
	c.id = b.policyID(p, want)
	c.entries = append(under(want, c.id), b.classRows(p, c.id)...)
	b.compiled[p.ID] = c
	return c
}

// under gives rows, made for policy 0, the id of a policy.
func under(rows []maps.Entry, id uint32) []maps.Entry {
	out := make([]maps.Entry, len(rows))
	name := maps.Bytes(id)
	for i, e := range rows {
		at := policyAt(e.Map)
		e.Key = e.Key[:at] + name + e.Key[at+4:]
		out[i] = e
	}
	return out
}

// policyAt is where a key names its policy.
func policyAt(m maps.Map) int {
	if m == maps.Cidr {
		return int(unsafe.Offsetof(bpf.CidrKey{}.Policy))
	}
	return 0 // the first field of the other keys
}

// policyOf the rows of a policy: all of their keys name it.
func policyOf(id maps.ID) uint32 {
	at := policyAt(id.Map)
	return maps.As[uint32](id.Key[at : at+4])
}

// policyID keeps the id under which the same rules lie already, be it from
// before a restart, or finds a free one.
func (b *Builder) policyID(p wire.Policy, want []maps.Entry) uint32 {
	own := b.have.Of(p.Key().String())
	if len(own) > 0 {
		return b.take(b.findAmong(grouped(own), want, nil))
	}
	if b.rows == nil {
		b.rows = grouped(nil)
		for _, m := range policyMaps {
			for e := range b.have.Entries(m) {
				b.rows.add(e)
			}
		}
	}
	return b.take(b.findAmong(b.rows, want, b.candidates(p)))
}

// take an id, or a free one for 0.
func (b *Builder) take(id uint32) uint32 {
	if id == 0 {
		used := map[uint32]bool{}
		for _, m := range policyMaps {
			for e := range b.have.Entries(m) {
				used[policyOf(e.ID)] = true
			}
		}
		for id = 1; b.taken[id] || used[id]; {
			id++
		}
	}
	b.taken[id] = true
	return id
}

// findAmong finds the id under which rows lie that are as wanted; 0 if none.
// Without candidates it may be any.
func (b *Builder) findAmong(have byPolicy, want []maps.Entry, candidates []uint32) uint32 {
	if candidates == nil { // two when a port could not be told of the new one
		for id := range have {
			candidates = append(candidates, id)
		}
		slices.Sort(candidates)
	}
	for _, id := range candidates {
		if id != 0 && !b.taken[id] && have.same(id, want) {
			return id
		}
	}
	return 0
}

// byPolicy are rows that are written once. A policy that has others only is
// there too: its id is not free.
type byPolicy map[uint32]map[maps.ID]string

func grouped(entries []maps.Entry) byPolicy {
	rows := byPolicy{}
	for _, e := range entries {
		rows.add(e)
	}
	return rows
}

func (rows byPolicy) add(e maps.Entry) {
	id := policyOf(e.ID)
	if rows[id] == nil {
		rows[id] = map[maps.ID]string{}
	}
	if e.Map != maps.PeerBM {
		rows[id][e.ID] = e.Value
	}
}

func (rows byPolicy) same(id uint32, want []maps.Entry) bool {
	if len(want) != len(rows[id]) {
		return false
	}
	for _, e := range under(want, id) {
		if value, ok := rows[id][e.ID]; !ok || value != e.Value {
			return false
		}
	}
	return true
}

// candidates are ids under which a policy that has no rows yet may lie from
// before a restart: those that its ports name, else those that nobody names.
func (b *Builder) candidates(p wire.Policy) []uint32 {
	ids, named := []uint32{}, map[uint32]bool{}
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

// classRows say what members of each class may. A row that lost its last rule
// is zeroed at once rather than freed later.
func (b *Builder) classRows(p wire.Policy, id uint32) []maps.Entry {
	var out []maps.Entry
	for _, d := range directions {
		byGroup := map[uint32]*bpf.Bitmap{}
		for n, r := range directed(p, d) {
			if r.PeerGroup == 0 {
				continue
			}
			if byGroup[r.PeerGroup] == nil {
				byGroup[r.PeerGroup] = &bpf.Bitmap{}
			}
			set(byGroup[r.PeerGroup], n)
		}
		for class := range table.All[wire.Class](b.view) {
			var bits bpf.Bitmap
			for _, g := range class.Groups {
				if rules := byGroup[g]; rules != nil {
					merge(&bits, rules)
				}
			}
			e := maps.Make(maps.PeerBM, bpf.BmKey{Policy: id, Direction: uint32(d), Class: class.ID}, bits)
			if bits != (bpf.Bitmap{}) || !b.have.Free(e.ID) {
				out = append(out, e)
			}
		}
	}
	return out
}
