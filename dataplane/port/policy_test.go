// SPDX-License-Identifier: Apache-2.0

package port

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

type fataler interface {
	Helper()
	Fatal(...any)
}

// tableOf holds items.
func tableOf(t fataler, items ...wire.Item) *table.Table {
	t.Helper()
	desired, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	var ups []table.Upsert
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			t.Fatal(err)
		}
		ups = append(ups, table.Upsert{Key: item.Key(), Body: body})
	}
	if faults, err := desired.Restore(table.Mark{Epoch: 1, Revision: 1}, ups); err != nil || len(faults) > 0 {
		t.Fatal(faults, err)
	}
	return desired
}

// image of what the units of all items want.
func image(t fataler, view table.View, have *maps.Image) *maps.Image {
	t.Helper()
	b := NewBuilder(view, Facts{}, have, nil)
	var units []maps.Unit
	for _, kind := range []wire.Kind{wire.KindPolicy, wire.KindMember, wire.KindPort} {
		for row := range view.Rows(kind) {
			u, err := b.Unit(row.Key.String())
			if err != nil {
				t.Fatal(err)
			}
			units = append(units, u)
		}
	}
	steps, faults := maps.Plan(have, units)
	if _, failed := maps.Apply(maps.NewMemory(), have, units, steps, faults); len(failed) > 0 {
		t.Fatal(failed)
	}
	return have
}

// packet is what a policy judges: direction, peer, protocol and the port it
// judges by (ICMP: type and code).
type packet struct {
	direction wire.Direction
	peer      netip.Addr
	protocol  uint8
	match     uint16
}

// judge does with the image what the program does with the maps, and returns
// the rule that admits, 0 for none.
func judge(im *maps.Image, policy uint32, p packet) uint32 {
	d := uint32(p.direction)
	row := func(m maps.Map, key string) uint64 {
		v, ok := im.Get(maps.ID{Map: m, Key: key})
		if !ok {
			return 0
		}
		return binary.NativeEndian.Uint64([]byte(v))
	}
	var peers uint64
	if class, ok := im.Get(maps.ID{Map: maps.Members, Key: maps.Bytes(bpf.MemberKey{Ip: bpf.IP16(p.peer)})}); ok {
		peers = row(maps.PeerBM, maps.Bytes(bpf.BmKey{Policy: policy, Direction: d, Class: maps.As[uint32](class)}))
	}
	longest, class2 := -1, uint32(0)
	for e := range im.Entries(maps.Cidr) {
		k := maps.As[bpf.CidrKey](e.Key)
		prefix := netip.PrefixFrom(netip.AddrFrom16(k.Ip.B), int(k.Bits)-32)
		if k.Policy == policy && prefix.Contains(netip.AddrFrom16(p.peer.As16())) && prefix.Bits() > longest {
			longest, class2 = prefix.Bits(), maps.As[uint32](e.Value)
		}
	}
	if longest >= 0 {
		peers |= row(maps.CidrBM, maps.Bytes(bpf.BmKey{Policy: policy, Direction: d, Class: class2}))
	}
	value, ok := im.Get(maps.ID{Map: maps.PortBounds, Key: maps.Bytes(bpf.BoundsKey{Policy: policy, Direction: d, Proto: uint32(p.protocol)})})
	if !ok {
		return 0
	}
	bounds := maps.As[bpf.Bounds](value)
	interval := uint32(0)
	for i := range bounds.N {
		if bounds.Bound[i] <= p.match {
			interval++
		}
	}
	admitted := peers & row(maps.PortBM, maps.Bytes(bpf.PortBmKey{Policy: policy, Direction: d, Proto: uint32(p.protocol), Interval: interval}))
	if admitted == 0 {
		return 0
	}
	rule, err := Rule(im, policy, p.direction, bits.TrailingZeros64(admitted))
	if err != nil {
		return 0
	}
	return rule
}

// plain reads the rules one by one.
func plain(p wire.Policy, groups map[netip.Addr][]uint32, q packet) uint32 {
	for _, r := range p.Rules {
		if r.Direction != q.direction || (r.Protocol != q.protocol && r.Protocol != 0) {
			continue
		}
		peer := false
		if r.PeerGroup == 0 {
			peer = r.Peer.Contains(q.peer)
		}
		for _, g := range groups[q.peer] {
			peer = peer || g == r.PeerGroup
		}
		if !peer {
			continue
		}
		switch r.Protocol {
		case 6, 17:
			if q.match < r.PortMin || q.match > r.PortMax {
				continue
			}
		case 1:
			if (r.ICMPType >= 0 && uint16(r.ICMPType) != q.match>>8) ||
				(r.ICMPType >= 0 && r.ICMPCode >= 0 && uint16(r.ICMPCode) != q.match&0xff) {
				continue
			}
		}
		return r.ID
	}
	return 0
}

var peers = []netip.Addr{
	netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("198.51.100.1"),
	netip.MustParseAddr("0.0.0.1"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::1"),
}

var prefixes = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.1/32"),
	netip.MustParsePrefix("192.0.2.77/25"), netip.MustParsePrefix("128.0.0.0/1"), netip.MustParsePrefix("::/0"),
	netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2001:db8::/48"), netip.MustParsePrefix("::/64"),
}

func drawPolicy(t *rapid.T) wire.Policy {
	p := wire.Policy{ID: 3}
	ports := rapid.SampledFrom([]uint16{0, 1, 22, 80, 81, 443, 1023, 1024, 65534, 65535})
	for i := range rapid.IntRange(0, 24).Draw(t, "rules") {
		r := wire.Rule{
			ID: uint32(i + 1), Direction: wire.Direction(rapid.IntRange(0, 1).Draw(t, "direction")),
			Protocol: rapid.SampledFrom([]uint8{6, 17, 1, 50, 0}).Draw(t, "protocol"), ICMPType: -1, ICMPCode: -1,
		}
		switch r.Protocol {
		case 6, 17:
			a, b := ports.Draw(t, "port"), ports.Draw(t, "port")
			r.PortMin, r.PortMax = min(a, b), max(a, b)
		case 1:
			r.ICMPType = rapid.SampledFrom([]int16{-1, 0, 3, 8, 255}).Draw(t, "type")
			r.ICMPCode = rapid.SampledFrom([]int16{-1, 0, 4, 255}).Draw(t, "code")
		}
		if rapid.Bool().Draw(t, "by group") {
			r.PeerGroup = rapid.Uint32Range(5, 8).Draw(t, "group")
		} else {
			r.Peer = rapid.SampledFrom(prefixes).Draw(t, "prefix")
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

// For any rules, any members and any packet the bitmaps admit by the same rule
// as a reading of the rules one by one, and find it again after a restart.
func TestBitmapsAgreeWithTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := drawPolicy(t)
		items := []wire.Item{policy, wire.Port{ID: 1, MAC: [6]byte{2}, Policy: 3}}
		groups := map[netip.Addr][]uint32{}
		classes := [][]uint32{nil, {5}, {6}, {5, 7}, {5, 6, 7, 8}}
		for i, c := range classes[1:] {
			items = append(items, wire.Class{ID: uint32(i + 1), Groups: c})
		}
		for _, peer := range peers {
			if i := rapid.IntRange(0, len(classes)-1).Draw(t, "class"); i > 0 {
				items = append(items, wire.Member{Address: peer, Class: uint32(i)})
				groups[peer] = classes[i]
			}
		}
		desired := tableOf(t, items...)
		defer desired.Close()
		im := image(t, desired.View(), maps.NewImage())
		value, _ := im.Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(uint32(1))})
		cfg := maps.As[bpf.PortCfg](value)
		for _, peer := range peers {
			for _, protocol := range []uint8{6, 17, 1} {
				for _, match := range []uint16{0, 1, 22, 79, 80, 82, 443, 1024, 65535, 8 << 8, 3<<8 | 4, 255<<8 | 255} {
					for _, d := range []wire.Direction{wire.Ingress, wire.Egress} {
						q := packet{d, peer, protocol, match}
						if got, want := judge(im, cfg.PolicyIn, q), plain(policy, groups, q); got != want {
							t.Fatalf("%+v: rule %d, want %d", q, got, want)
						}
					}
				}
			}
		}
		open := true
		for _, r := range policy.Rules {
			open = open && r.Direction == wire.Ingress
		}
		if (cfg.Flags&bpf.PortEgressOpen != 0) != open {
			t.Fatalf("egress open: %t, want %t", !open, open)
		}
		found := maps.NewImage()
		for _, m := range maps.All() {
			for e := range im.Entries(m) {
				found.Add(e)
			}
		}
		image(t, desired.View(), found)
		if orphans := found.Orphans(); len(orphans) > 0 {
			t.Fatalf("after a restart %v is nobody's", orphans)
		}
	})
}

func TestWhoIsTightened(t *testing.T) {
	byGroup := func(id, group uint32) wire.Policy {
		return wire.Policy{ID: id, Rules: []wire.Rule{{ID: id, Protocol: 6, PortMax: 9, PeerGroup: group}}}
	}
	a := netip.MustParseAddr("198.51.100.9")
	always := []wire.Item{
		byGroup(1, 5), byGroup(2, 6), wire.Policy{ID: 3, Rules: []wire.Rule{{ID: 9, Protocol: 6, Peer: allIPv4}}},
		wire.Port{ID: 1, MAC: [6]byte{1}, Policy: 1}, wire.Port{ID: 2, MAC: [6]byte{2}, Policy: 2}, wire.Port{ID: 3, MAC: [6]byte{3}, Policy: 3},
	}
	both, five, six := wire.Class{ID: 1, Groups: []uint32{5, 6}}, wire.Class{ID: 2, Groups: []uint32{5}}, wire.Class{ID: 3, Groups: []uint32{6}}
	for _, c := range []struct {
		name   string
		before []wire.Item
		after  []wire.Item
		known  bool // the classes from before are remembered
		want   string
	}{
		{"a member is added", nil, []wire.Item{both, wire.Member{Address: a, Class: 1}}, true, "map[]"},
		{"a member is removed", []wire.Item{both, wire.Member{Address: a, Class: 1}}, []wire.Item{both}, true, "map[1:true 2:true]"},
		{"a member leaves one group", []wire.Item{both, five, wire.Member{Address: a, Class: 1}}, []wire.Item{both, five, wire.Member{Address: a, Class: 2}}, true, "map[2:true]"},
		{"a member joins a group", []wire.Item{both, six, wire.Member{Address: a, Class: 3}}, []wire.Item{both, six, wire.Member{Address: a, Class: 1}}, true, "map[]"},
		{"a member goes with its class", []wire.Item{six, wire.Member{Address: a, Class: 3}}, nil, true, "map[2:true]"},
		{"and nobody knows what the class was", []wire.Item{six, wire.Member{Address: a, Class: 3}}, nil, false, "map[1:true 2:true]"},
		{"nothing changes", []wire.Item{six, wire.Member{Address: a, Class: 3}}, []wire.Item{six, wire.Member{Address: a, Class: 3}}, true, "map[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, after := tableOf(t, append(c.before, always...)...), tableOf(t, append(c.after, always...)...)
			defer before.Close()
			defer after.Close()
			im := image(t, before.View(), maps.NewImage())
			known := Classes{}
			if c.known {
				known.Remember(before.View(), im)
			}
			if got := fmt.Sprint(Tightened(after.View(), im, known)); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestDevice(t *testing.T) {
	for name, want := range map[string]uint32{"cp7": 7, "cp4294967295": 4294967295, "cp0": 0, "cp": 0, "cpx": 0, "eth0": 0, "cp4294967296": 0} {
		if got, ok := Device(name); ok != (want != 0) || (ok && got != want) {
			t.Errorf("%s: %d %t", name, got, ok)
		}
	}
}
