// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"cairn/cloud"
)

const (
	// resolution is the time within which equal signatures are two requests: a
	// signature holds seconds, and a client that means start, stop, start says the same
	// twice in one. The clients' own retries wait longer.
	resolution = time.Second
	// maxFirsts bounds the answers kept in memory; those of committed mutations are
	// found in the store as well.
	maxFirsts = 1 << 16
)

// replays remembers the first request of every signature until it expires.
type replays struct {
	mu     sync.Mutex
	firsts map[string]*first
	swept  time.Time
}

// first is the first request with a signature. done is closed when its answer is
// there; a first that ended without one is forgotten before that.
type first struct {
	arrived, expires time.Time
	done             chan struct{}
	answered         bool
	status           int
	body             []byte
}

// once runs a mutation, unless the request is the retry of one that ran: then it
// returns the first answer, for which it waits while the first is in work.
func (m *mounted) once(ctx context.Context, c *Call, run func() (int, []byte, error)) (int, []byte, error) {
	for {
		f, mine := m.replays.claim(c)
		switch {
		case mine:
			return m.lead(ctx, c, f, run)
		case c.Arrived.Sub(f.arrived) < resolution:
			return run()
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		}
		if f.answered {
			return m.replay(ctx, f.status, f.body)
		}
		// The first one came to no answer: this is the first one now.
	}
}

// lead runs the first request of a signature that this process sees. Another process,
// or this one before it was restarted, may have answered it already.
func (m *mounted) lead(ctx context.Context, c *Call, f *first, run func() (int, []byte, error)) (status int, body []byte, err error) {
	defer func() { m.replays.settle(c.Signature, f, status, body) }()
	if m.Answers != nil {
		status, body, at, ok, err := m.Answers.Answer(ctx, c.Signature)
		if err != nil {
			return 0, nil, err
		}
		if ok && c.Arrived.Sub(at) >= resolution {
			return m.replay(ctx, status, body)
		}
	}
	status, body, err = run()
	if err != nil {
		// A refusal is an answer, and is kept like one.
		if s, b := m.refusal(err); s < http.StatusInternalServerError {
			status, body = s, b
		}
	}
	return status, body, err
}

// replay gives a stored answer, with the operation in it as it stands by now.
func (m *mounted) replay(ctx context.Context, status int, body []byte) (int, []byte, error) {
	var op cloud.Operation
	if status != http.StatusOK || !m.op.Async || json.Unmarshal(body, &op) != nil {
		return status, body, nil
	}
	return status, mustMarshal(m.follow(ctx, &op)), nil
}

// claim returns the first request with the signature of c; mine says that it is c.
func (r *replays) claim(c *Call) (f *first, mine bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(c.Arrived)
	if f := r.firsts[c.Signature]; f != nil {
		return f, false
	}
	f = &first{arrived: c.Arrived, expires: c.Expires, done: make(chan struct{})}
	r.firsts[c.Signature] = f
	return f, true
}

// settle ends a first request. Without an answer it is forgotten.
func (r *replays) settle(signature string, f *first, status int, body []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f.answered = status != 0 && status < http.StatusInternalServerError
	f.status, f.body = status, body
	if !f.answered {
		delete(r.firsts, signature)
	}
	close(f.done)
}

// sweep forgets what has expired, and when there is too much, a quarter of what is
// done: committed answers are in the store as well.
func (r *replays) sweep(now time.Time) {
	full := len(r.firsts) >= maxFirsts
	if now.Sub(r.swept) < resolution && !full {
		return
	}
	r.swept = now
	for signature, f := range r.firsts {
		select {
		case <-f.done:
			if now.After(f.expires) || full && len(r.firsts) > maxFirsts*3/4 {
				delete(r.firsts, signature)
			}
		default:
		}
	}
}
