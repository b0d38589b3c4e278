// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

// findService reads a service by the two ids of its path.
func findService(tx *store.Tx, c api.Call) (balancer, service, error) {
	d, err := find(tx, c.Org, c.ID("id"))
	if err != nil {
		return d, service{}, err
	}
	s, err := store.Get[store.ServiceDoc](tx, c.Org, c.ID("service-id"))
	if errors.Is(err, store.ErrNotFound) || err == nil && s.Body.LoadBalancer != d.ID {
		err = cloud.Missing("service", c.ID("service-id"))
	}
	return d, s, err
}

// shownService is a service as a customer sees it. A backend without a verdict
// is left out: the contract knows only success and failure. One that cannot be
// reached gets no flow, whatever was found of it before. One that leaves is none
// any more to its owner.
func shownService(d service) cloud.LoadBalancerService {
	s := d.Body.LoadBalancerService
	s.HealthcheckStatus = []cloud.HealthcheckStatus{}
	for _, b := range d.Body.Backends {
		if leaves(b) {
			continue
		}
		status := cloud.HealthStatus(b.Verdict)
		if b.State == store.BackendDead {
			status = cloud.HealthFailure
		}
		if status == cloud.HealthSuccess || status == cloud.HealthFailure {
			s.HealthcheckStatus = append(s.HealthcheckStatus, cloud.HealthcheckStatus{PublicIP: b.Address, Status: status})
		}
	}
	return s
}

func (b *Balancers) getService(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.LoadBalancerService
	err := b.store.Read(ctx, func(tx *store.Tx) error {
		_, s, err := findService(tx, c)
		answer = shownService(s)
		return err
	})
	return answer, err
}

func (b *Balancers) addService(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.AddServiceRequest)
	return b.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		if fsm.State(d.Body.State) == deleting {
			return operation.Plan{}, cloud.Conflictf("load-balancer %s is being deleted", d.ID)
		}
		s := service{ID: cloud.NewID(), Org: c.Org, Generation: 1}
		s.Body = store.ServiceDoc{
			LoadBalancerService: *r.Service(s.ID), LoadBalancer: d.ID, VIP: d.Body.VIP, Seed: rand.Uint32(),
		}
		s.Body.State = cloud.ServiceState(serviceMachine.Initial)
		if err := admit(tx, s); err != nil {
			return operation.Plan{}, err
		}
		if err := usable(tx, s); err != nil {
			return operation.Plan{}, err
		}
		if s.Body.Number, err = tx.Allocate(store.NumberService, string(s.ID)); err != nil {
			return operation.Plan{}, err
		}
		if err := b.follow(tx, op, s); err != nil {
			return operation.Plan{}, err
		}
		return operation.Plan{Subject: s.Ref(), Shown: d.ID, Generation: s.Generation}, nil
	})
}

// admit judges a service, new or changed, against the others of its load
// balancer.
func admit(tx *store.Tx, s service) error {
	others, err := servicesOf(tx, s.Org, s.Body.LoadBalancer)
	if err != nil {
		return err
	}
	count := 1
	for _, o := range others {
		switch {
		case o.ID == s.ID:
			continue
		case o.Body.Name == s.Body.Name:
			return cloud.Exists("service", s.Body.Name)
		case o.Body.Port == s.Body.Port && o.Body.Protocol == s.Body.Protocol:
			return cloud.Conflictf("a service on port %d/%s already exists: %q", o.Body.Port, o.Body.Protocol, o.Body.Name)
		}
		count++
	}
	if count > cloud.MaxServices {
		return cloud.Conflictf("load-balancer %s has %d services already, which is the most", s.Body.LoadBalancer, cloud.MaxServices)
	}
	return nil
}

// usable refuses a pool that is not there, or not for long, or whose instances have
// no address of the VIP's family.
func usable(tx *store.Tx, s service) error {
	id := s.Body.InstancePool.ID
	pool, err := store.Get[store.PoolDoc](tx, s.Org, id)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return cloud.Invalidf("instance-pool.id", "expected an instance pool of yours, there is no %s", id)
	case err != nil:
		return err
	case pool.Body.State == cloud.PoolDestroying:
		return cloud.Conflictf("instance-pool %s is being deleted", id)
	case family(s.Body.VIP) == cloud.Inet6 && !pool.Body.HasIPv6():
		return cloud.Conflictf("instance-pool %s has no IPv6, which a service of a load-balancer with addressfamily inet6 needs: set its public-ip-assignment to dual", id)
	}
	return nil
}

func (b *Balancers) updateService(ctx context.Context, c api.Call) (any, error) {
	return b.changeService(ctx, c, func(s cloud.LoadBalancerService) (cloud.LoadBalancerService, bool, error) {
		return capi.Overlay(s, c.Body, c.Keys)
	})
}

func (b *Balancers) resetService(ctx context.Context, c api.Call) (any, error) {
	return b.changeService(ctx, c, func(s cloud.LoadBalancerService) (cloud.LoadBalancerService, bool, error) {
		return capi.Clear(s, c.Args["field"])
	})
}

func (b *Balancers) changeService(ctx context.Context, c api.Call, fn func(cloud.LoadBalancerService) (cloud.LoadBalancerService, bool, error)) (any, error) {
	return b.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, s, err := findService(tx, c)
		if err != nil {
			return operation.Plan{}, err
		}
		before := s.Body.LoadBalancerService
		after, _, err := fn(before)
		if err != nil {
			return operation.Plan{}, err
		}
		after.Healthcheck = after.Healthcheck.WithDefaults(after.TargetPort)
		same, err := equal(before, after)
		if err != nil || same {
			return operation.Plan{Subject: s.Ref(), Shown: d.ID, Unchanged: true}, err
		}
		r, err := operation.Step(tx, &serviceMachine, s.Ref(), fsm.State(s.Body.State), operation.Update)
		if err != nil {
			return operation.Plan{}, err
		}
		s.Body.LoadBalancerService = after
		s.Body.State = cloud.ServiceState(r.State)
		s.Generation++
		if err := admit(tx, s); err != nil {
			return operation.Plan{}, err
		}
		if place(before.Healthcheck) != place(after.Healthcheck) {
			askAnew(&s.Body)
		}
		return operation.Plan{Subject: s.Ref(), Shown: d.ID, Generation: s.Generation}, b.revise(tx, op, s)
	})
}

// equal compares two shapes as clients would see them.
func equal(a, b any) (bool, error) {
	x, err := json.Marshal(a)
	if err != nil {
		return false, err
	}
	y, err := json.Marshal(b)
	return bytes.Equal(x, y), err
}

// place is the part of a check that says what is asked: when it changes, what
// was found before says nothing any more.
func place(h cloud.Healthcheck) cloud.Healthcheck {
	h.Interval, h.Timeout, h.Retries = 0, 0, 0
	return h
}

func askAnew(d *store.ServiceDoc) {
	for i := range d.Backends {
		b := &d.Backends[i]
		b.Verdict = store.VerdictInitial
		b.Generation = max(b.Generation, d.SlotsGeneration) + 1
	}
}

func (b *Balancers) deleteService(ctx context.Context, c api.Call) (any, error) {
	return b.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, s, err := findService(tx, c)
		if err != nil {
			return operation.Plan{}, err
		}
		plan := operation.Plan{Subject: s.Ref(), Shown: d.ID}
		if plan.UnderWay, err = operation.UnderWay(tx, s.Ref(), c.Operation.ID); err != nil || plan.UnderWay != "" {
			return plan, err
		}
		if fsm.State(d.Body.State) == deleting { // and takes its services along
			if plan.UnderWay, err = operation.UnderWay(tx, d.Ref(), "delete-load-balancer"); err != nil || plan.UnderWay != "" {
				return plan, err
			}
		}
		plan.Intents = intents(s)
		siblings, err := servicesOf(tx, c.Org, d.ID)
		if err != nil {
			return plan, err
		}
		if serving(siblings) == 1 && serves(s) {
			plan.Intents = append(plan.Intents, store.Intent{Class: wire.KindAnnouncement.String(), Count: 1})
		}
		plan.Generation = s.Generation + 1
		return plan, b.leave(tx, op, s)
	})
}

// leave begins the deletion of a service: agents let go of it, and what waited
// for it waits no more.
func (b *Balancers) leave(tx *store.Tx, op cloud.ID, s service) error {
	r, err := operation.Step(tx, &serviceMachine, s.Ref(), fsm.State(s.Body.State), operation.Delete)
	if err != nil {
		return err
	}
	s.Body.State = cloud.ServiceState(r.State)
	s.Generation++
	if err := store.Put(tx, op, s); err != nil {
		return err
	}
	if err := b.drained(tx, s); err != nil {
		return err
	}
	return b.gate.Supersede(tx, s.Ref(), op)
}

func serves(s service) bool { return fsm.State(s.Body.State) != deleting }

func serving(services []service) (n int) {
	for _, s := range services {
		if serves(s) {
			n++
		}
	}
	return n
}

// intents count what agents hold of a service.
func intents(s service) []store.Intent {
	if !serves(s) {
		return nil
	}
	return holdings(len(s.Body.Backends))
}

// holdings of a service with so many backends.
func holdings(backends int) []store.Intent {
	return append(backendIntents(backends),
		store.Intent{Class: wire.KindService.String(), Count: 1}, store.Intent{Class: wire.KindSlots.String(), Count: 1})
}

func backendIntents(n int) []store.Intent {
	if n == 0 {
		return nil
	}
	return []store.Intent{{Class: wire.KindBackend.String(), Count: n}, {Class: wire.KindCheck.String(), Count: n}}
}

// settleService moves a service by what became of the operation that waits for
// its present generation; others end on their own.
func settleService(tx *store.Tx, op store.Operation, e fsm.Event, _ operation.Outcome) error {
	s, err := store.Get[store.ServiceDoc](tx, op.Org, op.Subject.ID)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || s.Generation != op.Generation {
		return err
	}
	r := serviceMachine.Next(fsm.State(s.Body.State), e)
	switch {
	case r.Verdict != fsm.Handled:
		return nil
	case r.State == deleted:
		return forgetService(tx, op.ID, s)
	}
	s.Body.State = cloud.ServiceState(r.State)
	return store.Put(tx, op.ID, s)
}

// forgetService removes a service that no agent holds any more. Its numbers
// rest before anybody else gets them.
func forgetService(tx *store.Tx, op cloud.ID, s service) error {
	for _, b := range s.Body.Backends {
		if err := tx.Free(store.NumberBackend, backendOwner(s.ID, b.Instance)); err != nil {
			return err
		}
	}
	return errors.Join(tx.Delete(op, s.Ref()), tx.DeleteSlots(s.ID), tx.Free(store.NumberService, string(s.ID)))
}

// backendOwner is who holds the number of a backend.
func backendOwner(service, instance cloud.ID) string { return fmt.Sprintf("%s/%s", service, instance) }
