// SPDX-License-Identifier: Apache-2.0

package privatenetwork

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// MaxNetworks is the most private networks that an instance is in: each one is an
// interface with maps of its own on the host.
const MaxNetworks = 32

// MAC of a port: locally administered, and as unique in the zone as the number.
func MAC(port uint32) string {
	return fmt.Sprintf("02:ca:%02x:%02x:%02x:%02x", byte(port>>24), byte(port>>16), byte(port>>8), byte(port))
}

// Join gives an instance an interface in a network, with the address that it asks
// for or, if the network is managed, one of the range. The instance is not stored.
func Join(tx *store.Tx, n Doc, id cloud.ID, d *store.InstanceDoc, ip netip.Addr, allowed []netip.Prefix) error {
	if len(d.Networks) >= MaxNetworks {
		return cloud.Conflictf("instance %s is in %d private networks already, which is the most", id, MaxNetworks)
	}
	port, err := tx.Allocate(store.NumberPort, store.AttachmentOwner(id, n.ID))
	if err != nil {
		return err
	}
	a := store.Attachment{Network: n.ID, Port: port, MAC: MAC(port), Allowed: allowed}
	if err := lease(tx, n, id, &a, ip); err != nil {
		return err
	}
	d.Networks = append(slices.Clone(d.Networks), a)
	d.ShowNetworks()
	return nil
}

// lease finds an interface its address: the one asked for, or one of the range.
func lease(tx *store.Tx, n Doc, id cloud.ID, a *store.Attachment, ip netip.Addr) error {
	a.Static = ip.IsValid()
	if !n.Body.Managed() {
		if ip.IsValid() {
			return cloud.Invalidf("ip", "expected none: private-network %s is not managed", n.ID)
		}
		return nil
	}
	if !ip.IsValid() {
		address, err := tx.LeaseNext(n.ID, id, n.Body.StartIP, n.Body.EndIP, n.Body.Server())
		var exhausted *store.ExhaustedError
		if errors.As(err, &exhausted) || err == nil && !n.Body.Usable(address) {
			return cloud.Conflictf("private-network %s has no free address in its range, %s to %s", n.ID, n.Body.StartIP, n.Body.EndIP)
		}
		a.Address = address
		return err
	}
	if !n.Body.Usable(ip) {
		return cloud.Invalidf("ip", "expected an address of %s that is neither the network's nor its server's, %s", n.Body.Prefix(), n.Body.Server())
	}
	err := tx.Lease(n.ID, id, ip)
	if errors.Is(err, store.ErrExists) {
		return cloud.Conflictf("another instance has the address %s in private-network %s", ip, n.ID)
	}
	a.Address = ip
	return err
}

// Leave gives back what an instance has in a network. The instance is not stored.
func Leave(tx *store.Tx, network, id cloud.ID, d *store.InstanceDoc) error {
	d.Networks = slices.DeleteFunc(slices.Clone(d.Networks), func(a store.Attachment) bool { return a.Network == network })
	d.ShowNetworks()
	return errors.Join(tx.FreeLease(network, id), tx.Free(store.NumberPort, store.AttachmentOwner(id, network)))
}

// Losses counts what hosts lose when instances leave a network, by class of the
// wire: what hosts hold is counted for the one that loses most.
func Losses(tx *store.Tx, network cloud.ID, leaving ...Instance) ([]store.Intent, error) {
	n, err := store.Get[store.PrivateNetworkDoc](tx, "", network)
	if err != nil {
		return nil, err
	}
	all, err := Attached(tx, network)
	if err != nil {
		return nil, err
	}
	goes, stays := map[cloud.ID]bool{}, map[uint32]bool{}
	for _, i := range leaving {
		goes[i.ID] = replica.Placed(i.Body)
	}
	placed := 0
	for _, i := range all {
		if replica.Placed(i.Body) {
			placed++
			stays[i.Body.HostNumber] = stays[i.Body.HostNumber] || !goes[i.ID]
		}
	}
	ports, neighbours, segments := 0, 0, 0
	for _, i := range leaving {
		if !goes[i.ID] {
			continue
		}
		ports++
		neighbours++
		if !stays[i.Body.HostNumber] {
			segments = 1
		}
	}
	if segments > 0 {
		neighbours = placed
	}
	intents := []store.Intent{
		{Class: wire.KindPort.String(), Count: ports}, {Class: wire.KindNeighbour.String(), Count: neighbours},
		{Class: wire.KindNetwork.String(), Count: segments},
	}
	if n.Body.Firewall {
		intents = append(intents, store.Intent{Class: wire.KindMember.String(), Count: addressesIn(network, leaving)})
	}
	return slices.DeleteFunc(intents, func(i store.Intent) bool { return i.Count == 0 }), nil
}

// both reads the network and the instance of a request.
func both(tx *store.Tx, c api.Call, instance cloud.ID) (Doc, Instance, error) {
	n, err := Find(tx, c.Org, c.ID("id"))
	if err != nil {
		return n, Instance{}, err
	}
	i, err := store.Get[store.InstanceDoc](tx, c.Org, instance)
	switch {
	case errors.Is(err, store.ErrNotFound):
		err = cloud.Missing("instance", instance)
	case err != nil:
	case !replica.Placed(i.Body):
		err = cloud.Conflictf("instance %s is being deleted", i.ID)
	}
	return n, i, err
}

// attach puts an instance into a network. It is the network's operation, and the
// instance's change. The instance's generation stays: it counts what the machine
// is wanted to be, not where it has an interface.
func (n networks) attach(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.AttachToNetworkRequest)
	allowed, _ := r.Allowed() // it was validated
	return n.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, i, err := both(tx, c, r.Instance.ID)
		plan := operation.Plan{Subject: d.Ref()}
		if err != nil {
			return plan, err
		}
		if a := i.Body.Attachment(d.ID); a != nil {
			if plan.Unchanged = (!r.IP.IsValid() || r.IP == a.Address) && slices.Equal(allowed, a.Allowed); !plan.Unchanged {
				return plan, cloud.Conflictf("instance %s is already attached to private-network %s, otherwise", i.ID, d.ID)
			}
			return plan, nil
		}
		if err := Join(tx, d, i.ID, &i.Body, r.IP, allowed); err != nil {
			return plan, err
		}
		return plan, store.Put(tx, op, i)
	})
}

func (n networks) detach(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.InstanceRequest)
	return n.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, i, err := both(tx, c, r.Instance.ID)
		plan := operation.Plan{Subject: d.Ref(), Tightens: true}
		if err != nil {
			return plan, err
		}
		if plan.Unchanged = i.Body.Attachment(d.ID) == nil; plan.Unchanged {
			return plan, nil
		}
		if plan.Intents, err = Losses(tx, d.ID, i); err != nil {
			return plan, err
		}
		if err := Leave(tx, d.ID, i.ID, &i.Body); err != nil {
			return plan, err
		}
		return plan, store.Put(tx, op, i)
	})
}

// updateIP gives an instance another address in a managed network. Without one it
// keeps an address of the range, or gets one.
func (n networks) updateIP(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.UpdateNetworkIPRequest)
	return n.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, i, err := both(tx, c, r.Instance.ID)
		plan := operation.Plan{Subject: d.Ref(), Tightens: true}
		if err != nil {
			return plan, err
		}
		i.Body.Networks = slices.Clone(i.Body.Networks)
		a := i.Body.Attachment(d.ID)
		switch {
		case a == nil:
			return plan, cloud.Conflictf("instance %s is not attached to private-network %s", i.ID, d.ID)
		case !d.Body.Managed():
			return plan, cloud.Conflictf("private-network %s is not managed", d.ID)
		}
		before := *a
		if a.Static = r.IP.IsValid(); !a.Static && !a.Address.Less(d.Body.StartIP) && !d.Body.EndIP.Less(a.Address) {
			// The address that it has is one of the range.
		} else if err := lease(tx, d, i.ID, a, r.IP); err != nil {
			return plan, err
		}
		if plan.Unchanged = before.Address == a.Address && before.Static == a.Static; plan.Unchanged {
			return plan, nil
		}
		if d.Body.Firewall && before.Address != a.Address {
			plan.Intents = []store.Intent{{Class: wire.KindMember.String(), Count: 1}}
		}
		return plan, store.Put(tx, op, i)
	})
}
