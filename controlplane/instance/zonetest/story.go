// SPDX-License-Identifier: Apache-2.0

package zonetest

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
	"cairn/cloud/wire"
	"cairn/controlplane/dist"
	"cairn/controlplane/instance/hosttest"
	"cairn/controlplane/store"
)

// waits bounds how long an operation may take when its control plane dies once.
const waits = 30 * time.Second

// Witness is a customer whose control plane dies once. It repeats a request that
// got no answer, as clients do, with its signature.
type Witness struct {
	*Zone
	deaths int
	steps  int
}

// EveryCommit plays a story once a commit, with the control plane killed right
// after that commit and started again, until a story is not cut short any more.
// It returns how many commits a story has. The story always ends the same, and
// leaves nothing.
func EveryCommit(t *testing.T, hypervisors int, story func(*Witness)) int {
	t.Helper()
	template := filepath.Join(t.TempDir(), "template.db")
	s, err := store.Open(t.Context(), template)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Init(t.Context(), "ch-gva-2", func(tx *store.Tx) error { return Found(tx, hypervisors) })
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	zone, err := os.ReadFile(template)
	if err != nil {
		t.Fatal(err)
	}
	n := 1
	for dies := true; dies && !t.Failed(); n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := &Witness{Zone: &Zone{T: t, Path: filepath.Join(t.TempDir(), "cairn.db"), Hosts: hosttest.New("ch-gva-2"), Now: time.Now()}}
			if err := os.WriteFile(w.Path, zone, 0o600); err != nil {
				t.Fatal(err)
			}
			w.Open(store.WithDeath(uint64(n)))
			t.Cleanup(func() { w.Store.Close() })
			if err := w.Connect(); err != nil {
				t.Fatal(err)
			}
			story(w)
			w.nothingIsLeft()
			dies = w.deaths > 0
		})
	}
	return n - 2
}

// dead says that err is the end of the control plane, and starts another.
func (w *Witness) dead(err error) bool {
	w.T.Helper()
	if !errors.Is(err, store.ErrDead) {
		if err != nil {
			w.T.Fatal(err)
		}
		return false
	}
	w.deaths++
	if err := w.Restart(); err != nil {
		w.T.Fatal(err)
	}
	return true
}

// Ask makes a request until it is answered, follows its operation to the end, and
// returns the object.
func (w *Witness) Ask(id string, body any, args ...string) cloud.ID {
	w.T.Helper()
	w.steps++
	c := Request(Org, id, body, args...)
	c.Signature, c.Arrived, c.Expires = fmt.Sprint("step ", w.steps), w.Now, w.Now.Add(10*time.Minute)
	var op *cloud.Operation
	for op == nil {
		_, stored, _, ok, err := w.Gate.Answer(w.T.Context(), c.Signature)
		switch {
		case w.dead(err):
			continue
		case ok:
			if err := json.Unmarshal(stored, &op); err != nil {
				w.T.Fatal(err)
			}
			continue
		}
		answer, err := w.Handlers[id](w.T.Context(), c)
		if !w.dead(err) {
			op = answer.(*cloud.Operation)
		}
	}
	w.follow(op)
	return op.Reference.ID
}

// follow waits until an operation has ended in success.
func (w *Witness) follow(op *cloud.Operation) {
	w.T.Helper()
	for limit := time.Now().Add(waits); !op.State.Final(); {
		if w.dead(w.Hosts.Deliver(w.T.Context())) {
			continue
		}
		ctx, cancel := context.WithTimeout(w.T.Context(), 10*time.Millisecond)
		next, err := w.Gate.Wait(ctx, op.ID)
		cancel()
		if !w.dead(err) {
			op = next
		}
		if time.Now().After(limit) {
			w.T.Fatalf("still pending: %+v", *op)
		}
	}
	if op.State != cloud.OperationSuccess {
		w.T.Fatalf("step %d: %+v", w.steps, *op)
	}
}

// Look reads until it is answered.
func (w *Witness) Look(fn func(*store.Tx) error) {
	w.T.Helper()
	for w.dead(w.Store.Read(w.T.Context(), fn)) {
	}
}

// Tell reports a check until it is committed. A host whose stream has ended says
// it again on the next one.
func (w *Witness) Tell(host string, key wire.Key, generation uint64, state string) {
	w.T.Helper()
	reports := []dist.Report{{Kind: key.Kind, Key: key.ID, Generation: generation, State: state}}
	for again := true; again; {
		if err := w.Elastics.Reported(w.T.Context(), host, reports); err != nil {
			w.T.Fatal(err)
		}
		again = w.dead(w.Elastics.Flush(w.T.Context()))
	}
	for w.dead(w.Hosts.Deliver(w.T.Context())) {
	}
}

// nothingIsLeft: no row, no allocation, no pending operation, nothing on a host.
func (w *Witness) nothingIsLeft() {
	w.T.Helper()
	for w.dead(w.Hosts.Deliver(w.T.Context())) {
	}
	w.NoFaults()
	for _, kind := range wire.Kinds() {
		if n := w.Hosts.Held(kind); n > 0 && kind != wire.KindHost {
			w.T.Errorf("hosts still hold %d of kind %s", n, kind)
		}
	}
	w.Look(func(tx *store.Tx) error {
		pending, err := tx.Pending(store.Ref{})
		for _, op := range pending {
			w.T.Errorf("pending: %+v", op)
		}
		for _, kind := range []store.Kind{store.KindInstance, store.KindPrivateNetwork, store.KindElasticIP} {
			rows, e := tx.Rows(kind, "")
			err = errors.Join(err, e)
			for _, r := range rows {
				w.T.Errorf("left: %s %s, %s", r.Kind, r.ID, r.State)
			}
		}
		left, e := held(tx)
		if len(left) > 0 {
			w.T.Errorf("still allocated: %v", left)
		}
		return errors.Join(err, e)
	})
}
