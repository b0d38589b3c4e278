// SPDX-License-Identifier: Apache-2.0

// Package compile turns rows of the zone into the items that agents hold, and
// says which agents hold which. It is pure: a snapshot in, items out. Nothing
// in it depends on the order of changes, on time, or on who is alive; equal
// snapshots give equal items on every replica.
//
// Items go by owners: an owner is the part of the zone whose items are made
// together. Affected says which owners a change concerns, Items makes their
// items, and State, in state.go, finds out what is different from before.
package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/replica"
)

// OwnerKind says what an owner is.
type OwnerKind uint8

// The kinds of owners, with their items.
const (
	OwnsHost      OwnerKind = iota + 1 // host
	OwnsClass                          // class, policy
	OwnsMember                         // member
	OwnsInstance                       // instance, ports, announcement of its addresses
	OwnsService                        // backends, slots, service, checks
	OwnsVIP                            // announcement of a load balancer's address
	OwnsNetwork                        // network
	OwnsNeighbour                      // neighbours: an instance's interfaces in private networks
	OwnsElastic                        // checks of an elastic IP, announcement of its prefix
)

var ownerNames = map[OwnerKind]string{
	OwnsHost: "host", OwnsClass: "class", OwnsMember: "member",
	OwnsInstance: "instance", OwnsService: "service", OwnsVIP: "vip",
	OwnsNetwork: "network", OwnsNeighbour: "neighbour", OwnsElastic: "elastic",
}

// Owner names an owner. ID is that of the row; of a class its number.
type Owner struct {
	Kind OwnerKind
	ID   string
}

func (o Owner) String() string { return ownerNames[o.Kind] + "/" + o.ID }

// ParseOwner is the reverse of String.
func ParseOwner(s string) (Owner, error) {
	for kind, name := range ownerNames {
		if len(s) > len(name) && s[:len(name)] == name && s[len(name)] == '/' {
			return Owner{kind, s[len(name)+1:]}, nil
		}
	}
	return Owner{}, fmt.Errorf("owner %q is not known", s)
}

func owner(kind OwnerKind, id cloud.ID) Owner { return Owner{kind, string(id)} }

func ownerOfClass(n uint32) Owner { return Owner{OwnsClass, strconv.FormatUint(uint64(n), 10)} }

// Placed is an item and who holds it.
type Placed struct {
	Item       wire.Item
	Generation uint64
	Hosts      []uint32 // ascending
	All        bool     // every host, and Hosts is empty
}

// portMTU is that of an instance's interface.
const portMTU = 1500

// Compiler makes the items of one snapshot. It remembers what several owners
// need, so it is not safe for concurrent use.
type Compiler struct {
	snap     replica.Snapshot
	zone     string
	audience map[uint32][]uint32
	nodes    []*replica.Host // LB nodes, once asked for
	segments map[cloud.ID][]uint32
	ranked   map[netip.Addr][]uint32
}

// New makes a compiler for a snapshot of the zone called zone.
func New(snap replica.Snapshot, zone string) *Compiler {
	return &Compiler{
		snap: snap, zone: zone, audience: map[uint32][]uint32{}, ranked: map[netip.Addr][]uint32{},
		segments: map[cloud.ID][]uint32{},
	}
}

// Items of an owner, none if it is gone or has nothing to be held yet. An
// error means that the owner's row cannot be expressed; its items from before
// stay in force.
func (c *Compiler) Items(o Owner) ([]Placed, error) {
	items, err := c.items(o)
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", o, err)
	}
	return items, nil
}

func (c *Compiler) items(o Owner) ([]Placed, error) {
	id := cloud.ID(o.ID)
	switch o.Kind {
	case OwnsHost:
		return c.host(id), nil
	case OwnsClass:
		return c.class(o.ID)
	case OwnsMember:
		return c.member(id), nil
	case OwnsInstance:
		return c.instance(id)
	case OwnsService:
		return c.service(id)
	case OwnsVIP:
		return c.vip(id), nil
	case OwnsNetwork:
		return c.network(id)
	case OwnsNeighbour:
		return c.neighbours(id)
	case OwnsElastic:
		return c.elastic(id), nil
	}
	return nil, fmt.Errorf("no such kind of owner")
}

func (c *Compiler) host(id cloud.ID) []Placed {
	h, ok := c.snap.HostByID(id)
	if !ok || !h.Body.Joined || !h.Body.Endpoint.IsValid() {
		return nil
	}
	return []Placed{{All: true, Item: wire.Host{
		ID: h.Body.Number, Name: h.Body.Name, Endpoint: h.Body.Endpoint, MTU: h.Body.MTU,
	}}}
}

func (c *Compiler) member(id cloud.ID) []Placed {
	i, ok := c.placed(id)
	if !ok {
		return nil
	}
	class, ok := c.snap.Class(i.Body.Class)
	if !ok {
		return nil
	}
	hosts := c.audienceOf(class)
	if len(hosts) == 0 {
		return nil
	}
	var items []Placed
	for _, a := range c.snap.Addresses(i.Body) {
		items = append(items, Placed{Hosts: hosts, Item: wire.Member{Scope: a.Scope, Address: a.Address, Class: i.Body.Class}})
	}
	return items
}

func (c *Compiler) placed(id cloud.ID) (*replica.Instance, bool) {
	i, ok := c.snap.Instance(id)
	return i, ok && replica.Placed(i.Body)
}

// hostsOf are a class's hosts, ascending.
func hostsOf(class *replica.Class) []uint32 {
	hosts := make([]uint32, 0, len(class.Hosts))
	for n := range class.Hosts {
		hosts = append(hosts, n)
	}
	slices.Sort(hosts)
	return hosts
}

// audienceOf a class are the hosts with a policy that names one of its groups:
// only they have to know who its members are.
func (c *Compiler) audienceOf(class *replica.Class) []uint32 {
	if hosts, ok := c.audience[class.Number]; ok {
		return hosts
	}
	seen := map[uint32]bool{}
	for _, group := range class.Groups {
		for naming := range c.snap.GroupsNaming(group) {
			for holder := range c.snap.ClassesOf(naming.ID) {
				for n := range holder.Hosts {
					seen[n] = true
				}
			}
		}
	}
	hosts := make([]uint32, 0, len(seen))
	for n := range seen {
		hosts = append(hosts, n)
	}
	slices.Sort(hosts)
	c.audience[class.Number] = hosts
	return hosts
}
