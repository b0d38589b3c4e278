// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/api"
	"cairn/cloud/api/exo2"
)

const (
	key, secret = "EXOtest", "topsecret"
	org         = cloud.ID("0c0a1ca5-0000-4000-8000-000000000001")
	someID      = "0c0a1ca5-0000-4000-8000-00000000abcd"
)

type keys struct{}

func (keys) Secret(_ context.Context, k string) (string, cloud.ID, error) {
	switch k {
	case key:
		return secret, org, nil
	case "EXObroken":
		return "", "", errors.New("disk on fire")
	}
	return "", "", cloud.NotFoundf("no such key")
}

// nothing answers every operation with the zero of its shape.
func nothing(operations []api.Operation) Handlers {
	h := Handlers{}
	for _, o := range operations {
		h[o.ID] = func(context.Context, Call) (any, error) {
			if o.Async {
				return &cloud.Operation{ID: cloud.NewID(), State: cloud.OperationSuccess}, nil
			}
			return reflect.New(o.Response).Elem().Interface(), nil
		}
	}
	return h
}

// bench is an API under test.
type bench struct {
	t   *testing.T
	cfg Config
	h   http.Handler
	log bytes.Buffer
}

func newBench(t *testing.T, change func(*Config)) *bench {
	t.Helper()
	b := &bench{t: t}
	b.cfg = Config{Operations: api.Operations, Handlers: nothing(api.Operations), Keys: keys{}, Zone: "ch-gva-2", PublicURL: "http://here",
		Logger: slog.New(slog.NewTextHandler(&b.log, nil))}
	if change != nil {
		change(&b.cfg)
	}
	h, err := New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.h = h
	return b
}

// signed makes a request as a client does.
func signed(method, target, body string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	exo2.Sign(r, []byte(body), key, secret, time.Now().Add(exo2.Validity))
	return r
}

func (b *bench) send(r *http.Request) *httptest.ResponseRecorder {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.h.ServeHTTP(w, r)
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		b.t.Errorf("%s %s: content type %q", r.Method, r.URL, got)
	}
	if !json.Valid(w.Body.Bytes()) {
		b.t.Errorf("%s %s: answer %q", r.Method, r.URL, w.Body)
	}
	return w
}

// wantError checks an answer's status and text and returns its faults by location.
func (b *bench) wantError(w *httptest.ResponseRecorder, status int, text string) map[string]string {
	b.t.Helper()
	var e errorBody
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
		b.t.Fatal(err)
	}
	if w.Code != status || !strings.Contains(e.Message, text) {
		b.t.Errorf("answer %d %s, want %d %q", w.Code, w.Body, status, text)
	}
	faults := map[string]string{}
	for _, f := range e.Errors {
		if !strings.Contains(e.Message, f.Message) {
			b.t.Errorf("message %q lacks %q", e.Message, f.Message)
		}
		faults[f.Location] = f.Detail
	}
	return faults
}

func TestEveryOperationIsRouted(t *testing.T) {
	called := map[string]Call{}
	b := newBench(t, func(c *Config) {
		for id, h := range c.Handlers {
			c.Handlers[id] = func(ctx context.Context, call Call) (any, error) {
				called[id] = call
				return h(ctx, call)
			}
		}
	})
	bodies := map[string]string{
		"register-ssh-key":            `{"name":"k","public-key":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"}`,
		"create-instance":             `{"instance-type":{"id":"` + someID + `"},"template":{"id":"` + someID + `","name":"x"},"disk-size":10}`,
		"start-instance":              ``,
		"add-rule-to-security-group":  `{"flow-direction":"ingress","protocol":"tcp","network":"0.0.0.0/0","start-port":1,"end-port":2}`,
		"create-instance-pool":        `{"name":"p","size":2,"instance-type":{"id":"` + someID + `"},"template":{"id":"` + someID + `"},"disk-size":10}`,
		"evict-instance-pool-members": `{"instances":["` + someID + `"]}`,
		"scale-instance-pool":         `{"size":0}`,
		"add-service-to-load-balancer": `{"name":"s","instance-pool":{"id":"` + someID + `"},"protocol":"tcp","strategy":"round-robin","port":80,"target-port":80,
			"healthcheck":{"mode":"tcp"}}`,
		"attach-instance-to-security-group":   `{"instance":{"id":"` + someID + `"}}`,
		"detach-instance-from-security-group": `{"instance":{"id":"` + someID + `"}}`,

		"add-external-source-to-security-group":      `{"cidr":"192.0.2.0/24"}`,
		"remove-external-source-from-security-group": `{"cidr":"192.0.2.0/24"}`,

		"scale-instance":                       `{"instance-type":{"id":"` + someID + `"}}`,
		"attach-instance-to-private-network":   `{"instance":{"id":"` + someID + `"}}`,
		"detach-instance-from-private-network": `{"instance":{"id":"` + someID + `"}}`,
		"update-private-network-instance-ip":   `{"instance":{"id":"` + someID + `"}}`,
		"attach-instance-to-elastic-ip":        `{"instance":{"id":"` + someID + `"}}`,
		"detach-instance-from-elastic-ip":      `{"instance":{"id":"` + someID + `"}}`,
		"update-reverse-dns-instance":          `{"domain-name":"a.example."}`,
		"update-reverse-dns-elastic-ip":        `{"domain-name":"a.example."}`,
	}
	for _, o := range api.Operations {
		args := map[string]string{"id": someID, "service-id": someID, "rule-id": someID, "name": "a.b"}
		for _, p := range o.Params {
			if p.Name == "field" {
				args["field"] = p.Enum[0]
			}
		}
		body, ok := bodies[o.ID]
		if !ok && o.Request != nil {
			body = `{"name":"x"}`
		}
		w := b.send(signed(o.Method, o.Route(args), body))
		c, ok := called[o.ID]
		if w.Code != http.StatusOK || !ok {
			t.Errorf("%s: %d %s, called %v", o.ID, w.Code, w.Body, ok)
			continue
		}
		if strings.Contains(w.Body.String(), "null") {
			t.Errorf("%s: a list is null: %s", o.ID, w.Body)
		}
		if (c.Org != org || c.Key != key) != o.Unsigned || (c.Signature != "") != o.Mutates() || len(c.Args) != len(o.Params) {
			t.Errorf("%s: call %+v", o.ID, c)
		}
		if o.Request != nil && reflect.TypeOf(c.Body) != reflect.PointerTo(o.Request) {
			t.Errorf("%s: body %T", o.ID, c.Body)
		}
	}
}

func TestNewRefusesAnIncompleteTable(t *testing.T) {
	cfg := Config{Handlers: nothing(api.Operations), Keys: keys{}}
	delete(cfg.Handlers, "stop-instance")
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "stop-instance") {
		t.Error("an operation without handler:", err)
	}
	cfg.Handlers = nothing(api.Operations)
	cfg.Handlers["dance"] = cfg.Handlers["get-instance"]
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Error("a handler without operation:", err)
	}
}

func TestNotFound(t *testing.T) {
	b := newBench(t, nil)
	for _, c := range []struct{ method, path string }{
		{"GET", "/"}, {"GET", "/v2"}, {"GET", "/v2/zone/"}, {"GET", "/v2/nothing"}, {"GET", "/zone"},
		{"POST", "/v2/zone"}, {"PATCH", "/v2/instance/" + someID}, {"OPTIONS", "/v2/instance"},
		{"GET", "/v2/instance/i-123"}, {"GET", "/v2/instance/" + someID + "0"}, {"PUT", "/v2/instance/x:start"}, {"PUT", "/v2/instance/" + someID + ":explode"},
		{"DELETE", "/v2/load-balancer/" + someID + "/name"}, {"GET", "/v2/load-balancer/" + someID + "/service/7"},
		{"GET", "/v2/instance/" + someID + "%2f"},
	} {
		b.wantError(b.send(signed(c.method, c.path, "")), http.StatusNotFound, "")
	}
}

func TestSignature(t *testing.T) {
	b := newBench(t, nil)
	const path = "/v2/load-balancer"
	b.wantError(b.send(httptest.NewRequest("GET", path, nil)), http.StatusForbidden, "Invalid key or request signature")
	for name, sign := range map[string]func(*http.Request){
		"unknown key":   func(r *http.Request) { exo2.Sign(r, nil, "EXOother", secret, time.Now().Add(time.Minute)) },
		"wrong secret":  func(r *http.Request) { exo2.Sign(r, nil, key, "x", time.Now().Add(time.Minute)) },
		"expired":       func(r *http.Request) { exo2.Sign(r, nil, key, secret, time.Now().Add(-2*time.Second)) },
		"too far ahead": func(r *http.Request) { exo2.Sign(r, nil, key, secret, time.Now().Add(12*time.Minute)) },
		"other scheme":  func(r *http.Request) { r.SetBasicAuth(key, secret) },
	} {
		r := httptest.NewRequest("GET", path, nil)
		sign(r)
		w := b.send(r)
		b.wantError(w, http.StatusForbidden, "Invalid key or request signature")
		if strings.Contains(w.Body.String(), secret) {
			t.Errorf("%s: the answer holds the secret", name)
		}
	}
	r := httptest.NewRequest("GET", path, nil)
	exo2.Sign(r, nil, "EXObroken", secret, time.Now().Add(time.Minute))
	if w := b.send(r); w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "fire") {
		t.Errorf("a broken key store: %d %s", w.Code, w.Body)
	}
	// Signed over the path as it came, not as it was understood.
	if w := b.send(signed("GET", "/v2/ssh-key/a%2Eb", "")); w.Code != http.StatusOK {
		t.Errorf("an escaped path: %d %s", w.Code, w.Body)
	}
	// The one operation that asks nobody.
	if w := b.send(httptest.NewRequest("GET", "/v2/zone", nil)); w.Code != http.StatusOK {
		t.Errorf("zones unsigned: %d", w.Code)
	}
	r = httptest.NewRequest("GET", "/v2/zone", nil)
	r.Header.Set("Authorization", "EXO2-HMAC-SHA256 credential=old,expires=1,signature=AAAA")
	if w := b.send(r); w.Code != http.StatusOK {
		t.Errorf("zones wrongly signed: %d", w.Code)
	}
}

func TestEveryFieldIsNamed(t *testing.T) {
	b := newBench(t, nil)
	service := "/v2/load-balancer/" + someID + "/service"
	for _, c := range []struct {
		name, method, path, body string
		want                     map[string]string
	}{
		{"all at once", "POST", service, `{"name":"","protocol":"sctp","port":70000,"target-port":"80","strategy":"round-robin","instance-pool":{"id":"p"},
			"healthcheck":{"port":-1,"interval":5,"timeout":7,"retries":1.5}}`, map[string]string{
			"$['name']":                   "expected length >= 1",
			"$['protocol']":               "expected value to be one of \"tcp, udp\"",
			"$['port']":                   "expected number <= 65535",
			"$['target-port']":            "expected integer",
			"$['instance-pool']['id']":    "expected string to be a UUID",
			"$['healthcheck']['port']":    "expected number >= 1",
			"$['healthcheck']['retries']": "expected integer",
		}},
		{"over several fields", "POST", service, `{"name":"s","protocol":"tcp","port":1,"target-port":1,"strategy":"round-robin","instance-pool":{"id":"` + someID + `"},
			"healthcheck":{"interval":5,"timeout":7}}`, map[string]string{"$['healthcheck']['timeout']": "expected at most the interval, 5"}},
		{"both kinds together", "POST", "/v2/security-group/" + someID + "/rules", `{"flow-direction":"up","protocol":"tcp","network":"x","start-port":9,"end-port":8}`,
			map[string]string{"$['flow-direction']": "expected value to be one of \"ingress, egress\"", "$['network']": "expected a network in CIDR notation",
				"$['end-port']": "expected a port >= start-port"}},
		{"missing", "POST", service, `{}`, map[string]string{"$['name']": "required", "$['protocol']": "required", "$['port']": "required", "$['target-port']": "required",
			"$['strategy']": "required", "$['instance-pool']": "required", "$['healthcheck']": "required"}},
		{"missing inside", "POST", "/v2/instance", `{"instance-type":{},"template":{"id":"` + someID + `"},"disk-size":9}`,
			map[string]string{"$['instance-type']['id']": "required", "$['disk-size']": "expected number >= 10"}},
		{"other case is unknown", "POST", "/v2/load-balancer", `{"Name":"x","NAME":"y"}`, map[string]string{"$['name']": "required"}},
		{"in a list", "PUT", "/v2/instance-pool/" + someID + ":evict", `{"instances":["` + someID + `","x"]}`, map[string]string{"$['instances'][1]": "expected string to be a UUID"}},
		{"null in a PUT", "PUT", "/v2/load-balancer/" + someID, `{"name":null,"description":null}`, map[string]string{"$['name']": "null: this field cannot be removed"}},
		{"no body", "POST", "/v2/load-balancer", ``, map[string]string{"": "request body: expected a JSON object"}},
		{"query", "GET", "/v2/instance?manager-id=x&manager-type=y", ``, map[string]string{"$['manager-id']": "expected a UUID", "$['manager-type']": "expected one of [instance-pool]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := b.wantError(b.send(signed(c.method, c.path, c.body)), http.StatusBadRequest, "")
			for location, detail := range got {
				if c.want[location] != detail {
					t.Errorf("fault of %s: %q, want %q", location, detail, c.want[location])
				}
			}
			for location := range c.want {
				if _, ok := got[location]; !ok {
					t.Errorf("no fault of %s in %v", location, got)
				}
			}
		})
	}
	for _, body := range []string{"nope", "[]", "null", `"x"`, `{"name":"x"} {}`, `{"name":"x"`} {
		b.wantError(b.send(signed("POST", "/v2/load-balancer", body)), http.StatusBadRequest, "request body: expected a JSON object")
	}
	w := b.send(signed("POST", "/v2/load-balancer", `{"name":"`+strings.Repeat("x", 1<<20)+`"}`))
	b.wantError(w, http.StatusRequestEntityTooLarge, "1 MiB")
}

func TestBodyReachesTheHandlerPruned(t *testing.T) {
	var got Call
	b := newBench(t, func(c *Config) {
		next := c.Handlers["update-load-balancer-service"]
		c.Handlers["update-load-balancer-service"] = func(ctx context.Context, call Call) (any, error) {
			got = call
			return next(ctx, call)
		}
	})
	path := "/v2/load-balancer/" + strings.ToUpper(someID) + "/service/" + someID
	w := b.send(signed("PUT", path, `{"port":8.0e1,"Port":99999,"description":null,"extra":{"a":1},"healthcheck":{"mode":"tcp","PORT":99999,"uri":null}}`))
	if w.Code != http.StatusOK {
		t.Fatal(w.Code, w.Body)
	}
	body := got.Body.(*cloud.UpdateServiceRequest)
	if body.Port != 80 || *body.Healthcheck != (cloud.Healthcheck{Mode: cloud.CheckTCP}) || got.ID("id") != someID {
		t.Errorf("body %+v of %v", body, got.Args)
	}
	var names []string
	for name := range got.Keys {
		names = append(names, name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"description", "healthcheck", "port"}) || string(got.Keys["description"]) != "null" {
		t.Errorf("keys %v", got.Keys)
	}
}

func TestErrorsOfHandlers(t *testing.T) {
	var refusal error
	b := newBench(t, func(c *Config) {
		c.Handlers["get-instance"] = func(context.Context, Call) (any, error) {
			if refusal == nil {
				panic("boom: " + secret)
			}
			return nil, refusal
		}
	})
	for _, c := range []struct {
		err    error
		status int
		text   string
		after  string
	}{
		{cloud.Missing("instance", someID), 404, someID, ""},
		{fmt.Errorf("read: %w", cloud.Exists("load-balancer", "web")), 409, "already exists", ""},
		{cloud.Busy("instance", someID, someID), 409, "busy", ""},
		{cloud.Forbiddenf("no"), 403, "no", ""},
		{cloud.Unavailablef(0, "later"), 503, "later", "1"},
		{cloud.Unavailablef(2500*time.Millisecond, "later"), 503, "later", "3"},
		{context.DeadlineExceeded, 503, "try again", "1"},
		{errors.New("SQL: " + secret), 500, "internal error", ""},
		{nil, 500, "internal error", ""},
	} {
		refusal = c.err
		w := b.send(signed("GET", "/v2/instance/"+someID, ""))
		b.wantError(w, c.status, c.text)
		if w.Header().Get("Retry-After") != c.after {
			t.Errorf("%v: Retry-After %q, want %q", c.err, w.Header().Get("Retry-After"), c.after)
		}
		if strings.Contains(w.Body.String(), secret) {
			t.Errorf("%v leaks: %s", c.err, w.Body)
		}
	}
	if !strings.Contains(b.log.String(), "SQL: ") || !strings.Contains(b.log.String(), "boom: ") {
		t.Errorf("log lacks what the answer hides: %s", b.log.String())
	}
}

func TestAuditSeesTheAnswer(t *testing.T) {
	var status []int
	var last Call
	b := newBench(t, func(c *Config) {
		c.Audit = func(_ context.Context, call Call, s int, _ time.Duration) { status, last = append(status, s), call }
	})
	b.send(signed("PUT", "/v2/instance/"+someID+":stop", ""))
	if last.Org != org || last.Source != "192.0.2.1" || last.RequestID == "" {
		t.Errorf("call %+v", last)
	}
	b.send(httptest.NewRequest("GET", "/v2/instance", nil))
	if !slices.Equal(status, []int{200, 403}) || last.Org != "" {
		t.Errorf("statuses %v, %+v", status, last)
	}
}

func TestDocument(t *testing.T) {
	b := newBench(t, nil)
	for path, version := range map[string]string{api.DocumentPath: "3.1", api.DocumentPath30: "3.0"} {
		w := b.send(httptest.NewRequest("GET", path, nil))
		var doc struct {
			OpenAPI string
			Paths   map[string]map[string]struct{ OperationID string }
		}
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || !strings.HasPrefix(doc.OpenAPI, version) {
			t.Fatal(path, doc.OpenAPI, err)
		}
		for _, o := range api.Operations {
			if got := doc.Paths[o.Path][strings.ToLower(o.Method)].OperationID; got != o.ID {
				t.Errorf("%s: %s %s is %q, want %q", path, o.Method, o.Path, got, o.ID)
			}
		}
		if nullable := strings.Contains(w.Body.String(), `"nullable":true`) || strings.Contains(w.Body.String(), `"null"`); !nullable {
			t.Errorf("%s: nothing says what null removes", path)
		}
		if text := w.Body.String(); strings.Contains(text, "$schema") || !strings.Contains(text, "65535") || !strings.Contains(text, `"http://here/v2"`) {
			t.Errorf("%s: bounds or server are missing", path)
		}
	}
}

func TestJSONPath(t *testing.T) {
	for in, want := range map[string]string{"": "", "port": "$['port']", "healthcheck.port": "$['healthcheck']['port']", "rules[2].network": "$['rules'][2]['network']", "a'b": `$['a\'b']`} {
		if got := jsonPath(in); got != want {
			t.Errorf("jsonPath(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCatalogue(t *testing.T) {
	b := newBench(t, func(c *Config) {
		maps.Copy(c.Handlers, Catalogue("ch-gva-2", "http://here"))
	})
	for path, want := range map[string]string{
		"/v2/zone":          `{"zones":[{"name":"ch-gva-2","api-endpoint":"http://here/v2"}]}`,
		"/v2/instance-type": `"size":"micro"`,
		"/v2/instance-type/" + string(cloud.InstanceTypes[0].ID): `"family":"standard"`,
		"/v2/template":                               `"name":"Cairn Echo 1"`,
		"/v2/template?visibility=private":            `{"templates":[]}`,
		"/v2/template/" + string(cloud.Images[0].ID): `"zones":["ch-gva-2"]`,
	} {
		if w := b.send(signed("GET", path, "")); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s, want %s", path, w.Code, w.Body, want)
		}
	}
	b.wantError(b.send(signed("GET", "/v2/template/"+someID, "")), http.StatusNotFound, "template")
	w := b.send(signed("GET", "/v2/template", ""))
	if strings.Contains(w.Body.String(), "netns") {
		t.Error("the driver is nobody's business")
	}
}
