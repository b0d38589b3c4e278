// SPDX-License-Identifier: Apache-2.0

// Package loadbalancer keeps load balancers, their services and the backends
// behind them: addresses, numbers, verdicts and slot tables. It owns their
// machines and what follows for a service when its pool, a verdict or a
// hypervisor changes. It never reaches an agent: what it commits is compiled
// and distributed by others; and it never judges a probe, whose verdicts it is
// told.
//
// Start at Handlers; service.go for services, revise.go for how a table comes
// about (judge.go is the pure part), reports.go for what agents tell.
package loadbalancer

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

type (
	balancer = store.Doc[store.LoadBalancerDoc]
	service  = store.Doc[store.ServiceDoc]
)

// Balancers keeps the load balancers of a zone.
type Balancers struct {
	// Drained is told, in the transaction in which it happens, that a service may
	// have let go of leaving members of a pool. Set before use; may be nil.
	Drained func(tx *store.Tx, pool cloud.ID) error

	store *store.Store
	gate  *operation.Gate
	log   *slog.Logger
	news  news
}

// New keeps load balancers in a store. The gate must know Nouns.
func New(s *store.Store, g *operation.Gate, log *slog.Logger) *Balancers {
	return &Balancers{store: s, gate: g, log: log, news: makeNews()}
}

// Handlers performs the operations on load balancers and their services.
func (b *Balancers) Handlers() api.Handlers {
	return api.Handlers{
		"list-load-balancers":               b.list,
		"create-load-balancer":              b.create,
		"get-load-balancer":                 b.get,
		"update-load-balancer":              b.update,
		"delete-load-balancer":              b.delete,
		"reset-load-balancer-field":         b.reset,
		"add-service-to-load-balancer":      b.addService,
		"get-load-balancer-service":         b.getService,
		"update-load-balancer-service":      b.updateService,
		"delete-load-balancer-service":      b.deleteService,
		"reset-load-balancer-service-field": b.resetService,
	}
}

func find(tx *store.Tx, org, id cloud.ID) (balancer, error) {
	d, err := store.Get[store.LoadBalancerDoc](tx, org, id)
	if errors.Is(err, store.ErrNotFound) {
		err = cloud.Missing(string(store.KindLoadBalancer), id)
	}
	return d, err
}

// servicesOf lists the services of a load balancer, oldest first.
func servicesOf(tx *store.Tx, org, id cloud.ID) ([]service, error) {
	all, err := store.List[store.ServiceDoc](tx, org)
	var some []service
	for _, s := range all {
		if s.Body.LoadBalancer == id {
			some = append(some, s)
		}
	}
	return some, err
}

// shown is a load balancer as a customer sees it.
func shown(d balancer, services []service) cloud.LoadBalancer {
	l := d.Body.LoadBalancer
	l.AddressFamily = family(d.Body.VIP)
	l.IP, l.Services = d.Body.VIP, []cloud.LoadBalancerService{}
	for _, s := range services {
		if s.Body.LoadBalancer == d.ID {
			l.Services = append(l.Services, shownService(s))
		}
	}
	return l
}

func (b *Balancers) list(ctx context.Context, c api.Call) (any, error) {
	answer := cloud.LoadBalancerList{LoadBalancers: []cloud.LoadBalancer{}}
	err := b.store.Read(ctx, func(tx *store.Tx) error {
		docs, err := store.List[store.LoadBalancerDoc](tx, c.Org)
		if err != nil {
			return err
		}
		services, err := store.List[store.ServiceDoc](tx, c.Org)
		for _, d := range docs {
			answer.LoadBalancers = append(answer.LoadBalancers, shown(d, services))
		}
		return err
	})
	return answer, err
}

func (b *Balancers) get(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.LoadBalancer
	err := b.store.Read(ctx, func(tx *store.Tx) error {
		d, err := find(tx, c.Org, c.ID("id"))
		if err != nil {
			return err
		}
		services, err := servicesOf(tx, c.Org, d.ID)
		answer = shown(d, services)
		return err
	})
	return answer, err
}

func (b *Balancers) create(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.CreateLoadBalancerRequest)
	return b.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d := balancer{ID: cloud.NewID(), Org: c.Org, Generation: 1}
		d.Body.LoadBalancer = cloud.LoadBalancer{
			ID: d.ID, Name: r.Name, Description: r.Description, Labels: r.Labels,
			State: cloud.LoadBalancerState(balancerMachine.Initial), CreatedAt: tx.Now().UTC().Truncate(time.Second),
		}
		kind := store.AddressVIP
		if r.AddressFamily == cloud.Inet6 {
			kind = store.AddressVIP6
		}
		vip, err := tx.AllocateAddress(kind, string(d.ID))
		if err != nil {
			return operation.Plan{}, err
		}
		d.Body.VIP, d.Body.IP, d.Body.AddressFamily = vip, vip, family(vip)
		// Without a service it is nothing to any agent.
		return operation.Plan{Subject: d.Ref(), Generation: d.Generation, Done: true}, put(tx, op, d)
	})
}

// family of a VIP, and of the clients and backends of all its services.
func family(vip netip.Addr) cloud.AddressFamily {
	if vip.Is6() {
		return cloud.Inet6
	}
	return cloud.Inet4
}

// put stores a load balancer; a name that is taken is refused.
func put(tx *store.Tx, op cloud.ID, d balancer) error {
	err := store.Put(tx, op, d)
	if errors.Is(err, store.ErrExists) {
		return cloud.Exists(string(store.KindLoadBalancer), d.Body.Name)
	}
	return err
}

func (b *Balancers) update(ctx context.Context, c api.Call) (any, error) {
	return b.change(ctx, c, func(l cloud.LoadBalancer) (cloud.LoadBalancer, bool, error) {
		return capi.Overlay(l, c.Body, c.Keys)
	})
}

func (b *Balancers) reset(ctx context.Context, c api.Call) (any, error) {
	return b.change(ctx, c, func(l cloud.LoadBalancer) (cloud.LoadBalancer, bool, error) {
		return capi.Clear(l, c.Args["field"])
	})
}

func (b *Balancers) change(ctx context.Context, c api.Call, fn func(cloud.LoadBalancer) (cloud.LoadBalancer, bool, error)) (any, error) {
	return b.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		result, changed, err := fn(d.Body.LoadBalancer)
		if err != nil || !changed {
			return operation.Plan{Subject: d.Ref(), Unchanged: true}, err
		}
		r, err := operation.Step(tx, &balancerMachine, d.Ref(), fsm.State(d.Body.State), operation.Update)
		if err != nil {
			return operation.Plan{}, err
		}
		d.Body.LoadBalancer = result
		d.Body.State = cloud.LoadBalancerState(r.State)
		d.Generation++
		return operation.Plan{Subject: d.Ref(), Generation: d.Generation, Done: true}, put(tx, op, d)
	})
}

// delete removes a load balancer with its services, which is what it is for
// its owner: one thing.
func (b *Balancers) delete(ctx context.Context, c api.Call) (any, error) {
	return b.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		plan := operation.Plan{Subject: d.Ref()}
		if plan.UnderWay, err = operation.UnderWay(tx, d.Ref(), c.Operation.ID); err != nil || plan.UnderWay != "" {
			return plan, err
		}
		r, err := operation.Step(tx, &balancerMachine, d.Ref(), fsm.State(d.Body.State), operation.Delete)
		if err != nil {
			return plan, err
		}
		services, err := servicesOf(tx, c.Org, d.ID)
		if err != nil {
			return plan, err
		}
		plan.Done = len(services) == 0
		for _, s := range services {
			plan.Intents = append(plan.Intents, intents(s)...)
			if err := b.leave(tx, op, s); err != nil {
				return plan, err
			}
		}
		if serving(services) > 0 {
			plan.Intents = append(plan.Intents, store.Intent{Class: wire.KindAnnouncement.String(), Count: 1})
		}
		d.Body.State = cloud.LoadBalancerState(r.State)
		d.Generation++
		plan.Generation = d.Generation
		if err := put(tx, op, d); err != nil {
			return plan, err
		}
		return plan, b.gate.Supersede(tx, d.Ref(), op)
	})
}

// settleBalancer moves a load balancer by what became of the operation that
// waits for its present generation; others end on their own.
func settleBalancer(tx *store.Tx, op store.Operation, e fsm.Event, _ operation.Outcome) error {
	d, err := store.Get[store.LoadBalancerDoc](tx, op.Org, op.Subject.ID)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || d.Generation != op.Generation {
		return err
	}
	r := balancerMachine.Next(fsm.State(d.Body.State), e)
	switch {
	case r.Verdict != fsm.Handled:
		return nil
	case r.State == deleted:
		return forgetBalancer(tx, op.ID, d)
	}
	d.Body.State = cloud.LoadBalancerState(r.State)
	return store.Put(tx, op.ID, d)
}

// forgetBalancer removes a load balancer that no agent holds any more.
func forgetBalancer(tx *store.Tx, op cloud.ID, d balancer) error {
	services, err := servicesOf(tx, d.Org, d.ID)
	if err != nil {
		return err
	}
	for _, s := range services {
		if err := forgetService(tx, op, s); err != nil {
			return err
		}
	}
	kind := store.AddressVIP
	if family(d.Body.VIP) == cloud.Inet6 {
		kind = store.AddressVIP6
	}
	return errors.Join(tx.Delete(op, d.Ref()), tx.FreeAddress(kind, string(d.ID)))
}
