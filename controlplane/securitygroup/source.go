// SPDX-License-Identifier: Apache-2.0

package securitygroup

import (
	"context"
	"net/netip"
	"slices"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

// addSource makes a network count as a member of the group wherever a rule
// names the group. A source is kept as it was sent.
func (sg groups) addSource(ctx context.Context, c api.Call) (any, error) {
	return sg.resource(ctx, c, false, func(have []string, cidr string, at int) ([]string, error) {
		switch {
		case at >= 0:
			return have, nil
		case len(have) >= MaxSources:
			return nil, cloud.Conflictf("security-group %s has %d external sources already, which is the most", c.ID("id"), len(have))
		}
		return append(slices.Clone(have), cidr), nil
	})
}

func (sg groups) removeSource(ctx context.Context, c api.Call) (any, error) {
	return sg.resource(ctx, c, true, func(have []string, cidr string, at int) ([]string, error) {
		if at < 0 {
			return nil, cloud.NotFoundf("external source %s of security-group %s not found", cidr, c.ID("id"))
		}
		return slices.Delete(slices.Clone(have), at, at+1), nil
	})
}

// resource changes the external sources of a group. It concerns the hosts of
// those whose rules name the group, not those of its members.
func (sg groups) resource(ctx context.Context, c api.Call, tightens bool, change func(have []string, cidr string, at int) ([]string, error)) (any, error) {
	cidr := c.Body.(*cloud.ExternalSourceRequest).CIDR
	return sg.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		have := d.Body.ExternalSources
		after, err := change(have, cidr, indexOf(have, cidr))
		if err != nil {
			return operation.Plan{}, err
		}
		if len(after) == len(have) {
			return operation.Plan{Subject: d.Ref(), Unchanged: true}, nil
		}
		d.Body.ExternalSources = after
		if len(after) > len(have) {
			if err := fits(tx, d, true); err != nil {
				return operation.Plan{}, err
			}
		}
		plan, err := update(tx, op, d, tightens)
		if err != nil {
			return plan, err
		}
		naming, err := namedBy(tx, d)
		plan.Done = true
		for _, id := range naming {
			members, err := Members(tx, id)
			if err != nil {
				return plan, err
			}
			plan.Done = plan.Done && len(members) == 0
		}
		return plan, err
	})
}

// indexOf finds a network among sources, however it is written.
func indexOf(sources []string, cidr string) int {
	wanted, err := netip.ParsePrefix(cidr)
	if err != nil {
		return slices.Index(sources, cidr)
	}
	return slices.IndexFunc(sources, func(s string) bool {
		p, err := netip.ParsePrefix(s)
		return err == nil && p.Masked() == wanted.Masked()
	})
}
