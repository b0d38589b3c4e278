// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"

	"cairn/cloud"
	"cairn/cloud/api"
	"cairn/cloud/api/exo2"
)

const (
	// maxBody is the most a request may carry.
	maxBody = 1 << 20
	// hold is how long an asynchronous answer waits for the end of its operation: the
	// usual client polls a pending one only after three seconds.
	hold = 250 * time.Millisecond
	// mutation bounds a handler that no longer has a connection behind it.
	mutation = 30 * time.Second
)

// mounted is an operation and what was prepared for it at start.
type mounted struct {
	*server
	op      *api.Operation
	handler Handler
	schema  *huma.Schema // of the request, nil when there is none
}

// mount gives an operation its route and its place in the document.
func (s *server) mount(doc huma.API, op *api.Operation) error {
	m := &mounted{server: s, op: op, handler: s.Handlers[op.ID]}
	if op.Request != nil {
		m.schema = s.registry.Schema(op.Request, false, op.ID)
	}
	doc.OpenAPI().AddOperation(describe(s.registry, op))
	doc.Adapter().Handle(&huma.Operation{Method: op.Method, Path: api.Prefix + op.Path}, func(ctx huma.Context) {
		r, w := humachi.Unwrap(ctx)
		m.serve(w, r)
	})
	return nil
}

// serve is the way of a request: read, verify, judge, act, answer.
func (m *mounted) serve(w http.ResponseWriter, r *http.Request) {
	c := Call{Operation: m.op, RequestID: string(cloud.NewID()), Source: source(r), Arrived: time.Now()}
	w.Header().Set("X-Request-Id", c.RequestID)
	status, body, err := m.answer(r, &c)
	if err != nil {
		status, body = m.refuse(w.Header(), &c, err)
	}
	if m.Audit != nil {
		m.Audit(context.WithoutCancel(r.Context()), c, status, time.Since(c.Arrived))
	}
	write(w, status, body)
}

func (m *mounted) answer(r *http.Request, c *Call) (status int, body []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	raw, err := readBody(r)
	if err != nil {
		return 0, nil, err
	}
	if err := m.authenticate(r, c, raw); err != nil {
		return 0, nil, err
	}
	if c.Args, err = m.args(r); err != nil {
		return 0, nil, err
	}
	if err := m.judge(r.URL.Query(), c, raw); err != nil {
		return 0, nil, err
	}
	if !m.op.Mutates() {
		return m.act(r.Context(), c)
	}
	return m.once(r.Context(), c, func() (int, []byte, error) {
		// What was begun is finished, whether or not the client still listens: its retry
		// then finds the answer.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), mutation)
		defer cancel()
		return m.act(ctx, c)
	})
}

var errTooLarge = errors.New("request body too large")

func readBody(r *http.Request) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, cloud.Invalidf("", "read request body: %v", err)
	}
	if len(raw) > maxBody {
		return nil, errTooLarge
	}
	return raw, nil
}

// errSignature is the same for every way of being wrong, so that nobody learns
// which keys exist.
func errSignature() error { return cloud.Forbiddenf("Invalid key or request signature") }

// authenticate finds out who asks. An operation that is served unsigned asks nobody,
// not even who signs: some clients do.
func (m *mounted) authenticate(r *http.Request, c *Call, raw []byte) error {
	if m.op.Unsigned {
		return nil
	}
	s, err := exo2.Parse(r.Header.Get("Authorization"))
	if err != nil {
		return errSignature()
	}
	secret, org, err := m.Keys.Secret(r.Context(), s.Key)
	var refusal *cloud.Error
	switch {
	case errors.As(err, &refusal) && refusal.Kind == cloud.NotFound:
		// Compute all the same: an unknown key takes as long as a wrong secret.
		s.Check(string(cloud.NewID()), r, raw, c.Arrived)
		return errSignature()
	case err != nil:
		return fmt.Errorf("look up key: %w", err)
	}
	switch err := s.Check(secret, r, raw, c.Arrived); {
	case errors.Is(err, exo2.ErrSignature):
		return errSignature()
	case err != nil: // the secret is right: say what is not
		return cloud.Forbiddenf("Invalid key or request signature: %v", err)
	}
	c.Key, c.Org = s.Key, org
	if m.op.Mutates() {
		c.Signature, c.Expires = s.String(), time.Unix(s.Expires, 0)
	}
	return nil
}

// args reads the parameters of the path. What cannot name anything is not found.
func (m *mounted) args(r *http.Request) (map[string]string, error) {
	args := make(map[string]string, len(m.op.Params))
	for _, p := range m.op.Params {
		value := chi.URLParam(r, p.Name)
		if r.URL.RawPath != "" { // then the router matched the escaped path
			unescaped, err := url.PathUnescape(value)
			if err != nil {
				return nil, cloud.NotFoundf("Not Found")
			}
			value = unescaped
		}
		switch {
		case p.Plain && p.Enum != nil && !slices.Contains(p.Enum, value):
			return nil, cloud.NotFoundf("%s %q not found", p.Name, value)
		case !p.Plain:
			id, err := cloud.ParseID(value)
			if err != nil {
				return nil, cloud.NotFoundf("%s %q not found", p.Noun, value)
			}
			value = string(id)
		}
		args[p.Name] = value
	}
	return args, nil
}

// judge validates query and body and decodes them into c; all faults come at once.
func (m *mounted) judge(query url.Values, c *Call, raw []byte) error {
	var faults []cloud.FieldError
	c.Query = url.Values{}
	for _, p := range m.op.Query {
		if len(query[p.Name]) != 1 || query.Get(p.Name) == "" {
			continue
		}
		value := query.Get(p.Name)
		switch {
		case p.Enum != nil && !slices.Contains(p.Enum, value):
			faults = append(faults, cloud.Fault(p.Name, "expected one of %v", p.Enum))
		case !p.Plain:
			id, err := cloud.ParseID(value)
			if err != nil {
				faults = append(faults, cloud.Fault(p.Name, "expected a UUID"))
			}
			value = string(id)
		}
		c.Query.Set(p.Name, value)
	}
	if m.schema != nil {
		var bodyFaults []cloud.FieldError
		c.Body, c.Keys, bodyFaults = decode(m.registry, m.schema, m.op, raw)
		faults = append(faults, bodyFaults...)
	}
	if faults != nil {
		return cloud.InvalidFields(faults)
	}
	return nil
}

// act calls the handler and makes its answer a body.
func (m *mounted) act(ctx context.Context, c *Call) (status int, body []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	v, err := m.handler(ctx, *c)
	if err != nil {
		return 0, nil, err
	}
	if m.op.Async {
		op, ok := v.(*cloud.Operation)
		if !ok || op == nil {
			return 0, nil, fmt.Errorf("handler answered %T, want an operation", v)
		}
		v = m.follow(ctx, op)
	}
	body, err = json.Marshal(whole(v))
	if err != nil {
		return 0, nil, fmt.Errorf("encode answer: %w", err)
	}
	return http.StatusOK, body, nil
}

// follow holds a pending operation for a moment, so that a change that converges at
// once is answered as done.
func (m *mounted) follow(ctx context.Context, op *cloud.Operation) *cloud.Operation {
	if op.State.Final() || m.Waiter == nil {
		return op
	}
	ctx, cancel := context.WithTimeout(ctx, hold)
	defer cancel()
	now, err := m.Waiter.Wait(ctx, op.ID)
	if err != nil || now == nil {
		// The mutation is committed and stays so: the client polls.
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			m.Logger.Warn("follow operation", "operation", op.ID, "err", err)
		}
		return op
	}
	return now
}

func source(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
