// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"iter"

	"github.com/cilium/statedb"

	"cairn/cloud"
	"cairn/controlplane/store"
)

// Snapshot is the zone at one revision. It never changes.
type Snapshot struct {
	Revision store.Revision
	r        *Replica
	txn      statedb.ReadTxn
}

// Snapshot of what the replica holds now.
func (r *Replica) Snapshot() Snapshot {
	txn := r.db.ReadTxn()
	at, _, _ := r.position.Get(txn, thePosition.Query("position"))
	return Snapshot{Revision: at.revision, r: r, txn: txn}
}

func get[Obj any](t statedb.Table[Obj], txn statedb.ReadTxn, q statedb.Query[Obj]) (Obj, bool) {
	o, _, ok := t.Get(txn, q)
	return o, ok
}

func values[Obj any](seq iter.Seq2[Obj, statedb.Revision]) iter.Seq[Obj] {
	return func(yield func(Obj) bool) {
		for o := range seq {
			if !yield(o) {
				return
			}
		}
	}
}

// Host finds a hypervisor by its number.
func (s Snapshot) Host(n uint32) (*Host, bool) { return get(s.r.hosts, s.txn, hostByNumber.Query(n)) }

// HostByID finds a hypervisor.
func (s Snapshot) HostByID(id cloud.ID) (*Host, bool) {
	return get(s.r.hosts, s.txn, hostByID.Query(id))
}

// Hosts are all hypervisors, joined or not.
func (s Snapshot) Hosts() iter.Seq[*Host] { return values(s.r.hosts.All(s.txn)) }

// Group finds a security group.
func (s Snapshot) Group(id cloud.ID) (*Group, bool) {
	return get(s.r.groups, s.txn, groupByID.Query(id))
}

// GroupOfRule finds the group that has the rule of a number.
func (s Snapshot) GroupOfRule(n uint32) (*Group, bool) {
	return get(s.r.groups, s.txn, groupByRule.Query(n))
}

// Groups are all security groups.
func (s Snapshot) Groups() iter.Seq[*Group] { return values(s.r.groups.All(s.txn)) }

// GroupsNaming are the groups whose rules name a group as peer.
func (s Snapshot) GroupsNaming(peer cloud.ID) iter.Seq[*Group] {
	return values(s.r.groups.List(s.txn, groupByPeer.Query(peer)))
}

// Public finds a public group by its name.
func (s Snapshot) Public(name string) (*PublicGroup, bool) {
	return get(s.r.publics, s.txn, publicByName.Query(name))
}

// PublicByID finds a public group.
func (s Snapshot) PublicByID(id cloud.ID) (*PublicGroup, bool) {
	return get(s.r.publics, s.txn, publicByID.Query(id))
}

// MaySMTP tells whether an organisation's instances may send mail.
func (s Snapshot) MaySMTP(org cloud.ID) bool {
	_, ok := get(s.r.smtp, s.txn, smtpByID.Query(org))
	return ok
}

// GroupsNamingPublic are the groups whose rules name a public group as peer.
func (s Snapshot) GroupsNamingPublic(name string) iter.Seq[*Group] {
	return values(s.r.groups.List(s.txn, groupByName.Query(name)))
}

// Class finds a class by its number; there is none without placed instances.
func (s Snapshot) Class(n uint32) (*Class, bool) {
	return get(s.r.classes, s.txn, classByNumber.Query(n))
}

// Classes are all classes.
func (s Snapshot) Classes() iter.Seq[*Class] { return values(s.r.classes.All(s.txn)) }

// ClassesOf are the classes that have a group in their set.
func (s Snapshot) ClassesOf(group cloud.ID) iter.Seq[*Class] {
	return values(s.r.classes.List(s.txn, classByGroup.Query(group)))
}

// Instance finds an instance.
func (s Snapshot) Instance(id cloud.ID) (*Instance, bool) {
	return get(s.r.instances, s.txn, instanceByID.Query(id))
}

// InstanceAt finds the placed instance that an interface belongs to.
func (s Snapshot) InstanceAt(port uint32) (*Instance, bool) {
	return get(s.r.instances, s.txn, instanceByPort.Query(port))
}

// Instances are all instances, placed or not.
func (s Snapshot) Instances() iter.Seq[*Instance] { return values(s.r.instances.All(s.txn)) }

// InstancesOf are the placed instances of a class.
func (s Snapshot) InstancesOf(class uint32) iter.Seq[*Instance] {
	return values(s.r.instances.List(s.txn, instanceByClass.Query(class)))
}

// Balancer finds a load balancer.
func (s Snapshot) Balancer(id cloud.ID) (*Balancer, bool) {
	return get(s.r.balancers, s.txn, balancerByID.Query(id))
}

// Balancers are all load balancers.
func (s Snapshot) Balancers() iter.Seq[*Balancer] { return values(s.r.balancers.All(s.txn)) }

// Service finds a service.
func (s Snapshot) Service(id cloud.ID) (*Service, bool) {
	return get(s.r.services, s.txn, serviceByID.Query(id))
}

// ServiceByNumber finds a service.
func (s Snapshot) ServiceByNumber(n uint32) (*Service, bool) {
	return get(s.r.services, s.txn, serviceByNumber.Query(n))
}

// Services are all services.
func (s Snapshot) Services() iter.Seq[*Service] { return values(s.r.services.All(s.txn)) }

// ServicesOf are the services of a load balancer.
func (s Snapshot) ServicesOf(balancer cloud.ID) iter.Seq[*Service] {
	return values(s.r.services.List(s.txn, serviceByBalancer.Query(balancer)))
}

// ServicesWith are the services that have an instance as backend.
func (s Snapshot) ServicesWith(instance cloud.ID) iter.Seq[*Service] {
	return values(s.r.services.List(s.txn, serviceByInstance.Query(instance)))
}
