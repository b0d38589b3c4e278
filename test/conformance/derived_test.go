// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/cloud/cli"
	"cairn/cloud/client"
	"cairn/controlplane/api"
)

// terminal runs command lines against an endpoint.
type terminal struct {
	t          *testing.T
	endpoint   string
	operations []capi.Operation

	key, secret string // of the tests' own, when empty
}

func (x *terminal) run(args ...string) (string, error) {
	var out bytes.Buffer
	root := cli.New(cli.Options{Operations: x.operations, Out: &out, Err: &out,
		Connect: func() (*client.Client, error) {
			return client.New(x.endpoint, cmp.Or(x.key, key), cmp.Or(x.secret, secret)), nil
		}})
	root.SetArgs(args)
	err := root.ExecuteContext(x.t.Context())
	return out.String(), err
}

func (x *terminal) must(line string, want ...string) string {
	x.t.Helper()
	out, err := x.run(strings.Fields(line)...)
	if err != nil {
		x.t.Fatalf("%s: %v", line, err)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			x.t.Errorf("%s lacks %q:\n%s", line, w, out)
		}
	}
	return out
}

func TestCommandLine(t *testing.T) {
	x := &terminal{t: t, endpoint: serve(t, &fake{}, nil, nil, nil)}
	x.must("zone list", zone)
	x.must("instance-type list", "standard", "small")
	x.must("template list", "Cairn Echo 1")
	x.must("security-group create web", "web")
	x.must("sg add-rule web --flow-direction ingress --protocol tcp --network 0.0.0.0/0 --start-port 80 --end-port 80", "rules:", "0.0.0.0/0")
	x.must("sg add-rule web --flow-direction ingress --protocol icmp --security-group web --icmp-type 8", "icmp")
	x.must("pool create workers --size 4 --instance-type small --template echo --disk-size 10 --security-groups web --labels a=b", "workers", "4")
	x.must("pool scale workers --size 6", "6")
	x.must("pool update workers --clear labels --description new", "new")
	x.must("nlb create front --description first", "front", "203.0.113.1")
	x.must("nlb add-service front --name http --instance-pool workers --protocol tcp --strategy round-robin --port 80 --target-port 8080 --healthcheck-mode http --healthcheck-uri /up",
		"services:", "http", "8080")
	x.must("nlb update-service front http --healthcheck-interval 5")
	x.must("nlb get-service front http", "healthcheck-interval  5", "healthcheck-uri       /up")
	x.must("nlb reset-field front description")
	x.must("instance create one --instance-type micro --template echo --disk-size 10 --security-groups web", "198.51.100.7")
	x.must("instance stop one", "stopped")
	x.must("instance start one", "running")
	x.must("instance delete one", "success")

	var lb cloud.LoadBalancer
	if err := json.Unmarshal([]byte(x.must("nlb get front -O json")), &lb); err != nil || lb.Description != "" || lb.Services[0].Healthcheck.Interval != 5 {
		t.Errorf("%+v, %v", lb, err)
	}
	for line, want := range map[string]string{
		"nlb create front": "already exists",
		"nlb add-service front --name x --instance-pool workers --protocol tcp --strategy best --port 99999 --target-port 1": `port: expected number <= 65535; strategy: expected value to be one of "round-robin, source-hash, maglev-hash"`,
		"nlb get back":                     `load-balancer "back" not found`,
		"nlb get " + string(cloud.NewID()): "not found",
	} {
		if out, err := x.run(strings.Fields(line)...); err == nil || !sameFaults(err.Error(), want) {
			t.Errorf("%s: %v\n%s, want %q", line, err, out, want)
		}
	}
}

// sameFaults says that a text holds all faults of want, in any order.
func sameFaults(text, want string) bool {
	for fault := range strings.SplitSeq(want, "; ") {
		if !strings.Contains(text, fault) {
			return false
		}
	}
	return true
}

// Brew is a shape that no package knows.
type Brew struct {
	ID       cloud.ID `json:"id" table:"true"`
	Strength int      `json:"strength" table:"true"`
}

// BrewRequest asks for one.
type BrewRequest struct {
	Strength int       `json:"strength" minimum:"1" maximum:"9" doc:"how strong"`
	Near     cloud.Ref `json:"near" ref:"load-balancer" doc:"where to put it"`
}

// An operation that is added to the table is there for everybody: the server routes,
// validates and documents it, the command line has its verb and flags.
func TestAMadeUpOperationIsDerived(t *testing.T) {
	operations := append(capi.Operations[:len(capi.Operations):len(capi.Operations)],
		capi.Make(capi.Operation{ID: "stir-coffee-pot", Method: "PUT", Path: "/coffee-pot/{id}:stir", Summary: "stir a coffee pot",
			Request: reflect.TypeFor[BrewRequest](), Response: reflect.TypeFor[Brew]()}))
	x := &terminal{t: t, operations: operations}
	pot := string(cloud.NewID())
	x.endpoint = serve(t, &fake{}, operations, api.Handlers{"stir-coffee-pot": func(_ context.Context, c api.Call) (any, error) {
		return Brew{ID: c.ID("id"), Strength: c.Body.(*BrewRequest).Strength}, nil
	}}, nil)

	x.must("nlb create front")
	x.must("coffee-pot stir --help", "--strength", "how strong", "--near", "by name or id", "Stir a coffee pot", "COFFEE-POT")
	x.must("coffee-pot stir "+pot+" --strength 3 --near front", "strength", "3", pot)
	if _, err := x.run("coffee-pot", "stir", pot, "--strength", "10", "--near", "front"); err == nil || !strings.Contains(err.Error(), "strength: expected number <= 9") {
		t.Errorf("validation: %v", err)
	}
	resp, err := http.Get(strings.TrimSuffix(x.endpoint, capi.Prefix) + capi.DocumentPath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string
			RequestBody struct{ Content map[string]any }
		}
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	o := doc.Paths["/coffee-pot/{id}:stir"]["put"]
	if o.OperationID != "stir-coffee-pot" || o.RequestBody.Content["application/json"] == nil || doc.Components.Schemas["BrewRequest"] == nil {
		t.Errorf("document has %+v", o)
	}

	// The control: without the row in the table there is none of it.
	x.operations = nil
	x.endpoint = serve(t, &fake{}, nil, nil, nil)
	if out, err := x.run("coffee-pot", "stir", pot); err == nil {
		t.Errorf("a verb from nowhere: %s", out)
	}
}
