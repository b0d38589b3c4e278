// SPDX-License-Identifier: Apache-2.0

// Package api is the HTTP edge of the control plane. It mounts every operation of
// cloud/api with one function: read, verify the signature, validate, decode, call
// the handler, answer. It is the only place that maps errors to HTTP statuses.
//
// It knows no noun and holds no state but the answers of recent mutations. Start at
// mount.go, which reads in the order of a request.
package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/url"
	"time"

	"cairn/cloud"
	"cairn/cloud/api"
)

// Call is one verified and validated request.
type Call struct {
	Operation *api.Operation
	Org       cloud.ID                   // organisation of the key, "" where no signature is asked for
	Key       string                     // the key that signed it
	Args      map[string]string          // parameters of the path; ids are UUIDs in lower case
	Query     url.Values                 // signed and known parameters only
	Body      any                        // pointer to the request shape, nil when there is none
	Keys      map[string]json.RawMessage // top-level fields as sent, known ones only; for api.Overlay
	RequestID string
	Source    string // address of the client

	// What a mutation stores with itself, in its own transaction, so that a retry
	// finds its answer. Empty for reads.
	Signature string
	Arrived   time.Time // when the request came in
	Expires   time.Time // when the stored answer may be swept
}

// ID returns the path parameter as the id it was checked to be.
func (c *Call) ID(param string) cloud.ID { return cloud.ID(c.Args[param]) }

// Handler performs an operation. The answer is of the operation's response shape,
// and a *cloud.Operation for an asynchronous one. A refusal is a *cloud.Error; any
// other error is answered as an internal one, without its text.
type Handler func(ctx context.Context, c Call) (any, error)

// Handlers are the handlers by operation id.
type Handlers map[string]Handler

// Keys looks up API keys.
type Keys interface {
	// Secret returns the secret of a key and the organisation it acts for. An
	// unknown key is a *cloud.Error of kind NotFound.
	Secret(ctx context.Context, key string) (secret string, org cloud.ID, err error)
}

// Answers finds the answers that mutations stored in their own transactions.
type Answers interface {
	// Answer returns the first answer to a signature and when its request arrived.
	Answer(ctx context.Context, signature string) (status int, body []byte, at time.Time, ok bool, err error)
}

// Waiter follows operations.
type Waiter interface {
	// Wait returns the operation when it is final or ctx is done, whichever is
	// first; in the second case as it stands.
	Wait(ctx context.Context, op cloud.ID) (*cloud.Operation, error)
}

// Audit is told of every request to an operation, before its answer leaves. Where
// the signature was refused, Org and Key are empty.
type Audit func(ctx context.Context, c Call, status int, elapsed time.Duration)

// Config is what New needs.
type Config struct {
	Operations []api.Operation // api.Operations when nil
	Handlers   Handlers        // one for every operation
	Keys       Keys
	Answers    Answers // nil: answers do not outlive the process
	Waiter     Waiter  // nil: asynchronous operations are answered as handed in
	Audit      Audit   // may be nil
	Zone       string
	PublicURL  string
	Logger     *slog.Logger // slog.Default() when nil
}
