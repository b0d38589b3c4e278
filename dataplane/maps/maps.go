// SPDX-License-Identifier: Apache-2.0

// Package maps owns the contents of the pinned maps as data: an Image says what
// is in them and which unit (a port, a policy, a service) each entry belongs
// to, Plan lists the steps that turn what is there into what is wanted, and
// Apply takes them and reads back. It knows in which order entries may come and
// go, but not what they mean. Start at Map, then Plan.
package maps

import (
	"fmt"
	"unsafe"
)

// Map is one of the maps that the agent writes. The numbers are an order: an
// entry of a map names only entries of maps before it, so that entries are put
// upwards and deleted downwards.
type Map uint8

// The maps. Attach is none: its entries are ports and the devices that the
// port's programs are attached to. Nor is Quota: its entries are attached ports
// and the room in their flow tables; what a port may do comes before that. Nor is
// Shaper: its entries are ports and their Limit. A slots entry is a whole range: its key is the first slot, its value all of
// them.
const (
	Prefixes Map = iota + 1
	Vteps
	Nexthops
	RuleIDs
	PortBounds
	PortBM
	CidrBM
	Cidr
	PeerBM
	Members
	Attach
	AddrOK
	AddrAllow
	Fdb
	Neigh
	PortCfg
	AddrPort
	AddrNet
	Quota
	Shaper
	Bum
	Backends
	Local
	Quic
	Slots
	Svc
	VIPNodes
	VIPBits
	VIPAddr4
	VIPAddr6
	VIP4
	VIP6
	mapEnd
)

// trait of a map: its pinned name, and how its entries go.
type trait struct {
	name  string
	early bool // deletions come before later puts: they tighten
	grace bool // a reader may still hold the number of a deleted entry
}

var traits = [mapEnd]trait{
	Prefixes:   {name: "prefixes"},
	Vteps:      {name: "vteps"},
	Nexthops:   {name: "nexthops", grace: true},
	RuleIDs:    {name: "rule_ids", grace: true},
	PortBounds: {name: "port_bounds", grace: true},
	PortBM:     {name: "port_bm", grace: true},
	CidrBM:     {name: "cidr_bm", grace: true},
	Cidr:       {name: "cidr", grace: true},
	PeerBM:     {name: "peer_bm", grace: true},
	Members:    {name: "members", early: true},
	Attach:     {name: "attach"},
	AddrOK:     {name: "addr_ok"},
	AddrAllow:  {name: "addr_allow"},
	Fdb:        {name: "fdb"},
	Neigh:      {name: "neigh"},
	PortCfg:    {name: "port_cfg"},
	AddrPort:   {name: "addr_port"},
	AddrNet:    {name: "addr_net"},
	Quota:      {name: "quota"},
	Shaper:     {name: "shaper"},
	Bum:        {name: "bum"},
	Backends:   {name: "backends", grace: true},
	Local:      {name: "local"},
	Quic:       {name: "quic"},
	Slots:      {name: "slots", grace: true},
	Svc:        {name: "svc", grace: true},
	VIPNodes:   {name: "vip_nodes"},
	VIPBits:    {name: "vip_bits"},
	VIPAddr4:   {name: "vipaddr4"},
	VIPAddr6:   {name: "vipaddr6"},
	VIP4:       {name: "vip4"},
	VIP6:       {name: "vip6"},
}

func (m Map) String() string { return traits[m].name }

// All maps in the order in which entries are put.
func All() []Map {
	all := make([]Map, 0, mapEnd-1)
	for m := Prefixes; m < mapEnd; m++ {
		all = append(all, m)
	}
	return all
}

// ID names an entry: a map and the bytes of a key.
type ID struct {
	Map Map
	Key string
}

// Limit is what a device may send towards its instance.
type Limit struct {
	Device   uint32 // interface index
	Reserved uint32
	Rate     uint64 // bytes a second
}

// Entry is an ID and the bytes of its value.
type Entry struct {
	ID
	Value string
}

// Make an entry of the structs that the maps hold.
func Make[K, V any](m Map, key K, value V) Entry {
	return Entry{ID{m, Bytes(key)}, Bytes(value)}
}

// Bytes of a struct without implicit padding, as the kernel sees it.
func Bytes[T any](v T) string {
	return string(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)))
}

// As is the reverse of Bytes. The sizes of what a map holds and of the struct
// must agree.
func As[T any](b string) T {
	var v T
	if len(b) != int(unsafe.Sizeof(v)) {
		panic(fmt.Sprintf("maps: %d bytes are no %T", len(b), v)) // a struct that is not the map's: a fault of the program, not of input
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)), b)
	return v
}

// Unit is what comes and goes as one: the entries of one port, one policy, one
// service. A unit without entries is one that goes.
type Unit struct {
	Name  string   // of the item, such as port/3
	Group string   // fails with the unit, so that others may need the group
	Needs []string // units and groups without which this one is not touched
	Want  []Entry
}

// Fault is a unit that could not be programmed: what it had stays.
type Fault struct {
	Unit   string
	Reason string
}
