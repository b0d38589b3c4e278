// SPDX-License-Identifier: Apache-2.0

// Package stream has no code of its own: its tests bring both real ends of the
// stream together, the control plane's dist and the agent's sync and table. The
// agents here only store: what is in their tables counts as programmed.
package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	gosync "sync"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/dist"
	"cairn/controlplane/hypervisor"
	"cairn/controlplane/operation"
	"cairn/controlplane/pki"
	"cairn/controlplane/store"
	"cairn/dataplane/sync"
	"cairn/dataplane/table"
)

// zone is a control plane without an API.
type zone struct {
	*testing.T
	store  *store.Store
	rows   *hypervisor.Hypervisors
	desk   *pki.Desk
	ledger string
	addr   string
	server *dist.Server
	stop   func()
}

func newZone(t *testing.T) *zone {
	t.Helper()
	z := &zone{T: t, ledger: filepath.Join(t.TempDir(), "ledger"), addr: "127.0.0.1:0"}
	log := slog.New(slog.DiscardHandler)
	var err error
	if z.store, err = store.Open(t.Context(), filepath.Join(t.TempDir(), "zone.db")); err != nil {
		t.Fatal(err)
	}
	if _, err = z.store.Init(t.Context(), "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	issuer, err := pki.Open(t.TempDir(), "ch-gva-2", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	z.rows = hypervisor.New(z.store, log)
	z.desk = &pki.Desk{Issuer: issuer, Registry: z.rows.Registry(), Now: time.Now}
	z.serve()
	t.Cleanup(func() {
		z.stop()
		z.store.Close()
	})
	return z
}

// serve starts the control plane, at the address it had before.
func (z *zone) serve() {
	z.Helper()
	log := slog.New(slog.DiscardHandler)
	server, err := dist.New(dist.Config{
		Store: z.store, Desk: z.desk, Events: hypervisor.Agents{Hypervisors: z.rows},
		Settler: operation.New(z.store, log), Log: log, Ledger: z.ledger,
	})
	if err != nil {
		z.Fatal(err)
	}
	l, err := net.Listen("tcp", z.addr)
	if err != nil {
		z.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running gosync.WaitGroup
	running.Go(func() { z.failed(server.Run(ctx)) })
	running.Go(func() { z.failed(server.Serve(ctx, l)) })
	z.server, z.addr = server, l.Addr().String()
	z.stop = func() {
		cancel()
		running.Wait()
	}
}

func (z *zone) failed(err error) {
	if err != nil {
		z.Error(err)
	}
}

func (z *zone) eventually(what string, ok func() bool) {
	z.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			z.Fatalf("in vain: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// agent is a real one without maps.
type agent struct {
	*zone
	name   string
	folder string
	token  string
	table  *table.Table
	client *sync.Client
	mu     gosync.Mutex
	faults map[wire.Key]string // that programming meets
	pause  gosync.RWMutex      // held to stop programming
	end    func()
}

func (z *zone) agent(name string, roles ...string) *agent {
	z.Helper()
	if _, err := z.rows.Add(z.Context(), name, "rack-"+name); err != nil {
		z.Fatal(err)
	}
	token, err := z.desk.Token(z.Context(), name)
	if err != nil {
		z.Fatal(err)
	}
	a := &agent{zone: z, name: name, folder: z.TempDir(), token: token.String(), faults: map[wire.Key]string{}}
	a.start(roles...)
	z.Cleanup(func() { a.end() })
	return a
}

// start runs the agent with an empty table, as after the loss of its state.
func (a *agent) start(roles ...string) {
	a.Helper()
	var err error
	if a.table, err = table.New(table.Mark{}); err != nil {
		a.Fatal(err)
	}
	var n byte
	_, _ = fmt.Sscanf(a.name, "hv%d", &n)
	a.client = sync.New(sync.Config{
		Control: a.addr, Folder: a.folder, Token: a.token, Table: a.table, Log: slog.New(slog.DiscardHandler),
		Wait: 20 * time.Millisecond,
		Inventory: func() sync.Inventory {
			return sync.Inventory{Name: a.name, Endpoint: netip.AddrFrom4([4]byte{10, 64, 0, n}).String(), MTU: 1600, Roles: roles}
		},
	})
	watcher, err := a.table.Watch()
	if err != nil {
		a.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running gosync.WaitGroup
	running.Go(func() { a.client.Run(ctx) })
	running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-watcher.Wake():
				a.program(watcher)
			}
		}
	})
	a.end = func() {
		cancel()
		running.Wait()
		a.table.Close()
		a.end = func() {}
	}
}

func (a *agent) program(w *table.Watcher) {
	a.pause.RLock()
	defer a.pause.RUnlock()
	view := a.table.View()
	a.mu.Lock()
	defer a.mu.Unlock()
	var faults []table.Fault
	for _, key := range w.Changed(view) {
		if reason, ok := a.faults[key]; ok {
			faults = append(faults, table.Fault{Key: key, Reason: reason})
		}
	}
	a.client.Programmed(view.Mark(), 1, faults)
}

func (a *agent) count(kind wire.Kind) int { return a.table.View().Count(kind) }

// write commits rows under an operation of its own.
func (z *zone) write(fn func(tx *store.Tx, op cloud.ID) error) cloud.ID {
	z.Helper()
	id := cloud.NewID()
	_, err := z.store.Write(context.Background(), func(tx *store.Tx) error {
		return errors.Join(tx.AddOperation(store.Operation{
			ID: id, Org: "org", Command: "test", Subject: store.Ref{Kind: "test", ID: id},
			State: cloud.OperationPending, Created: tx.Now(), Deadline: tx.Now().Add(time.Minute),
		}), fn(tx, id))
	})
	if err != nil {
		z.Fatal(err)
	}
	return id
}

func (z *zone) operation(id cloud.ID) store.Operation {
	z.Helper()
	var op store.Operation
	err := z.store.Read(context.Background(), func(tx *store.Tx) (err error) { op, err = tx.Operation("", id); return err })
	if err != nil {
		z.Fatal(err)
	}
	return op
}

func (z *zone) succeeds(id cloud.ID) {
	z.Helper()
	z.eventually("operation succeeds", func() bool { return z.operation(id).State == cloud.OperationSuccess })
}

func (z *zone) group(port uint16) cloud.ID {
	z.Helper()
	return z.write(func(tx *store.Tx, op cloud.ID) error {
		doc, err := store.Get[store.SecurityGroupDoc](tx, "", "group")
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		doc.ID, doc.Org, doc.Body.ID, doc.Body.Name, doc.Body.Number = "group", "org", "group", "group", 1
		doc.Body.Rules = []cloud.SecurityGroupRule{{
			ID: "rule", FlowDirection: cloud.Ingress, Protocol: cloud.TCP, Network: "0.0.0.0/0", StartPort: port, EndPort: port,
		}}
		doc.Body.RuleNumbers = map[cloud.ID]uint32{"rule": 1}
		return store.Put(tx, op, doc)
	})
}

func (z *zone) instance(n int, host uint32) cloud.ID {
	z.Helper()
	return z.write(func(tx *store.Tx, op cloud.ID) error {
		doc := store.Doc[store.InstanceDoc]{ID: cloud.ID(fmt.Sprint("instance-", n)), Org: "org", Generation: 1}
		doc.Body.ID, doc.Body.Name, doc.Body.State = doc.ID, string(doc.ID), cloud.InstanceRunning
		doc.Body.HostNumber, doc.Body.Port, doc.Body.Class, doc.Body.Wanted = host, uint32(n), 1, store.WantedRunning
		doc.Body.Driver, doc.Body.Address = "netns", netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})
		doc.Body.MAC = fmt.Sprintf("02:ca:00:00:00:%02x", n)
		doc.Body.SecurityGroups = []cloud.Ref{{ID: "group"}}
		return store.Put(tx, op, doc)
	})
}

func (z *zone) deleted(numbers ...int) cloud.ID {
	z.Helper()
	return z.write(func(tx *store.Tx, op cloud.ID) error {
		err := tx.AddIntent(store.Intent{Operation: op, Class: "instance", Count: len(numbers)})
		for _, n := range numbers {
			err = errors.Join(err, tx.Delete(op, store.Ref{Kind: store.KindInstance, ID: cloud.ID(fmt.Sprint("instance-", n))}))
		}
		return err
	})
}

func TestThreeAgents(t *testing.T) {
	z := newZone(t)
	agents := []*agent{z.agent("hv1"), z.agent("hv2"), z.agent("hv3")}
	for _, a := range agents {
		z.eventually("all know all", func() bool { return a.count(wire.KindHost) == len(agents) })
	}
	z.succeeds(z.group(80))
	for n := range 15 {
		z.succeeds(z.instance(n+1, uint32(n%3+1)))
	}
	if n := agents[0].count(wire.KindInstance); n != 5 {
		t.Fatalf("hv1 holds %d instances", n)
	}

	t.Run("a stopped agent is waited for and named", func(t *testing.T) {
		agents[1].pause.Lock()
		op := z.group(443)
		z.eventually("hv2 is named", func() bool { return z.server.Waiting(op) == "hv2" })
		if got := z.operation(op).State; got != cloud.OperationPending {
			t.Errorf("state %s", got)
		}
		agents[1].pause.Unlock()
		z.succeeds(op)
	})

	t.Run("a refusal fails its operation in the agent's words", func(t *testing.T) {
		agents[2].mu.Lock()
		agents[2].faults[wire.Key{Kind: wire.KindPolicy, ID: "1"}] = "replace rules: no space left"
		agents[2].mu.Unlock()
		op := z.group(8080)
		z.eventually("the operation fails", func() bool { return z.operation(op).State == cloud.OperationFailure })
		if got := z.operation(op); got.Reason != cloud.ReasonFault || got.Message != "hv3: policy/1: replace rules: no space left" {
			t.Errorf("%s: %s", got.Reason, got.Message)
		}
		agents[2].mu.Lock()
		clear(agents[2].faults)
		agents[2].mu.Unlock()
		z.succeeds(z.group(80))
	})

	t.Run("a restart of the control plane sends nothing", func(t *testing.T) {
		z.stop()
		z.serve()
		z.eventually("all are back", func() bool { return z.server.Stats.InStep.Load() == 3 })
		if n := z.server.Stats.Snapshots.Load() + z.server.Stats.Items.Load(); n != 0 {
			t.Errorf("%d snapshots and items", n)
		}
		z.succeeds(z.group(443))
	})

	t.Run("an agent that lost its state gets a snapshot", func(t *testing.T) {
		agents[0].end()
		agents[0].start()
		z.eventually("hv1 holds all again", func() bool { return agents[0].count(wire.KindInstance) == 5 })
		if n := z.server.Stats.Snapshots.Load(); n != 1 {
			t.Errorf("%d snapshots", n)
		}
	})

	t.Run("the last of a kind goes while the control plane is away", func(t *testing.T) {
		z.stop()
		op := z.deleted(1, 4, 7, 10, 13)
		z.serve()
		z.succeeds(op)
		if n := agents[0].count(wire.KindInstance) + agents[0].count(wire.KindPolicy); n != 0 {
			t.Errorf("hv1 holds %d instances and policies", n)
		}
		if reason, n := agents[0].table.Alarm(); n != 0 {
			t.Errorf("%d refusals: %s", n, reason)
		}
		if n := z.server.Stats.Snapshots.Load(); n != 0 {
			t.Errorf("%d snapshots", n)
		}
	})

	t.Run("a snapshot that empties a kind is refused", func(t *testing.T) {
		z.stop()
		z.ledger = "" // the control plane forgets what it has told
		before := agents[1].table.View()
		z.deleted(2, 5, 8, 11, 14)
		z.serve()
		z.eventually("hv2 refuses", func() bool { _, n := agents[1].table.Alarm(); return n > 0 })
		after := agents[1].table.View()
		if after.Digests() != before.Digests() || after.Count(wire.KindInstance) != 5 {
			t.Error("the table has changed")
		}
	})
}
