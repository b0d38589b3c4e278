// SPDX-License-Identifier: Apache-2.0

package port

import (
	"fmt"
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
// judges by (ICMP: type and code), which a fragment does not tell.
type packet struct {
	direction wire.Direction
	scope     uint32
	peer      netip.Addr
	protocol  uint8
	match     uint16
	fragment  bool
}

// verdict of a policy: the rule that admits, 0 for none, and whether it keeps
// its flows.
type verdict struct {
	rule uint32
	keep bool
}

// judge does with the image what the program does with the maps.
func judge(im *maps.Image, policy uint32, p packet) verdict {
	d := uint32(p.direction)
	bitmap := func(m maps.Map, class uint32) (bits bpf.Bitmap) {
		if v, ok := im.Get(maps.ID{Map: m, Key: maps.Bytes(bpf.BmKey{Policy: policy, Direction: d, Class: class})}); ok {
			bits = maps.As[bpf.Bitmap](v)
		}
		return bits
	}
	var peers bpf.Bitmap
	if class, ok := im.Get(maps.ID{Map: maps.Members, Key: maps.Bytes(bpf.MemberKey{Scope: p.scope, Ip: bpf.IP16(p.peer)})}); ok {
		peers = bitmap(maps.PeerBM, maps.As[uint32](class))
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
		bits := bitmap(maps.CidrBM, class2)
		merge(&peers, &bits)
	}
	ports := bitmap(maps.PortBM, classOf(im, policy, p))
	for bit := range 1024 {
		if peers.Word[bit/64]&ports.Word[bit/64]>>(bit%64)&1 == 0 {
			continue
		}
		value, ok := im.Get(maps.ID{Map: maps.RuleIDs, Key: maps.Bytes(bpf.RulesKey{Policy: policy, Direction: d, Word: uint32(bit / 64)})})
		if !ok {
			return verdict{}
		}
		rules := maps.As[bpf.Rules](value)
		return verdict{rules.Id[bit%64], rules.Keep>>(bit%64)&1 != 0}
	}
	return verdict{}
}

// classOf a packet on the port axis.
func classOf(im *maps.Image, policy uint32, p packet) uint32 {
	key := bpf.BoundsKey{Policy: policy, Direction: uint32(p.direction), Proto: uint32(p.protocol)}
	get := func() (b bpf.Bounds, ok bool) {
		value, ok := im.Get(maps.ID{Map: maps.PortBounds, Key: maps.Bytes(key)})
		if ok {
			b = maps.As[bpf.Bounds](value)
		}
		return b, ok
	}
	b, ok := get()
	if !ok {
		key.Proto = bpf.AnyProtocol
		b, _ = get()
	}
	if p.fragment {
		return uint32(b.Whole)
	}
	search := func() uint32 {
		at := 0
		for step := bpf.CutsMax / 2; step > 0; step /= 2 {
			if b.Cut[at+step].From <= p.match {
				at += step
			}
		}
		return uint32(b.Cut[at].Class)
	}
	class := search()
	if b.Leaves > 0 {
		key.Leaf = class
		b, _ = get()
		class = search()
	}
	return class
}

// plain reads the rules one by one.
func plain(p wire.Policy, groups map[member][]uint32, q packet) verdict {
	for _, r := range p.Rules {
		if r.Direction != q.direction || (r.Protocol != q.protocol && r.Protocol != 0) {
			continue
		}
		peer := false
		if r.PeerGroup == 0 {
			peer = r.Peer.Contains(q.peer)
		} else {
			for _, source := range r.Sources {
				peer = peer || source.Contains(q.peer)
			}
			for _, g := range groups[member{q.scope, q.peer}] {
				peer = peer || g == r.PeerGroup
			}
		}
		if peer && (q.fragment && allPorts(r) || !q.fragment && matches(r, q.match)) {
			return verdict{r.ID, r.Keep}
		}
	}
	return verdict{}
}

type member struct {
	scope uint32
	peer  netip.Addr
}

func matches(r wire.Rule, match uint16) bool {
	switch r.Protocol {
	case 6, 17:
		return r.PortMin <= match && match <= r.PortMax
	case 1, 58:
		return r.ICMPType < 0 || (uint16(r.ICMPType) == match>>8 && (r.ICMPCode < 0 || uint16(r.ICMPCode) == match&0xff))
	}
	return true
}

func allPorts(r wire.Rule) bool {
	switch r.Protocol {
	case 6, 17:
		return r.PortMin <= 1 && r.PortMax == 65535
	case 1, 58:
		return r.ICMPType < 0
	}
	return true
}

var peers = []netip.Addr{
	netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("198.51.100.1"),
	netip.MustParseAddr("0.0.0.1"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::1"),
}

var prefixes = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.1/32"),
	netip.MustParsePrefix("192.0.2.77/25"), netip.MustParsePrefix("128.0.0.0/1"), netip.MustParsePrefix("::/0"),
	netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2001:db8::/48"), netip.MustParsePrefix("::/64"),
	netip.MustParsePrefix("::ffff:192.0.2.0/120"), netip.MustParsePrefix("2001:db8::1/128"),
}

func drawPolicy(t *rapid.T) wire.Policy {
	p := wire.Policy{ID: 3}
	ports := rapid.SampledFrom([]uint16{0, 1, 22, 80, 81, 443, 1023, 1024, 65534, 65535})
	protocols := []uint8{6, 17, 1, 58, 50, 47, 132, 0}
	if rapid.Bool().Draw(t, "mostly tcp") {
		protocols = []uint8{6, 6, 6, 0}
	}
	many := rapid.Bool().Draw(t, "many ports")
	if many {
		ports = rapid.Uint16()
	}
	for i := range rapid.SampledFrom([]int{0, 1, 3, 24, 63, 64, 65, 200, 2 * wire.MaxRules}).Draw(t, "rules") {
		r := wire.Rule{
			ID: uint32(i + 1), Direction: wire.Direction(i % 2), Keep: rapid.Bool().Draw(t, "keep"),
			Protocol: rapid.SampledFrom(protocols).Draw(t, "protocol"), ICMPType: -1, ICMPCode: -1,
		}
		switch r.Protocol {
		case 6, 17:
			a, b := ports.Draw(t, "port"), ports.Draw(t, "port")
			if many && b%4 > 0 {
				b = a // overlapping wide ranges would leave little to judge
			}
			r.PortMin, r.PortMax = min(a, b), max(a, b)
		case 1, 58:
			r.ICMPType = rapid.SampledFrom([]int16{-1, 0, 3, 8, 255}).Draw(t, "type")
			r.ICMPCode = rapid.SampledFrom([]int16{-1, 0, 4, 255}).Draw(t, "code")
		}
		if rapid.Bool().Draw(t, "by group") {
			r.PeerGroup = rapid.Uint32Range(5, 8).Draw(t, "group")
			r.Sources = rapid.SliceOfN(rapid.SampledFrom(prefixes), 0, 2).Draw(t, "sources")
		} else {
			r.Peer = rapid.SampledFrom(prefixes).Draw(t, "prefix")
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

// edges are the ports at which rules begin and end, and those beside them.
func edges(t *rapid.T, p wire.Policy) []uint16 {
	ports := []uint16{0, 1, 22, 79, 80, 82, 443, 1024, 65535, 8 << 8, 3<<8 | 4, 255<<8 | 255}
	if len(p.Rules) > 0 {
		for range 4 {
			r := rapid.SampledFrom(p.Rules).Draw(t, "edge of")
			ports = append(ports, r.PortMin-1, r.PortMin, r.PortMax, r.PortMax+1)
		}
	}
	return ports
}

// For any rules, any members and any packet the bitmaps admit by the same rule
// as a reading of the rules one by one, and find it again after a restart.
func TestBitmapsAgreeWithTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := drawPolicy(t)
		items := []wire.Item{policy, wire.Port{ID: 1, MAC: [6]byte{2}, Policy: 3}}
		groups := map[member][]uint32{}
		classes := [][]uint32{nil, {5}, {6}, {5, 7}, {5, 6, 7, 8}}
		for i, c := range classes[1:] {
			items = append(items, wire.Class{ID: uint32(i + 1), Groups: c})
		}
		for _, peer := range peers {
			for _, scope := range []uint32{0, 77} {
				if i := rapid.IntRange(0, len(classes)-1).Draw(t, "class"); i > 0 {
					items = append(items, wire.Member{Scope: scope, Address: peer, Class: uint32(i)})
					groups[member{scope, peer}] = classes[i]
				}
			}
		}
		desired := tableOf(t, items...)
		defer desired.Close()
		im := image(t, desired.View(), maps.NewImage())
		value, _ := im.Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(uint32(1))})
		cfg := maps.As[bpf.PortCfg](value)
		for _, match := range edges(t, policy) {
			for _, peer := range peers {
				q := packet{peer: peer, match: match}
				for _, q.protocol = range []uint8{6, 17, 1, 58, 50, 4} {
					for _, q.direction = range directions {
						q.scope, q.fragment = uint32(match%2)*77, match%5 == 0
						if got, want := judge(im, cfg.PolicyIn, q), plain(policy, groups, q); got != want {
							t.Fatalf("%+v: rule %v, want %v", q, got, want)
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
	a, a6 := netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8::9")
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
		{"an IPv6 member is removed", []wire.Item{five, wire.Member{Address: a6, Class: 2}}, []wire.Item{five}, true, "map[1:true]"},
		{"a member in a private network leaves a group", []wire.Item{both, five, wire.Member{Scope: 7, Address: a, Class: 1}}, []wire.Item{both, five, wire.Member{Scope: 7, Address: a, Class: 2}}, true, "map[2:true]"},
		{"one of a member's addresses is removed", []wire.Item{five, wire.Member{Address: a, Class: 2}, wire.Member{Address: a6, Class: 2}}, []wire.Item{five, wire.Member{Address: a, Class: 2}}, true, "map[1:true]"},
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

// Whatever a policy loses, its ports judge established flows again: the rules
// are others, so their id is another, and with it the generation. What changes
// nothing raises nothing.
func TestOtherRulesRaiseTheGeneration(t *testing.T) {
	rule := wire.Rule{
		ID: 1, Protocol: 6, PortMin: 1, PortMax: 9, PeerGroup: 5, ICMPType: -1, ICMPCode: -1,
		Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
	}
	second := wire.Rule{ID: 2, Protocol: 58, ICMPType: 128, ICMPCode: -1, Peer: netip.MustParsePrefix("2001:db8::/32")}
	for _, c := range []struct {
		what   string
		change func(p *wire.Policy)
		raised bool
	}{
		{"nothing", func(*wire.Policy) {}, false},
		{"an external source", func(p *wire.Policy) { p.Rules[0].Sources = p.Rules[0].Sources[:1] }, true},
		{"a rule", func(p *wire.Policy) { p.Rules = p.Rules[:1] }, true},
		{"part of a network", func(p *wire.Policy) { p.Rules[1].Peer = netip.MustParsePrefix("2001:db8::/33") }, true},
		{"ports", func(p *wire.Policy) { p.Rules[0].PortMax = 8 }, true},
		{"a rule's way to keep its flows", func(p *wire.Policy) { p.Rules[0].Keep = true }, true},
		{"what is open without egress rules", func(p *wire.Policy) {
			p.Rules = append(p.Rules, wire.Rule{ID: 3, Direction: wire.Egress, Protocol: 6, PeerGroup: 9, ICMPType: -1, ICMPCode: -1})
		}, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			port := wire.Port{ID: 1, MAC: [6]byte{2}, Policy: 3}
			p := wire.Policy{ID: 3, Rules: []wire.Rule{rule, second}}
			before := tableOf(t, p, port)
			defer before.Close()
			im := image(t, before.View(), maps.NewImage())
			generation := func() uint32 {
				value, _ := im.Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(uint32(1))})
				return maps.As[bpf.PortCfg](value).Generation
			}
			was := generation()
			changed := wire.Policy{ID: 3, Rules: []wire.Rule{rule, second}}
			c.change(&changed)
			after := tableOf(t, changed, port)
			defer after.Close()
			image(t, after.View(), im)
			if raised := generation() != was; raised != c.raised {
				t.Errorf("generation %d, then %d", was, generation())
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
