// SPDX-License-Identifier: Apache-2.0

package securitygroup

import (
	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// shed counts what hosts may lose by a change of groups: a host on which no
// rule names a group any more has no need of its members. It counts from above,
// since whether a host goes on needing somebody can depend on everything else
// on it.
type shed struct {
	tx       *store.Tx
	members  map[cloud.ID]int // with the number of their addresses
	classes  map[uint32]bool
	policies int
}

func newShed(tx *store.Tx) *shed {
	return &shed{tx: tx, members: map[cloud.ID]int{}, classes: map[uint32]bool{}}
}

// peer is a group that a rule named; the empty id is that of no group.
func (s *shed) peer(group cloud.ID) error {
	if group == "" {
		return nil
	}
	members, err := Members(s.tx, group)
	if err != nil {
		return err
	}
	for _, id := range members {
		d, err := store.Get[store.InstanceDoc](s.tx, "", id)
		if err != nil {
			return err
		}
		s.member(d)
	}
	return nil
}

func (s *shed) member(d store.Doc[store.InstanceDoc]) {
	n := 2 // public ones
	for _, a := range d.Body.Networks {
		n += len(replica.Hosts(a))
	}
	s.members[d.ID] = n
	s.classes[d.Body.Class] = true
}

// regrouped is an instance that was of another class: a host may have no other
// of it, and with it no policy of that class.
func (s *shed) regrouped(before uint32) {
	s.policies, s.classes[before] = 1, true
}

// left is an instance that left a group: the group's rules may be no longer
// among those of its host, and the instance not among those that others name.
func (s *shed) left(group store.Doc[store.SecurityGroupDoc], d store.Doc[store.InstanceDoc]) error {
	s.member(d)
	for _, peer := range replica.Peers(group.Body) {
		if err := s.peer(peer); err != nil {
			return err
		}
	}
	return nil
}

func (s *shed) intents() []store.Intent {
	addresses := 0
	for _, n := range s.members {
		addresses += n
	}
	var intents []store.Intent
	for _, i := range []store.Intent{
		{Class: wire.KindClass.String(), Count: len(s.classes)}, {Class: wire.KindMember.String(), Count: addresses},
		{Class: wire.KindPolicy.String(), Count: s.policies},
	} {
		if i.Count > 0 {
			intents = append(intents, i)
		}
	}
	return intents
}
