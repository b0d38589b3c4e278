// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/cloud"
	"cairn/cloud/api/exo2"
)

// pass lets time pass in a synctest bubble.
func pass(d time.Duration) { <-time.After(d) }

// operations is a Waiter whose operations end when told.
type operations struct {
	mu    sync.Mutex
	final map[cloud.ID]chan struct{}
}

func (o *operations) Wait(ctx context.Context, id cloud.ID) (*cloud.Operation, error) {
	o.mu.Lock()
	c := o.final[id]
	o.mu.Unlock()
	select {
	case <-c:
		return &cloud.Operation{ID: id, State: cloud.OperationSuccess}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestAnAnswerIsHeldForAMoment(t *testing.T) {
	for _, c := range []struct {
		name  string
		after time.Duration
		want  cloud.OperationState
		took  time.Duration
	}{
		{"converges at once", 5 * time.Millisecond, cloud.OperationSuccess, 5 * time.Millisecond},
		{"takes longer", time.Second, cloud.OperationPending, hold},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ops := &operations{final: map[cloud.ID]chan struct{}{someID: make(chan struct{})}}
				b := newBench(t, func(cfg *Config) {
					cfg.Waiter = ops
					cfg.Handlers["stop-instance"] = func(context.Context, Call) (any, error) {
						time.AfterFunc(c.after, func() { close(ops.final[someID]) })
						return &cloud.Operation{ID: someID, State: cloud.OperationPending}, nil
					}
				})
				start := time.Now()
				w := b.send(signed("PUT", "/v2/instance/"+someID+":stop", ""))
				var op cloud.Operation
				if err := json.Unmarshal(w.Body.Bytes(), &op); err != nil || op.State != c.want || time.Since(start) != c.took {
					t.Errorf("%v %+v after %v", err, op, time.Since(start))
				}
				<-ops.final[someID]
			})
		})
	}
}

// counter counts the runs of a mutation and keeps its answers as a store does.
type counter struct {
	mu      sync.Mutex
	runs    int
	work    time.Duration
	fail    error
	stored  map[string]cloud.Operation
	arrived map[string]time.Time
	keep    bool
}

func (c *counter) handle(_ context.Context, call Call) (any, error) {
	c.mu.Lock()
	c.runs++
	work, fail := c.work, c.fail
	c.mu.Unlock()
	pass(work)
	op := cloud.Operation{ID: cloud.NewID(), State: cloud.OperationSuccess}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.stored[call.Signature]; c.keep && !ok {
		c.stored[call.Signature], c.arrived[call.Signature] = op, call.Arrived
	}
	return &op, fail
}

func (c *counter) Answer(_ context.Context, signature string) (int, []byte, time.Time, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	op, ok := c.stored[signature]
	body, err := json.Marshal(op)
	return http.StatusOK, body, c.arrived[signature], ok, err
}

func (c *counter) count() int { c.mu.Lock(); defer c.mu.Unlock(); return c.runs }

func TestReplays(t *testing.T) {
	run := func(name string, f func(t *testing.T, c *counter, b *bench, again func() *httptest.ResponseRecorder)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &counter{stored: map[string]cloud.Operation{}, arrived: map[string]time.Time{}}
				b := newBench(t, func(cfg *Config) { cfg.Answers, cfg.Handlers["create-load-balancer"] = c, c.handle })
				const body = `{"name":"x"}`
				header := signed("POST", "/v2/load-balancer", body).Header
				f(t, c, b, func() *httptest.ResponseRecorder {
					r := httptest.NewRequest("POST", "/v2/load-balancer", strings.NewReader(body))
					r.Header = header
					return b.send(r)
				})
			})
		})
	}
	run("within a second it is meant again", func(t *testing.T, c *counter, _ *bench, again func() *httptest.ResponseRecorder) {
		first := again().Body.String()
		pass(999 * time.Millisecond)
		if second := again().Body.String(); c.count() != 2 || first == second {
			t.Errorf("%d runs", c.count())
		}
	})
	run("later it gets the first answer", func(t *testing.T, c *counter, _ *bench, again func() *httptest.ResponseRecorder) {
		first := again().Body.String()
		again()
		for range 3 {
			pass(time.Second)
			if got := again().Body.String(); got != first {
				t.Errorf("answer %s, want %s", got, first)
			}
		}
		if c.count() != 2 {
			t.Errorf("%d runs", c.count())
		}
	})
	run("it waits for the first in work", func(t *testing.T, c *counter, _ *bench, again func() *httptest.ResponseRecorder) {
		c.work = 5 * time.Second
		answers := make(chan string, 2)
		go func() { answers <- again().Body.String() }()
		pass(2 * time.Second)
		go func() { answers <- again().Body.String() }()
		if a, b := <-answers, <-answers; a != b || c.count() != 1 {
			t.Errorf("%s and %s, %d runs", a, b, c.count())
		}
	})
	run("a failure that left nothing is tried again", func(t *testing.T, c *counter, _ *bench, again func() *httptest.ResponseRecorder) {
		c.fail = errors.New("disk full")
		if w := again(); w.Code != 500 {
			t.Error(w.Code)
		}
		pass(2 * time.Second)
		c.fail = nil
		if w := again(); w.Code != 200 || c.count() != 2 {
			t.Errorf("%d, %d runs", w.Code, c.count())
		}
	})
	run("a failure after the commit is answered from the store", func(t *testing.T, c *counter, _ *bench, again func() *httptest.ResponseRecorder) {
		c.fail, c.keep = errors.New("connection lost after commit"), true
		again()
		pass(2 * time.Second)
		if w := again(); w.Code != 200 || c.count() != 1 {
			t.Errorf("%d %s, %d runs", w.Code, w.Body, c.count())
		}
	})
	run("a refusal is kept", func(t *testing.T, c *counter, _ *bench, again func() *httptest.ResponseRecorder) {
		c.fail = cloud.Exists("load-balancer", "x")
		again()
		c.fail = nil
		pass(2 * time.Second)
		if w := again(); w.Code != 409 || c.count() != 1 {
			t.Errorf("%d, %d runs", w.Code, c.count())
		}
	})
	run("another process answers from the store", func(t *testing.T, c *counter, b *bench, again func() *httptest.ResponseRecorder) {
		c.keep = true
		first := again().Body.String()
		b.h, _ = New(b.cfg)
		pass(2 * time.Second)
		if got := again().Body.String(); got != first || c.count() != 1 {
			t.Errorf("%s, want %s, %d runs", got, first, c.count())
		}
	})
	run("until it expires", func(t *testing.T, c *counter, b *bench, again func() *httptest.ResponseRecorder) {
		again()
		pass(exo2.Validity + time.Second)
		b.wantError(again(), http.StatusForbidden, "expired")
	})
}

// A client that is gone does not undo what it began.
func TestAMutationOutlivesItsConnection(t *testing.T) {
	done := make(chan error, 1)
	started := make(chan struct{})
	b := newBench(t, func(c *Config) {
		c.Handlers["create-load-balancer"] = func(ctx context.Context, _ Call) (any, error) {
			close(started)
			<-time.After(20 * time.Millisecond)
			done <- ctx.Err()
			return &cloud.Operation{ID: someID, State: cloud.OperationSuccess}, nil
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go b.send(signed("POST", "/v2/load-balancer", `{"name":"x"}`).WithContext(ctx))
	<-started
	cancel()
	if err := <-done; err != nil {
		t.Error("the handler's context ended with the connection:", err)
	}
}

// Memory for answers is bounded, and what is in work is never forgotten.
func TestFirstsAreBounded(t *testing.T) {
	r := replays{firsts: map[string]*first{}}
	now := time.Now()
	claim := func(i int) *first {
		f, mine := r.claim(&Call{Signature: strconv.Itoa(i), Arrived: now, Expires: now.Add(time.Minute)})
		if !mine {
			t.Fatalf("%d is there already", i)
		}
		return f
	}
	claim(-1)
	for i := range 2 * maxFirsts {
		r.settle(strconv.Itoa(i), claim(i), http.StatusOK, nil)
		if len(r.firsts) > maxFirsts {
			t.Fatalf("%d answers in memory", len(r.firsts))
		}
	}
	now = now.Add(2 * time.Minute)
	claim(-2)
	if _, inWork := r.firsts["-1"]; len(r.firsts) != 2 || !inWork {
		t.Errorf("%d left after expiry, the one in work %v", len(r.firsts), inWork)
	}
}
