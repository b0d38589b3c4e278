// SPDX-License-Identifier: Apache-2.0

package securitygroup

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/store"
)

const (
	// MaxRules is the most rules for one direction, in a group and in all groups
	// of an instance together: so many have their bit in a port's policy.
	MaxRules = wire.MaxRules
	// MaxSources is the most external sources of a group.
	MaxSources = 1024
	// maxNamed is the most external sources in a port's policy, counted by each
	// rule that names their group: a policy is one item of the wire.
	maxNamed = 16384
)

// load is what the rules of a set of groups come to.
type load struct {
	rules map[cloud.FlowDirection]int
	named int
}

// judging looks groups up once. The group that is being changed is as it will
// be.
type judging struct {
	tx     *store.Tx
	groups map[cloud.ID]store.SecurityGroupDoc
}

func newJudging(tx *store.Tx, changed ...store.Doc[store.SecurityGroupDoc]) *judging {
	j := &judging{tx, map[cloud.ID]store.SecurityGroupDoc{}}
	for _, d := range changed {
		j.groups[d.ID] = d.Body
	}
	return j
}

func (j *judging) group(id cloud.ID) (store.SecurityGroupDoc, error) {
	if d, ok := j.groups[id]; ok {
		return d, nil
	}
	d, err := store.Get[store.SecurityGroupDoc](j.tx, "", id)
	if errors.Is(err, store.ErrNotFound) {
		err = nil // nobody is a member
	}
	j.groups[id] = d.Body
	return d.Body, err
}

// fits says whether a set of groups makes a policy that a port can have. A
// refusal names the groups.
func (j *judging) fits(set []cloud.ID) error {
	sum := load{rules: map[cloud.FlowDirection]int{}}
	for _, id := range set {
		g, err := j.group(id)
		if err != nil {
			return err
		}
		for _, r := range g.Rules {
			sum.rules[r.FlowDirection]++
			if r.SecurityGroup == nil || r.SecurityGroup.ID == "" {
				continue
			}
			peer, err := j.group(r.SecurityGroup.ID)
			if err != nil {
				return err
			}
			sum.named += len(peer.ExternalSources)
		}
	}
	for _, d := range []cloud.FlowDirection{cloud.Ingress, cloud.Egress} {
		if n := sum.rules[d]; n > MaxRules {
			return cloud.Conflictf("%s would have %d %s rules, %d is the most", j.names(set), n, d, MaxRules)
		}
	}
	if sum.named > maxNamed {
		return cloud.Conflictf("the rules of %s would name %d external sources, %d is the most", j.names(set), sum.named, maxNamed)
	}
	return nil
}

func (j *judging) names(set []cloud.ID) string {
	names := make([]string, len(set))
	for i, id := range set {
		names[i] = string(id)
		if g := j.groups[id]; g.Name != "" {
			names[i] = fmt.Sprintf("%q", g.Name)
		}
	}
	slices.Sort(names)
	if len(names) == 1 {
		return "security group " + names[0]
	}
	return "security groups " + strings.Join(names, ", ") + ", which an instance is in together,"
}

// fits says whether every policy that the changed group has a part in is still
// one that a port can have: those of its members, and with sources changed those
// of the groups whose rules name it.
func fits(tx *store.Tx, changed store.Doc[store.SecurityGroupDoc], sources bool) error {
	j := newJudging(tx, changed)
	part := []cloud.ID{changed.ID}
	if sources {
		naming, err := namedBy(tx, changed)
		if err != nil {
			return err
		}
		part = naming
	} else if err := j.fits(part); err != nil { // also without members
		return err
	}
	for _, id := range part {
		sets, err := tx.ClassesWith(id)
		if err != nil {
			return err
		}
		for _, set := range sets {
			if err := j.fits(set); err != nil {
				return err
			}
		}
	}
	return nil
}

// namedBy lists the groups whose rules name a group; it may be one of them.
func namedBy(tx *store.Tx, d store.Doc[store.SecurityGroupDoc]) ([]cloud.ID, error) {
	users, err := tx.Referrers(d.Ref())
	var naming []cloud.ID
	for _, u := range users {
		if u.Kind == store.KindSecurityGroup {
			naming = append(naming, u.ID)
		}
	}
	if slices.ContainsFunc(d.Body.Rules, func(r cloud.SecurityGroupRule) bool {
		return r.SecurityGroup != nil && r.SecurityGroup.ID == d.ID
	}) {
		naming = append(naming, d.ID)
	}
	return naming, err
}

// Fits says whether an instance may be in all of some groups. A refusal names
// them.
func Fits(tx *store.Tx, groups []cloud.Ref) error {
	set := make([]cloud.ID, len(groups))
	for i, g := range groups {
		set[i] = g.ID
	}
	slices.Sort(set)
	return newJudging(tx).fits(slices.Compact(set))
}
