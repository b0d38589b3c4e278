// SPDX-License-Identifier: Apache-2.0

// Package vnet owns what the maps of private networks should hold: where each
// MAC is, who has which address, and who gets what is sent to all. It turns
// items into units of map entries. It writes nothing (package maps plans and
// applies) and knows nothing of policies. Start at Builder.Unit.
package vnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/port"
	"cairn/dataplane/table"
)

// BroadcastRate is how many frames for all of a network one port may send a
// second when the network does not say.
const BroadcastRate = 500

// Metadata is where every instance finds what the cloud knows of it; in a private
// network, at the MAC of the network's own server.
var Metadata = netip.MustParseAddr("169.254.169.254")

// Builder makes the units of one round: all of one view.
type Builder struct {
	view   table.View
	self   uint32 // this host's number
	owners map[bpf.NeighKey]bpf.Neigh
	ports  map[uint32][]uint32 // of this host, by network
}

// NewBuilder for a round.
func NewBuilder(view table.View, self uint32) *Builder { return &Builder{view: view, self: self} }

// Unit of a name: network/VNI, neighbour/PORT or address/VNI/IP. Without an item
// of that name it wants nothing.
func (b *Builder) Unit(name string) (maps.Unit, error) {
	u := maps.Unit{Name: name}
	kind, id, _ := strings.Cut(name, "/")
	var err error
	switch kind {
	case "network":
		if n, ok := table.Get[wire.Network](b.view, id); ok {
			err = b.network(&u, n)
		}
	case "neighbour":
		if n, ok := table.Get[wire.Neighbour](b.view, id); ok {
			err = b.neighbour(&u, n)
		}
	case "address":
		err = b.address(&u, id)
	default:
		err = fmt.Errorf("unit %s is none of the networks'", name)
	}
	return u, err
}

// network wants the list of those who get what is sent to all of it: the ports
// here, and the other hosts, each of which has its own list.
func (b *Builder) network(u *maps.Unit, n wire.Network) error {
	list := bpf.Bum{Rate: n.BroadcastRate}
	if list.Rate == 0 {
		list.Rate = BroadcastRate
	}
	if n.Snooping {
		list.Flags |= bpf.BumSnooping
	}
	for _, id := range n.Hosts {
		if id == b.self {
			continue
		}
		endpoint, err := b.endpoint(u, id)
		if err != nil {
			return err
		}
		if list.Hosts == bpf.BumHosts {
			return fmt.Errorf("more than %d hosts", bpf.BumHosts)
		}
		list.Host[list.Hosts] = endpoint
		list.Hosts++
	}
	ports := b.portsOf(n.VNI)
	if len(ports) > bpf.BumPorts {
		return fmt.Errorf("%d ports on one host are more than %d", len(ports), bpf.BumPorts)
	}
	list.Ports = uint32(copy(list.Port[:], ports))
	u.Want = append(u.Want, maps.Make(maps.Bum, n.VNI, list))
	return nil
}

func (b *Builder) portsOf(vni uint32) []uint32 {
	if b.ports == nil {
		b.ports = map[uint32][]uint32{}
		for p := range table.All[wire.Port](b.view) {
			if p.Network != 0 {
				b.ports[p.Network] = append(b.ports[p.Network], p.ID)
			}
		}
	}
	return slices.Sorted(slices.Values(b.ports[vni]))
}

func (b *Builder) endpoint(u *maps.Unit, id uint32) (uint32, error) {
	host, ok := table.Get[wire.Host](b.view, strconv.FormatUint(uint64(id), 10))
	if !ok {
		return 0, fmt.Errorf("host %d is not here", id)
	}
	if !host.Endpoint.Is4() {
		return 0, fmt.Errorf("host %d has endpoint %s: the underlay is IPv4", id, host.Endpoint)
	}
	u.Needs = append(u.Needs, host.Key().String())
	return bpf.BE32(host.Endpoint), nil
}

// neighbour wants the place of its MAC.
func (b *Builder) neighbour(u *maps.Unit, n wire.Neighbour) error {
	at := bpf.Station{Port: n.Port}
	if n.Host != b.self {
		endpoint, err := b.endpoint(u, n.Host)
		if err != nil {
			return err
		}
		at = bpf.Station{Endpoint: endpoint}
	}
	u.Want = append(u.Want, maps.Make(maps.Fdb, bpf.FdbKey{Vni: n.VNI, Mac: n.MAC}, at))
	return nil
}

// address wants its owner, if there is exactly one.
func (b *Builder) address(u *maps.Unit, id string) error {
	key, err := parseAddress(id)
	if err != nil {
		return err
	}
	if b.owners == nil {
		b.owners = owners(b.view)
	}
	if owner, ok := b.owners[key]; ok {
		u.Want = append(u.Want, maps.Make(maps.Neigh, key, owner))
	}
	return nil
}

// owners of all addresses of a view's networks. An address that several ports
// may have, such as one of VRRP, has none: who has it now is asked by ARP.
func owners(view table.View) map[bpf.NeighKey]bpf.Neigh {
	known := map[bpf.NeighKey]bpf.Neigh{}
	shared := map[bpf.NeighKey]bool{}
	own := func(vni uint32, a netip.Addr, owner bpf.Neigh) {
		key := bpf.NeighKey{Vni: vni, Ip: bpf.IP16(a)}
		if was, ok := known[key]; (ok && was != owner) || shared[key] {
			shared[key] = true
			delete(known, key)
			return
		}
		known[key] = owner
	}
	for n := range table.All[wire.Network](view) {
		own(n.VNI, Metadata, bpf.Neigh{Mac: port.GatewayMAC})
		if n.Lease != nil && n.Lease.Server.IsValid() {
			own(n.VNI, n.Lease.Server, bpf.Neigh{Mac: port.GatewayMAC})
		}
	}
	for n := range table.All[wire.Neighbour](view) {
		owner := bpf.Neigh{Port: n.Port, Mac: n.MAC}
		own(n.VNI, LinkLocal(n.MAC), owner)
		for _, a := range n.Addresses {
			own(n.VNI, a, owner)
		}
	}
	return known
}

// Listing gives the networks whose lists for all name a port, as the maps have
// them.
func Listing(have *maps.Image, id uint32) []string {
	var units []string
	for e := range have.Entries(maps.Bum) {
		list := maps.As[bpf.Bum](e.Value)
		if slices.Contains(list.Port[:min(list.Ports, bpf.BumPorts)], id) {
			units = append(units, "network/"+strconv.FormatUint(uint64(maps.As[uint32](e.Key)), 10))
		}
	}
	return units
}

// Stale lists the units of addresses that the maps do not hold as the view
// wants.
func Stale(view table.View, have *maps.Image) []string {
	want := owners(view)
	var units []string
	for e := range have.Entries(maps.Neigh) {
		key := maps.As[bpf.NeighKey](e.Key)
		owner, ok := want[key]
		if !ok || maps.Bytes(owner) != e.Value || have.Orphan(e.ID) {
			units = append(units, addressUnit(key))
		}
		delete(want, key)
	}
	for key := range want {
		units = append(units, addressUnit(key))
	}
	return units
}

func addressUnit(key bpf.NeighKey) string {
	return fmt.Sprintf("address/%d/%s", key.Vni, key.Ip.Addr())
}

func parseAddress(id string) (bpf.NeighKey, error) {
	number, ip, _ := strings.Cut(id, "/")
	vni, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return bpf.NeighKey{}, err
	}
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return bpf.NeighKey{}, err
	}
	return bpf.NeighKey{Vni: uint32(vni), Ip: bpf.IP16(a)}, nil
}

// LinkLocal is the address that a station makes of its MAC (RFC 4291, appendix
// A). It may use others too; this one is known to be its own.
func LinkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}
