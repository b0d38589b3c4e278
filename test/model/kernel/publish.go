// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"cairn/bpf"
	"cairn/cloud/wire"
	own "cairn/dataplane/maps"
	"cairn/dataplane/port"
	"cairn/dataplane/table"
	"cairn/test/model/firewall"
	"cairn/test/model/frame"
	"cairn/test/model/scenario"
)

// classNumbers are the zone's numbers of sets of groups. None is used again.
type classNumbers map[string]uint32

func (n classNumbers) of(groups []uint32) uint32 {
	key := fmt.Sprint(groups)
	if n[key] == 0 {
		n[key] = uint32(len(n) + 1)
	}
	return n[key]
}

// populate writes what does not change: what the host is, and its services.
func (k *Kernel) populate() error {
	be := func(a netip.Addr) uint32 { return bpf.BE32(a) }
	puts := []struct {
		name       string
		key, value any
	}{
		{"cfg", uint32(0), &bpf.Cfg{
			Endpoint: be(scenario.Endpoint), LbVni: bpf.LBVNI, Uplink: 1000, Door: 1001, Probe: be(scenario.Probe),
			UplinkMac: scenario.UplinkMAC, DoorMac: scenario.DoorMAC,
		}},
		{"ifindex_port", uint32(loopback), uint32(scenario.Ports[0])},
	}
	for id, s := range scenario.Facts().Services {
		puts = append(puts, struct {
			name       string
			key, value any
		}{"svc", uint32(id), &bpf.Svc{
			Vip: bpf.IP16(s.VIP.Addr()), Port: bpf.BE16(s.VIP.Port()), Proto: s.Proto, Id: uint32(id),
		}})
	}
	var errs []error
	for _, p := range puts {
		errs = append(errs, k.maps[p.name].Put(p.key, p.value))
	}
	return errors.Join(errs...)
}

// Publish writes what the model's host has as the agent would, by the agent's
// own code, and has ports judge their flows again where that says so.
func (k *Kernel) Publish(h *firewall.Host) error {
	desired, err := table.New(table.Mark{})
	if err != nil {
		return err
	}
	defer desired.Close()
	var ups []table.Upsert
	items := k.items(h)
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			return err
		}
		ups = append(ups, table.Upsert{Key: item.Key(), Body: body})
	}
	if faults, err := desired.Restore(table.Mark{Epoch: 1, Revision: 1}, ups); err != nil || len(faults) > 0 {
		return fmt.Errorf("restore: %v, %w", faults, err)
	}
	view := desired.View()
	facts := port.Facts{Own: h.Own, Devices: map[uint32]uint32{}}
	names := []string{port.Host}
	for _, item := range items {
		if item.Key().Kind != wire.KindClass {
			names = append(names, item.Key().String())
		}
	}
	for _, id := range scenario.Ports {
		facts.Devices[uint32(id)] = 100 + uint32(id)
	}
	for _, name := range k.image.Units() {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	builder := port.NewBuilder(view, facts, k.image, port.Tightened(view, k.image, k.classes))
	var units []own.Unit
	for _, name := range names {
		u, err := builder.Unit(name)
		if err != nil {
			return err
		}
		units = append(units, u)
	}
	steps, faults := own.Plan(k.image, units)
	later, failed := own.Apply(store{k}, k.image, units, steps, faults)
	if len(failed) > 0 {
		return fmt.Errorf("apply: %v", failed)
	}
	if again := own.Release(store{k}, k.image, later); len(again) > 0 {
		return fmt.Errorf("release: %v", again)
	}
	k.classes.Remember(view, k.image)
	return k.flags(h)
}

// flags of ports that no item has.
func (k *Kernel) flags(h *firewall.Host) error {
	for id, p := range h.Ports {
		var cfg bpf.PortCfg
		if err := k.maps["port_cfg"].Lookup(uint32(id), &cfg); err != nil {
			return err
		}
		if p.Strict {
			cfg.Flags |= bpf.PortStrict
			if err := k.maps["port_cfg"].Put(uint32(id), &cfg); err != nil {
				return err
			}
		}
		if p.Generation > cfg.Generation {
			if t, lost := h.Unjudged(p, cfg.Generation); lost {
				return fmt.Errorf("port %d: flow %+v lives on without being judged again", id, t)
			}
		}
		p.Generation = cfg.Generation
	}
	return nil
}

// items of the host: what the control plane would compile.
func (k *Kernel) items(h *firewall.Host) []wire.Item {
	var out []wire.Item
	classes := map[uint32]bool{}
	class := func(groups []uint32) uint32 {
		slices.Sort(groups)
		groups = slices.Compact(groups)
		id := k.numbers.of(groups)
		if !classes[id] {
			classes[id] = true
			out = append(out, wire.Class{ID: id, Groups: groups})
		}
		return id
	}
	for _, s := range h.Served {
		out = append(out, wire.Announcement{Prefix: s})
	}
	members := map[netip.Addr][]uint32{}
	for id, g := range h.Groups {
		for a := range g.Members {
			members[a] = append(members[a], uint32(id))
		}
	}
	for a, groups := range members {
		out = append(out, wire.Member{Address: a, Class: class(groups)})
	}
	policies := map[uint32]bool{}
	for _, id := range scenario.Ports {
		p := h.Ports[id]
		item := wire.Port{ID: uint32(id), MAC: [6]byte(p.MAC), Addresses: p.Addresses, MTU: uint32(p.MTU), Established: p.Idle}
		item.Allowed, item.Active = p.Ranges, p.Ranges
		if p.Mail {
			item.Flags |= wire.PortSMTP
		}
		if len(p.Groups) > 0 {
			var groups []uint32
			for _, g := range p.Groups {
				groups = append(groups, uint32(g))
			}
			item.Policy = class(groups)
		}
		if item.Policy != 0 && !policies[item.Policy] {
			policies[item.Policy] = true
			out = append(out, wire.Policy{ID: item.Policy, Rules: rules(h, p)})
		}
		out = append(out, item)
	}
	return out
}

func rules(h *firewall.Host, p *firewall.Port) []wire.Rule {
	var out []wire.Rule
	for _, r := range h.Rules(p) {
		w := wire.Rule{
			ID: uint32(r.ID), Protocol: r.Protocol, PortMin: r.From, PortMax: r.To,
			ICMPType: int16(r.Type), ICMPCode: int16(r.Code), PeerGroup: uint32(r.PeerGroup), Keep: r.Keep,
		}
		if r.Egress {
			w.Direction = wire.Egress
		}
		if r.Protocol != frame.ICMP && r.Protocol != frame.ICMPv6 {
			w.ICMPType, w.ICMPCode = -1, -1
		}
		if r.PeerGroup == 0 {
			w.Peer = r.Peer
		} else {
			for source := range h.Group(r.PeerGroup).Sources {
				w.Sources = append(w.Sources, source)
			}
			slices.SortFunc(w.Sources, netip.Prefix.Compare)
		}
		out = append(out, w)
	}
	return out
}
