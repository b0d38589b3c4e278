// SPDX-License-Identifier: Apache-2.0

// Package elasticip keeps elastic IPs: addresses that outlive the instances they
// are attached to. It owns their addresses and numbers, and decides to which of
// its instances each one comes: judge.go, pure, by what hosts report of their
// health checks, of their instances and of themselves. It never reaches an agent
// and never judges a probe, whose verdicts it is told.
//
// Start at Handlers; attach.go for instances that come and go, revise.go for how
// an elastic IP moves, reports.go for what agents tell.
package elasticip

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

const noun = string(store.KindElasticIP)

type (
	// Doc is an elastic IP as it is stored.
	Doc = store.Doc[store.ElasticIPDoc]
	// Instance is one that an elastic IP is attached to, or is to be.
	Instance = store.Doc[store.InstanceDoc]
)

// Elastics keeps the elastic IPs of a zone.
type Elastics struct {
	store *store.Store
	gate  *operation.Gate
	log   *slog.Logger
	news  news
}

// New keeps elastic IPs in a store, and registers them with the gate.
func New(s *store.Store, g *operation.Gate, log *slog.Logger) *Elastics {
	g.Register(Noun)
	return &Elastics{store: s, gate: g, log: log, news: makeNews()}
}

// Handlers performs the operations on elastic IPs.
func (e *Elastics) Handlers() api.Handlers {
	return api.Handlers{
		"list-elastic-ips":                e.list,
		"create-elastic-ip":               e.create,
		"get-elastic-ip":                  e.get,
		"update-elastic-ip":               e.update,
		"delete-elastic-ip":               e.delete,
		"reset-elastic-ip-field":          e.reset,
		"attach-instance-to-elastic-ip":   e.attach,
		"detach-instance-from-elastic-ip": e.detach,
	}
}

// Find reads an elastic IP. A refusal says that there is none.
func Find(tx *store.Tx, org, id cloud.ID) (Doc, error) {
	d, err := store.Get[store.ElasticIPDoc](tx, org, id)
	if errors.Is(err, store.ErrNotFound) {
		err = cloud.Missing(noun, id)
	}
	return d, err
}

func (e *Elastics) list(ctx context.Context, c api.Call) (any, error) {
	answer := cloud.ElasticIPList{ElasticIPs: []cloud.ElasticIP{}}
	err := e.store.Read(ctx, func(tx *store.Tx) error {
		docs, err := store.List[store.ElasticIPDoc](tx, c.Org)
		for _, d := range docs {
			answer.ElasticIPs = append(answer.ElasticIPs, d.Body.ElasticIP)
		}
		return err
	})
	return answer, err
}

func (e *Elastics) get(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.ElasticIP
	err := e.store.Read(ctx, func(tx *store.Tx) error {
		d, err := Find(tx, c.Org, c.ID("id"))
		answer = d.Body.ElasticIP
		return err
	})
	return answer, err
}

func whole(h *cloud.ElasticHealthcheck) *cloud.ElasticHealthcheck {
	if h == nil {
		return nil
	}
	full := h.WithDefaults()
	return &full
}

func (e *Elastics) create(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.CreateElasticIPRequest)
	return e.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d := Doc{ID: cloud.NewID(), Org: c.Org, Generation: 1}
		d.Body.ElasticIP = cloud.ElasticIP{
			ID: d.ID, AddressFamily: cloud.Inet4, Description: r.Description, Healthcheck: whole(r.Healthcheck), Labels: r.Labels,
		}
		d.Body.Attached, d.Body.Status = []store.ElasticPlace{}, string(machine.Initial)
		kind := store.AddressElastic
		if r.AddressFamily == cloud.Inet6 {
			d.Body.AddressFamily, kind = cloud.Inet6, store.AddressElastic6
		}
		address, err := tx.AllocateAddress(kind, string(d.ID))
		if err != nil {
			return operation.Plan{}, err
		}
		d.Body.Prefix = netip.PrefixFrom(address, address.BitLen())
		d.Body.IP = address.String()
		if kind == store.AddressElastic6 {
			d.Body.Prefix = netip.PrefixFrom(address, store.ElasticBits6)
			d.Body.IP = address.Next().String()
		}
		d.Body.CIDR = d.Body.Prefix.String()
		if d.Body.Number, err = tx.Allocate(store.NumberElastic, string(d.ID)); err != nil {
			return operation.Plan{}, err
		}
		// Attached to nothing it is nothing to any agent.
		return operation.Plan{Subject: d.Ref(), Generation: d.Generation, Done: true}, store.Put(tx, op, d)
	})
}

func (e *Elastics) delete(ctx context.Context, c api.Call) (any, error) {
	return e.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		if _, err := operation.Step(tx, &machine, d.Ref(), state(d), operation.Delete); err != nil {
			return operation.Plan{}, err
		}
		if err := tx.Delete(op, d.Ref()); err != nil {
			return operation.Plan{}, err
		}
		kind := store.AddressElastic
		if d.Body.AddressFamily == cloud.Inet6 {
			kind = store.AddressElastic6
		}
		err = errors.Join(tx.FreeAddress(kind, string(d.ID)), tx.Free(store.NumberElastic, string(d.ID)),
			e.gate.Supersede(tx, d.Ref(), op))
		// It was attached to nothing, or it could not have been deleted.
		return operation.Plan{Subject: d.Ref(), Done: true}, err
	})
}

func (e *Elastics) update(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.UpdateElasticIPRequest)
	r.Healthcheck = whole(r.Healthcheck) // as it is stored, so that the same is no change
	return e.change(ctx, c, func(now cloud.ElasticIP) (cloud.ElasticIP, bool, error) {
		return capi.Overlay(now, r, c.Keys)
	})
}

func (e *Elastics) reset(ctx context.Context, c api.Call) (any, error) {
	return e.change(ctx, c, func(now cloud.ElasticIP) (cloud.ElasticIP, bool, error) {
		return capi.Clear(now, c.Args["field"])
	})
}

// change stores a changed elastic IP under its next generation. With another
// check nothing is known of its instances any more.
func (e *Elastics) change(ctx context.Context, c api.Call, fn func(cloud.ElasticIP) (cloud.ElasticIP, bool, error)) (any, error) {
	return e.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Find(tx, c.Org, c.ID("id"))
		if err != nil {
			return operation.Plan{}, err
		}
		plan := operation.Plan{Subject: d.Ref()}
		result, changed, err := fn(d.Body.ElasticIP)
		if err != nil || !changed {
			plan.Unchanged = err == nil
			return plan, err
		}
		if sameCheck(d.Body.Healthcheck, result.Healthcheck) {
			// Nothing that an agent would know of.
			d.Body.ElasticIP, plan.Done = result, true
			return plan, store.Put(tx, op, d)
		}
		r, err := operation.Step(tx, &machine, d.Ref(), state(d), operation.Update)
		if err != nil {
			return plan, err
		}
		before := d.Body
		d.Body.ElasticIP, d.Body.Status = result, string(r.State)
		d.Body.Attached = append([]store.ElasticPlace{}, before.Attached...)
		for i := range d.Body.Attached {
			p := &d.Body.Attached[i]
			p.Generation++
			p.Verdict = store.VerdictInitial
		}
		d.Generation++
		plan.Generation = d.Generation
		if plan.Done = len(d.Body.Attached) == 0; plan.Done {
			d.Body.Status = string(operation.StateRunning)
		}
		return plan, e.revise(tx, op, before, d)
	})
}

func sameCheck(a, b *cloud.ElasticHealthcheck) bool {
	if a == nil || b == nil {
		return a == b
	}
	skip := func(h *cloud.ElasticHealthcheck) bool { return h.TLSSkipVerify != nil && *h.TLSSkipVerify }
	x, y := *a, *b
	x.TLSSkipVerify, y.TLSSkipVerify = nil, nil
	return x == y && skip(a) == skip(b)
}
