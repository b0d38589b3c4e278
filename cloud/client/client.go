// SPDX-License-Identifier: Apache-2.0

// Package client is a thin Go client of the public API. It knows operations only as
// the data of cloud/api: what is added there can be called here. It holds no
// privilege; everything it does, any other client can do.
//
// Start at Client.Do; Run is Do and Wait for what is asynchronous.
package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"cairn/cloud"
	"cairn/cloud/api"
	"cairn/cloud/api/exo2"
)

// Client calls one endpoint with one key.
type Client struct {
	Endpoint    string // base URL, with or without the version
	Key, Secret string // empty: only what is served unsigned
	HTTP        *http.Client
	Operations  []api.Operation // api.Operations when nil
}

// New returns a client of the API at endpoint.
func New(endpoint, key, secret string) *Client {
	return &Client{Endpoint: endpoint, Key: key, Secret: secret, HTTP: &http.Client{Timeout: time.Minute}}
}

// FromEnv returns a client as the environment describes it: CAIRN_API_ENDPOINT,
// CAIRN_API_KEY and CAIRN_API_SECRET, or the same with EXOSCALE in front.
func FromEnv() (*Client, error) {
	get := func(name string) string {
		return cmp.Or(os.Getenv("CAIRN_API_"+name), os.Getenv("EXOSCALE_API_"+name))
	}
	c := New(get("ENDPOINT"), get("KEY"), get("SECRET"))
	if c.Endpoint == "" {
		return nil, errors.New("no endpoint: set CAIRN_API_ENDPOINT, CAIRN_API_KEY and CAIRN_API_SECRET")
	}
	return c, nil
}

// In is what an operation takes.
type In struct {
	Args  map[string]string // parameters of the path
	Query url.Values
	Body  any // encoded as JSON; nil sends no body
}

// Do performs the operation id and decodes its answer into out, which may be nil. A
// refusal is a *cloud.Error.
func (c *Client) Do(ctx context.Context, id string, in In, out any) error {
	op := api.Find(c.operations(), id)
	if op == nil {
		return fmt.Errorf("%s: no such operation", id)
	}
	answer, err := c.exchange(ctx, op, in)
	if err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: decode answer: %w", id, err)
	}
	return nil
}

// Call is Do for an answer of type T.
func Call[T any](ctx context.Context, c *Client, id string, in In) (T, error) {
	var out T
	err := c.Do(ctx, id, in, &out)
	return out, err
}

// ByID is the In of an operation whose only parameter is the id of its noun.
func ByID(id cloud.ID) In { return In{Args: map[string]string{"id": string(id)}} }

func (c *Client) operations() []api.Operation {
	if c.Operations == nil {
		return api.Operations
	}
	return c.Operations
}

// attempts and pause say how often a request is sent that met no server, or one
// that could not just now. The pause keeps to what the server may take for a retry:
// the same bytes, a second later.
const (
	attempts = 4
	pause    = time.Second
)

// exchange sends a request, byte for byte the same until it is answered.
func (c *Client) exchange(ctx context.Context, op *api.Operation, in In) ([]byte, error) {
	var body []byte
	if in.Body != nil {
		var err error
		if body, err = json.Marshal(in.Body); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
	}
	target := strings.TrimSuffix(api.Endpoint(c.Endpoint), api.Prefix) + op.Route(in.Args)
	if len(in.Query) > 0 {
		target += "?" + in.Query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, op.Method, target, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "cairn")
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.Key != "" && !op.Unsigned {
		exo2.Sign(r, body, c.Key, c.Secret, time.Now().Add(exo2.Validity))
	}
	for i := 1; ; i++ {
		if body != nil {
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
		answer, after, err := c.send(r)
		if err == nil || after == 0 || i == attempts {
			return answer, err
		}
		select {
		case <-time.After(max(after, pause<<(i-1))):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// send sends r once. after is the time to wait before another attempt, 0 when there
// is no point in one.
func (c *Client) send(r *http.Request) (answer []byte, after time.Duration, err error) {
	h := c.HTTP
	if h == nil {
		h = http.DefaultClient
	}
	resp, err := h.Do(r)
	if err != nil {
		// Nobody listens, or the caller gave up: sending again helps neither.
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" || r.Context().Err() != nil {
			return nil, 0, err
		}
		return nil, pause, err
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(resp.Body); err != nil {
		return nil, pause, fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return answer, 0, nil
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		after = pause
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
			after = max(after, time.Duration(s)*time.Second)
		}
	}
	return nil, after, refusal(resp.StatusCode, answer)
}

var kinds = map[int]cloud.Kind{
	http.StatusNotFound:           cloud.NotFound,
	http.StatusConflict:           cloud.Conflict,
	http.StatusBadRequest:         cloud.Invalid,
	http.StatusForbidden:          cloud.Forbidden,
	http.StatusServiceUnavailable: cloud.Unavailable,
}

// refusal reads the body of an answer that is none.
func refusal(status int, body []byte) error {
	var b struct {
		Message string
		Reason  cloud.Reason
		Errors  []struct{ Detail, Location string }
	}
	if json.Unmarshal(body, &b) != nil || b.Message == "" {
		b.Message = http.StatusText(status)
	}
	kind, ok := kinds[status]
	if !ok {
		return fmt.Errorf("the server answers %d: %s", status, b.Message)
	}
	e := &cloud.Error{Kind: kind, Message: b.Message, Reason: b.Reason}
	for _, f := range b.Errors {
		e.Fields = append(e.Fields, cloud.FieldError{Location: f.Location, Detail: f.Detail})
	}
	return e
}
