// SPDX-License-Identifier: Apache-2.0

// Package nlb owns what the load balancer's maps should hold: it turns hosts,
// backends, slot tables and services into units of map entries. It decides
// nothing about balancing (the control plane assigns slots) and writes nothing:
// package maps plans and applies. Start at Builder.Unit.
package nlb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

// Overhead of the encapsulation: outer Ethernet stays, IPv4, UDP, VXLAN and the
// inner Ethernet header are added.
const Overhead = 20 + 8 + 8 + 14

// Facts are what this host knows of itself and of its neighbours.
type Facts struct {
	Self uint32                    // this host's number, 0 while not known
	MTU  uint32                    // of the uplink
	Via  map[netip.Addr]netip.Addr // tunnel endpoint → next hop towards it
	MAC  map[netip.Addr][6]byte    // next hops that answered

	Sample uint32 // one packet of a service in so many is told of, when somebody looks; 0: none
}

// Capacities of the maps that are indexed by numbers of this host's own.
type Capacities struct {
	Slots, Services, Nexthops uint32
}

// Builder makes the units of one round: all of one view, and of one image, out
// of whose free numbers it allocates.
type Builder struct {
	view  table.View
	facts Facts
	have  *maps.Image
	caps  Capacities

	numbers *numbers
	vips    map[netip.Addr]uint32 // services of each address
}

// NewBuilder for a round.
func NewBuilder(view table.View, facts Facts, have *maps.Image, caps Capacities) *Builder {
	return &Builder{view: view, facts: facts, have: have, caps: caps, numbers: newNumbers(have, facts, caps)}
}

// Bits is the unit of the filter in front of all VIPs.
const Bits = "vipbits"

// VIP and Nexthop name the units that several items share.
func VIP(a netip.Addr) string     { return "vip/" + a.String() }
func Nexthop(a netip.Addr) string { return "nexthop/" + a.String() }

// Unit of a name: host/ID, backend/ID, service/ID, vip/ADDRESS,
// nexthop/ADDRESS or Bits. Without an item of that name it wants nothing.
func (b *Builder) Unit(name string) (maps.Unit, error) {
	u := maps.Unit{Name: name}
	kind, id, _ := strings.Cut(name, "/")
	var err error
	switch kind {
	case "host":
		if h, ok := table.Get[wire.Host](b.view, id); ok {
			err = b.host(&u, h)
		}
	case "backend":
		if v, ok := table.Get[wire.Backend](b.view, id); ok {
			err = b.backend(&u, v)
		}
	case "service":
		if s, ok := table.Get[wire.Service](b.view, id); ok {
			err = b.service(&u, s)
		}
	case "vip":
		err = b.vip(&u, id)
	case "nexthop":
		err = b.nexthop(&u, id)
	case nodesKind:
		err = b.nodes(&u, id)
	case Bits:
		b.bits(&u)
	default:
		err = fmt.Errorf("unit %s is none of the load balancer's", name)
	}
	return u, err
}

func (b *Builder) host(u *maps.Unit, h wire.Host) error {
	if !h.Endpoint.Is4() {
		return fmt.Errorf("endpoint %s: the underlay is IPv4", h.Endpoint)
	}
	pmtu := h.MTU
	if b.facts.MTU != 0 && b.facts.MTU < pmtu {
		pmtu = b.facts.MTU
	}
	u.Want = []maps.Entry{
		maps.Make(maps.Vteps, bpf.BE32(h.Endpoint), bpf.Vtep{Host: h.ID, Pmtu: pmtu}),
		maps.Make(maps.Prefixes, bpf.PrefixKey{Bits: 128, Ip: bpf.IP16(h.Endpoint)}, bpf.PrefixHost),
	}
	return nil
}

func (b *Builder) backend(u *maps.Unit, v wire.Backend) error {
	host, ok := table.Get[wire.Host](b.view, fmt.Sprint(v.Host))
	if !ok {
		return fmt.Errorf("host %d is not here", v.Host)
	}
	if !host.Endpoint.Is4() {
		return fmt.Errorf("host %d has endpoint %s: the underlay is IPv4", v.Host, host.Endpoint)
	}
	record := bpf.Backend{Flags: bpf.BackendValid, Mac: v.MAC}
	u.Needs = []string{host.Key().String()}
	if v.Host == b.facts.Self {
		local := bpf.Local{Backend: v.ID, Ip: bpf.IP16(v.Address), TargetPort: bpf.BE16(v.TargetPort)}
		switch {
		case v.Draining:
			local.Flags = bpf.LocalDraining
		case !v.Unhealthy:
			local.Flags = bpf.LocalReady
		}
		u.Want = append(u.Want, maps.Make(maps.Local, bpf.LocalKey{Service: v.Service, Port: v.Port}, local))
	} else {
		via, ok := b.facts.Via[host.Endpoint]
		if !ok {
			return fmt.Errorf("no route to host %d at %s", v.Host, host.Endpoint)
		}
		index, err := b.numbers.nexthop(via)
		if err != nil {
			return err
		}
		record.Endpoint, record.Nexthop = bpf.BE32(host.Endpoint), index
	}
	u.Want = append(u.Want, maps.Make(maps.Backends, v.ID, record))
	return nil
}

// nexthop wants nothing while the neighbour has not answered: packets that need
// it are dropped and counted.
func (b *Builder) nexthop(u *maps.Unit, id string) error {
	a, err := netip.ParseAddr(id)
	if err != nil {
		return err
	}
	mac, ok := b.facts.MAC[a]
	if !ok || !b.routes(a) {
		return nil
	}
	index, err := b.numbers.nexthop(a)
	if err != nil {
		return err
	}
	u.Want = []maps.Entry{maps.Make(maps.Nexthops, index, bpf.Nexthop{Mac: mac, Flags: bpf.NexthopValid})}
	return nil
}

func (b *Builder) routes(via netip.Addr) bool {
	for _, v := range b.facts.Via {
		if v == via {
			return true
		}
	}
	return false
}

// vip counts the services of an address; it wants nothing when there are none.
func (b *Builder) vip(u *maps.Unit, id string) error {
	a, err := netip.ParseAddr(id)
	if err != nil {
		return err
	}
	if b.vips == nil {
		b.vips = map[netip.Addr]uint32{}
		for s := range table.All[wire.Service](b.view) {
			b.vips[s.VIP]++
		}
	}
	if n := b.vips[a]; n > 0 {
		u.Want = []maps.Entry{{ID: maps.VIPID(a), Value: maps.Bytes(n)}}
	}
	return nil
}

func (b *Builder) bits(u *maps.Unit) {
	words := map[uint32]uint64{}
	for s := range table.All[wire.Service](b.view) {
		word, mask := bpf.VIPBit(s.VIP)
		words[word] |= mask
	}
	for word, bits := range words {
		u.Want = append(u.Want, maps.Make(maps.VIPBits, word, bits))
	}
}

// service wants its address known in any case; it is reachable once a slot
// names a backend. A change of the slots of one size is stored in place, any
// other change takes a new record, and at last one number in vip4 or vip6 flips.
func (b *Builder) service(u *maps.Unit, s wire.Service) error {
	u.Needs = []string{Bits, VIP(s.VIP)}
	slots, ok := table.Get[wire.Slots](b.view, fmt.Sprint(s.ID))
	if !ok {
		return nil
	}
	named, err := b.owners(s, slots)
	if err != nil || len(named) == 0 {
		return err
	}
	for _, id := range named {
		u.Needs = append(u.Needs, fmt.Sprintf("backend/%d", id))
	}
	place, err := b.numbers.place(b.record(s, slots))
	if err != nil {
		return err
	}
	u.Want = []maps.Entry{
		{ID: maps.ID{Map: maps.Slots, Key: maps.Bytes(place.record.SlotBase)}, Value: string(slots.Table)},
		maps.Make(maps.Svc, place.index, place.record),
		{ID: maps.ServiceID(netip.AddrPortFrom(s.VIP, s.Port), s.Protocol), Value: maps.Bytes(place.index)},
	}
	b.servers(u, s, named)
	return nil
}

// servers are the backends that a connection ID can name, where the service has them
// do so.
func (b *Builder) servers(u *maps.Unit, s wire.Service, named []uint32) {
	for _, id := range named {
		v, ok := table.Get[wire.Backend](b.view, fmt.Sprint(id))
		if s.QUIC && ok && v.Address.Is4() {
			u.Want = append(u.Want, maps.Make(maps.Quic, bpf.QuicKey{Service: s.ID, Server: bpf.BE32(v.Address)}, id))
		}
	}
}

// owners lists the backends that a service's slots name, and refuses a table that
// names one which is not here, or which no client of the VIP's family could reach.
func (b *Builder) owners(s wire.Service, slots wire.Slots) ([]uint32, error) {
	var named []uint32
	seen := map[uint32]bool{0: true}
	for i := 0; i+4 <= len(slots.Table); i += 4 {
		id := binary.LittleEndian.Uint32(slots.Table[i:])
		if seen[id] {
			continue
		}
		seen[id] = true
		backend, ok := table.Get[wire.Backend](b.view, fmt.Sprint(id))
		if !ok {
			return nil, fmt.Errorf("its slots name backend %d, which is not here", id)
		}
		if backend.Address.Is4() != s.VIP.Is4() {
			return nil, fmt.Errorf("VIP %s: backend %d has an address of the other family, %s", s.VIP, id, backend.Address)
		}
		named = append(named, id)
	}
	return named, nil
}

// record of a service but for its place.
func (b *Builder) record(s wire.Service, slots wire.Slots) bpf.Svc {
	r := bpf.Svc{
		Vip: bpf.IP16(s.VIP), Port: bpf.BE16(s.Port), Proto: s.Protocol, Id: s.ID,
		SlotMask: uint32(len(slots.Table)/8) - 1, Generation: uint32(slots.Generation), Seed: s.Seed,
		Limit: s.ConnectionLimit, Rate: s.SourceRate, Sample: b.facts.Sample,
	}
	for flag, on := range map[uint32]bool{
		bpf.SvcPaced: r.Rate != 0, bpf.SvcSampled: r.Sample != 0, bpf.SvcQuic: s.QUIC, bpf.SvcRotating: s.Rotating,
	} {
		if on {
			r.Flags |= flag
		}
	}
	if s.Rotating {
		r.PrevSeed = s.PrevSeed
	}
	if s.SourceHash {
		r.Flags |= bpf.SvcSourceHash
	}
	if s.Panic {
		r.Flags |= bpf.SvcPanic
	}
	if b.facts.MTU > Overhead {
		r.Mtu = b.facts.MTU - Overhead
	}
	return r
}

// Services lists the services that a host can forward: their unit holds an
// entry in vip4 or vip6.
func Services(have *maps.Image) map[uint32]bool {
	out := map[uint32]bool{}
	for e := range have.Served() {
		value, ok := have.Get(maps.ID{Map: maps.Svc, Key: e.Value})
		if ok {
			out[maps.As[bpf.Svc](value).Id] = true
		}
	}
	return out
}

var errFull = errors.New("the map is full")
