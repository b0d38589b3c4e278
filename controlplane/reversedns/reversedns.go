// SPDX-License-Identifier: Apache-2.0

// Package reversedns keeps the names that addresses stand for: of instances, and
// of elastic IPs. They are stored with the instance or the elastic IP and go with
// it. The package answers no query. Start at Handlers.
package reversedns

import (
	"context"
	"errors"
	"strings"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

// kind of what has an address with a name.
type kind[T store.Document] struct {
	store *store.Store
	gate  *operation.Gate
	noun  string
	name  func(*T) *string
	// whole says that there is an address to name.
	whole func(T) bool
}

// Handlers performs the operations on names of addresses.
func Handlers(s *store.Store, g *operation.Gate) api.Handlers {
	instances := kind[store.InstanceDoc]{s, g, string(store.KindInstance),
		func(d *store.InstanceDoc) *string { return &d.ReverseDNS }, func(d store.InstanceDoc) bool { return d.Port != 0 }}
	elastics := kind[store.ElasticIPDoc]{s, g, string(store.KindElasticIP),
		func(d *store.ElasticIPDoc) *string { return &d.ReverseDNS }, func(store.ElasticIPDoc) bool { return true }}
	return api.Merge(instances.handlers(), elastics.handlers())
}

func (k kind[T]) handlers() api.Handlers {
	return api.Handlers{
		"get-reverse-dns-" + k.noun: k.get,
		"update-reverse-dns-" + k.noun: func(ctx context.Context, c api.Call) (any, error) {
			name := c.Body.(*cloud.UpdateReverseDNSRequest).DomainName
			return k.set(ctx, c, strings.TrimSuffix(name, "."))
		},
		"delete-reverse-dns-" + k.noun: func(ctx context.Context, c api.Call) (any, error) { return k.set(ctx, c, "") },
	}
}

func (k kind[T]) find(tx *store.Tx, c api.Call) (store.Doc[T], error) {
	d, err := store.Get[T](tx, c.Org, c.ID("id"))
	if errors.Is(err, store.ErrNotFound) {
		err = cloud.Missing(k.noun, c.ID("id"))
	}
	return d, err
}

func (k kind[T]) unnamed(id cloud.ID) error {
	return cloud.NotFoundf("the address of %s %s has no name", k.noun, id)
}

func (k kind[T]) get(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.ReverseDNSRecord
	err := k.store.Read(ctx, func(tx *store.Tx) error {
		d, err := k.find(tx, c)
		if err != nil {
			return err
		}
		if answer.DomainName = *k.name(&d.Body); answer.DomainName == "" {
			return k.unnamed(d.ID)
		}
		answer.DomainName += "."
		return nil
	})
	return answer, err
}

// set gives an address a name, or takes it away. No agent is told, so nobody is
// waited for.
func (k kind[T]) set(ctx context.Context, c api.Call, name string) (any, error) {
	return k.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := k.find(tx, c)
		plan := operation.Plan{Subject: d.Ref(), Done: true}
		if err != nil {
			return plan, err
		}
		now := k.name(&d.Body)
		switch {
		case name == "" && *now == "":
			return plan, k.unnamed(d.ID)
		case name != "" && !k.whole(d.Body):
			return plan, cloud.Conflictf("%s %s has no public address", k.noun, d.ID)
		case *now == name:
			plan.Unchanged = true
			return plan, nil
		}
		*now = name
		return plan, store.Put(tx, op, d)
	})
}
