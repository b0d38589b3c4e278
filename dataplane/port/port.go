// SPDX-License-Identifier: Apache-2.0

// Package port owns what the maps of the instances' ports should hold: ports,
// the policies that judge their packets, and the groups that policies name. It
// turns items into units of map entries, and says when established flows must
// be judged again. It writes nothing: package maps plans and applies. Start at
// Builder.Unit; policy.go compiles rules.
package port

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

// GatewayMAC is the address of every port's gateway, as instances see it.
var GatewayMAC = [6]byte{0x02, 0xcb, 0, 0, 0, 1}

// Host is the unit of the address ranges that no port may reach; Policies is
// the group of all policies.
const (
	Host     = "prefixes"
	Policies = "policies"
)

// Facts are what this host knows of itself.
type Facts struct {
	Devices  map[uint32]uint32 // port → interface index, for ports whose device is there
	Own      []netip.Prefix    // underlay, management, host
	Underlay uint32            // MTU of the uplink; 0: not known
}

// Builder makes the units of one round: all of one view and of one image.
type Builder struct {
	view  table.View
	facts Facts
	have  *maps.Image
	raise map[uint32]bool // ports whose established flows must be judged again

	compiled map[uint32]*compiled
	taken    map[uint32]bool // policy ids of this host, of this round
	rows     byPolicy        // all there are, once asked for
}

// NewBuilder for a round. Raise names the ports whose generation must go up.
func NewBuilder(view table.View, facts Facts, have *maps.Image, raise map[uint32]bool) *Builder {
	return &Builder{
		view: view, facts: facts, have: have, raise: raise,
		compiled: map[uint32]*compiled{}, taken: map[uint32]bool{},
	}
}

// Unit of a name: port/ID, policy/ID, member/KEY, announcement/PREFIX or Host.
// Without an item of that name it wants nothing.
func (b *Builder) Unit(name string) (maps.Unit, error) {
	u := maps.Unit{Name: name}
	kind, id, _ := strings.Cut(name, "/")
	var err error
	switch kind {
	case "port":
		if p, ok := table.Get[wire.Port](b.view, id); ok {
			err = b.port(&u, p)
		}
	case "policy":
		u.Group = Policies
		if p, ok := table.Get[wire.Policy](b.view, id); ok {
			u.Want = b.policy(p).entries
		}
	case "member":
		if m, ok := table.Get[wire.Member](b.view, id); ok {
			err = b.member(&u, m)
		}
	case "announcement":
		if a, ok := table.Get[wire.Announcement](b.view, id); ok && !a.Service {
			u.Want = []maps.Entry{prefixEntry(a.Prefix, bpf.PrefixInstances)}
		}
	case Host:
		b.own(&u)
	default:
		err = fmt.Errorf("unit %s is none of the ports'", name)
	}
	return u, err
}

func prefixEntry(p netip.Prefix, flag uint32) maps.Entry {
	p = p.Masked()
	return maps.Make(maps.Prefixes, bpf.PrefixKey{Bits: bpf.PrefixBits(p, 0), Ip: bpf.IP16(p.Addr())}, flag)
}

// own leaves out the tunnel endpoints: each belongs to its host's unit.
func (b *Builder) own(u *maps.Unit) {
	endpoints := map[netip.Addr]bool{}
	for h := range table.All[wire.Host](b.view) {
		endpoints[h.Endpoint] = true
	}
	seen := map[netip.Prefix]bool{}
	for _, p := range b.facts.Own {
		p = p.Masked()
		if seen[p] || (p.IsSingleIP() && endpoints[p.Addr()]) {
			continue
		}
		seen[p] = true
		u.Want = append(u.Want, prefixEntry(p, bpf.PrefixHost))
	}
}

// port wants its configuration also while its device is not there: it is
// attached when the device comes.
func (b *Builder) port(u *maps.Unit, p wire.Port) error {
	key := maps.ID{Map: maps.PortCfg, Key: maps.Bytes(p.ID)}
	value, had := b.have.Get(key)
	cfg := bpf.PortCfg{
		Ifindex: b.facts.Devices[p.ID], Mac: p.MAC, GatewayMac: GatewayMAC, Mtu: b.mtu(p), Generation: 1,
	}
	if p.Policy != 0 {
		policy, ok := table.Get[wire.Policy](b.view, fmt.Sprint(p.Policy))
		if !ok {
			return fmt.Errorf("policy %d is not here", p.Policy)
		}
		u.Needs = append(u.Needs, policy.Key().String())
		c := b.policy(policy)
		cfg.PolicyIn, cfg.PolicyOut = c.id, c.id
		if c.egressOpen {
			cfg.Flags |= bpf.PortEgressOpen
		}
	}
	if p.Network != 0 {
		if err := b.private(u, &cfg, p); err != nil {
			return err
		}
	}
	options(&cfg, p)
	if had {
		old := maps.As[bpf.PortCfg](value)
		cfg.Generation = old.Generation
		if old.PolicyIn != cfg.PolicyIn || old.PolicyOut != cfg.PolicyOut || (old.Flags^cfg.Flags)&judged != 0 || b.raise[p.ID] {
			cfg.Generation++
		}
	}
	if device := b.facts.Devices[p.ID]; device != 0 {
		u.Want = append(u.Want, maps.Make(maps.Attach, p.ID, device), maps.Make(maps.Quota, p.ID, quota(p)))
		if p.RateTo != 0 {
			u.Want = append(u.Want, maps.Make(maps.Shaper, p.ID, maps.Limit{Device: device, Rate: p.RateTo}))
		}
	}
	for _, a := range p.Addresses {
		u.Want = append(u.Want, maps.Make(maps.AddrOK, bpf.AddrKey{Port: p.ID, Ip: bpf.IP16(a)}, uint32(0)))
		if p.Network == 0 {
			u.Want = append(u.Want, maps.Make(maps.AddrPort, bpf.IP16(a), p.ID))
		}
	}
	b.further(u, p)
	if p.Network == 0 {
		u.Want = append(u.Want, maps.Make(maps.Fdb, bpf.FdbKey{Vni: bpf.LBVNI, Mac: p.MAC}, bpf.Station{Port: p.ID}))
	}
	u.Want = append(u.Want, maps.Entry{ID: key, Value: maps.Bytes(cfg)})
	return nil
}

// mtu is the largest packet of a port. The way out of a public one is the uplink,
// which cuts nothing in two: who sends more is told.
func (b *Builder) mtu(p wire.Port) uint32 {
	if u := b.facts.Underlay; u != 0 && (p.MTU == 0 || p.MTU > u) {
		return u
	}
	return p.MTU
}

// judged are the flags by which flows are judged: those that are there are judged
// again when one changes.
const judged = bpf.PortFirewall | bpf.PortSMTPOpen

// options of a port.
func options(cfg *bpf.PortCfg, p wire.Port) {
	cfg.RateFrom = p.RateFrom
	if p.Flags&wire.PortFirewall != 0 && p.Network != 0 {
		cfg.Flags |= bpf.PortFirewall
	}
	if p.Flags&wire.PortSMTP != 0 {
		cfg.Flags |= bpf.PortSMTPOpen
	}
	if p.Flags&wire.PortFlowLog != 0 {
		cfg.Flags |= bpf.PortFlowLog
	}
	if p.Established > 0 {
		cfg.Established = uint32(min(max(p.Established, minEstablished), maxEstablished) / time.Second)
	}
}

// How long an idle TCP flow may be remembered.
const minEstablished, maxEstablished = time.Minute, 5 * 24 * time.Hour

// maxQuota bounds what one port may take of the kernel's memory: its table is of
// some 150 bytes a flow.
const maxQuota = 1 << 18

// quota of confirmed flows.
func quota(p wire.Port) uint32 {
	if p.Flows == 0 {
		return bpf.CtQuota
	}
	return min(p.Flows, maxQuota)
}

// further lets a port speak for what it has beside its own addresses: elastic IPs
// and ranges. Those that are active here come to it; in a private network ARP and
// ND find them.
func (b *Builder) further(u *maps.Unit, p wire.Port) {
	for _, a := range p.Allowed {
		switch {
		case a.IsSingleIP():
			u.Want = append(u.Want, maps.Make(maps.AddrOK, bpf.AddrKey{Port: p.ID, Ip: bpf.IP16(a.Addr())}, uint32(0)))
		case isRange(a):
			key := bpf.AllowKey{Bits: bpf.PrefixBits(a, 32), Port: p.ID, Ip: bpf.IP16(a.Masked().Addr())}
			u.Want = append(u.Want, maps.Make(maps.AddrAllow, key, uint32(0)))
		}
	}
	for _, a := range p.Active {
		switch {
		case p.Network != 0:
		case a.IsSingleIP():
			u.Want = append(u.Want, maps.Make(maps.AddrPort, bpf.IP16(a.Addr()), p.ID))
		case isRange(a):
			u.Want = append(u.Want, maps.Make(maps.AddrNet, bpf.PrefixKey{Bits: bpf.PrefixBits(a, 0), Ip: bpf.IP16(a.Masked().Addr())}, p.ID))
		}
	}
}

// isRange tells whether a range of IPv6 is one: in the maps an IPv4 address lies
// among those of IPv6, and who has all of these has no IPv4 address by that.
func isRange(p netip.Prefix) bool {
	return p.IsValid() && (p.Addr().Is4() || !p.Overlaps(mapped))
}

// Overhead is what a frame of a private network gets in front between hosts,
// counted from its IP packet: Ethernet, VXLAN, UDP, IPv4.
const Overhead = 50

// private sets what a port of a private network has beyond others. An underlay
// without room would cut every full packet in two: new ports are refused, those
// that are there stay.
func (b *Builder) private(u *maps.Unit, cfg *bpf.PortCfg, p wire.Port) error {
	network, ok := table.Get[wire.Network](b.view, fmt.Sprint(p.Network))
	if !ok {
		return fmt.Errorf("network %d is not here", p.Network)
	}
	mtu := p.MTU
	if mtu == 0 {
		mtu = 1500
	}
	if b.facts.Underlay != 0 && b.facts.Underlay < mtu+Overhead {
		return fmt.Errorf("the uplink's MTU %d has no room for packets of %d bytes: it needs %d", b.facts.Underlay, mtu, mtu+Overhead)
	}
	u.Needs = append(u.Needs, network.Key().String())
	cfg.Vni, cfg.Mtu = p.Network, mtu
	if network.Lease == nil {
		cfg.Flags |= bpf.PortUnmanaged
	}
	return nil
}

// member needs all policies: an address may belong to a class only once every
// local policy knows what the class may do.
func (b *Builder) member(u *maps.Unit, m wire.Member) error {
	if _, ok := table.Get[wire.Class](b.view, fmt.Sprint(m.Class)); !ok {
		return fmt.Errorf("class %d is not here", m.Class)
	}
	u.Needs = []string{Policies}
	u.Want = []maps.Entry{maps.Make(maps.Members, memberKey(m), m.Class)}
	return nil
}

func memberKey(m wire.Member) bpf.MemberKey {
	return bpf.MemberKey{Scope: m.Scope, Ip: bpf.IP16(m.Address)}
}

// Classes are the groups of each class, as the maps were last made for them.
type Classes map[uint32][]uint32

// Remember keeps the groups of all classes of a view. Classes that are gone
// stay while members are of them.
func (c Classes) Remember(view table.View, have *maps.Image) {
	used := map[uint32]bool{}
	for e := range have.Entries(maps.Members) {
		used[maps.As[uint32](e.Value)] = true
	}
	for id := range c {
		if !used[id] {
			delete(c, id)
		}
	}
	for class := range table.All[wire.Class](view) {
		c[class.ID] = class.Groups
	}
}

// Tightened lists the ports whose established flows must be judged again
// because an address left a group that their policy names: members that the
// maps hold and the view does not, or of another class, and classes that lost a
// group. A class that nobody remembers may have been in any group.
func Tightened(view table.View, have *maps.Image, known Classes) map[uint32]bool {
	lost, all := map[uint32]bool{}, false
	now := Classes{}
	for class := range table.All[wire.Class](view) {
		now[class.ID] = class.Groups
	}
	leave := func(old []uint32, new []uint32) {
		kept := map[uint32]bool{}
		for _, g := range new {
			kept[g] = true
		}
		for _, g := range old {
			if !kept[g] {
				lost[g] = true
			}
		}
	}
	for e := range have.Entries(maps.Members) {
		key, was := maps.As[bpf.MemberKey](e.Key), maps.As[uint32](e.Value)
		id := wire.Member{Scope: key.Scope, Address: key.Ip.Addr()}.Key().ID
		member, _ := table.Get[wire.Member](view, id)
		if member.Class == was {
			continue
		}
		old, ok := known[was]
		if !ok {
			if old, ok = now[was]; !ok {
				all = true
			}
		}
		leave(old, now[member.Class])
	}
	for id, old := range known {
		leave(old, now[id])
	}
	return portsNaming(view, lost, all)
}

func portsNaming(view table.View, lost map[uint32]bool, all bool) map[uint32]bool {
	ports := map[uint32]bool{}
	if len(lost) == 0 && !all {
		return ports
	}
	naming := map[uint32]bool{}
	for p := range table.All[wire.Policy](view) {
		for _, r := range p.Rules {
			if lost[r.PeerGroup] || (all && r.PeerGroup != 0) {
				naming[p.ID] = true
			}
		}
	}
	for p := range table.All[wire.Port](view) {
		if naming[p.Policy] {
			ports[p.ID] = true
		}
	}
	return ports
}

// Device gives the port that a device belongs to.
func Device(name string) (port uint32, ok bool) {
	digits, ok := strings.CutPrefix(name, "cp")
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(digits, 10, 32)
	return uint32(id), err == nil && id != 0
}
