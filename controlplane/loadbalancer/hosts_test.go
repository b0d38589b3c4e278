// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"errors"
	"testing"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/dist"
	"cairn/controlplane/instance/hosttest"
	"cairn/controlplane/store"
)

// played are hosts that hold what the compiler gives them.
func played(b *bench) *hosttest.Hosts {
	b.Helper()
	h := hosttest.New("ch-gva-2")
	err := h.Connect(b.t.Context(), hosttest.Cairnd{Store: b.store, Settler: b.gate,
		Reported: func(context.Context, string, []dist.Report) error { return nil }})
	if err != nil {
		b.Fatal(err)
	}
	return h
}

func (b *bench) deliver(h *hosttest.Hosts) {
	b.Helper()
	if err := h.Deliver(b.t.Context()); err != nil {
		b.Fatal(err)
	}
}

// leaves asks the bench for the leave that package instance gives when members
// go, so that only this package's own can be missing.
func (b *bench) leaves(op cloud.ID, ids ...cloud.ID) {
	b.Helper()
	b.write(func(tx *store.Tx) error {
		var err error
		for _, kind := range []wire.Kind{wire.KindInstance, wire.KindPort, wire.KindAnnouncement, wire.KindMember, wire.KindClass, wire.KindPolicy} {
			err = errors.Join(err, tx.AddIntent(store.Intent{Operation: op, Class: kind.String(), Count: len(ids)}))
		}
		return errors.Join(err, tx.AddOperation(store.Operation{ID: op, Org: org, Command: "scale-instance-pool",
			Subject: store.Ref{Kind: store.KindPool, ID: b.pool}, State: cloud.OperationPending}))
	})
	b.goes(op, ids...)
}

// TestWhatHostsHold: hosts get a service with its first acknowledgement, let go
// of it with its last, and no removal is without leave: on LB nodes and on hosts
// that hold a service for its backends' sake.
func TestWhatHostsHold(t *testing.T) {
	b := newBench(t)
	b.write(func(tx *store.Tx) error {
		all, err := store.List[store.HypervisorDoc](tx, "")
		for _, d := range all {
			if d.Body.Number != 1 {
				d.Body.Roles = []string{store.RoleCompute}
				err = errors.Join(err, store.Put(tx, "", d))
			}
		}
		return err
	})
	h := played(b)
	b.runs(6) // two each
	nlb := b.create("nlb")
	b.deliver(h)
	if n := h.Held(wire.KindService) + h.Held(wire.KindBackend); n != 0 {
		t.Errorf("hosts hold %d items of a load balancer without services", n)
	}
	id, add := b.add(nlb, web(b.pool, "web", 80))
	_, second := b.add(nlb, web(b.pool, "tls", 443))
	hv2 := h.Host("hv2")
	hv2.Silent = true
	b.deliver(h)
	if b.stored(add).State != cloud.OperationPending {
		t.Errorf("with a silent host: %+v", b.stored(add))
	}
	hv2.Silent = false
	b.deliver(h)
	for _, op := range []*cloud.Operation{add, second} {
		if b.stored(op).State != cloud.OperationSuccess {
			t.Errorf("%+v", b.stored(op))
		}
	}
	count := func(services, backends, checks int) {
		t.Helper()
		if s, k, c := h.Held(wire.KindService), h.Held(wire.KindBackend), h.Held(wire.KindCheck); s != services || k != backends || c != checks {
			t.Errorf("hosts hold %d services, %d backends, %d checks, want %d, %d, %d", s, k, c, services, backends, checks)
		}
		if len(h.Faults) > 0 {
			t.Errorf("faults: %q", h.Faults)
		}
	}
	count(6, 36, 12)
	b.leaves(cloud.NewID(), b.members[0]) // hv1 has another, and is an LB node
	b.deliver(h)
	count(6, 30, 10)
	b.leaves(cloud.NewID(), b.members[0], b.members[3]) // both of hv2
	b.deliver(h)
	count(4, 12, 6)
	op := b.do("delete-load-balancer-service", nil, "id", string(nlb), "service-id", string(id))
	b.deliver(h)
	count(2, 6, 3)
	if n := h.Held(wire.KindAnnouncement); b.stored(op).State != cloud.OperationSuccess || n != 3+1 {
		t.Errorf("%d announcements, %+v", n, b.stored(op))
	}
	op = b.do("delete-load-balancer", nil, "id", string(nlb))
	b.deliver(h)
	count(0, 0, 0)
	if n := h.Held(wire.KindAnnouncement); b.stored(op).State != cloud.OperationSuccess || n != 3 {
		t.Errorf("%d announcements, %+v", n, b.stored(op))
	}
	if left := b.left(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
