// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"cairn/cloud"
	"cairn/cloud/api"
	"cairn/cloud/api/exo2"
	"cairn/cloud/client"
)

const (
	balancer = "0c0a1ca5-0000-4000-8000-0000000000a1"
	other    = "0c0a1ca5-0000-4000-8000-0000000000a2"
	service  = "0c0a1ca5-0000-4000-8000-0000000000b1"
	pool     = "0c0a1ca5-0000-4000-8000-0000000000c1"
	opID     = "0c0a1ca5-0000-4000-8000-0000000000f1"
)

// server answers by "METHOD path" and remembers what it was asked.
type server struct {
	t       *testing.T
	url     string
	answers map[string]string
	asked   []string
	body    map[string]any // of the last request that had one
}

func newServer(t *testing.T, answers map[string]string) *server {
	s := &server{t: t, answers: answers}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.url = h.URL
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	if len(raw) > 0 {
		s.body = nil
		if err := json.Unmarshal(raw, &s.body); err != nil {
			s.t.Error(err)
		}
	}
	if _, err := exo2.Parse(r.Header.Get("Authorization")); err != nil && r.URL.Path != api.Find(api.Operations, "list-zones").Route(nil) {
		s.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	line := r.Method + " " + strings.TrimPrefix(r.URL.RequestURI(), api.Prefix)
	s.asked = append(s.asked, line)
	answer, ok := s.answers[line]
	w.Header().Set("Content-Type", "application/json")
	switch {
	case !ok:
		w.WriteHeader(http.StatusNotFound)
		answer = `{"message":"nothing at ` + line + `"}`
	case strings.HasPrefix(answer, "409 "):
		w.WriteHeader(http.StatusConflict)
		answer = strings.TrimPrefix(answer, "409 ")
	}
	io.WriteString(w, answer)
}

// run executes a command line.
func (s *server) run(args ...string) (out, errs string, err error) {
	var o, e bytes.Buffer
	root := New(Options{Out: &o, Err: &e, Connect: func() (*client.Client, error) { return client.New(s.url, "key", "secret"), nil }})
	root.SetArgs(args)
	err = root.ExecuteContext(s.t.Context())
	return o.String(), e.String(), err
}

func (s *server) must(args ...string) string {
	s.t.Helper()
	out, _, err := s.run(args...)
	if err != nil {
		s.t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return out
}

func cloudAnswers() map[string]string {
	done := `{"id":"` + opID + `","state":"success","reference":{"id":"` + balancer + `","link":"x","command":"get-load-balancer"}}`
	lb := `{"id":"` + balancer + `","name":"web","ip":"203.0.113.1","state":"running","created-at":"2026-01-02T03:04:05Z","labels":{"b":"2","a":"1"},
		"services":[{"id":"` + service + `","name":"http","protocol":"tcp","port":80,"target-port":8080,"strategy":"round-robin","state":"running",
		"instance-pool":{"id":"` + pool + `"},"healthcheck":{"mode":"http","port":8080,"uri":"/up"},"healthcheck-status":[]}],"unknown":"kept"}`
	return map[string]string{
		"GET /load-balancer":                                        `{"load-balancers":[` + lb + `,{"id":"` + other + `","name":"twin","services":[]},{"id":"` + pool + `","name":"twin","services":[]}]}`,
		"POST /load-balancer":                                       done,
		"GET /load-balancer/" + balancer:                            lb,
		"PUT /load-balancer/" + balancer:                            done,
		"DELETE /load-balancer/" + balancer:                         done,
		"GET /instance-pool":                                        `{"instance-pools":[{"id":"` + pool + `","name":"p"}]}`,
		"POST /load-balancer/" + balancer + "/service":              done,
		"PUT /load-balancer/" + balancer + "/service/" + service:    done,
		"DELETE /load-balancer/" + balancer + "/service/" + service: done,
		"GET /load-balancer/" + balancer + "/service/" + service:    `{"id":"` + service + `","healthcheck":{"mode":"http","port":8080,"uri":"/up"}}`,
		"DELETE /load-balancer/" + balancer + "/description":        done,
		"GET /instance?manager-id=" + pool:                          `{"instances":[]}`,
		"GET /zone":                                                 `{"zones":[{"name":"ch-gva-2","api-endpoint":"http://x/v2"}]}`,
		"GET /instance-type":                                        `{"instance-types":[{"id":"` + other + `","family":"standard","size":"small"},{"id":"` + pool + `","family":"cpu","size":"small"}]}`,
		"GET /template":                                             `{"templates":[{"id":"` + service + `","name":"Echo 1","family":"echo"}]}`,
		"POST /instance-pool":                                       `{"id":"` + opID + `","state":"failure","reason":"unavailable","message":"no room"}`,
		"POST /ssh-key":                                             `{"id":"` + opID + `","state":"success"}`,
		"POST /anti-affinity-group":                                 `409 {"message":"anti-affinity-group \"a\" already exists"}`,
	}
}

func TestTables(t *testing.T) {
	s := newServer(t, cloudAnswers())
	for _, c := range []struct {
		args string
		want []string
	}{
		{"zone list", []string{"NAME      API-ENDPOINT", "ch-gva-2  http://x/v2"}},
		{"nlb list", []string{"ID", "NAME", "IP", "STATE", balancer + "  web   203.0.113.1  running"}},
		{"nlb show web", []string{"ip          203.0.113.1", "created-at  2026-01-02T03:04:05Z", "labels      a=1, b=2", "services:\nID", service + "  http  tcp       80    8080"}},
		{"nlb get-service web http", []string{"healthcheck-mode  http", "healthcheck-port  8080", "healthcheck-uri   /up"}},
	} {
		out := s.must(strings.Fields(c.args)...)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s lacks %q:\n%s", c.args, want, out)
			}
		}
	}
}

func TestJSON(t *testing.T) {
	s := newServer(t, cloudAnswers())
	for _, args := range [][]string{{"nlb", "get", balancer, "-O", "json"}, {"--output", "json", "nlb", "create", "web"}} {
		var got map[string]any
		if err := json.Unmarshal([]byte(s.must(args...)), &got); err != nil || got["unknown"] != "kept" {
			t.Errorf("%v: %v, %v", args, got, err)
		}
	}
	if _, _, err := s.run("nlb", "list", "-O", "xml"); err == nil || !strings.Contains(err.Error(), "table or json") {
		t.Error(err)
	}
}

func TestBodies(t *testing.T) {
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, asked, body string }{
		{"nlb create web --labels a=1,b=2", "POST /load-balancer", `{"name":"web","labels":{"a":"1","b":"2"}}`},
		{"nlb update web --description x", "PUT /load-balancer/" + balancer, `{"description":"x"}`},
		{"nlb update web --clear labels,description", "PUT /load-balancer/" + balancer, `{"labels":null,"description":null}`},
		{"nlb add-service web --name s --instance-pool p --protocol tcp --strategy maglev-hash --port 80 --target-port 8080 --healthcheck-mode http --healthcheck-uri /x",
			"POST /load-balancer/" + balancer + "/service", `{"name":"s","instance-pool":{"id":"` + pool + `"},"protocol":"tcp","strategy":"maglev-hash","port":80,"target-port":8080,
			"healthcheck":{"mode":"http","uri":"/x"}}`},
		{"nlb add-service web --name s --instance-pool p --protocol tcp --strategy round-robin --port 80 --target-port 80",
			"POST /load-balancer/" + balancer + "/service", `{"name":"s","instance-pool":{"id":"` + pool + `"},"protocol":"tcp","strategy":"round-robin","port":80,"target-port":80,"healthcheck":{}}`},
		// What the flags do not say of a nested object is kept.
		{"nlb update-service web http --healthcheck-interval 5", "PUT /load-balancer/" + balancer + "/service/" + service,
			`{"healthcheck":{"mode":"http","port":8080,"uri":"/up","interval":5}}`},
		{"nlb delete-service " + balancer + " http", "DELETE /load-balancer/" + balancer + "/service/" + service, ``},
		{"nlb reset-field web description", "DELETE /load-balancer/" + balancer + "/description", ``},
		{"instance list --manager-id " + pool, "GET /instance?manager-id=" + pool, ``},
		{"pool create p --size 2 --instance-type small --template echo --disk-size 10 --ssh-keys k,l --user-data @" + file + " --no-wait", "POST /instance-pool",
			`{"name":"p","size":2,"instance-type":{"id":"` + other + `"},"template":{"id":"` + service + `"},"disk-size":10,"ssh-keys":[{"name":"k"},{"name":"l"}],"user-data":"IyEvYmluL3NoCg=="}`},
		{"ssh-key register k --public-key @" + file, "POST /ssh-key", `{"name":"k","public-key":"#!/bin/sh\n"}`},
	} {
		s := newServer(t, cloudAnswers())
		s.must(strings.Fields(c.args)...)
		if !strings.Contains(strings.Join(s.asked, "\n")+"\n", c.asked+"\n") {
			t.Errorf("%s asked %q, want %s", c.args, s.asked, c.asked)
		}
		var want map[string]any
		if c.body != "" {
			if err := json.Unmarshal([]byte(c.body), &want); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(s.body, want) {
			t.Errorf("%s sent\n%v, want\n%v", c.args, s.body, want)
		}
	}
}

func TestErrors(t *testing.T) {
	s := newServer(t, cloudAnswers())
	for args, want := range map[string]string{
		"nlb get nobody":           `load-balancer "nobody" not found`,
		"nlb get twin":             `load-balancer "twin": too many found: ` + other + ", " + pool,
		"nlb delete-service web x": `service "x" not found`,
		"nlb get":                  "expected: cairn load-balancer get LOAD-BALANCER",
		"nlb create":               "missing: --name",
		"pool create":              "missing: --name, --size, --instance-type, --template, --disk-size",
		"nlb fly":                  "unknown command",
		"aag create a":             "already exists",
		"pool create p --size 2 --instance-type cpu.small --template echo --disk-size 10": "ends in failure, unavailable: no room",
	} {
		if out, _, err := s.run(strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v %s, want %q", args, err, out, want)
		}
	}
}

func TestWaitingIsSaid(t *testing.T) {
	answers := cloudAnswers()
	answers["DELETE /load-balancer/"+balancer] = `{"id":"` + opID + `","state":"pending","reference":{"id":"` + balancer + `","command":"get-load-balancer"}}`
	answers["GET /operation/"+opID] = `{"id":"` + opID + `","state":"success"}`
	s := newServer(t, answers)
	out, errs, err := s.run("nlb", "delete", "web")
	if err != nil || out != "" || !strings.Contains(errs, "waiting for operation "+opID) || !strings.Contains(errs, "success after") {
		t.Errorf("%v\nstdout %q\nstderr %q", err, out, errs)
	}
	if out := s.must("nlb", "delete", "web", "--no-wait"); !strings.Contains(out, "pending") {
		t.Error(out)
	}
}

func TestHelpEverywhere(t *testing.T) {
	s := newServer(t, nil)
	for _, o := range api.Operations {
		out := s.must(o.Noun, o.Verb, "--help")
		if !strings.Contains(out, sentence(o.Summary)) || !strings.Contains(out, o.ID) {
			t.Errorf("%s: help is\n%s", o.ID, out)
		}
		if o.Request == nil {
			continue
		}
		for _, f := range api.Fields(o.Request) {
			if !strings.Contains(out, "--"+f.Name) {
				t.Errorf("%s: no flag for %s", o.ID, f.Name)
			}
		}
	}
	for noun, aliases := range api.Aliases {
		for _, alias := range aliases {
			if out := s.must(alias, "--help"); !strings.Contains(out, noun) {
				t.Errorf("%s is not %s", alias, noun)
			}
		}
	}
}

func TestEnvironment(t *testing.T) {
	for _, name := range []string{"CAIRN_API_ENDPOINT", "CAIRN_API_KEY", "CAIRN_API_SECRET", "EXOSCALE_API_ENDPOINT", "EXOSCALE_API_KEY", "EXOSCALE_API_SECRET"} {
		t.Setenv(name, "")
	}
	if _, err := client.FromEnv(); err == nil || !strings.Contains(err.Error(), "CAIRN_API_ENDPOINT") {
		t.Error(err)
	}
	t.Setenv("EXOSCALE_API_ENDPOINT", "http://exo/v2")
	t.Setenv("EXOSCALE_API_KEY", "k")
	t.Setenv("EXOSCALE_API_SECRET", "s")
	if c, err := client.FromEnv(); err != nil || c.Endpoint != "http://exo/v2" || c.Key != "k" || c.Secret != "s" {
		t.Error(c, err)
	}
	t.Setenv("CAIRN_API_ENDPOINT", "http://cairn")
	if c, err := client.FromEnv(); err != nil || c.Endpoint != "http://cairn" {
		t.Error(c, err)
	}
}

// A shape made up here gets its flags from its tags alone.
func TestMadeUpShape(t *testing.T) {
	type pair struct {
		Left  int    `json:"left" doc:"how far left"`
		Right string `json:"right,omitempty" enum:"a,b"`
	}
	type request struct {
		Pair pair       `json:"pair"`
		Near *cloud.Ref `json:"near,omitempty" ref:"load-balancer"`
	}
	operations := append(api.Operations[:len(api.Operations):len(api.Operations)], api.Make(api.Operation{
		ID: "bend-spoon", Method: "PUT", Path: "/spoon/{id}:bend", Summary: "bend a spoon",
		Request: reflect.TypeFor[request](), Response: reflect.TypeFor[pair](),
	}))
	answers := cloudAnswers()
	answers["PUT /spoon/"+other+":bend"] = `{"left":3}`
	s := newServer(t, answers)
	var out bytes.Buffer
	root := New(Options{Operations: operations, Out: &out, Err: &out, Connect: func() (*client.Client, error) { return client.New(s.url, "key", "secret"), nil }})
	root.SetArgs([]string{"spoon", "bend", other, "--pair-left", "3", "--near", "web"})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err, out.String())
	}
	want := map[string]any{"pair": map[string]any{"left": 3.0}, "near": map[string]any{"id": balancer}}
	if !reflect.DeepEqual(s.body, want) || !strings.Contains(out.String(), "left  3") {
		t.Errorf("sent %v, printed %s", s.body, out.String())
	}
}
