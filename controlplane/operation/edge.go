// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"sync"
	"time"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/store"
)

// The gate is what the HTTP edge asks about operations and answers.
var (
	_ api.Waiter  = (*Gate)(nil)
	_ api.Answers = (*Gate)(nil)
	_ api.Audit   = (*Gate)(nil).Audit
)

// Handlers answers get-operation.
func (g *Gate) Handlers() api.Handlers {
	return api.Handlers{"get-operation": func(ctx context.Context, c api.Call) (any, error) {
		op, err := g.read(ctx, c.Org, c.ID("id"))
		if errors.Is(err, store.ErrNotFound) {
			return nil, cloud.Missing("operation", c.ID("id"))
		}
		return op, err
	}}
}

// Answer finds the first answer to a signature.
func (g *Gate) Answer(ctx context.Context, signature string) (status int, body []byte, at time.Time, ok bool, err error) {
	var a store.Answer
	err = g.store.Read(ctx, func(tx *store.Tx) (err error) { a, err = tx.Answer(signature); return err })
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil, time.Time{}, false, nil
	}
	return a.Status, a.Body, a.Arrived, err == nil, err
}

// note writes the audit entry of an accepted mutation, and the answer that a
// retry of it gets.
func (g *Gate) note(tx *store.Tx, c api.Call, status int, answer any) error {
	if err := tx.Audit(c.Org, event(c, status, tx.Now().Sub(c.Arrived), tx.Now(), "")); err != nil {
		return err
	}
	if c.Signature == "" {
		return nil
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	return tx.AddAnswer(store.Answer{
		Signature: c.Signature, Arrived: c.Arrived, Expires: c.Expires, Status: status, Body: body,
	})
}

// Audit notes mutations that were refused; those accepted have been noted in
// their own transaction.
func (g *Gate) Audit(ctx context.Context, c api.Call, status int, elapsed time.Duration) {
	if c.Operation == nil || !c.Operation.Mutates() || c.Key == "" || status < 300 {
		return
	}
	_, err := g.store.Write(ctx, func(tx *store.Tx) error {
		return tx.Audit(c.Org, event(c, status, elapsed, tx.Now(), http.StatusText(status)))
	})
	if err != nil {
		g.log.Error("audit a refusal", "request", c.RequestID, "error", err)
	}
}

// secretFields never enter the audit.
var secretFields = []string{"user-data"}

const redacted = `"(redacted)"`

// event is an entry in the shape of the contract.
func event(c api.Call, status int, elapsed time.Duration, at time.Time, message string) string {
	body := make(map[string]json.RawMessage, len(c.Keys))
	maps.Copy(body, c.Keys)
	for _, name := range secretFields {
		if body[name] != nil {
			body[name] = json.RawMessage(redacted)
		}
	}
	text, err := json.Marshal(struct {
		Timestamp  int64                      `json:"timestamp"` // milliseconds
		RequestID  string                     `json:"request-id"`
		Handler    string                     `json:"handler"`
		URI        string                     `json:"uri"`
		Status     int                        `json:"status"`
		ElapsedMS  int64                      `json:"elapsed-ms"`
		SourceIP   string                     `json:"source-ip"`
		APIKey     string                     `json:"iam-api-key"`
		PathParams map[string]string          `json:"path-params"`
		GetParams  map[string][]string        `json:"get-params"`
		BodyParams map[string]json.RawMessage `json:"body-params"`
		Message    string                     `json:"message,omitempty"`
	}{
		at.UnixMilli(), c.RequestID, c.Operation.ID, c.Operation.Route(c.Args), status, elapsed.Milliseconds(),
		c.Source, c.Key, c.Args, c.Query, body, message,
	})
	if err != nil { // a body field that is no JSON cannot have passed validation
		return `{"handler":"` + c.Operation.ID + `"}`
	}
	return string(text)
}

// maxEnded bounds what is kept of operations that have ended.
const maxEnded = 4096

// ended keeps the operations that ended last, for the clients that wait for
// them or ask again: with mutations that changed nothing, which are stored
// nowhere.
type ended struct {
	mu    sync.Mutex
	known map[cloud.ID]endedOne
	ring  []cloud.ID
	next  int
}

type endedOne struct {
	org cloud.ID
	op  cloud.Operation
}

func (e *ended) add(org cloud.ID, op cloud.Operation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known == nil {
		e.known = map[cloud.ID]endedOne{}
	}
	e.known[op.ID] = endedOne{org, op}
	if len(e.ring) < maxEnded {
		e.ring = append(e.ring, op.ID)
		return
	}
	delete(e.known, e.ring[e.next])
	e.ring[e.next] = op.ID
	e.next = (e.next + 1) % maxEnded
}

func (e *ended) get(org, id cloud.ID) (cloud.Operation, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	one, ok := e.known[id]
	if !ok || org != "" && one.org != org {
		return cloud.Operation{}, false
	}
	return one.op, true
}
