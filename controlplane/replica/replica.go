// SPDX-License-Identifier: Apache-2.0

// Package replica is the zone's rows in memory, as far as agents are concerned
// with them: hypervisors, security groups, instances, private networks, elastic
// IPs, load balancers and their services. It is loaded once, follows the change log, and gives immutable
// snapshots and what changed from one to the next. It never writes to the store
// and compiles nothing.
//
// Start at Snapshot for what can be asked, then Follower in follow.go.
package replica

import (
	"encoding/binary"
	"maps"
	"slices"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"

	"cairn/cloud"
	"cairn/controlplane/store"
)

// The rows. They are shared by all snapshots that have them: nobody changes one.
type (
	Host        = store.Doc[store.HypervisorDoc]
	Group       = store.Doc[store.SecurityGroupDoc]
	Instance    = store.Doc[store.InstanceDoc]
	Balancer    = store.Doc[store.LoadBalancerDoc]
	Network     = store.Doc[store.PrivateNetworkDoc]
	Elastic     = store.Doc[store.ElasticIPDoc]
	PublicGroup = store.Doc[store.PublicGroupDoc]
	SMTPPermit  = store.Doc[store.SMTPDoc]
)

// Service is a service with its slot table, nil if it has none yet.
type Service struct {
	store.Doc[store.ServiceDoc]
	Slots []byte
}

// Class is a set of security groups that placed instances have: derived from
// them, not stored.
type Class struct {
	Number uint32
	Groups []cloud.ID
	Hosts  map[uint32]int // number of hypervisor -> its instances of the class
}

// Placed reports whether agents have to know of an instance: it has a place, and
// is not on its way out.
func Placed(d store.InstanceDoc) bool {
	switch d.State {
	case cloud.InstanceDestroying, cloud.InstanceDestroyed, cloud.InstanceExpunging:
		return false
	}
	return d.HostNumber != 0 && d.Class != 0
}

// Public reports whether a placed instance can be reached from outside: it has a
// port and an address there.
func Public(d store.InstanceDoc) bool { return Placed(d) && d.Port != 0 && d.Address.IsValid() }

// Ports are the numbers of an instance's interfaces.
func Ports(d store.InstanceDoc) []uint32 {
	var ports []uint32
	if d.Port != 0 {
		ports = append(ports, d.Port)
	}
	for _, a := range d.Networks {
		ports = append(ports, a.Port)
	}
	return ports
}

// Peers are the groups that a group's rules name.
func Peers(g store.SecurityGroupDoc) []cloud.ID {
	var peers []cloud.ID
	for _, rule := range g.Rules {
		if rule.SecurityGroup != nil && rule.SecurityGroup.ID != "" {
			peers = append(peers, rule.SecurityGroup.ID)
		}
	}
	return peers
}

// publicPeers are the names of the public groups that a group's rules name.
func publicPeers(g store.SecurityGroupDoc) []string {
	var names []string
	for _, rule := range g.Rules {
		if rule.SecurityGroup != nil && rule.SecurityGroup.ID == "" {
			names = append(names, rule.SecurityGroup.Name)
		}
	}
	return names
}

// Replica holds the rows. One goroutine writes; any may take snapshots.
type Replica struct {
	db        *statedb.DB
	hosts     statedb.RWTable[*Host]
	groups    statedb.RWTable[*Group]
	instances statedb.RWTable[*Instance]
	balancers statedb.RWTable[*Balancer]
	services  statedb.RWTable[*Service]
	networks  statedb.RWTable[*Network]
	elastics  statedb.RWTable[*Elastic]
	publics   statedb.RWTable[*PublicGroup]
	smtp      statedb.RWTable[*SMTPPermit]
	classes   statedb.RWTable[*Class]
	position  statedb.RWTable[position]
	all       []statedb.TableMeta
}

// position is the one row that carries the revision, so that a snapshot of the
// database knows which one it is of.
type position struct{ revision store.Revision }

func number(n uint32) index.Key { return binary.BigEndian.AppendUint32(nil, n) }

func text(id cloud.ID) index.Key { return index.String(string(id)) }

// unique is the primary index of a table; many any other.
func unique[Obj any, K any](name string, of func(Obj) K, key func(K) index.Key) statedb.Index[Obj, K] {
	return statedb.Index[Obj, K]{
		Name: name, Unique: true, FromKey: key,
		FromObject: func(o Obj) index.KeySet { return index.NewKeySet(key(of(o))) },
	}
}

func many[Obj any, K any](name string, of func(Obj) []K, key func(K) index.Key) statedb.Index[Obj, K] {
	return statedb.Index[Obj, K]{
		Name: name, FromKey: key,
		FromObject: func(o Obj) index.KeySet {
			var keys []index.Key
			for _, k := range of(o) {
				keys = append(keys, key(k))
			}
			if len(keys) == 0 {
				return index.KeySet{}
			}
			return index.NewKeySet(keys[0], keys[1:]...)
		},
	}
}

var (
	hostByID     = unique("id", func(h *Host) cloud.ID { return h.ID }, text)
	hostByNumber = many("number", func(h *Host) []uint32 { return []uint32{h.Body.Number} }, number)

	groupByID   = unique("id", func(g *Group) cloud.ID { return g.ID }, text)
	groupByPeer = many("peer", func(g *Group) []cloud.ID { return Peers(g.Body) }, text)
	groupByRule = many("rule", func(g *Group) []uint32 { return slices.Collect(maps.Values(g.Body.RuleNumbers)) }, number)
	groupByName = many("public", func(g *Group) []string { return publicPeers(g.Body) }, index.String)

	publicByID   = unique("id", func(p *PublicGroup) cloud.ID { return p.ID }, text)
	publicByName = many("name", func(p *PublicGroup) []string { return []string{p.Body.Name} }, index.String)

	smtpByID = unique("id", func(p *SMTPPermit) cloud.ID { return p.ID }, text)

	instanceByID    = unique("id", func(i *Instance) cloud.ID { return i.ID }, text)
	instanceByClass = many("class", func(i *Instance) []uint32 {
		if !Placed(i.Body) {
			return nil
		}
		return []uint32{i.Body.Class}
	}, number)

	instanceByPort = many("port", func(i *Instance) []uint32 {
		if !Placed(i.Body) {
			return nil
		}
		return Ports(i.Body)
	}, number)

	instanceByNetwork = many("network", func(i *Instance) []cloud.ID {
		if !Placed(i.Body) {
			return nil
		}
		ids := make([]cloud.ID, len(i.Body.Networks))
		for k, a := range i.Body.Networks {
			ids[k] = a.Network
		}
		return ids
	}, text)

	networkByID = unique("id", func(n *Network) cloud.ID { return n.ID }, text)
	elasticByID = unique("id", func(e *Elastic) cloud.ID { return e.ID }, text)

	balancerByID = unique("id", func(b *Balancer) cloud.ID { return b.ID }, text)

	serviceByID       = unique("id", func(s *Service) cloud.ID { return s.ID }, text)
	serviceByNumber   = many("number", func(s *Service) []uint32 { return []uint32{s.Body.Number} }, number)
	serviceByBalancer = many("balancer", func(s *Service) []cloud.ID { return []cloud.ID{s.Body.LoadBalancer} }, text)
	serviceByInstance = many("instance", func(s *Service) []cloud.ID {
		var ids []cloud.ID
		for _, b := range s.Body.Backends {
			ids = append(ids, b.Instance)
		}
		return ids
	}, text)

	classByNumber = unique("number", func(c *Class) uint32 { return c.Number }, number)
	classByGroup  = many("group", func(c *Class) []cloud.ID { return c.Groups }, text)

	thePosition = unique("position", func(position) string { return "position" }, index.String)
)

// New makes an empty replica.
func New() (*Replica, error) {
	r := &Replica{db: statedb.New()}
	var err error
	open := func(e error) {
		if err == nil {
			err = e
		}
	}
	var e error
	r.hosts, e = table(r, "hosts", hostByID, hostByNumber)
	open(e)
	r.groups, e = table(r, "groups", groupByID, groupByPeer, groupByRule, groupByName)
	open(e)
	r.instances, e = table(r, "instances", instanceByID, instanceByClass, instanceByPort, instanceByNetwork)
	open(e)
	r.balancers, e = table(r, "balancers", balancerByID)
	open(e)
	r.services, e = table(r, "services", serviceByID, serviceByNumber, serviceByBalancer, serviceByInstance)
	open(e)
	r.networks, e = table(r, "networks", networkByID)
	open(e)
	r.elastics, e = table(r, "elastics", elasticByID)
	open(e)
	r.publics, e = table(r, "publics", publicByID, publicByName)
	open(e)
	r.smtp, e = table(r, "smtp", smtpByID)
	open(e)
	r.classes, e = table(r, "classes", classByNumber, classByGroup)
	open(e)
	r.position, e = table(r, "position", thePosition)
	open(e)
	if err != nil {
		return nil, err
	}
	return r, r.db.Start()
}

func table[Obj any](r *Replica, name string, primary statedb.Indexer[Obj], others ...statedb.Indexer[Obj]) (statedb.RWTable[Obj], error) {
	t, err := statedb.NewTableAny(r.db, name,
		func() []string { return nil }, func(Obj) []string { return nil }, primary, others...)
	if err == nil {
		r.all = append(r.all, t)
	}
	return t, err
}

// Close ends the collector of removed rows.
func (r *Replica) Close() { _ = r.db.Stop() }

// recount keeps the classes in step with an instance that changes from old to
// now; either may be nil.
func (r *Replica) recount(txn statedb.WriteTxn, old, now *Instance) {
	if old != nil && Placed(old.Body) {
		r.count(txn, old.Body, -1)
	}
	if now != nil && Placed(now.Body) {
		r.count(txn, now.Body, 1)
	}
}

func (r *Replica) count(txn statedb.WriteTxn, d store.InstanceDoc, by int) {
	class := &Class{Number: d.Class, Hosts: map[uint32]int{}}
	if had, ok := get(r.classes, txn, classByNumber.Query(d.Class)); ok {
		class.Groups = had.Groups
		maps.Copy(class.Hosts, had.Hosts)
	}
	if by > 0 {
		class.Groups = nil
		for _, g := range d.SecurityGroups {
			class.Groups = append(class.Groups, g.ID)
		}
	}
	if class.Hosts[d.HostNumber] += by; class.Hosts[d.HostNumber] <= 0 {
		delete(class.Hosts, d.HostNumber)
	}
	if len(class.Hosts) == 0 {
		_, _, _ = r.classes.Delete(txn, class) // only a closed transaction or an unlocked table fail
		return
	}
	_, _, _ = r.classes.Insert(txn, class)
}
