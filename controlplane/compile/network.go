// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// hostsIn are the hosts that a private network has interfaces on: those that
// hold it.
func (c *Compiler) hostsIn(network cloud.ID) []uint32 {
	if hosts, ok := c.segments[network]; ok {
		return hosts
	}
	hosts := c.snap.NetworkHosts(network)
	c.segments[network] = hosts
	return hosts
}

func (c *Compiler) network(id cloud.ID) ([]Placed, error) {
	n, ok := c.snap.Network(id)
	if !ok {
		return nil, nil
	}
	hosts := c.hostsIn(id)
	if len(hosts) == 0 {
		return nil, nil
	}
	d := n.Body
	item := wire.Network{
		VNI: d.VNI, ID: string(id), MTU: portMTU, Hosts: hosts, BroadcastRate: d.BroadcastRate, Snooping: d.Snooping,
	}
	if d.Managed() {
		item.Lease = &wire.Lease{Server: d.Server(), Bits: uint8(d.Prefix().Bits()), Start: d.StartIP, End: d.EndIP}
		if o := d.Options; o != nil {
			item.Lease.Routers, item.Lease.DNSServers = o.Routers, o.DNSServers
			item.Lease.NTPServers, item.Lease.DomainSearch = o.NTPServers, o.DomainSearch
		}
	}
	return []Placed{{Hosts: hosts, Item: item}}, nil
}

// neighbours are an instance's interfaces as the hosts of its networks see them.
func (c *Compiler) neighbours(id cloud.ID) ([]Placed, error) {
	i, ok := c.placed(id)
	if !ok {
		return nil, nil
	}
	var items []Placed
	for _, a := range i.Body.Networks {
		n, ok := c.snap.Network(a.Network)
		if !ok {
			continue
		}
		mac, err := parseMAC(a.MAC, a.Port)
		if err != nil {
			return nil, err
		}
		items = append(items, Placed{Hosts: c.hostsIn(a.Network), Item: wire.Neighbour{
			VNI: n.Body.VNI, Port: a.Port, Host: i.Body.HostNumber, MAC: mac, Addresses: replica.Hosts(a), Name: i.Body.Name,
		}})
	}
	return items, nil
}

// elastic makes what hosts do for an elastic IP beside their ports: the checks of
// a managed one, each by the host of the instance, and the announcement of its
// prefix by the hosts that it comes to.
func (c *Compiler) elastic(id cloud.ID) []Placed {
	e, ok := c.snap.Elastic(id)
	if !ok {
		return nil
	}
	d := e.Body
	var items []Placed
	var announcers []uint32
	for _, place := range d.Attached {
		i, ok := c.snap.Instance(place.Instance)
		if !ok || !replica.Public(i.Body) || !i.Body.HasElastic(id) {
			continue // both must say so, as they do after each commit
		}
		if place.Active {
			announcers = append(announcers, i.Body.HostNumber)
		}
		if d.Healthcheck != nil {
			items = append(items, Placed{
				Hosts: []uint32{i.Body.HostNumber}, Generation: place.Generation, Item: elasticCheck(d, place, i.Body),
			})
		}
	}
	if announcers = sorted(announcers); len(announcers) > 0 {
		items = append(items, Placed{Hosts: announcers, Item: wire.Announcement{Prefix: d.Prefix, Announcers: announcers}})
	}
	return items
}

// elasticCheck asks an instance at its own address, not at the elastic one: that
// may be somewhere else. An instance without an IPv6 address is asked by IPv4.
func elasticCheck(d store.ElasticIPDoc, place store.ElasticPlace, i store.InstanceDoc) wire.Check {
	h := d.Healthcheck.WithDefaults()
	address := i.Address
	if d.AddressFamily == cloud.Inet6 && i.Address6.IsValid() {
		address = i.Address6
	}
	return wire.Check{
		Elastic: d.Number, CheckedPort: i.Port, Mode: string(h.Mode), Address: address, Port: h.Port,
		Interval: time.Duration(h.Interval) * time.Second, Timeout: time.Duration(h.Timeout) * time.Second,
		Retries: uint32(h.StrikesFail - 1), StrikesOK: uint32(h.StrikesOK), URI: h.URI, Generation: place.Generation,
		TLSSNI: h.TLSSNI, TLSSkipVerify: h.TLSSkipVerify != nil && *h.TLSSkipVerify,
	}
}

// interfaces: what changed in the networks and elastic IPs of an instance.
func (a *affected) interfaces(id cloud.ID) {
	old, had := a.before.Instance(id)
	now, has := a.after.Instance(id)
	networks := map[cloud.ID]bool{}
	for _, one := range []*replica.Instance{old, now} {
		if one == nil {
			continue
		}
		for _, at := range one.Body.Networks {
			networks[at.Network] = true
		}
		for _, ref := range one.Body.ElasticIPs {
			a.add(owner(OwnsElastic, ref.ID))
		}
	}
	if len(networks) == 0 {
		return
	}
	a.add(owner(OwnsNeighbour, id))
	for network := range networks {
		if had && has && sameMembership(old.Body, now.Body, network) {
			continue
		}
		a.add(owner(OwnsNetwork, network))
		if slices.Equal(a.before.NetworkHosts(network), a.after.NetworkHosts(network)) {
			continue
		}
		for i := range a.after.InstancesIn(network) {
			a.add(owner(OwnsNeighbour, i.ID))
		}
	}
}

func sameMembership(old, now store.InstanceDoc, network cloud.ID) bool {
	return (old.Attachment(network) == nil) == (now.Attachment(network) == nil) &&
		replica.Placed(old) == replica.Placed(now) && old.HostNumber == now.HostNumber
}

// network: who is in a private network has other ports, and other addresses, when
// it gets a firewall or loses it.
func (a *affected) network(id cloud.ID) {
	a.add(owner(OwnsNetwork, id))
	old, had := a.before.Network(id)
	now, has := a.after.Network(id)
	if had && has && old.Body.Firewall == now.Body.Firewall && old.Body.VNI == now.Body.VNI {
		return
	}
	for _, snap := range a.both() {
		for i := range snap.InstancesIn(id) {
			a.add(owner(OwnsInstance, i.ID))
			a.add(owner(OwnsMember, i.ID))
			a.add(owner(OwnsNeighbour, i.ID))
		}
	}
}

func (a *affected) elastic(id cloud.ID) {
	a.add(owner(OwnsElastic, id))
	for _, snap := range a.both() {
		if e, ok := snap.Elastic(id); ok {
			for _, place := range e.Body.Attached {
				a.add(owner(OwnsInstance, place.Instance))
			}
		}
	}
}
