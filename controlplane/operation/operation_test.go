// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/controlplane/api"
	"cairn/controlplane/fsm"
	"cairn/controlplane/program"
	"cairn/controlplane/store"
)

const org = cloud.ID("0c000000-0000-4000-8000-000000000001")

// bench is a gate over a store of its own, with one noun that notes what it is
// told.
type bench struct {
	t testing.TB
	*Gate
	path string

	mu  sync.Mutex
	now time.Time

	told []string
}

func newBench(t testing.TB) *bench {
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "cairn.db"), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	s := b.open()
	if _, err := s.Init(t.Context(), "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	b.Gate = New(s, slog.New(slog.DiscardHandler), Noun{
		Kind: store.KindLoadBalancer,
		Settle: func(_ *store.Tx, op store.Operation, e fsm.Event, o Outcome) error {
			b.told = append(b.told, fmt.Sprintf("%s %s %v", op.Command, e, o.OK))
			return nil
		},
	}, Noun{Kind: store.KindPool, ByStatus: true})
	return b
}

func (b *bench) open() *store.Store {
	s, err := store.Open(b.t.Context(), b.path, store.WithClock(b.clock))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { s.Close() })
	return s
}

func (b *bench) clock() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

func (b *bench) pass(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(d)
}

// join lets a hypervisor join, so that there is somebody to be waited for.
func (b *bench) join() {
	b.t.Helper()
	id := cloud.NewID()
	_, err := b.store.Write(b.t.Context(), func(tx *store.Tx) error {
		return store.Put(tx, "", store.Doc[store.HypervisorDoc]{ID: id,
			Body: store.HypervisorDoc{ID: id, Name: "hv1", Number: 1, Joined: true}})
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) call(command string) api.Call {
	return api.Call{
		Operation: capi.Find(capi.Operations, command), Org: org, Key: "EXO1", RequestID: "r1", Source: "192.0.2.1",
		Signature: "sig " + string(cloud.NewID()), Arrived: b.clock(), Expires: b.clock().Add(10 * time.Minute),
		Keys: map[string]json.RawMessage{"name": json.RawMessage(`"nlb"`), "user-data": json.RawMessage(`"c2VjcmV0"`)},
	}
}

// create accepts a new load balancer.
func (b *bench) create(c api.Call, change func(*Plan)) (*cloud.Operation, error) {
	return b.Accept(b.t.Context(), c, func(tx *store.Tx, op cloud.ID) (Plan, error) {
		id := cloud.NewID()
		d := store.Doc[store.LoadBalancerDoc]{ID: id, Org: org, Generation: 1, Body: store.LoadBalancerDoc{
			LoadBalancer: cloud.LoadBalancer{ID: id, Name: "nlb " + string(id)}}}
		plan := Plan{Subject: d.Ref(), Generation: 1}
		if change != nil {
			change(&plan)
		}
		return plan, store.Put(tx, op, d)
	})
}

func (b *bench) mustCreate(change func(*Plan)) *cloud.Operation {
	b.t.Helper()
	op, err := b.create(b.call("create-load-balancer"), change)
	if err != nil {
		b.t.Fatal(err)
	}
	return op
}

func (b *bench) stored(id cloud.ID) store.Operation {
	b.t.Helper()
	var op store.Operation
	b.read(func(tx *store.Tx) (err error) { op, err = tx.Operation("", id); return err })
	return op
}

func (b *bench) read(fn func(*store.Tx) error) {
	b.t.Helper()
	if err := b.store.Read(b.t.Context(), fn); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) want(id cloud.ID, state cloud.OperationState, reason cloud.Reason, message string) {
	b.t.Helper()
	op := b.stored(id)
	if op.State != state || op.Reason != reason || !strings.Contains(op.Message, message) {
		b.t.Errorf("operation is %s, %q, %q; want %s, %q, %q", op.State, op.Reason, op.Message, state, reason, message)
	}
}

func TestAcceptIsOneTransaction(t *testing.T) {
	b := newBench(t)
	b.join()
	before := b.store.Commits()
	c := b.call("create-load-balancer")
	op, err := b.create(c, func(p *Plan) {
		p.Intents = []store.Intent{{Class: "port", Count: 2}}
		p.Tasks = []program.Task{{ID: "t", Subject: "x", Program: []byte("{}")}}
		p.Detail = map[string]int{"size": 3}
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := b.store.Commits() - before; n != 1 {
		t.Errorf("%d commits", n)
	}
	if op.State != cloud.OperationPending || op.Reference == nil || op.Reference.Command != "get-load-balancer" {
		t.Errorf("answer %+v", op)
	}
	stored := b.stored(op.ID)
	if stored.Subject.ID != op.Reference.ID || stored.Deadline != b.clock().Add(time.Minute) || stored.Detail != `{"size":3}` {
		t.Errorf("stored %+v", stored)
	}
	status, body, at, ok, err := b.Answer(t.Context(), c.Signature)
	var again cloud.Operation
	if err != nil || !ok || status != 200 || !at.Equal(c.Arrived) || json.Unmarshal(body, &again) != nil || again.ID != op.ID {
		t.Errorf("answer to a retry: %d %s %v %v %v", status, body, at, ok, err)
	}
	b.read(func(tx *store.Tx) error {
		changes, err := tx.ChangesOf(op.ID)
		if err != nil || len(changes) != 1 || changes[0].Revision != stored.Revision {
			t.Errorf("changes %+v %v", changes, err)
		}
		if i, err := tx.Intents(op.ID); err != nil || len(i) != 1 || i[0].Count != 2 {
			t.Errorf("intents %+v %v", i, err)
		}
		events, err := tx.Audited(org, time.Time{}, b.clock())
		if err != nil || len(events) != 1 {
			t.Fatalf("audit: %v %v", events, err)
		}
		e := events[0].Event
		if !strings.Contains(e, `"handler":"create-load-balancer"`) || !strings.Contains(e, `"name":"nlb"`) || strings.Contains(e, "c2VjcmV0") {
			t.Errorf("audited %s", e)
		}
		return nil
	})
	tasks, err := b.store.Tasks().Claim(t.Context(), "w", b.clock(), time.Second, 9)
	if err != nil || len(tasks) != 1 || tasks[0].Operation != string(op.ID) {
		t.Errorf("tasks %+v %v", tasks, err)
	}
}

func TestRefusalsWriteNothing(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		err  error
		kind cloud.Kind
	}{
		{cloud.Exists("load-balancer", "nlb"), cloud.Conflict},
		{&store.InUseError{What: store.Ref{Kind: "a", ID: "1"}, Users: []store.Ref{{Kind: "b", ID: "2"}}}, cloud.Conflict},
		{&store.ExhaustedError{Kind: "vip"}, cloud.Conflict},
		{fmt.Errorf("x: %w", store.ErrNotFound), cloud.NotFound},
		{fmt.Errorf("x: %w", store.ErrExists), cloud.Conflict},
		{fmt.Errorf("x: %w", store.ErrBusy), cloud.Unavailable},
		{errors.New("a fault of ours"), 0},
	} {
		before := b.store.Commits()
		_, err := b.Accept(t.Context(), b.call("create-load-balancer"), func(tx *store.Tx, op cloud.ID) (Plan, error) {
			return Plan{}, errors.Join(tx.AddIntent(store.Intent{Operation: op, Class: "port", Count: 1}), c.err)
		})
		var told *cloud.Error
		if errors.As(err, &told) != (c.kind != 0) || told != nil && told.Kind != c.kind {
			t.Errorf("%v becomes %v", c.err, err)
		}
		if b.store.Commits() != before {
			t.Errorf("%v was committed", c.err)
		}
	}
	c := b.call("create-load-balancer")
	b.Audit(t.Context(), c, 409, time.Millisecond)
	b.Audit(t.Context(), c, 200, time.Millisecond)
	b.Audit(t.Context(), b.call("list-load-balancers"), 404, time.Millisecond)
	b.read(func(tx *store.Tx) error {
		events, err := tx.Audited(org, time.Time{}, b.clock())
		if len(events) != 1 || !strings.Contains(events[0].Event, `"status":409`) {
			t.Errorf("audited %v", events)
		}
		return err
	})
}

func TestNobodyToAsk(t *testing.T) {
	b := newBench(t)
	if op := b.mustCreate(nil); op.State != cloud.OperationSuccess {
		t.Errorf("without hypervisors: %+v", op)
	}
	b.join()
	if op := b.mustCreate(nil); op.State != cloud.OperationPending {
		t.Errorf("with a hypervisor: %+v", op)
	}
	if op := b.mustCreate(func(p *Plan) { p.Done = true }); op.State != cloud.OperationSuccess {
		t.Errorf("with nobody concerned: %+v", op)
	}
	if got := fmt.Sprint(b.told); got != "[create-load-balancer acked true create-load-balancer acked true]" {
		t.Errorf("the noun was told %s", got)
	}
}

func TestSettled(t *testing.T) {
	b := newBench(t)
	b.join()
	ok, no := b.mustCreate(nil), b.mustCreate(nil)
	settle := func(id cloud.ID, o Outcome) {
		t.Helper()
		if err := b.Settled(t.Context(), id, o); err != nil {
			t.Fatal(err)
		}
	}
	settle(ok.ID, Outcome{OK: true, Message: "hv3 silent since 12:00"})
	settle(ok.ID, Outcome{Message: "too late"})
	settle(no.ID, Outcome{Message: "hv1: slots: no space left"})
	settle(cloud.NewID(), Outcome{OK: true}) // long gone
	b.want(ok.ID, cloud.OperationSuccess, "", "hv3 silent")
	b.want(no.ID, cloud.OperationFailure, cloud.ReasonFault, "no space left")
	if got := fmt.Sprint(b.told); got != "[create-load-balancer acked true create-load-balancer nacked false]" {
		t.Errorf("the noun was told %s", got)
	}
	// A noun that goes by status hears of refusals only.
	pool := b.mustCreate(func(p *Plan) { p.Subject.Kind = store.KindPool })
	if pool.State != cloud.OperationPending || b.stored(pool.ID).Deadline != b.clock().Add(5*time.Minute) {
		t.Errorf("pool: %+v", b.stored(pool.ID))
	}
	settle(pool.ID, Outcome{OK: true})
	b.want(pool.ID, cloud.OperationPending, "", "")
	settle(pool.ID, Outcome{Reason: cloud.ReasonFault, Message: "hv1: no"})
	b.want(pool.ID, cloud.OperationFailure, cloud.ReasonFault, "hv1: no")
}

func TestDeadlines(t *testing.T) {
	b := newBench(t)
	b.join()
	b.Waiting = func(cloud.ID) string { return "hv3, silent since 12:00:00" }
	loose := b.mustCreate(nil)
	tight := b.mustCreate(func(p *Plan) { p.Tightens = true })
	long := b.mustCreate(func(p *Plan) { p.Deadline = time.Hour })
	b.pass(time.Minute - 1)
	if err := b.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.want(loose.ID, cloud.OperationPending, "", "")
	b.pass(1)
	if err := b.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.want(loose.ID, cloud.OperationTimeout, cloud.ReasonUnavailable, "waiting for hv3, silent since")
	b.want(tight.ID, cloud.OperationFailure, cloud.ReasonPartial, "may still be admitted by hv3")
	b.want(long.ID, cloud.OperationPending, "", "")
	// The work goes on: a late success moves the noun, and not the operation.
	b.told = nil
	if err := b.Settled(t.Context(), loose.ID, Outcome{OK: true}); err != nil {
		t.Fatal(err)
	}
	b.want(loose.ID, cloud.OperationTimeout, cloud.ReasonUnavailable, "")
	if got := fmt.Sprint(b.told); got != "[create-load-balancer acked true]" {
		t.Errorf("the noun was told %s", got)
	}
}

func TestWait(t *testing.T) {
	b := newBench(t)
	b.join()
	op := b.mustCreate(nil)
	b.Waiting = func(cloud.ID) string { return "hv3" }
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got, err := b.Wait(short, op.ID); err != nil || got.State != cloud.OperationPending || got.Message != "waiting for hv3" {
		t.Errorf("after its time: %+v %v", got, err)
	}
	type end struct {
		op  *cloud.Operation
		err error
	}
	for name, settle := range map[string]func(context.Context, cloud.ID, Outcome) error{
		"here":      b.Settled,
		"elsewhere": New(b.open(), b.log).Settled,
	} {
		op := b.mustCreate(nil)
		ended := make(chan end, 1)
		go func() {
			got, err := b.Wait(t.Context(), op.ID)
			ended <- end{got, err}
		}()
		if err := settle(t.Context(), op.ID, Outcome{OK: true}); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-ended:
			if e.err != nil || e.op.State != cloud.OperationSuccess {
				t.Errorf("%s: %+v %v", name, e.op, e.err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nobody was woken", name)
		}
	}
	if len(b.waiters) != 0 {
		t.Errorf("%d waiters left", len(b.waiters))
	}
}

func TestUnchangedAndUnderWay(t *testing.T) {
	b := newBench(t)
	b.join()
	get := func(org, id cloud.ID) error {
		c := b.call("get-operation")
		c.Org, c.Args = org, map[string]string{"id": string(id)}
		_, err := b.Handlers()["get-operation"](t.Context(), c)
		return err
	}
	before := b.store.Commits()
	same, err := b.Accept(t.Context(), b.call("update-load-balancer"), func(*store.Tx, cloud.ID) (Plan, error) {
		return Plan{Subject: store.Ref{Kind: store.KindLoadBalancer, ID: "x"}, Unchanged: true}, nil
	})
	if err != nil || same.State != cloud.OperationSuccess || same.Reference.ID != "x" || b.store.Commits() != before {
		t.Errorf("unchanged: %+v %v, %d commits", same, err, b.store.Commits()-before)
	}
	if err := get(org, same.ID); err != nil {
		t.Errorf("read it: %v", err)
	}
	var told *cloud.Error
	for name, id := range map[string]cloud.ID{"unchanged": same.ID, "stored": b.mustCreate(nil).ID} {
		if err := get("another", id); !errors.As(err, &told) || told.Kind != cloud.NotFound {
			t.Errorf("%s operation of another organisation: %v", name, err)
		}
	}
	first := b.mustCreate(nil)
	again, err := b.Accept(t.Context(), b.call("create-load-balancer"), func(tx *store.Tx, _ cloud.ID) (Plan, error) {
		id, err := UnderWay(tx, b.stored(first.ID).Subject, "create-load-balancer")
		return Plan{UnderWay: id}, err
	})
	if err != nil || again.ID != first.ID || again.State != cloud.OperationPending {
		t.Errorf("what is under way: %+v %v, want %s", again, err, first.ID)
	}
}

func TestStepNamesWhatIsInTheWay(t *testing.T) {
	b := newBench(t)
	b.join()
	m := &fsm.Machine{Name: "m", Events: []fsm.Event{"go", "no"}, Rows: []fsm.Row{
		{State: "a", On: map[fsm.Event]fsm.Edge{"go": fsm.To("b"), "no": fsm.Refuse("it is busy")}}, {State: "b"}}}
	op := b.mustCreate(nil)
	b.read(func(tx *store.Tx) error {
		on := b.stored(op.ID).Subject
		if r, err := Step(tx, m, on, "a", "go"); err != nil || r.State != "b" {
			t.Errorf("go: %+v %v", r, err)
		}
		var told *cloud.Error
		if _, err := Step(tx, m, on, "a", "no"); !errors.As(err, &told) || told.Reason != cloud.ReasonBusy || !strings.Contains(told.Message, string(op.ID)) {
			t.Errorf("refused: %v", err)
		}
		if _, err := Step(tx, m, on, "a", "what"); err == nil || errors.As(err, &told) {
			t.Errorf("undefined: %v", err)
		}
		return nil
	})
	_, err := b.store.Write(t.Context(), func(tx *store.Tx) error { return b.Supersede(tx, b.stored(op.ID).Subject, "another") })
	if err != nil {
		t.Fatal(err)
	}
	b.want(op.ID, cloud.OperationFailure, cloud.ReasonInterrupted, "another")
}

// TestRestart: what was pending is taken up by its noun, and what is overdue by
// then ends.
func TestRestart(t *testing.T) {
	b := newBench(t)
	b.join()
	overdue := b.mustCreate(nil)
	b.pass(2 * time.Minute)
	pending := b.mustCreate(nil)
	after := New(b.open(), b.log)
	resumed := make(chan cloud.ID, 2)
	after.Register(Noun{Kind: store.KindLoadBalancer, Resume: func(_ context.Context, op store.Operation) error {
		resumed <- op.ID
		return nil
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	done := make(chan error, 1)
	go func() { done <- after.Run(ctx) }()
	if first, second := <-resumed, <-resumed; first != overdue.ID || second != pending.ID {
		t.Errorf("taken up: %s %s, want %s %s", first, second, overdue.ID, pending.ID)
	}
	if got, err := after.Wait(ctx, overdue.ID); err != nil || got.State != cloud.OperationTimeout {
		t.Errorf("overdue: %+v %v", got, err)
	}
	b.want(pending.ID, cloud.OperationPending, "", "")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
