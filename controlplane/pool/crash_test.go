// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/store"
)

// TestEveryCommitIsACrashPoint plays a customer's story once a commit, with the
// control plane killed right after that commit and started again. The customer
// repeats a request that got no answer, as clients do, with its signature. The
// story always ends the same, and leaves nothing.
func TestEveryCommitIsACrashPoint(t *testing.T) {
	template := filepath.Join(t.TempDir(), "template.db")
	s, err := store.Open(t.Context(), template)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Init(t.Context(), "ch-gva-2", func(tx *store.Tx) error { return zoneOf(tx, 3) })
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	zone, err := os.ReadFile(template)
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(1)
	for dies := true; dies && !t.Failed(); n += stride {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := newWitness(t, zone, n)
			w.story()
			w.nothingIsLeft()
			dies = w.deaths > 0
		})
	}
	// The last story was not cut short: it has fewer commits than n.
	t.Logf("fewer than %d commits", n-stride)
	if n < 40 {
		t.Error("the story has become too short")
	}
}

// witness is a customer whose control plane dies once.
type witness struct {
	*bench
	deaths int
	steps  int
}

func newWitness(t *testing.T, zone []byte, dies uint64) *witness {
	w := &witness{bench: unborn(t)}
	w.clock = time.Now
	if err := os.WriteFile(w.path, zone, 0o600); err != nil {
		t.Fatal(err)
	}
	w.begin(store.WithDeath(dies))
	if err := w.tryConnect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.close() })
	return w
}

// begin starts a control plane. It waits for flows that end, but not for long.
func (w *witness) begin(options ...store.Option) {
	w.t.Helper()
	w.openFront(options...)
	w.pools.Linger = 30 * time.Millisecond
}

// dead says that err is the end of the control plane, and starts another.
func (w *witness) dead(err error) bool {
	w.t.Helper()
	if !errors.Is(err, store.ErrDead) {
		if err != nil {
			w.t.Fatal(err)
		}
		return false
	}
	w.deaths++
	w.close()
	w.begin()
	if err := errors.Join(w.instances.Recover(w.t.Context()), w.tryConnect()); err != nil {
		w.t.Fatal(err)
	}
	return true
}

// ask makes a request until it is answered, and follows its operation to the
// end.
func (w *witness) ask(id string, body any, args ...string) cloud.ID {
	w.t.Helper()
	w.steps++
	c := api.Call{Operation: capi.Find(capi.Operations, id), Org: org, Body: body, Args: map[string]string{},
		Signature: fmt.Sprint("step ", w.steps), Arrived: w.now, Expires: w.now.Add(10 * time.Minute)}
	for i := 0; i < len(args); i += 2 {
		c.Args[args[i]] = args[i+1]
	}
	var op *cloud.Operation
	for op == nil {
		_, stored, _, ok, err := w.gate.Answer(w.t.Context(), c.Signature)
		switch {
		case w.dead(err):
			continue
		case ok:
			if err := json.Unmarshal(stored, &op); err != nil {
				w.t.Fatal(err)
			}
			continue
		}
		answer, err := w.Handlers[id](w.t.Context(), c)
		if !w.dead(err) {
			op = answer.(*cloud.Operation)
		}
	}
	w.follow(op)
	return op.Reference.ID
}

// follow waits until an operation has ended in success.
func (w *witness) follow(op *cloud.Operation) {
	w.t.Helper()
	for limit := time.Now().Add(waits); !op.State.Final(); {
		if w.dead(w.hosts.Deliver(w.t.Context())) {
			continue
		}
		ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Millisecond)
		next, err := w.gate.Wait(ctx, op.ID)
		cancel()
		if !w.dead(err) {
			op = next
		}
		if time.Now().After(limit) {
			w.t.Fatalf("still pending: %+v", *op)
		}
	}
	if op.State != cloud.OperationSuccess {
		w.t.Fatalf("step %d: %+v", w.steps, *op)
	}
}

// look reads until it is answered.
func (w *witness) look(fn func(*store.Tx) error) {
	w.t.Helper()
	for w.dead(w.store.Read(w.t.Context(), fn)) {
	}
}

func (w *witness) ids(pool cloud.ID) (ids []cloud.ID) {
	w.t.Helper()
	w.look(func(tx *store.Tx) error {
		members, err := Members(tx, pool)
		ids = nil
		for _, m := range members {
			ids = append(ids, m.ID)
		}
		return err
	})
	return ids
}

func (w *witness) story() {
	w.t.Helper()
	pool := w.ask("create-instance-pool", request(2))
	balancer := w.ask("create-load-balancer", &cloud.CreateLoadBalancerRequest{Name: "front"})
	w.ask("add-service-to-load-balancer", &cloud.AddServiceRequest{Name: "http", InstancePool: cloud.Ref{ID: pool}, Protocol: cloud.TCP,
		Strategy: cloud.RoundRobin, Port: 80, TargetPort: 80, Healthcheck: cloud.Healthcheck{Mode: cloud.CheckTCP, Port: 80}}, "id", string(balancer))
	w.size(pool, 2)
	w.ask("scale-instance-pool", &cloud.ScaleInstancePoolRequest{Size: 4}, "id", string(pool))
	w.size(pool, 4)
	first := string(w.ids(pool)[0])
	w.ask("stop-instance", nil, "id", first)
	w.ask("start-instance", nil, "id", first)
	w.ask("evict-instance-pool-members", &cloud.EvictInstancePoolMembersRequest{Instances: w.ids(pool)[1:2]}, "id", string(pool))
	w.ask("delete-instance", nil, "id", string(w.ids(pool)[2]))
	w.size(pool, 2)
	w.ask("scale-instance-pool", &cloud.ScaleInstancePoolRequest{Size: 1}, "id", string(pool))
	w.size(pool, 1)
	var service cloud.ID
	w.look(func(tx *store.Tx) error {
		all, err := store.List[store.ServiceDoc](tx, org)
		if err == nil && len(all) != 1 {
			err = fmt.Errorf("%d services", len(all))
		}
		if err == nil {
			service = all[0].ID
			if n := len(all[0].Body.Backends); n != 1 {
				w.t.Errorf("%d backends for 1 member", n)
			}
		}
		return err
	})
	w.ask("delete-load-balancer-service", nil, "id", string(balancer), "service-id", string(service))
	w.ask("delete-load-balancer", nil, "id", string(balancer))
	w.ask("delete-instance-pool", nil, "id", string(pool))
}

// size checks a pool, its members and what the hosts hold.
func (w *witness) size(pool cloud.ID, n int) {
	w.t.Helper()
	var d Doc
	w.look(func(tx *store.Tx) (err error) { d, err = Find(tx, org, pool); return err })
	if have := len(w.ids(pool)); d.Body.Size != n || have != n || d.Body.State != cloud.PoolRunning {
		w.t.Errorf("pool is %s, size %d with %d members; want %d", d.Body.State, d.Body.Size, have, n)
	}
	if have := w.hosts.Held(wire.KindInstance); have != n {
		w.t.Errorf("hosts hold %d instances, want %d", have, n)
	}
}

// nothingIsLeft: no row, no allocation, no pending operation, no task, nothing
// on a host.
func (w *witness) nothingIsLeft() {
	w.t.Helper()
	for w.dead(w.hosts.Deliver(w.t.Context())) {
	}
	for _, f := range w.hosts.Faults {
		w.t.Error(f)
	}
	for _, kind := range wire.Kinds() {
		if n := w.hosts.Held(kind); n > 0 && kind != wire.KindHost {
			w.t.Errorf("hosts still hold %d of kind %s", n, kind)
		}
	}
	w.eventually("no task is left", func() (none bool) {
		w.look(func(tx *store.Tx) error {
			n, err := tx.UnfinishedTasks()
			none = n == 0
			return err
		})
		return none
	})
	w.look(func(tx *store.Tx) error {
		pending, err := tx.Pending(store.Ref{})
		for _, op := range pending {
			w.t.Errorf("pending: %+v", op)
		}
		for _, kind := range []store.Kind{store.KindInstance, store.KindPool, store.KindLoadBalancer, store.KindService} {
			rows, e := tx.Rows(kind, "")
			err = errors.Join(err, e)
			for _, r := range rows {
				w.t.Errorf("left: %s %s, %s", r.Kind, r.ID, r.State)
			}
		}
		left, e := heldIn(tx)
		if len(left) > 0 {
			w.t.Errorf("still allocated: %v", left)
		}
		return errors.Join(err, e)
	})
}
