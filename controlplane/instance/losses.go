// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"net/netip"
	"slices"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/privatenetwork"
	"cairn/controlplane/replica"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/store"
)

// losses counts what hosts lose when instances leave them, by class of the
// wire. Instances, ports and announcements are counted exactly. The others are
// counted from above, since whether a host goes on needing a class or a member
// can depend on everything else on it: a host that hosts the last instance of a
// set of groups loses its policy, and may lose whoever is in the groups that
// the policy's rules name. Of those that go later, whoever would stay may have
// gone by then.
func losses(tx *store.Tx, leaving []*Doc, later bool) ([]store.Intent, error) {
	l := loss{tx: tx, later: later, leaving: map[cloud.ID]bool{}, policies: map[uint32]bool{}, classes: map[uint32]bool{}, members: map[cloud.ID]int{}}
	for _, d := range leaving {
		l.leaving[d.ID] = true
	}
	placed, ports, announcements := 0, 0, 0
	in := map[cloud.ID][]Doc{} // by private network
	for _, d := range leaving {
		if !replica.Placed(d.Body) {
			continue
		}
		placed++
		if d.Body.Port != 0 {
			ports++
			announcements += public(d.Body)
		}
		l.members[d.ID] = addresses(d.Body)
		for _, a := range d.Body.Networks {
			in[a.Network] = append(in[a.Network], *d)
		}
		if err := l.class(*d); err != nil {
			return nil, err
		}
	}
	if placed == 0 {
		return nil, nil
	}
	members := 0
	for _, n := range l.members {
		members += n
	}
	intents := []store.Intent{
		{Class: wire.KindInstance.String(), Count: placed}, {Class: wire.KindPort.String(), Count: ports},
		{Class: wire.KindAnnouncement.String(), Count: announcements}, {Class: wire.KindMember.String(), Count: members},
	}
	for network, docs := range in {
		more, err := inNetwork(tx, network, docs, later)
		if err != nil {
			return nil, err
		}
		intents = append(intents, more...)
	}
	if len(l.policies) > 0 {
		intents = append(intents, store.Intent{Class: wire.KindPolicy.String(), Count: len(l.policies)})
	}
	if len(l.classes) > 0 {
		intents = append(intents, store.Intent{Class: wire.KindClass.String(), Count: len(l.classes)})
	}
	return slices.DeleteFunc(intents, func(i store.Intent) bool { return i.Count == 0 }), nil
}

// inNetwork counts what hosts lose of a private network. Of those that go later,
// they may be the last ones: what is the network's own counts as if all went.
func inNetwork(tx *store.Tx, network cloud.ID, leaving []Doc, later bool) ([]store.Intent, error) {
	intents, err := privatenetwork.Losses(tx, network, leaving...)
	if err != nil || !later {
		return intents, err
	}
	all, err := privatenetwork.Attached(tx, network)
	if err != nil {
		return nil, err
	}
	whole, err := privatenetwork.Losses(tx, network, all...)
	own := []string{wire.KindNetwork.String(), wire.KindNeighbour.String()}
	intents = slices.DeleteFunc(intents, func(i store.Intent) bool { return slices.Contains(own, i.Class) })
	whole = slices.DeleteFunc(whole, func(i store.Intent) bool { return !slices.Contains(own, i.Class) })
	return append(intents, whole...), err
}

// public counts the public addresses of an instance, addresses all those by which
// groups may know it.
func public(d store.InstanceDoc) (n int) {
	for _, a := range []netip.Addr{d.Address, d.Address6} {
		if a.IsValid() {
			n++
		}
	}
	return n
}

func addresses(d store.InstanceDoc) int {
	n := public(d)
	for _, a := range d.Networks {
		n += len(replica.Hosts(a))
	}
	return n
}

type loss struct {
	tx       *store.Tx
	later    bool
	leaving  map[cloud.ID]bool
	policies map[uint32]bool  // that leave a host
	classes  map[uint32]bool  // that may leave one
	members  map[cloud.ID]int // the same, with the number of their addresses
}

// class looks at what becomes of the class of an instance that leaves.
func (l *loss) class(d Doc) error {
	users, err := l.tx.Referrers(store.ClassRef(d.Body.SecurityGroups))
	if err != nil {
		return err
	}
	stays, anywhere := false, false
	for _, u := range users {
		if l.later || l.leaving[u.ID] {
			continue
		}
		other, err := store.Get[store.InstanceDoc](l.tx, "", u.ID)
		if err != nil {
			return err
		}
		if replica.Placed(other.Body) {
			anywhere = true
			stays = stays || other.Body.HostNumber == d.Body.HostNumber
		}
	}
	if !anywhere {
		l.classes[d.Body.Class] = true
	}
	if stays || l.policies[d.Body.Class] {
		return nil
	}
	l.policies[d.Body.Class] = true
	for _, g := range d.Body.SecurityGroups {
		if err := l.peers(d.Org, g.ID); err != nil {
			return err
		}
	}
	return nil
}

// peers adds the members of the groups that a group's rules name, and their
// classes: the host may be the last here that needs them.
func (l *loss) peers(org, group cloud.ID) error {
	g, err := securitygroup.Find(l.tx, org, group)
	if err != nil {
		return err
	}
	for _, peer := range slices.Compact(slices.Sorted(slices.Values(replica.Peers(g.Body)))) {
		members, err := securitygroup.Members(l.tx, peer)
		if err != nil {
			return err
		}
		for _, id := range members {
			d, err := store.Get[store.InstanceDoc](l.tx, "", id)
			if err != nil {
				return err
			}
			l.members[id], l.classes[d.Body.Class] = addresses(d.Body), true
		}
	}
	return nil
}
