// SPDX-License-Identifier: Apache-2.0

package nlb

import (
	"fmt"
	"slices"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

const nodesKind = "nodes"

// Nodes names the unit of the LB nodes that announce a VIP.
func Nodes(prefix string) string { return nodesKind + "/" + prefix }

// nodes of a VIP. Among them each datagram in fragments has an owner, by the numbers
// of the hosts alone, so one to which this host knows no way is one all the same:
// what it owns is dropped and counted. It wants nothing when nobody else announces
// the VIP, or not this host.
func (b *Builder) nodes(u *maps.Unit, prefix string) error {
	a, ok := table.Get[wire.Announcement](b.view, prefix)
	if !ok || !a.Service || len(a.Announcers) < 2 || !slices.Contains(a.Announcers, b.facts.Self) {
		return nil
	}
	var v bpf.VipNodes
	if len(a.Announcers) > len(v.Node) {
		return fmt.Errorf("%d hosts announce %s, at most %d can share its fragments", len(a.Announcers), prefix, len(v.Node))
	}
	for i, id := range a.Announcers {
		v.Node[i].Host = id
		host, ok := table.Get[wire.Host](b.view, fmt.Sprint(id))
		if id == b.facts.Self || !ok || !host.Endpoint.Is4() {
			continue
		}
		v.Node[i].Endpoint = bpf.BE32(host.Endpoint)
		if via, ok := b.facts.Via[host.Endpoint]; ok {
			index, err := b.numbers.nexthop(via)
			if err != nil {
				return err
			}
			v.Node[i].Nexthop = index
		}
	}
	v.Count = uint32(len(a.Announcers))
	u.Want = []maps.Entry{maps.Make(maps.VIPNodes, bpf.IP16(a.Prefix.Addr()), v)}
	return nil
}
