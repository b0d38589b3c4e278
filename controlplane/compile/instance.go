// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// instance makes an instance with its interfaces, and the announcements of its
// own addresses.
func (c *Compiler) instance(id cloud.ID) ([]Placed, error) {
	i, ok := c.placed(id)
	if !ok {
		return nil, nil
	}
	d := i.Body
	size, _ := cloud.FindInstanceType(d.InstanceType.ID)
	hosts := []uint32{d.HostNumber}
	ports, err := c.ports(i, size)
	if err != nil {
		return nil, err
	}
	machine := wire.Instance{
		ID: string(i.ID), Name: d.Name, Driver: d.Driver, Command: d.Command, UserData: d.UserDataRaw,
		Port: d.Port, Running: d.Wanted == store.WantedRunning, Generation: i.Generation, Zone: c.zone,
		SSHKeys: d.Keys, PublicAddress: d.Address,
	}
	if size.ID != "" {
		machine.Type = size.Title()
	}
	for _, p := range ports {
		if p.Network != 0 {
			machine.Networks = append(machine.Networks, p.ID)
		}
	}
	slices.Sort(machine.Networks)
	items := []Placed{{Hosts: hosts, Generation: i.Generation, Item: machine}}
	for _, p := range ports {
		items = append(items, Placed{Hosts: hosts, Item: p})
	}
	if d.Port == 0 {
		return items, nil
	}
	for _, a := range []netip.Addr{d.Address, d.Address6} {
		if a.IsValid() {
			items = append(items, Placed{Hosts: hosts, Item: wire.Announcement{
				Prefix: netip.PrefixFrom(a, a.BitLen()), Announcers: hosts,
			}})
		}
	}
	return items, nil
}

// ports of an instance: the public one first, if it has one.
func (c *Compiler) ports(i *replica.Instance, size cloud.InstanceType) ([]wire.Port, error) {
	d := i.Body
	var ports []wire.Port
	if d.Port != 0 {
		mac, err := macOf(d)
		if err != nil {
			return nil, err
		}
		p := wire.Port{
			ID: d.Port, Instance: string(i.ID), MAC: mac, Policy: d.Class, MTU: portMTU,
			RateFrom: size.RateFrom, RateTo: size.RateTo, Flows: size.Flows,
		}
		if c.snap.MaySMTP(i.Org) {
			p.Flags |= wire.PortSMTP
		}
		for _, a := range []netip.Addr{d.Address, d.Address6} {
			if a.IsValid() {
				p.Addresses = append(p.Addresses, a)
			}
		}
		p.Allowed, p.Active = c.elasticsOf(i)
		ports = append(ports, p)
	}
	for _, a := range d.Networks {
		n, ok := c.snap.Network(a.Network)
		if !ok {
			continue // it goes with the network, in another commit
		}
		mac, err := parseMAC(a.MAC, a.Port)
		if err != nil {
			return nil, err
		}
		p := wire.Port{
			ID: a.Port, Instance: string(i.ID), MAC: mac, MTU: portMTU, Network: n.Body.VNI, Allowed: a.Allowed,
			RateFrom: size.RateFrom, RateTo: size.RateTo, Flows: size.Flows,
		}
		if a.Address.IsValid() {
			p.Addresses = []netip.Addr{a.Address}
		}
		if n.Body.Firewall {
			p.Policy, p.Flags = d.Class, wire.PortFirewall
		}
		ports = append(ports, p)
	}
	if d.FlowLog {
		for i := range ports {
			ports[i].Flags |= wire.PortFlowLog
		}
	}
	return ports, nil
}

// Port of a placed instance: the public one, or that in a private network.
func (c *Compiler) Port(i *replica.Instance, network cloud.ID) (wire.Port, error) {
	if !replica.Placed(i.Body) {
		return wire.Port{}, cloud.Conflictf("instance %s has no place yet", i.ID)
	}
	vni := uint32(0)
	if network != "" {
		n, ok := c.snap.Network(network)
		if !ok {
			return wire.Port{}, cloud.Missing("private-network", network)
		}
		vni = n.Body.VNI
	}
	size, _ := cloud.FindInstanceType(i.Body.InstanceType.ID)
	ports, err := c.ports(i, size)
	if err != nil {
		return wire.Port{}, err
	}
	for _, p := range ports {
		if p.Network == vni {
			return p, nil
		}
	}
	return wire.Port{}, cloud.NotFoundf("instance %s has no such interface", i.ID)
}

// elasticsOf an instance, and those of them that come to it, by their prefixes.
func (c *Compiler) elasticsOf(i *replica.Instance) (allowed, active []netip.Prefix) {
	for _, ref := range i.Body.ElasticIPs {
		e, ok := c.snap.Elastic(ref.ID)
		if !ok {
			continue
		}
		place := e.Body.Place(i.ID)
		if place == nil {
			continue
		}
		allowed = append(allowed, e.Body.Prefix)
		if place.Active {
			active = append(active, e.Body.Prefix)
		}
	}
	return allowed, active
}

func macOf(d store.InstanceDoc) ([6]byte, error) { return parseMAC(d.MAC, d.Port) }

func parseMAC(text string, port uint32) (mac [6]byte, err error) {
	hw, err := net.ParseMAC(text)
	if err == nil && len(hw) != len(mac) {
		err = fmt.Errorf("address %s is no Ethernet address", text)
	}
	if err != nil {
		return mac, fmt.Errorf("mac of port %d: %w", port, err)
	}
	return [6]byte(hw), nil
}
