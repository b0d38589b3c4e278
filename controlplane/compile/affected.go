// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"iter"
	"maps"
	"slices"

	"cairn/cloud"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// owners collects owners, each once, in the order they were found.
type owners struct {
	seen map[Owner]bool
	list []Owner
}

func (o *owners) add(owner Owner) {
	if o.seen == nil {
		o.seen = map[Owner]bool{}
	}
	if !o.seen[owner] {
		o.seen[owner] = true
		o.list = append(o.list, owner)
	}
}

// Affected says which owners may have other items after a change than before.
// It goes by reverse indexes and looks only at what the change touches. It may
// name one whose items turn out to be the same, and never misses one.
func Affected(change store.Change, before, after replica.Snapshot) []Owner {
	a := affected{before: before, after: after}
	switch change.Kind {
	case store.KindHypervisor:
		a.host(change.ID)
	case store.KindSecurityGroup:
		a.group(change.ID)
	case store.KindInstance:
		a.instance(change.ID)
	case store.KindLoadBalancer:
		a.add(owner(OwnsVIP, change.ID))
	case store.KindService:
		a.service(change.ID)
	case store.KindPublicGroup:
		a.public(change.ID)
	case store.KindSMTP:
		a.organization(change.ID)
	case store.KindPrivateNetwork:
		a.network(change.ID)
	case store.KindElasticIP:
		a.elastic(change.ID)
	}
	return a.list
}

type affected struct {
	before, after replica.Snapshot
	owners
}

func (a *affected) both() [2]replica.Snapshot { return [2]replica.Snapshot{a.before, a.after} }

func (a *affected) host(id cloud.ID) {
	a.add(owner(OwnsHost, id))
	old, hadIt := a.before.HostByID(id)
	now, hasIt := a.after.HostByID(id)
	wasNode, isNow := hadIt && isNode(old.Body), hasIt && isNode(now.Body)
	if !wasNode && !isNow {
		return
	}
	if wasNode && isNow && old.Body.Draining == now.Body.Draining && old.Body.FailureDomain == now.Body.FailureDomain {
		return
	}
	for b := range a.after.Balancers() {
		a.add(owner(OwnsVIP, b.ID))
	}
	for s := range a.after.Services() {
		a.add(owner(OwnsService, s.ID))
	}
}

func (a *affected) group(id cloud.ID) {
	for _, snap := range a.both() {
		for class := range snap.ClassesOf(id) {
			a.add(ownerOfClass(class.Number))
		}
	}
	old, had := a.before.Group(id)
	now, has := a.after.Group(id)
	// Its number is that of peers, and its sources are peers.
	if had != has || had && !slices.Equal(old.Body.ExternalSources, now.Body.ExternalSources) {
		for _, snap := range a.both() {
			a.policies(snap, snap.GroupsNaming(id))
		}
	}
	named := map[cloud.ID]int{} // bit 1: before, bit 2: after
	for bit, snap := range a.both() {
		if g, ok := snap.Group(id); ok {
			for _, peer := range replica.Peers(g.Body) {
				named[peer] |= 1 << bit
			}
		}
	}
	for peer, when := range named {
		if when != 3 {
			a.known(peer)
		}
	}
}

// policies of the classes that some groups are in.
func (a *affected) policies(snap replica.Snapshot, groups iter.Seq[*replica.Group]) {
	for g := range groups {
		for class := range snap.ClassesOf(g.ID) {
			a.add(ownerOfClass(class.Number))
		}
	}
}

// public groups are peers by their name.
func (a *affected) public(id cloud.ID) {
	for _, snap := range a.both() {
		p, ok := snap.PublicByID(id)
		if !ok {
			continue
		}
		for _, naming := range a.both() {
			a.policies(naming, naming.GroupsNamingPublic(p.Body.Name))
		}
	}
}

// organization: all its instances, which is a walk for something an operator does
// by hand.
func (a *affected) organization(id cloud.ID) {
	for i := range a.after.Instances() {
		if i.Org == id {
			a.add(owner(OwnsInstance, i.ID))
		}
	}
}

// known: other hosts than before have to know the members of a group.
func (a *affected) known(group cloud.ID) {
	for class := range a.after.ClassesOf(group) {
		a.add(ownerOfClass(class.Number))
		for i := range a.after.InstancesOf(class.Number) {
			a.add(owner(OwnsMember, i.ID))
		}
	}
}

func (a *affected) instance(id cloud.ID) {
	a.add(owner(OwnsInstance, id))
	a.add(owner(OwnsMember, id))
	a.interfaces(id)
	classes := map[uint32]bool{}
	for _, snap := range a.both() {
		if i, ok := snap.Instance(id); ok && i.Body.Class != 0 {
			classes[i.Body.Class] = true
		}
		for s := range snap.ServicesWith(id) {
			a.add(owner(OwnsService, s.ID))
		}
	}
	for number := range classes {
		a.add(ownerOfClass(number))
		a.reach(number)
	}
}

// reach: where a class is decides who has to know the groups that its rules
// name.
func (a *affected) reach(number uint32) {
	old, had := a.before.Class(number)
	now, has := a.after.Class(number)
	switch {
	case !had && !has:
		return
	case had && has && sameHosts(old, now):
		return
	case !has:
		now = old
	}
	for _, group := range now.Groups {
		if g, ok := a.after.Group(group); ok {
			for _, peer := range replica.Peers(g.Body) {
				a.known(peer)
			}
		}
	}
}

func sameHosts(a, b *replica.Class) bool {
	return maps.EqualFunc(a.Hosts, b.Hosts, func(int, int) bool { return true })
}

func (a *affected) service(id cloud.ID) {
	a.add(owner(OwnsService, id))
	for _, snap := range a.both() {
		if s, ok := snap.Service(id); ok {
			a.add(owner(OwnsVIP, s.Body.LoadBalancer))
		}
	}
}

// All owners of a snapshot.
func All(snap replica.Snapshot) []Owner {
	var a owners
	for h := range snap.Hosts() {
		a.add(owner(OwnsHost, h.ID))
	}
	for class := range snap.Classes() {
		a.add(ownerOfClass(class.Number))
	}
	for i := range snap.Instances() {
		a.add(owner(OwnsInstance, i.ID))
		a.add(owner(OwnsMember, i.ID))
		a.add(owner(OwnsNeighbour, i.ID))
	}
	for n := range snap.Networks() {
		a.add(owner(OwnsNetwork, n.ID))
	}
	for e := range snap.Elastics() {
		a.add(owner(OwnsElastic, e.ID))
	}
	for s := range snap.Services() {
		a.add(owner(OwnsService, s.ID))
	}
	for b := range snap.Balancers() {
		a.add(owner(OwnsVIP, b.ID))
	}
	return a.list
}
