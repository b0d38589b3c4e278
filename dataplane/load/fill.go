// SPDX-License-Identifier: Apache-2.0

package load

import (
	"fmt"
	"net/netip"

	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/nlb"
	"cairn/dataplane/table"
)

// fill makes the maps what an agent that holds these items would make them.
func (n *Node) fill(items []wire.Item) error {
	desired, err := table.New(table.Mark{})
	if err != nil {
		return err
	}
	defer desired.Close()
	var ups []table.Upsert
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			return err
		}
		ups = append(ups, table.Upsert{Key: item.Key(), Body: body})
	}
	if faults, err := desired.Restore(table.Mark{Epoch: 1, Revision: 1}, ups); err != nil || len(faults) > 0 {
		return fmt.Errorf("hold the items: %v %w", faults, err)
	}
	units, err := n.units(desired.View(), items)
	if err != nil {
		return err
	}
	steps, faults := maps.Plan(maps.NewImage(), units)
	if len(faults) > 0 {
		return fmt.Errorf("plan: %v", faults)
	}
	for _, s := range steps {
		if err := n.put(s.Entry); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

func (n *Node) units(view table.View, items []wire.Item) ([]maps.Unit, error) {
	facts := nlb.Facts{
		Self: self, MTU: mtu, Via: map[netip.Addr]netip.Addr{Other: Router}, MAC: map[netip.Addr][6]byte{Router: RouterMAC},
	}
	size := func(name string) uint32 { return n.Objects.Maps[name].MaxEntries() }
	builder := nlb.NewBuilder(view, facts, maps.NewImage(),
		nlb.Capacities{Slots: size("slots"), Services: size("svc"), Nexthops: size("nexthops")})
	var units []maps.Unit
	seen := map[string]bool{}
	for _, name := range names(items) {
		if seen[name] {
			continue
		}
		seen[name] = true
		u, err := builder.Unit(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		units = append(units, u)
	}
	return units, nil
}

// names of the units that the items are in.
func names(items []wire.Item) []string {
	out := []string{nlb.Nexthop(Router), nlb.Bits}
	for _, item := range items {
		switch item := item.(type) {
		case wire.Slots: // in its service's
		case wire.Service:
			out = append(out, item.Key().String(), nlb.VIP(item.VIP))
		default:
			out = append(out, item.Key().String())
		}
	}
	return out
}
