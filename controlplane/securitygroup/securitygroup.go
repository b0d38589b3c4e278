// SPDX-License-Identifier: Apache-2.0

// Package securitygroup keeps security groups, their rules and who is in them.
// It owns the groups' machine and the classes: the numbers of the distinct sets
// of groups that instances are in. It compiles nothing and reaches no agent;
// what follows from a change is found in the change log. Start at Handlers,
// machine.go for the states, members.go for attaching.
package securitygroup

import (
	"context"
	"errors"
	"reflect"
	"slices"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

const noun = string(store.KindSecurityGroup)

type groups struct {
	store *store.Store
	gate  *operation.Gate
}

// Handlers performs the operations on security groups.
func Handlers(s *store.Store, g *operation.Gate) api.Handlers {
	sg := groups{s, g}
	return api.Handlers{
		"list-security-groups":                sg.list,
		"create-security-group":               sg.create,
		"get-security-group":                  sg.get,
		"delete-security-group":               sg.delete,
		"add-rule-to-security-group":          sg.addRule,
		"delete-rule-from-security-group":     sg.deleteRule,
		"attach-instance-to-security-group":   sg.attach,
		"detach-instance-from-security-group": sg.detach,

		"add-external-source-to-security-group":      sg.addSource,
		"remove-external-source-from-security-group": sg.removeSource,
	}
}

// Find reads a group. A refusal says that there is none.
func Find(tx *store.Tx, org, id cloud.ID) (store.Doc[store.SecurityGroupDoc], error) {
	d, err := store.Get[store.SecurityGroupDoc](tx, org, id)
	if errors.Is(err, store.ErrNotFound) {
		err = cloud.Missing(noun, id)
	}
	return d, err
}

// Default is the group that an instance is in when none is given.
func Default(tx *store.Tx, org cloud.ID) (store.Doc[store.SecurityGroupDoc], error) {
	return store.Named[store.SecurityGroupDoc](tx, org, cloud.DefaultSecurityGroup)
}

// AddDefault makes the default group of a new organisation.
func AddDefault(tx *store.Tx, org cloud.ID) error {
	d, err := newGroup(tx, org, cloud.DefaultSecurityGroup, cloud.DefaultSecurityGroupDescription)
	if err != nil {
		return err
	}
	d.Body.Status = string(running)
	return store.Put(tx, "", d)
}

func newGroup(tx *store.Tx, org cloud.ID, name, description string) (store.Doc[store.SecurityGroupDoc], error) {
	id := cloud.NewID()
	number, err := tx.Allocate(store.NumberGroup, string(id))
	return store.Doc[store.SecurityGroupDoc]{ID: id, Org: org, Generation: 1, Body: store.SecurityGroupDoc{
		SecurityGroup: cloud.SecurityGroup{ID: id, Name: name, Description: description, Visibility: "private"},
		Number:        number, Status: string(machine.Initial),
	}}, err
}

func (sg groups) list(ctx context.Context, c api.Call) (any, error) {
	answer := cloud.SecurityGroupList{SecurityGroups: []cloud.SecurityGroup{}}
	err := sg.store.Read(ctx, func(tx *store.Tx) (err error) {
		if c.Query.Get("visibility") == public {
			answer.SecurityGroups, err = Public(tx)
			return err
		}
		docs, err := store.List[store.SecurityGroupDoc](tx, c.Org)
		for _, d := range docs {
			answer.SecurityGroups = append(answer.SecurityGroups, d.Body.SecurityGroup)
		}
		return err
	})
	return answer, err
}

func (sg groups) get(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.SecurityGroup
	err := sg.store.Read(ctx, func(tx *store.Tx) error {
		d, err := Find(tx, c.Org, c.ID("id"))
		answer = d.Body.SecurityGroup
		return err
	})
	return answer, err
}

func (sg groups) create(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.CreateSecurityGroupRequest)
	return sg.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := newGroup(tx, c.Org, r.Name, r.Description)
		if err != nil {
			return operation.Plan{}, err
		}
		err = store.Put(tx, op, d)
		if errors.Is(err, store.ErrExists) {
			err = cloud.Exists(noun, r.Name)
		}
		// A group without members is nothing to any agent.
		return operation.Plan{Subject: d.Ref(), Generation: d.Generation, Done: true}, err
	})
}

func (sg groups) delete(ctx context.Context, c api.Call) (any, error) {
	return sg.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		if d.Body.Name == cloud.DefaultSecurityGroup {
			return operation.Plan{}, cloud.Conflictf("the security group %q is used where none is given and stays", d.Body.Name)
		}
		if _, err := operation.Step(tx, &machine, d.Ref(), state(d), operation.Delete); err != nil {
			return operation.Plan{}, err
		}
		if err := tx.Delete(op, d.Ref()); err != nil {
			return operation.Plan{}, err
		}
		for _, r := range d.Body.Rules {
			if err := tx.Free(store.NumberRule, string(r.ID)); err != nil {
				return operation.Plan{}, err
			}
		}
		if err := tx.Free(store.NumberGroup, string(d.ID)); err != nil {
			return operation.Plan{}, err
		}
		if err := sg.gate.Supersede(tx, d.Ref(), op); err != nil {
			return operation.Plan{}, err
		}
		// It had no members, or it could not have been deleted.
		return operation.Plan{Subject: d.Ref(), Done: true}, nil
	})
}

func (sg groups) addRule(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.AddRuleRequest)
	return sg.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		rule := r.Rule(cloud.NewID())
		if err := admit(tx, d, rule); err != nil {
			return operation.Plan{}, err
		}
		// The first egress rule closes what was open.
		tightens := rule.FlowDirection == cloud.Egress && !closed(d.Body)
		number, err := tx.Allocate(store.NumberRule, string(rule.ID))
		if err != nil {
			return operation.Plan{}, err
		}
		d.Body.Rules = append(d.Body.Rules, rule)
		if d.Body.RuleNumbers == nil {
			d.Body.RuleNumbers = map[cloud.ID]uint32{}
		}
		d.Body.RuleNumbers[rule.ID] = number
		if err := fits(tx, d, false); err != nil {
			return operation.Plan{}, err
		}
		return update(tx, op, d, tightens)
	})
}

// closed tells whether egress is denied but for what the rules admit.
func closed(g store.SecurityGroupDoc) bool {
	return slices.ContainsFunc(g.Rules, func(r cloud.SecurityGroupRule) bool { return r.FlowDirection == cloud.Egress })
}

// admit judges a new rule against what is there. What clients do not know does
// not tell two rules apart.
func admit(tx *store.Tx, d store.Doc[store.SecurityGroupDoc], rule cloud.SecurityGroupRule) error {
	for _, r := range d.Body.Rules {
		r.ID, r.Description, r.KeepEstablished = rule.ID, rule.Description, rule.KeepEstablished
		if reflect.DeepEqual(r, rule) {
			return cloud.Conflictf("the rule already exists in security-group %s", d.ID)
		}
	}
	peer := rule.SecurityGroup
	switch {
	case peer == nil:
	case peer.ID != "":
		if _, err := Find(tx, d.Org, peer.ID); err != nil {
			return cloud.Invalidf("security-group.id", "expected a security group of yours, there is no %s", peer.ID)
		}
	default:
		known, err := Public(tx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(known, func(g cloud.SecurityGroup) bool { return g.Name == peer.Name }) {
			return cloud.Invalidf("security-group.name", "expected a public security group, there is no %q", peer.Name)
		}
	}
	return nil
}

func (sg groups) deleteRule(ctx context.Context, c api.Call) (any, error) {
	return sg.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		id := c.ID("rule-id")
		for i, r := range d.Body.Rules {
			if r.ID != id {
				continue
			}
			d.Body.Rules = append(d.Body.Rules[:i:i], d.Body.Rules[i+1:]...)
			delete(d.Body.RuleNumbers, id)
			if err := tx.Free(store.NumberRule, string(id)); err != nil {
				return operation.Plan{}, err
			}
			plan, err := update(tx, op, d, true)
			if err != nil || plan.Done || r.SecurityGroup == nil {
				return plan, err
			}
			// As long as another rule names the group, its members stay known.
			if slices.Contains(replica.Peers(d.Body), r.SecurityGroup.ID) {
				return plan, nil
			}
			lost := newShed(tx)
			err = lost.peer(r.SecurityGroup.ID)
			plan.Intents = lost.intents()
			return plan, err
		}
		return operation.Plan{}, cloud.Missing("rule", id)
	})
}

// update stores a changed group under its next generation.
func update(tx *store.Tx, op cloud.ID, d store.Doc[store.SecurityGroupDoc], tightens bool) (operation.Plan, error) {
	r, err := operation.Step(tx, &machine, d.Ref(), state(d), operation.Update)
	if err != nil {
		return operation.Plan{}, err
	}
	d.Body.Status = string(r.State)
	d.Generation++
	if err := store.Put(tx, op, d); err != nil {
		return operation.Plan{}, err
	}
	members, err := Members(tx, d.ID)
	return operation.Plan{
		Subject: d.Ref(), Generation: d.Generation, Tightens: tightens, Done: len(members) == 0,
	}, err
}
