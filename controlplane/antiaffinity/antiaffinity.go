// SPDX-License-Identifier: Apache-2.0

// Package antiaffinity keeps anti-affinity groups. A group is what placement
// asks about and nothing that an agent holds: its operations end when they are
// accepted. Its members are the instances that name it. Start at Handlers.
package antiaffinity

import (
	"context"
	"errors"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

const noun = string(store.KindAntiAffinity)

type groups struct {
	store *store.Store
	gate  *operation.Gate
}

// Handlers performs the operations on anti-affinity groups.
func Handlers(s *store.Store, g *operation.Gate) api.Handlers {
	a := groups{s, g}
	return api.Handlers{
		"list-anti-affinity-groups":  a.list,
		"create-anti-affinity-group": a.create,
		"get-anti-affinity-group":    a.get,
		"delete-anti-affinity-group": a.delete,
	}
}

// Find reads a group. A refusal says that there is none.
func Find(tx *store.Tx, org, id cloud.ID) (store.Doc[store.AntiAffinityDoc], error) {
	d, err := store.Get[store.AntiAffinityDoc](tx, org, id)
	if errors.Is(err, store.ErrNotFound) {
		err = cloud.Missing(noun, id)
	}
	return d, err
}

// Members lists the instances of a group.
func Members(tx *store.Tx, id cloud.ID) ([]cloud.Ref, error) {
	users, err := tx.Referrers(store.Ref{Kind: store.KindAntiAffinity, ID: id})
	var members []cloud.Ref
	for _, u := range users {
		if u.Kind == store.KindInstance {
			members = append(members, cloud.Ref{ID: u.ID})
		}
	}
	return members, err
}

func read(tx *store.Tx, d store.Doc[store.AntiAffinityDoc]) (cloud.AntiAffinityGroup, error) {
	g := d.Body.AntiAffinityGroup
	var err error
	g.Instances, err = Members(tx, d.ID)
	return g, err
}

func (a groups) list(ctx context.Context, c api.Call) (any, error) {
	answer := cloud.AntiAffinityGroupList{AntiAffinityGroups: []cloud.AntiAffinityGroup{}}
	err := a.store.Read(ctx, func(tx *store.Tx) error {
		docs, err := store.List[store.AntiAffinityDoc](tx, c.Org)
		if err != nil {
			return err
		}
		for _, d := range docs {
			g, err := read(tx, d)
			if err != nil {
				return err
			}
			answer.AntiAffinityGroups = append(answer.AntiAffinityGroups, g)
		}
		return nil
	})
	return answer, err
}

func (a groups) get(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.AntiAffinityGroup
	err := a.store.Read(ctx, func(tx *store.Tx) error {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return err
		}
		answer, err = read(tx, d)
		return err
	})
	return answer, err
}

func (a groups) create(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.CreateAntiAffinityGroupRequest)
	return a.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		id := cloud.NewID()
		d := store.Doc[store.AntiAffinityDoc]{ID: id, Org: c.Org, Generation: 1, Body: store.AntiAffinityDoc{
			AntiAffinityGroup: cloud.AntiAffinityGroup{ID: id, Name: r.Name, Description: r.Description},
		}}
		err := store.Put(tx, op, d)
		if errors.Is(err, store.ErrExists) {
			err = cloud.Exists(noun, r.Name)
		}
		return operation.Plan{Subject: d.Ref(), Generation: 1, Done: true}, err
	})
}

func (a groups) delete(ctx context.Context, c api.Call) (any, error) {
	return a.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		return operation.Plan{Subject: d.Ref(), Done: true}, tx.Delete(op, d.Ref())
	})
}
