// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/nlb"
	"cairn/dataplane/port"
	"cairn/dataplane/table"
	"cairn/dataplane/vnet"
)

// dirty collects the units of a round, and which changed items each is looked
// at for.
type dirty struct {
	view  table.View
	have  *maps.Image
	units map[string][]wire.Key
	quiet bool // units are looked at for no item's sake
}

func newDirty(view table.View, have *maps.Image) *dirty {
	return &dirty{view: view, have: have, units: map[string][]wire.Key{}}
}

func (d *dirty) add(unit string, causes ...wire.Key) {
	if d.quiet {
		causes = nil
	}
	d.units[unit] = append(d.units[unit], causes...)
}

// names in the order in which units are built: what others need comes first.
func (d *dirty) names() []string {
	names := make([]string, 0, len(d.units))
	for name := range d.units {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if ra, rb := rank(a), rank(b); ra != rb {
			return ra - rb
		}
		return strings.Compare(a, b)
	})
	return names
}

var ranks = []string{
	port.Host, "announcement", "host", "nexthop", "nodes", "policy", "member", "port", "network", "neighbour", "address", "backend", nlb.Bits, "vip", "service",
}

func rank(unit string) int {
	kind, _, _ := strings.Cut(unit, "/")
	return slices.Index(ranks, kind)
}

// all units that the view, the image or the surroundings know.
func (d *dirty) all(facts Facts) {
	d.quiet = true
	defer func() { d.quiet = false }()
	d.add(port.Host)
	d.add(nlb.Bits)
	for _, via := range facts.Balancer.Via {
		d.add(nlb.Nexthop(via))
	}
	for _, unit := range d.have.Units() {
		d.add(unit)
	}
	for _, kind := range wire.Kinds() {
		for row := range d.view.Rows(kind) {
			d.change(row.Key)
		}
	}
	for _, unit := range vnet.Stale(d.view, d.have) {
		d.add(unit)
	}
}

// change adds the units that an item has a part in: its own, and those that
// name it.
func (d *dirty) change(key wire.Key) {
	switch key.Kind {
	case wire.KindHost:
		d.add(key.String(), key)
		d.add(port.Host)
		d.needing(key)
		for a := range table.All[wire.Announcement](d.view) {
			if a.Service {
				d.add(nlb.Nodes(a.Key().ID), key)
			}
		}
	case wire.KindClass:
		for p := range table.All[wire.Policy](d.view) {
			d.add(p.Key().String(), key)
		}
		for m := range table.All[wire.Member](d.view) {
			if fmt.Sprint(m.Class) == key.ID {
				d.add(m.Key().String(), key)
			}
		}
	case wire.KindPolicy:
		d.add(key.String(), key)
		for p := range table.All[wire.Port](d.view) {
			if fmt.Sprint(p.Policy) == key.ID {
				d.add(p.Key().String(), key)
			}
		}
		d.needing(key)
	case wire.KindAnnouncement:
		d.add(key.String(), key)
		d.add(nlb.Nodes(key.ID), key)
	case wire.KindMember, wire.KindNeighbour:
		d.add(key.String(), key)
	case wire.KindPort:
		d.add(key.String(), key)
		d.networks(key)
	case wire.KindNetwork:
		d.add(key.String(), key)
		for p := range table.All[wire.Port](d.view) {
			if fmt.Sprint(p.Network) == key.ID {
				d.add(p.Key().String(), key)
			}
		}
	case wire.KindBackend:
		d.add(key.String(), key)
		if v, ok := table.Get[wire.Backend](d.view, key.ID); ok {
			d.service(v.Service, key)
		}
		d.needing(key)
	case wire.KindSlots:
		d.add("service/"+key.ID, key)
	case wire.KindService:
		d.add(key.String(), key)
		d.add(nlb.Bits, key)
		d.addresses(key)
	}
}

// networks adds those that have a port or had it.
func (d *dirty) networks(key wire.Key) {
	if p, ok := table.Get[wire.Port](d.view, key.ID); ok && p.Network != 0 {
		d.add(wire.Network{VNI: p.Network}.Key().String(), key)
	}
	id, err := strconv.ParseUint(key.ID, 10, 32)
	if err != nil {
		return
	}
	for _, unit := range vnet.Listing(d.have, uint32(id)) {
		d.add(unit, key)
	}
}

// owners adds the addresses of private networks whose owner is another one now.
func (d *dirty) owners(changed []wire.Key) {
	var causes []wire.Key
	for _, key := range changed {
		if key.Kind == wire.KindNetwork || key.Kind == wire.KindNeighbour {
			causes = append(causes, key)
		}
	}
	if len(causes) == 0 {
		return
	}
	for _, unit := range vnet.Stale(d.view, d.have) {
		d.add(unit, causes...)
	}
}

// service adds a service whose backend changed, if it is here.
func (d *dirty) service(id uint32, cause wire.Key) {
	unit := wire.Service{ID: id}.Key()
	if _, ok := d.view.Row(unit); ok {
		d.add(unit.String(), cause)
	}
}

func (d *dirty) needing(key wire.Key) {
	for _, unit := range d.have.Needing(key.String()) {
		d.add(unit, key)
	}
}

// addresses adds those of all services, as the view and the maps have them: a
// service that is gone left no trace of where it was.
func (d *dirty) addresses(cause wire.Key) {
	units := map[string]bool{}
	for s := range table.All[wire.Service](d.view) {
		units[nlb.VIP(s.VIP)] = true
	}
	for e := range d.have.VIPs() {
		units[nlb.VIP(maps.VIPOf(e.ID))] = true
	}
	for unit := range units {
		d.add(unit, cause)
	}
}
