// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"iter"
	"net/netip"
	"slices"

	"cairn/cloud"
	"cairn/controlplane/store"
)

// Network finds a private network.
func (s Snapshot) Network(id cloud.ID) (*Network, bool) {
	return get(s.r.networks, s.txn, networkByID.Query(id))
}

// Networks are all private networks.
func (s Snapshot) Networks() iter.Seq[*Network] { return values(s.r.networks.All(s.txn)) }

// InstancesIn are the placed instances of a private network.
func (s Snapshot) InstancesIn(network cloud.ID) iter.Seq[*Instance] {
	return values(s.r.instances.List(s.txn, instanceByNetwork.Query(network)))
}

// NetworkHosts are the hypervisors that a private network has interfaces on,
// ascending.
func (s Snapshot) NetworkHosts(network cloud.ID) []uint32 {
	seen := map[uint32]bool{}
	hosts := []uint32{}
	for i := range s.InstancesIn(network) {
		if !seen[i.Body.HostNumber] {
			seen[i.Body.HostNumber] = true
			hosts = append(hosts, i.Body.HostNumber)
		}
	}
	slices.Sort(hosts)
	return hosts
}

// Elastic finds an elastic IP.
func (s Snapshot) Elastic(id cloud.ID) (*Elastic, bool) {
	return get(s.r.elastics, s.txn, elasticByID.Query(id))
}

// Elastics are all elastic IPs.
func (s Snapshot) Elastics() iter.Seq[*Elastic] { return values(s.r.elastics.All(s.txn)) }

// Address is one that an instance has where security groups hold. Scope is the
// VNI of the private network that it is in, 0 for public ones.
type Address struct {
	Scope   uint32
	Address netip.Addr
}

// Addresses are those by which security groups know an instance: its public ones
// and, in private networks with a firewall, those that it has or may have there.
func (s Snapshot) Addresses(d store.InstanceDoc) []Address {
	var list []Address
	add := func(scope uint32, a netip.Addr) {
		if one := (Address{scope, a}); a.IsValid() && !slices.Contains(list, one) {
			list = append(list, one)
		}
	}
	if d.Port != 0 {
		add(0, d.Address)
		add(0, d.Address6)
	}
	for _, a := range d.Networks {
		n, ok := s.Network(a.Network)
		if !ok || !n.Body.Firewall {
			continue
		}
		for _, one := range Hosts(a) {
			add(n.Body.VNI, one)
		}
	}
	return list
}

// Hosts are the single addresses of an interface: its own, and those that it may
// have besides.
func Hosts(a store.Attachment) []netip.Addr {
	var list []netip.Addr
	if a.Address.IsValid() {
		list = append(list, a.Address)
	}
	for _, p := range a.Allowed {
		if p.IsSingleIP() && p.Addr() != a.Address {
			list = append(list, p.Addr())
		}
	}
	return list
}
