// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cairn/cloud"
	"cairn/cloud/api/exo2"
)

// wire answers requests without a network, so that time can be a bubble's.
type wire func(r *http.Request, body []byte) (int, string, error)

func (f wire) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	status, text, err := f(r, body)
	if err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "3")
	}
	w.WriteHeader(status)
	io.WriteString(w, text)
	return w.Result(), nil
}

func over(f wire) *Client {
	c := New("http://cloud", "key", "secret")
	c.HTTP = &http.Client{Transport: f}
	return c
}

const id = cloud.ID("0c0a1ca5-0000-4000-8000-000000000001")

func TestDoSignsWhatItSends(t *testing.T) {
	c := over(func(r *http.Request, body []byte) (int, string, error) {
		s, err := exo2.Parse(r.Header.Get("Authorization"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Check("secret", r, body, time.Now()); err != nil || s.Key != "key" {
			t.Error(s.Key, err)
		}
		if r.Method != "POST" || string(body) != `{"name":"web"}` {
			t.Errorf("%s %s %s", r.Method, r.URL, body)
		}
		return 200, `{"id":"` + string(id) + `","state":"success"}`, nil
	})
	op, err := c.Run(t.Context(), "create-load-balancer", In{Body: cloud.CreateLoadBalancerRequest{Name: "web"}})
	if err != nil || op.ID != id {
		t.Error(op, err)
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		kind   cloud.Kind
	}{
		{404, `{"message":"gone"}`, cloud.NotFound},
		{409, `{"message":"gone","reason":"busy"}`, cloud.Conflict},
		{400, `{"message":"gone","errors":[{"message":"m","detail":"d","location":"l"}]}`, cloud.Invalid},
		{403, `{"message":"gone"}`, cloud.Forbidden},
		{404, `<html>`, cloud.NotFound},
	} {
		err := over(func(*http.Request, []byte) (int, string, error) { return c.status, c.body, nil }).Do(t.Context(), "get-instance", ByID(id), nil)
		var e *cloud.Error
		if !errors.As(err, &e) || e.Kind != c.kind {
			t.Errorf("%d: %v", c.status, err)
		}
		if c.kind == cloud.Invalid && (len(e.Fields) != 1 || e.Fields[0] != cloud.Fault("l", "d")) {
			t.Errorf("fields %v", e.Fields)
		}
	}
	if err := over(nil).Do(t.Context(), "dance", In{}, nil); err == nil {
		t.Error("an operation that is not there")
	}
	err := over(func(*http.Request, []byte) (int, string, error) { return 500, `{"message":"internal"}`, nil }).Do(t.Context(), "get-instance", ByID(id), nil)
	if err == nil || !strings.Contains(err.Error(), "500: internal") {
		t.Error(err)
	}
}

// A request that met nobody is sent again as it was, never sooner than a second
// later: the server takes equal bytes within a second for a second request.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		var at []time.Duration
		start := time.Now()
		c := over(func(r *http.Request, body []byte) (int, string, error) {
			sent, at = append(sent, r.Header.Get("Authorization")+string(body)), append(at, time.Since(start))
			switch len(sent) {
			case 1:
				return 0, "", errors.New("connection reset")
			case 2:
				return 503, `{"message":"later"}`, nil
			}
			return 200, `{"id":"` + string(id) + `","state":"success"}`, nil
		})
		if _, err := c.Run(t.Context(), "create-load-balancer", In{Body: cloud.CreateLoadBalancerRequest{Name: "web"}}); err != nil {
			t.Fatal(err)
		}
		if len(sent) != 3 || sent[0] != sent[1] || sent[1] != sent[2] {
			t.Errorf("sent %q", sent)
		}
		if at[1] != time.Second || at[2] != 4*time.Second {
			t.Errorf("sent at %v", at)
		}
	})
}

func TestRetriesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		err := over(func(*http.Request, []byte) (int, string, error) { n++; return 0, "", io.ErrUnexpectedEOF }).Do(t.Context(), "list-instances", In{}, nil)
		if err == nil || n != attempts {
			t.Errorf("%v after %d attempts", err, n)
		}
		n = 0
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		start := time.Now()
		err = over(func(*http.Request, []byte) (int, string, error) { n++; return 503, "{}", nil }).Do(ctx, "list-instances", In{}, nil)
		if err == nil || n != 1 || time.Since(start) != 1500*time.Millisecond {
			t.Errorf("%v after %d attempts and %v", err, n, time.Since(start))
		}
	})
}

func TestWait(t *testing.T) {
	for _, c := range []struct {
		name  string
		polls []string // state by poll; "" is no answer
		want  string   // of the error
	}{
		{"at once", nil, ""},
		{"soon", []string{"pending", "success"}, ""},
		{"failure", []string{"failure"}, "ends in failure, unavailable: no room"},
		{"timeout", []string{"pending", "timeout"}, "ends in timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				cl := over(func(*http.Request, []byte) (int, string, error) {
					op := cloud.Operation{ID: id, State: cloud.OperationState(c.polls[n]), Reason: "unavailable", Message: "no room"}
					n++
					b, err := json.Marshal(op)
					return 200, string(b), err
				})
				op := cloud.Operation{ID: id, State: "pending"}
				if c.polls == nil {
					op.State = "success"
				}
				end, err := cl.Wait(t.Context(), op)
				if c.want == "" && (err != nil || end.State != "success") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("%+v, %v", end, err)
				}
				if n != len(c.polls) {
					t.Errorf("%d polls", n)
				}
			})
		})
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := over(func(*http.Request, []byte) (int, string, error) {
			return 200, `{"id":"` + string(id) + `","state":"pending"}`, nil
		})
		op, err := c.Wait(ctx, cloud.Operation{ID: id, State: "pending"})
		if !errors.Is(err, context.DeadlineExceeded) || op.State != "pending" {
			t.Error(op, err)
		}
	})
}
