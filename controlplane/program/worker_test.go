// SPDX-License-Identifier: Apache-2.0

package program_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"cairn/controlplane/program"
	"cairn/controlplane/program/tasktest"
)

// site is what the actions of the tests work on.
type site struct {
	mu    sync.Mutex
	calls []string
	fails map[string]int // attempts of an action that fail; -1: all
}

func (s *site) act(ctx context.Context, c program.Call) error {
	name := strings.Trim(string(c.Args), `"`)
	time.Sleep(time.Millisecond) // the clock of the bubble: others come in between
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, name)
	if n := s.fails[name]; n < 0 || n > 0 {
		s.fails[name] = max(n-1, -1)
		return errors.New("broken")
	}
	return ctx.Err()
}

func (s *site) sequence() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func act(name string) program.Node { return program.Do("act", name) }

func worker(m program.Tasks, s *site, owner string) *program.Worker {
	return program.NewWorker(program.Config{Tasks: m, Owner: owner, Log: slog.New(slog.DiscardHandler),
		Actions: map[string]program.Action{"act": s.act}})
}

func insert(t testing.TB, m *tasktest.Memory, id, subject string, tree program.Node) {
	t.Helper()
	b, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Insert(t.Context(), program.Task{ID: id, Subject: subject, Program: b}); err != nil {
		t.Fatal(err)
	}
}

// finished lets the clock of the bubble run until every task has ended.
func finished(t testing.TB, m *tasktest.Memory) []program.Task {
	t.Helper()
	for range 1000 {
		tasks := m.All()
		if !slices.ContainsFunc(tasks, func(x program.Task) bool { return !x.Finished }) {
			return tasks
		}
		time.Sleep(time.Second)
	}
	t.Fatalf("not finished: %+v", m.All())
	return nil
}

func start(t testing.TB, w *program.Worker) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	return func() { cancel(); <-done }
}

func TestWorkerRunsPrograms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := &tasktest.Memory{}, &site{fails: map[string]int{"b": 1, "x": -1}}
		insert(t, m, "good", "", program.Seq(act("a"), program.Leaf{Action: "act", Retries: 3}.With("b"), act("c")))
		insert(t, m, "bad", "", program.Rescue(act("x"), act("clean")))
		insert(t, m, "unknown", "", program.Do("fly", nil))
		if err := m.Insert(t.Context(), program.Task{ID: "garbage", Program: []byte(`{"seq":7}`)}); err != nil {
			t.Fatal(err)
		}
		defer start(t, worker(m, s, "w"))()
		want := map[string]string{"good": "succeeded: ", "bad": "failed: act: broken", "unknown": "failed: fly: no such action", "garbage": "failed: decode program"}
		for _, task := range finished(t, m) {
			if got := fmt.Sprintf("%s: %s", task.Outcome.State, task.Outcome.Message); !strings.HasPrefix(got, want[task.ID]) {
				t.Errorf("%s: %s, want %s", task.ID, got, want[task.ID])
			}
		}
		calls := s.sequence()
		slices.Sort(calls)
		if want := []string{"a", "b", "b", "c", "clean", "x"}; !slices.Equal(calls, want) {
			t.Errorf("called %v, want %v", calls, want)
		}
	})
}

func TestWorkerWaitsAndHears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := &tasktest.Memory{}, &site{}
		long := program.Config{Tasks: m, Owner: "w", Actions: map[string]program.Action{"act": s.act,
			"long": func(ctx context.Context, c program.Call) error { <-ctx.Done(); return ctx.Err() }}}
		w := program.NewWorker(long)
		defer start(t, w)()
		insert(t, m, "asleep", "vm/1", program.Seq(program.WaitFor("up/1", time.Hour), act("a")))
		insert(t, m, "at work", "vm/2", program.Par(program.Seq(program.WaitFor("up/1", time.Hour), act("b")), program.Do("long", nil)))
		w.Wake()
		time.Sleep(30 * time.Second)
		for _, subject := range []string{"vm/1", "vm/2"} {
			if n, err := m.Signal(t.Context(), subject, program.Event{Name: "up/1"}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		w.Wake()
		time.Sleep(2 * time.Millisecond) // not a poll, not a heartbeat
		if calls := s.sequence(); len(calls) != 2 {
			t.Errorf("2 ms after the events: %v", calls)
		}
		for _, task := range finished(t, m) {
			if (task.ID == "asleep") != (task.Outcome.State == program.Succeeded) {
				t.Errorf("%s: %+v", task.ID, task.Outcome)
			}
		}
	})
}

func TestWorkerCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := &tasktest.Memory{}, &site{}
		insert(t, m, "create", "vm/1", program.Seq(act("a"), program.WaitFor("never", time.Hour), act("b")))
		insert(t, m, "delete", "vm/1", act("c"))
		defer start(t, worker(m, s, "w"))()
		time.Sleep(time.Minute)
		if calls := s.sequence(); !slices.Equal(calls, []string{"a"}) {
			t.Errorf("before the cancel: %v", calls)
		}
		// Both are marked, and the second has not begun either: only a cancel
		// that comes before the delete is inserted spares the delete.
		if n, err := m.Cancel(t.Context(), "vm/1"); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		for _, task := range finished(t, m) {
			if task.Outcome.State != program.Cancelled {
				t.Errorf("%s: %+v", task.ID, task.Outcome)
			}
		}
	})
}

func TestWorkerTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &tasktest.Memory{}
		polite := func(ctx context.Context, c program.Call) error { <-ctx.Done(); return ctx.Err() }
		deaf := make(chan struct{})
		defer close(deaf)
		w := program.NewWorker(program.Config{Tasks: m, Owner: "w", Actions: map[string]program.Action{
			"polite": polite,
			"deaf":   func(context.Context, program.Call) error { <-deaf; return nil },
			"panics": func(context.Context, program.Call) error { panic("boom") },
		}})
		leaf := program.Leaf{Timeout: time.Second}
		for _, name := range []string{"polite", "deaf", "panics"} {
			leaf.Action = name
			insert(t, m, name, "", leaf.With(nil))
		}
		defer start(t, w)()
		want := map[string]string{"polite": "polite: context deadline exceeded", "deaf": "deaf: no answer in time", "panics": "panics: panic: boom"}
		for _, task := range finished(t, m) {
			if task.Outcome.Message != want[task.ID] {
				t.Errorf("%s: %+v", task.ID, task.Outcome)
			}
		}
	})
}

func TestWorkerGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := &tasktest.Memory{}, &site{}
		insert(t, m, "t", "", program.Par(act("quick"), program.Do("slow", nil)))
		first := program.NewWorker(program.Config{Tasks: m, Owner: "w", Log: slog.New(slog.DiscardHandler), Actions: map[string]program.Action{
			"act":  s.act,
			"slow": func(ctx context.Context, c program.Call) error { <-ctx.Done(); return ctx.Err() }}})
		stop := start(t, first)
		time.Sleep(time.Second)
		stop()
		if got := m.All()[0]; got.LeaseOwner != "" || got.Finished {
			t.Fatalf("after the end of its worker: %+v", got)
		}
		second := program.NewWorker(program.Config{Tasks: m, Owner: "v", Actions: map[string]program.Action{"act": s.act, "slow": s.act}})
		defer start(t, second)()
		if got := finished(t, m)[0]; got.Outcome.State != program.Succeeded {
			t.Errorf("%+v", got.Outcome)
		}
		if calls := s.sequence(); !slices.Equal(calls, []string{"quick", ""}) {
			t.Errorf("called %v", calls)
		}
	})
}

func TestDoneIsToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := &tasktest.Memory{}, &site{}
		insert(t, m, "t", "", act("a"))
		told := 0
		w := program.NewWorker(program.Config{Tasks: m, Owner: "w", Log: slog.New(slog.DiscardHandler), Actions: map[string]program.Action{"act": s.act},
			Done: func(_ context.Context, task program.Task, o program.Outcome) error {
				if told++; told < 3 {
					return errors.New("store away")
				}
				return nil
			}})
		defer start(t, w)()
		if got := finished(t, m)[0]; got.Outcome.State != program.Succeeded || told != 3 {
			t.Errorf("told %d times, %+v", told, got.Outcome)
		}
		if calls := s.sequence(); !slices.Equal(calls, []string{"a"}) {
			t.Errorf("called %v", calls)
		}
	})
}

// One task, two workers: the first freezes beyond its lease, then comes back.
func TestFrozenWorkerWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := &tasktest.Memory{}, &site{}
		insert(t, m, "t", "", program.Seq(act("a"), act("b")))
		thaw := make(chan struct{})
		frozen := &freezer{Memory: m, thaw: thaw}
		stop := start(t, worker(frozen, s, "frozen"))
		time.Sleep(time.Second)
		if got := m.All()[0]; got.LeaseOwner != "frozen" {
			t.Fatalf("%+v", got)
		}
		defer start(t, worker(m, s, "other"))()
		if got := finished(t, m)[0]; got.Outcome.State != program.Succeeded {
			t.Errorf("%+v", got.Outcome)
		}
		before := s.sequence()
		close(thaw)
		stop()
		if after := s.sequence(); !slices.Equal(before, after) || !errors.Is(frozen.err, program.ErrLost) {
			t.Errorf("the frozen worker went on: %v, then %v; %v", before, after, frozen.err)
		}
	})
}

// freezer is the store as a worker sees it that stands still after its first claim.
type freezer struct {
	*tasktest.Memory
	thaw    chan struct{}
	claimed bool
	err     error
}

func (f *freezer) Claim(ctx context.Context, owner string, now time.Time, lease time.Duration, limit int) ([]program.Task, error) {
	if f.claimed {
		<-f.thaw
		return nil, ctx.Err()
	}
	f.claimed = true
	return f.Memory.Claim(ctx, owner, now, lease, limit)
}

func (f *freezer) Save(ctx context.Context, t program.Task, release bool) error {
	<-f.thaw
	f.err = f.Memory.Save(ctx, t, release)
	return f.err
}

var errDead = errors.New("dead")

// The worker dies at its n-th call to the store, before or after the call took
// effect, and another one goes on: for every n, until there are no more calls.
// The end must be that of a run without a crash.
func TestCrashAtEveryStep(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		leaves := 0
		fails := map[string]int{}
		n := stable(rt, 3, &leaves, fails)
		var want program.Outcome
		var wantCalls []string
		for crash := range 200 {
			outcome, calls, crashed := crashRun(t, n, fails, crash)
			if crash == 0 {
				want, wantCalls = outcome, calls
				continue
			}
			if outcome != want || !slices.Equal(calls, wantCalls) {
				rt.Fatalf("crash at call %d: %+v of %v, want %+v of %v", crash, outcome, calls, want, wantCalls)
			}
			if !crashed {
				return
			}
		}
		rt.Fatal("still crashing")
	})
}

// crashRun returns how the program ended, which actions were called (each once,
// sorted), and whether the crash came about. Crash 2n-1 is before the n-th call
// takes effect, 2n after.
func crashRun(t *testing.T, n program.Node, fails map[string]int, crash int) (o program.Outcome, calls []string, crashed bool) {
	synctest.Test(t, func(t *testing.T) {
		m, s := &tasktest.Memory{}, &site{fails: fails}
		insert(t, m, "t", "", n)
		var dead atomic.Bool
		count := 0
		m.Hook = func(_ string, after bool) error {
			if count++; crash > 0 && count >= crash {
				dead.Store(true)
				return errDead
			}
			return nil
		}
		ctx, kill := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { worker(m, s, "w").Run(ctx); close(done) }()
		for i := 0; i < 300 && !dead.Load() && !m.All()[0].Finished; i++ {
			time.Sleep(time.Second)
		}
		kill()
		<-done
		crashed = dead.Load()
		m.Hook = nil
		defer start(t, worker(m, s, "v"))()
		o = finished(t, m)[0].Outcome
		calls = s.sequence()
	})
	slices.Sort(calls)
	return o, slices.Compact(calls), crashed
}

// stable draws a program whose actions always end the same way.
func stable(t *rapid.T, depth int, leaves *int, fails map[string]int) program.Node {
	kind := rapid.SampledFrom([]string{"leaf", "seq", "par", "try", "wait"}).Draw(t, "kind")
	switch {
	case depth == 0 || kind == "leaf":
		*leaves++
		name := fmt.Sprint("a", *leaves)
		if rapid.IntRange(0, 3).Draw(t, "fails") == 0 {
			fails[name] = -1
		}
		return program.Leaf{Action: "act", Retries: rapid.IntRange(0, 1).Draw(t, "retries"), Backoff: time.Second}.With(name)
	case kind == "wait":
		return program.WaitFor("never", 3*time.Second)
	case kind == "try":
		body, rescue := stable(t, depth-1, leaves, fails), stable(t, depth-1, leaves, fails)
		last := stable(t, depth-1, leaves, fails)
		return program.Node{Try: &program.Try{Body: body, Rescue: &rescue, Finally: &last, Recover: rapid.Bool().Draw(t, "recover")}}
	}
	var nodes []program.Node
	for range rapid.IntRange(1, 3).Draw(t, "children") {
		nodes = append(nodes, stable(t, depth-1, leaves, fails))
	}
	if kind == "seq" {
		return program.Seq(nodes...)
	}
	return program.Par(nodes...)
}
