// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"errors"
	"net/netip"
	"testing"

	"cairn/cloud"
	"cairn/controlplane/store"
)

// dual gives the pool and the members with these numbers, of those that are there,
// IPv6.
func (b *bench) dual(members ...int) {
	b.Helper()
	b.write(func(tx *store.Tx) error {
		p, err := store.Get[store.PoolDoc](tx, org, b.pool)
		p.Body.PublicIPAssignment = cloud.PublicIPDual
		err = errors.Join(err, store.Put(tx, "", p))
		for _, n := range members {
			d, err2 := store.Get[store.InstanceDoc](tx, org, b.members[n])
			d.Body.Address6 = address6(n)
			err = errors.Join(err, err2, store.Put(tx, "", d))
		}
		return errors.Join(err, b.PoolChanged(b.t.Context(), tx, b.pool, ""))
	})
}

func address6(n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, 15: byte(n + 2)})
}

// A load balancer has one family: so have its address, its services and the
// addresses of their backends.
func TestLoadBalancerOfIPv6(t *testing.T) {
	b := newBench(t)
	ask := &cloud.CreateLoadBalancerRequest{Name: "six", AddressFamily: cloud.Inet6}
	b.refused(cloud.Conflict, "no free address in the vip6 pool", "create-load-balancer", ask)
	b.write(func(tx *store.Tx) error {
		return tx.AddPool(store.AddressVIP6, netip.MustParsePrefix("2001:db8:ee::/64"))
	})
	six := b.do("create-load-balancer", ask).Reference.ID
	four := b.create("four")
	if l := b.nlb(six); l.AddressFamily != cloud.Inet6 || l.IP.String() != "2001:db8:ee::1" {
		t.Errorf("inet6: %s %s", l.AddressFamily, l.IP)
	}
	if l := b.nlb(four); l.AddressFamily != cloud.Inet4 || l.IP.String() != "203.0.113.1" {
		t.Errorf("none asked for: %s %s", l.AddressFamily, l.IP)
	}
	b.runs(3)
	b.refused(cloud.Conflict, "has no IPv6", "add-service-to-load-balancer", web(b.pool, "web", 80), "id", string(six))
	b.dual(0, 1)
	id, op := b.add(six, web(b.pool, "web", 80))
	b.settled(op, true)
	old, op := b.add(four, web(b.pool, "web", 80))
	b.settled(op, true)
	for service, want := range map[cloud.ID][]netip.Addr{
		id:  {address6(0), address6(1)},
		old: {netip.MustParseAddr("198.51.0.0"), netip.MustParseAddr("198.51.0.1"), netip.MustParseAddr("198.51.0.2")},
	} {
		backends := b.service(service).Body.Backends
		if len(backends) != len(want) {
			t.Fatalf("backends: %+v, want %v", backends, want)
		}
		for i, w := range want {
			if backends[i].Address != w {
				t.Errorf("backend %d: %s, want %s", i, backends[i].Address, w)
			}
		}
	}
	b.dual(2) // from here on it can answer, too
	if got := b.service(id).Body.Backends; len(got) != 3 || got[2].Address != address6(2) {
		t.Errorf("backends: %+v", got)
	}
	b.settled(b.do("delete-load-balancer", nil, "id", string(six)), true)
	b.settled(b.do("delete-load-balancer", nil, "id", string(four)), true)
	if left := b.left(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A document from before there were families is of IPv4.
func TestLoadBalancerWithoutFamily(t *testing.T) {
	b := newBench(t)
	id := b.create("old")
	b.write(func(tx *store.Tx) error {
		d, err := store.Get[store.LoadBalancerDoc](tx, org, id)
		d.Body.AddressFamily = ""
		return errors.Join(err, store.Put(tx, "", d))
	})
	if l := b.nlb(id); l.AddressFamily != cloud.Inet4 {
		t.Errorf("family %q", l.AddressFamily)
	}
}
