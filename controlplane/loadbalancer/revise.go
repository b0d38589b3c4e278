// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/cloud"
	"cairn/controlplane/fsm"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

// outcome is a service as it should become, not yet stored.
type outcome struct {
	service service
	table   slots.Table
	moved   bool      // the table differs from the stored one
	again   time.Time // look again; zero if only news can change anything
}

// weigh works out what a service becomes, given its document with what is new
// in it, and owners before whom no flow is left. It writes nothing.
func weigh(tx *store.Tx, s service, h hosts, drained ...uint32) (outcome, error) {
	o := outcome{service: s}
	stored, err := tx.Slots(s.ID)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return o, err
	}
	old, err := slots.Decode(stored.Cells)
	if err != nil {
		return o, fmt.Errorf("service %s: %w", s.ID, err)
	}
	d := &o.service.Body
	d.Backends, d.Panic, o.again = judge(s.Body.Backends, h, tx.Now().UTC())
	table := old
	for _, owner := range drained {
		table = slots.Settle(table, owner)
	}
	var balanced time.Time
	o.table, balanced = assign(table, d.Backends, d.Rotating, tx.Now().UTC())
	part(d.Backends, o.table, tx.Now().UTC())
	o.again = sooner(o.again, balanced)
	o.moved = !slices.Equal(o.table, old)
	if o.moved {
		d.SlotsGeneration++
	}
	return o, nil
}

// put stores an outcome: the document and its table in one transaction. What
// is stored already takes no revision.
func (b *Balancers) put(tx *store.Tx, op cloud.ID, o outcome) error {
	if o.moved {
		err := tx.PutSlots(store.Slots{
			Service: o.service.ID, Generation: o.service.Body.SlotsGeneration, Cells: o.table.Encode(),
		})
		if err != nil {
			return err
		}
	}
	err := store.Put(tx, op, o.service)
	if errors.Is(err, store.ErrExists) {
		err = cloud.Exists("service", o.service.Body.Name)
	}
	if err != nil {
		return err
	}
	tx.AfterCommit(func() { b.news.look(o.service.ID, o.again) })
	return b.drained(tx, o.service)
}

// revise stores a service with what follows from its document.
func (b *Balancers) revise(tx *store.Tx, op cloud.ID, s service) error {
	h, err := readHosts(tx)
	if err != nil {
		return err
	}
	o, err := weigh(tx, s, h)
	if err != nil {
		return err
	}
	return b.put(tx, op, o)
}

func readHosts(tx *store.Tx) (hosts, error) {
	h := hosts{unreachable: map[uint32]bool{}, numbers: map[string]uint32{}, nodes: map[uint32]bool{}}
	docs, err := store.List[store.HypervisorDoc](tx, "")
	for _, d := range docs {
		h.numbers[d.Body.Name] = d.Body.Number
		if !d.Body.Joined {
			continue
		}
		h.joined++
		if d.Body.HasRole(store.RoleLB) {
			h.nodes[d.Body.Number] = true
		}
		if d.Body.Unreachable {
			h.unreachable[d.Body.Number] = true
		}
	}
	return h, err
}

// PoolChanged brings the services before a pool in step with its members, in
// the transaction that changed them: a member that runs becomes a backend, gets
// no flow while it does not run, no new one when it leaves, and is none any more
// once hosts are told to let it go.
// The change is noted as made for op, which gets leave to remove what agents
// hold of those that go.
func (b *Balancers) PoolChanged(_ context.Context, tx *store.Tx, pool, op cloud.ID) error {
	users, err := tx.Referrers(store.Ref{Kind: store.KindPool, ID: pool})
	if err != nil {
		return err
	}
	for _, u := range users {
		if u.Kind != store.KindService {
			continue
		}
		s, err := store.Get[store.ServiceDoc](tx, "", u.ID)
		if err == nil && serves(s) {
			err = b.follow(tx, op, s)
		}
		if err != nil {
			return fmt.Errorf("pool %s: %w", pool, err)
		}
	}
	return nil
}

// follow makes the backends of a service those members of its pool that run or
// have run.
func (b *Balancers) follow(tx *store.Tx, op cloud.ID, s service) error {
	members, err := membersOf(tx, s.Body.InstancePool.ID)
	if err != nil {
		return err
	}
	members = slices.DeleteFunc(members, func(m member) bool { return !s.Body.AddressAt(m.Body).IsValid() })
	before, most := s.Body.Backends, max(len(s.Body.Backends), len(members))
	var backends []store.BackendDoc
	for _, old := range before {
		if i := slices.IndexFunc(members, func(m member) bool { return m.ID == old.Instance }); i >= 0 {
			body := members[i].Body
			old.Host, old.Address, old.Down = body.HostNumber, s.Body.AddressAt(body), !runs(members[i])
			old.Leaving, old.Closed, old.Weight = body.Leaving, body.Closed, body.Labels.Weight()
			backends = append(backends, old)
			members = slices.Delete(members, i, i+1)
			continue
		}
		if err := tx.Free(store.NumberBackend, backendOwner(s.ID, old.Instance)); err != nil {
			return err
		}
	}
	fresh, err := b.join(tx, s, members)
	if err != nil {
		return err
	}
	s.Body.Backends = append(backends, fresh...)
	h, err := readHosts(tx)
	if err != nil {
		return err
	}
	if op != "" {
		for _, i := range losses(h, before, backends, most) {
			i.Operation = op
			if err := tx.AddIntent(i); err != nil {
				return err
			}
		}
	}
	o, err := weigh(tx, s, h)
	if err != nil {
		return err
	}
	return b.put(tx, op, o)
}

// join makes backends of new members that run.
func (b *Balancers) join(tx *store.Tx, s service, members []member) ([]store.BackendDoc, error) {
	var fresh []store.BackendDoc
	for _, m := range members {
		if !runs(m) || !m.Body.Leaving.IsZero() {
			continue
		}
		number, err := tx.Allocate(store.NumberBackend, backendOwner(s.ID, m.ID))
		if err != nil {
			return nil, err
		}
		fresh = append(fresh, store.BackendDoc{
			Number: number, Instance: m.ID, Host: m.Body.HostNumber, Address: s.Body.AddressAt(m.Body), Weight: m.Body.Labels.Weight(),
			// Above what was ever said of the same number before.
			Generation: s.Body.SlotsGeneration + 1,
			Verdict:    store.VerdictInitial, State: store.BackendJoining, Since: tx.Now().UTC(),
		})
	}
	return fresh, nil
}

type member = store.Doc[store.InstanceDoc]

// membersOf lists the members of a pool that have a port, by its number. Hosts
// let go of the others; those that leave are among them.
func membersOf(tx *store.Tx, pool cloud.ID) ([]member, error) {
	users, err := tx.Referrers(store.Ref{Kind: store.KindPool, ID: pool})
	if err != nil {
		return nil, err
	}
	var members []member
	for _, u := range users {
		if u.Kind != store.KindInstance {
			continue
		}
		m, err := store.Get[store.InstanceDoc](tx, "", u.ID)
		if err != nil {
			return nil, err
		}
		if replica.Public(m.Body) {
			members = append(members, m)
		}
	}
	slices.SortFunc(members, func(a, b member) int { return cmp.Compare(a.Body.Port, b.Body.Port) })
	return members, nil
}

func runs(m member) bool { return m.Body.State == cloud.InstanceRunning }

// HostsChanged brings all services in step with hypervisors that were found
// reachable or not, in the transaction that found it.
func (b *Balancers) HostsChanged(tx *store.Tx, found []store.Doc[store.HypervisorDoc]) error {
	h, err := readHosts(tx)
	if err != nil {
		return err
	}
	concerned := map[uint32]bool{}
	for _, d := range found {
		concerned[d.Body.Number] = true
	}
	for n := range h.unreachable {
		concerned[n] = true // the last loss may have made the others count, or not
	}
	services, err := store.List[store.ServiceDoc](tx, "")
	if err != nil {
		return err
	}
	for _, s := range services {
		if !serves(s) || !slices.ContainsFunc(s.Body.Backends, func(b store.BackendDoc) bool { return concerned[b.Host] }) {
			continue
		}
		o, err := weigh(tx, s, h)
		if err == nil {
			err = b.put(tx, "", o)
		}
		if err != nil {
			return fmt.Errorf("service %s: %w", s.ID, err)
		}
	}
	return nil
}

// takeUp looks at every service once after a start, and ends deletions that
// nobody waits for any more: their operations timed out in an earlier life,
// and agents that still hold something are told to let go by its tombstones.
func (b *Balancers) takeUp(ctx context.Context) error {
	now := b.store.Now()
	var orphans []store.Ref
	err := b.store.Read(ctx, func(tx *store.Tx) error {
		services, err := store.List[store.ServiceDoc](tx, "")
		if err != nil {
			return err
		}
		for _, s := range services {
			if serves(s) {
				b.news.look(s.ID, now)
			} else if orphans, err = orphan(tx, orphans, s.Ref(), store.Ref{Kind: store.KindLoadBalancer, ID: s.Body.LoadBalancer}); err != nil {
				return err
			}
		}
		balancers, err := store.List[store.LoadBalancerDoc](tx, "")
		for _, d := range balancers {
			if err == nil && fsm.State(d.Body.State) == deleting {
				orphans, err = orphan(tx, orphans, d.Ref())
			}
		}
		return err
	})
	if err != nil || len(orphans) == 0 {
		return err
	}
	_, err = b.store.Write(ctx, func(tx *store.Tx) error {
		for _, ref := range orphans {
			if err := forgetOrphan(tx, ref); err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		return nil
	})
	return err
}

// orphan adds the first of refs to list if no operation is pending on any.
func orphan(tx *store.Tx, list []store.Ref, refs ...store.Ref) ([]store.Ref, error) {
	for _, ref := range refs {
		pending, err := tx.Pending(ref)
		if err != nil || len(pending) > 0 {
			return list, err
		}
	}
	return append(list, refs[0]), nil
}

func forgetOrphan(tx *store.Tx, ref store.Ref) error {
	if ref.Kind == store.KindLoadBalancer {
		d, err := store.Get[store.LoadBalancerDoc](tx, "", ref.ID)
		if err != nil {
			return err
		}
		return forgetBalancer(tx, "", d)
	}
	s, err := store.Get[store.ServiceDoc](tx, "", ref.ID)
	if err != nil {
		return err
	}
	return forgetService(tx, "", s)
}
