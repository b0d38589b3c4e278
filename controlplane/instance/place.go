// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"fmt"

	"cairn/cloud"
	"cairn/cloud/place"
	"cairn/controlplane/store"
)

// cpuShares is how many instances' processors share one of a hypervisor: what
// customers run is idle most of the time. Memory is not shared.
const cpuShares = 16

// Place decides where n instances of an order are to run, all of them or none.
// The hypervisors are in the order of the instances. An error that is
// place.ErrUnavailable says why there is no room, and names the anti-affinity
// group that stands in the way.
func Place(tx *store.Tx, o Order, n int) ([]store.HypervisorDoc, error) {
	hypervisors, err := store.List[store.HypervisorDoc](tx, "")
	if err != nil {
		return nil, err
	}
	instances, err := store.List[store.InstanceDoc](tx, "")
	if err != nil {
		return nil, err
	}
	if err := o.roomInGroups(instances, n); err != nil {
		return nil, err
	}
	candidates := make([]place.Candidate, len(hypervisors))
	at := map[string]int{}
	for k, h := range hypervisors {
		candidates[k], at[string(h.ID)] = candidate(h.Body), k
	}
	for _, d := range instances {
		k, ok := at[string(d.Body.Hypervisor)]
		if !ok {
			continue
		}
		size, _ := cloud.FindInstanceType(d.Body.InstanceType.ID)
		groups := make([]string, len(d.Body.AntiAffinityGroups))
		for g, ref := range d.Body.AntiAffinityGroups {
			groups[g] = string(ref.ID)
		}
		settle(&candidates[k], size, groups, o.Pool != "" && d.Body.Pool == o.Pool)
	}
	request := place.Request{CPUs: o.size.CPUs, Memory: o.size.Memory, Driver: o.image.Driver, Groups: o.apart}
	own := make([]string, len(o.apart))
	for g, group := range o.apart {
		own[g] = group.ID
	}
	taken := make([]store.HypervisorDoc, n)
	for m := range taken {
		id, err := place.Place(request, candidates)
		if err != nil {
			if n > 1 {
				err = fmt.Errorf("instance %d of %d: %w", m+1, n, err)
			}
			return nil, err
		}
		taken[m] = hypervisors[at[id]].Body
		settle(&candidates[at[id]], o.size, own, o.Pool != "")
	}
	return taken, nil
}

func candidate(h store.HypervisorDoc) place.Candidate {
	return place.Candidate{
		ID: string(h.ID), Joined: h.Joined && h.HasRole(store.RoleCompute), InLease: !h.Unreachable,
		Draining: h.Draining, Drivers: h.Drivers, CPUs: h.CPUs * cpuShares, Memory: h.Memory,
	}
}

// settle takes an instance into account.
func settle(c *place.Candidate, size cloud.InstanceType, groups []string, sibling bool) {
	c.UsedCPUs += size.CPUs
	c.UsedMemory += size.Memory
	c.Instances++
	if sibling {
		c.Siblings++
	}
	c.Groups = append(c.Groups, groups...)
}

// roomInGroups holds the groups to the number of instances that they take.
func (o *Order) roomInGroups(instances []Doc, n int) error {
	for _, group := range o.apart {
		members := 0
		for _, d := range instances {
			for _, ref := range d.Body.AntiAffinityGroups {
				if string(ref.ID) == group.ID {
					members++
				}
			}
		}
		if members+n > cloud.MaxAntiAffinityInstances {
			return fmt.Errorf("%w %s: it has %d instances and takes %d: %w", place.ErrAntiAffinity, group.Name,
				members, cloud.MaxAntiAffinityInstances, place.ErrUnavailable)
		}
	}
	return nil
}

// room says whether an instance's host has room for it at another size; an error
// that is place.ErrUnavailable says that it has none.
func room(tx *store.Tx, d Doc, size cloud.InstanceType) error {
	h, err := store.Get[store.HypervisorDoc](tx, "", d.Body.Hypervisor)
	if err != nil {
		return err
	}
	instances, err := store.List[store.InstanceDoc](tx, "")
	if err != nil {
		return err
	}
	c := candidate(h.Body)
	for _, other := range instances {
		if other.Body.Hypervisor == h.ID && other.ID != d.ID {
			has, _ := cloud.FindInstanceType(other.Body.InstanceType.ID)
			settle(&c, has, nil, false)
		}
	}
	_, err = place.Place(place.Request{CPUs: size.CPUs, Memory: size.Memory, Driver: d.Body.Driver}, []place.Candidate{c})
	return err
}
