// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

// TestEveryCommitIsACrashPoint plays the life of a service, with its pool, its
// verdicts and its hosts, once a commit: each time with a process that is dead
// from that commit on, and another one that takes over. What was interrupted is
// asked for, reported or found again, as clients, agents and leases do. The
// table comes out the same, and nothing is left.
func TestEveryCommitIsACrashPoint(t *testing.T) {
	want := newLife(t, 0).play()
	n := uint64(1)
	for deaths := 1; deaths > 0 && !t.Failed(); n++ {
		l := newLife(t, n)
		got := l.play()
		if deaths = l.deaths; !slices.Equal(got, want) {
			t.Errorf("killed after commit %d: %d slots moved, predecessors %v instead of %v", n, slots.Moves(got, want), got.Draining(), want.Draining())
		}
		if left := l.left(); len(left) != 0 {
			t.Errorf("killed after commit %d: left %v", n, left)
		}
	}
	t.Logf("%d commits", n-2)
	if n < 18 {
		t.Errorf("only %d commits: the life has become too short", n-2)
	}
}

// life is a service whose control plane dies once.
type life struct {
	*bench
	deaths int
	asked  int
	nlb    cloud.ID
	id     cloud.ID
}

func newLife(t *testing.T, dies uint64) *life {
	l := &life{bench: newBench(t)}
	l.runs(4)
	if dies > 0 {
		l.begin(store.WithDeath(dies))
	}
	return l
}

// step does something until it is done, whoever dies meanwhile.
func (l *life) step(fn func() error) {
	l.Helper()
	for {
		err := fn()
		if err == nil { // what is done in the background tells nobody
			err = l.store.Read(l.t.Context(), func(tx *store.Tx) error { return nil })
		}
		if err == nil {
			return
		}
		if !errors.Is(err, store.ErrDead) {
			l.Fatal(err)
		}
		l.deaths++
		l.begin()
		if err := l.takeUp(l.t.Context()); err != nil {
			l.Fatal(err)
		}
	}
}

func (l *life) write(fn func(*store.Tx) error) {
	l.Helper()
	l.step(func() error {
		_, err := l.store.Write(l.t.Context(), fn)
		return err
	})
}

// ask repeats a request until it is answered, with its signature, and has the
// agents acknowledge it.
func (l *life) ask(id string, body any, args ...string) (op *cloud.Operation) {
	l.Helper()
	l.asked++
	c := l.request(id, body, args...)
	c.Signature, c.Arrived, c.Expires = fmt.Sprint("request ", l.asked), l.now, l.now.Add(10*time.Minute)
	l.step(func() error {
		_, stored, _, ok, err := l.gate.Answer(l.t.Context(), c.Signature)
		if err != nil || ok {
			return errors.Join(err, json.Unmarshal(stored, &op))
		}
		answer, err := l.Handlers()[id](l.t.Context(), c)
		if err == nil {
			op = answer.(*cloud.Operation)
		}
		return err
	})
	l.step(func() error { return l.gate.Settled(l.t.Context(), op.ID, operation.Outcome{OK: true}) })
	return op
}

// reports says something of a backend and lets it be committed.
func (l *life) reports(say func()) {
	l.Helper()
	l.step(func() error {
		say()
		l.pass(pace)
		return nil
	})
}

func (l *life) finds(name string, unreachable bool) {
	l.Helper()
	l.write(func(tx *store.Tx) error {
		d, err := store.Named[store.HypervisorDoc](tx, "", name)
		if err != nil || d.Body.Unreachable == unreachable {
			return err
		}
		d.Body.Unreachable = unreachable
		return errors.Join(store.Put(tx, "", d), l.HostsChanged(tx, []store.Doc[store.HypervisorDoc]{d}))
	})
}

func (l *life) play() slots.Table {
	l.Helper()
	l.nlb = l.ask("create-load-balancer", &cloud.CreateLoadBalancerRequest{Name: "nlb"}).Reference.ID
	of := []string{"id", string(l.nlb)}
	l.ask("add-service-to-load-balancer", web(l.pool, "web", 80), of...)
	l.ask("add-service-to-load-balancer", web(l.pool, "tls", 443), of...)
	l.id = l.lbService("web")
	this := append(of, "service-id", string(l.id))

	l.reports(func() {
		l.says(l.id, 1, store.VerdictSuccess)
		l.says(l.id, 2, store.VerdictFailure)
	})
	l.finds("hv3", true)
	fresh := cloud.NewID()
	l.write(func(tx *store.Tx) error {
		if _, err := tx.Row(store.KindInstance, fresh); err == nil {
			return nil
		}
		return errors.Join(l.arrives(tx, fresh), l.PoolChanged(l.t.Context(), tx, l.pool, ""))
	})
	l.reports(func() {
		for _, one := range l.service(l.id).Body.Backends {
			if one.Instance == fresh {
				l.says(l.id, one.Number, store.VerdictSuccess)
			}
		}
	})
	l.ask("update-load-balancer-service", &cloud.UpdateServiceRequest{Strategy: cloud.SourceHash}, this...)
	l.finds("hv3", false)
	l.reports(func() {
		if l.table(l.id).Draining()[2] > 0 {
			s := l.service(l.id)
			l.report(2, wire.KindSlots, s.Body.Number, 2, s.Body.SlotsGeneration, drained)
		}
	})
	for _, closed := range []bool{false, true} {
		l.write(func(tx *store.Tx) error {
			d, err := store.Get[store.InstanceDoc](tx, org, l.members[0])
			if err != nil || !d.Body.Leaving.IsZero() && d.Body.Closed == closed {
				return err
			}
			d.Body.Leaving, d.Body.Closed = l.now, closed
			return errors.Join(store.Put(tx, "", d), l.PoolChanged(l.t.Context(), tx, l.pool, ""))
		})
	}
	l.reports(func() {
		if len(l.drainsOf()) > 0 {
			l.empty(l.id, 1)
		}
	})
	l.write(func(tx *store.Tx) error {
		if _, err := tx.Row(store.KindInstance, l.members[0]); errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return errors.Join(l.departs(tx, "", l.members[0]), l.PoolChanged(l.t.Context(), tx, l.pool, ""))
	})
	table := l.byAddress(l.table(l.id))
	l.ask("delete-load-balancer-service", nil, this...)
	l.ask("delete-load-balancer", nil, of...)
	return table
}

// byAddress names owners by their addresses: which service gets the lower
// number for a new member is by their ids, and those are drawn.
func (l *life) byAddress(t slots.Table) slots.Table {
	l.Helper()
	last := map[uint32]uint32{}
	for _, one := range l.service(l.id).Body.Backends {
		last[one.Number] = uint32(one.Address.As4()[3]) + 1
	}
	named := make(slots.Table, len(t))
	for i, s := range t {
		named[i] = slots.Make(last[s.Cur()], last[s.Prev()])
	}
	return named
}

func (l *life) lbService(name string) cloud.ID {
	l.Helper()
	for _, s := range l.lb().Services {
		if s.Name == name {
			return s.ID
		}
	}
	l.Fatalf("no service %s", name)
	return ""
}

func (l *life) lb() cloud.LoadBalancer { return l.bench.nlb(l.nlb) }
