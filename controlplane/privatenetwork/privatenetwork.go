// SPDX-License-Identifier: Apache-2.0

// Package privatenetwork keeps private networks and who is in them: the number
// of each network, the addresses it hands out, and the interfaces that instances
// have in it. It answers no DHCP and reaches no agent; what follows from a change
// is found in the change log. Start at Handlers; attach.go for who comes and goes.
package privatenetwork

import (
	"context"
	"errors"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

const noun = string(store.KindPrivateNetwork)

type (
	// Doc is a network as it is stored.
	Doc = store.Doc[store.PrivateNetworkDoc]
	// Instance is one that is in a network, or is to be.
	Instance = store.Doc[store.InstanceDoc]
)

type networks struct {
	store *store.Store
	gate  *operation.Gate
}

// Handlers performs the operations on private networks. The gate must know Noun.
func Handlers(s *store.Store, g *operation.Gate) api.Handlers {
	n := networks{s, g}
	return api.Handlers{
		"list-private-networks":                n.list,
		"create-private-network":               n.create,
		"get-private-network":                  n.get,
		"update-private-network":               n.update,
		"delete-private-network":               n.delete,
		"reset-private-network-field":          n.reset,
		"attach-instance-to-private-network":   n.attach,
		"detach-instance-from-private-network": n.detach,
		"update-private-network-instance-ip":   n.updateIP,
	}
}

// Find reads a network. A refusal says that there is none.
func Find(tx *store.Tx, org, id cloud.ID) (Doc, error) {
	d, err := store.Get[store.PrivateNetworkDoc](tx, org, id)
	if errors.Is(err, store.ErrNotFound) {
		err = cloud.Missing(noun, id)
	}
	return d, err
}

// Attached lists the instances that are in a network, those that are leaving too.
func Attached(tx *store.Tx, id cloud.ID) ([]Instance, error) {
	users, err := tx.Referrers(store.Ref{Kind: store.KindPrivateNetwork, ID: id})
	if err != nil {
		return nil, err
	}
	var all []Instance
	for _, u := range users {
		if u.Kind != store.KindInstance {
			continue
		}
		d, err := store.Get[store.InstanceDoc](tx, "", u.ID)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// shown is a network as its owner sees it.
func shown(tx *store.Tx, d Doc) (cloud.PrivateNetwork, error) {
	answer := d.Body.PrivateNetwork
	leases, err := tx.Leases(d.ID)
	for _, l := range leases {
		answer.Leases = append(answer.Leases, cloud.NetworkLease{IP: l.Address, InstanceID: l.Instance})
	}
	return answer, err
}

func (n networks) list(ctx context.Context, c api.Call) (any, error) {
	answer := cloud.PrivateNetworkList{PrivateNetworks: []cloud.PrivateNetwork{}}
	err := n.store.Read(ctx, func(tx *store.Tx) error {
		docs, err := store.List[store.PrivateNetworkDoc](tx, c.Org)
		if err != nil {
			return err
		}
		for _, d := range docs {
			one, err := shown(tx, d)
			if err != nil {
				return err
			}
			answer.PrivateNetworks = append(answer.PrivateNetworks, one)
		}
		return nil
	})
	return answer, err
}

func (n networks) get(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.PrivateNetwork
	err := n.store.Read(ctx, func(tx *store.Tx) error {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return err
		}
		answer, err = shown(tx, d)
		return err
	})
	return answer, err
}

// tidy makes what says nothing absent.
func tidy(n *cloud.PrivateNetwork) {
	if n.Options.Empty() {
		n.Options = nil
	}
}

func (n networks) create(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.CreatePrivateNetworkRequest)
	return n.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		id := cloud.NewID()
		d := Doc{ID: id, Org: c.Org, Generation: 1, Body: store.PrivateNetworkDoc{
			PrivateNetwork: *r.Network(id), Status: string(machine.Initial),
		}}
		tidy(&d.Body.PrivateNetwork)
		var err error
		if d.Body.VNI, err = tx.Allocate(store.NumberNetwork, string(id)); err != nil {
			return operation.Plan{}, err
		}
		// A network without instances is nothing to any agent.
		return operation.Plan{Subject: d.Ref(), Generation: d.Generation, Done: true}, store.Put(tx, op, d)
	})
}

func (n networks) delete(ctx context.Context, c api.Call) (any, error) {
	return n.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		if _, err := operation.Step(tx, &machine, d.Ref(), state(d), operation.Delete); err != nil {
			return operation.Plan{}, err
		}
		if err := tx.Delete(op, d.Ref()); err != nil {
			return operation.Plan{}, err
		}
		if err := tx.Free(store.NumberNetwork, string(d.ID)); err != nil {
			return operation.Plan{}, err
		}
		// Nobody was in it, or it could not have been deleted.
		return operation.Plan{Subject: d.Ref(), Done: true}, n.gate.Supersede(tx, d.Ref(), op)
	})
}

func (n networks) update(ctx context.Context, c api.Call) (any, error) {
	return n.change(ctx, c, func(now cloud.PrivateNetwork) (cloud.PrivateNetwork, bool, error) {
		return capi.Overlay(now, c.Body, c.Keys)
	})
}

func (n networks) reset(ctx context.Context, c api.Call) (any, error) {
	return n.change(ctx, c, func(now cloud.PrivateNetwork) (cloud.PrivateNetwork, bool, error) {
		return capi.Clear(now, c.Args["field"])
	})
}

// change stores a changed network under its next generation.
func (n networks) change(ctx context.Context, c api.Call, fn func(cloud.PrivateNetwork) (cloud.PrivateNetwork, bool, error)) (any, error) {
	return n.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		plan := operation.Plan{Subject: d.Ref()}
		before := d.Body.PrivateNetwork
		result, changed, err := fn(before)
		if err != nil || !changed {
			plan.Unchanged = err == nil
			return plan, err
		}
		tidy(&result)
		r, err := operation.Step(tx, &machine, d.Ref(), state(d), operation.Update)
		if err != nil {
			return plan, err
		}
		d.Body.PrivateNetwork, d.Body.Status = result, string(r.State)
		d.Generation++
		plan.Generation = d.Generation
		all, err := Attached(tx, d.ID)
		if err != nil {
			return plan, err
		}
		if err := rehouse(tx, op, d, all); err != nil {
			return plan, err
		}
		if before.Firewall && !result.Firewall {
			// Groups hold no more: nothing is taken away, but their members are forgotten.
			if members := addressesIn(d.ID, all); members > 0 {
				plan.Intents = []store.Intent{{Class: wire.KindMember.String(), Count: members}}
			}
		}
		plan.Tightens = !before.Firewall && result.Firewall
		if plan.Done = len(all) == 0; plan.Done {
			d.Body.Status = string(operation.StateRunning)
		}
		return plan, store.Put(tx, op, d)
	})
}

// rehouse gives the instances of a network that has another range now addresses
// where they have none, and refuses if one of theirs is no longer in it.
func rehouse(tx *store.Tx, op cloud.ID, d Doc, all []Instance) error {
	for _, i := range all {
		a := i.Body.Attachment(d.ID)
		switch {
		case a.Address.IsValid() && !d.Body.Usable(a.Address):
			return cloud.Conflictf("private-network %s: instance %s has the address %s, which would be outside of it", d.ID, i.ID, a.Address)
		case a.Address.IsValid() || !d.Body.Managed():
			continue
		}
		if err := lease(tx, d, i.ID, a, a.Address); err != nil {
			return err
		}
		if err := store.Put(tx, op, i); err != nil {
			return err
		}
	}
	return nil
}

// addressesIn counts the addresses by which groups know the instances in a
// network.
func addressesIn(network cloud.ID, all []Instance) (n int) {
	for _, i := range all {
		if a := i.Body.Attachment(network); a != nil {
			n += len(replica.Hosts(*a))
		}
	}
	return n
}
