// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"cairn/cloud"
)

// decode does what the server does with a body that is valid.
func decode[T any](t *testing.T, body string) (*T, map[string]json.RawMessage) {
	t.Helper()
	var shape T
	var keys map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &keys); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(body), &shape); err != nil {
		t.Fatal(err)
	}
	return &shape, keys
}

func service() *cloud.LoadBalancerService {
	return &cloud.LoadBalancerService{
		ID: "s", Name: "web", Description: "old", Protocol: cloud.TCP, Port: 80, TargetPort: 8080, Strategy: cloud.RoundRobin,
		InstancePool: cloud.Ref{ID: "p"}, State: cloud.ServiceRunning,
		Healthcheck: cloud.Healthcheck{Mode: cloud.CheckHTTP, Port: 8080, Interval: 10, Timeout: 2, Retries: 1, URI: "/up", TLSSNI: "x"},
	}
}

func TestOverlay(t *testing.T) {
	for _, c := range []struct {
		name, body string
		change     func(*cloud.LoadBalancerService)
		fault      string
	}{
		{name: "empty body", body: `{}`},
		{name: "same value", body: `{"port":80,"name":"web"}`},
		{name: "one field", body: `{"port":81}`, change: func(s *cloud.LoadBalancerService) { s.Port = 81 }},
		{name: "nested object is replaced whole", body: `{"healthcheck":{"mode":"tcp","port":1,"interval":5,"timeout":3,"retries":2}}`,
			change: func(s *cloud.LoadBalancerService) {
				s.Healthcheck = cloud.Healthcheck{Mode: cloud.CheckTCP, Port: 1, Interval: 5, Timeout: 3, Retries: 2}
			}},
		{name: "null clears", body: `{"description":null}`, change: func(s *cloud.LoadBalancerService) { s.Description = "" }},
		{name: "empty text clears", body: `{"description":""}`, change: func(s *cloud.LoadBalancerService) { s.Description = "" }},
		{name: "null elsewhere is refused", body: `{"name":null,"port":81}`, fault: "name"},
		{name: "read-only and unknown fields are ignored", body: `{"id":"z","state":"error","instance-pool":{"id":"q"},"extra":null}`},
		{name: "the noun is validated", body: `{"healthcheck":{"interval":5,"timeout":6}}`, fault: "healthcheck.timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stored := service()
			body, keys := decode[cloud.UpdateServiceRequest](t, c.body)
			got, changed, err := Overlay(stored, body, keys)
			if c.fault != "" {
				var e *cloud.Error
				if !errors.As(err, &e) || e.Kind != cloud.Invalid || len(e.Fields) != 1 || e.Fields[0].Location != c.fault {
					t.Fatalf("error %v, want a fault of %s", err, c.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := service()
			if c.change != nil {
				c.change(want)
			}
			if !reflect.DeepEqual(got, want) || changed != (c.change != nil) {
				t.Errorf("changed %v\n got %+v\nwant %+v", changed, got, want)
			}
			if !reflect.DeepEqual(stored, service()) {
				t.Error("stored was touched")
			}
		})
	}
}

// The body that egoscale sends for a pool of which only the name is to change: it
// clears what is null.
func TestOverlayOfPoolWithNulls(t *testing.T) {
	stored := cloud.InstancePool{ID: "p", Name: "old", Size: 2, DiskSize: 10, CreatedAt: time.Now(), Labels: cloud.Labels{"a": "b"},
		SSHKey: &cloud.SSHKeyRef{Name: "k"}, SecurityGroups: []cloud.Ref{{ID: "g"}}, InstancePrefix: "web"}
	body, keys := decode[cloud.UpdateInstancePoolRequest](t, `{"name":"new","anti-affinity-groups":null,"deploy-target":null,
		"elastic-ips":null,"private-networks":null,"security-groups":null,"ssh-key":null,"ssh-keys":null}`)
	got, changed, err := Overlay(stored, body, keys)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if got.Name != "new" || got.SSHKey != nil || got.SecurityGroups != nil || got.InstancePrefix != "web" || got.Labels["a"] != "b" || got.Size != 2 {
		t.Errorf("pool %+v", got)
	}
	if got, changed, err = Overlay(got, body, keys); err != nil || changed {
		t.Errorf("the same again: changed %v, %v", changed, err)
	}
}

func TestClear(t *testing.T) {
	got, changed, err := Clear(service(), "description")
	if err != nil || !changed || got.Description != "" || got.Name != "web" {
		t.Error(got, changed, err)
	}
	if _, changed, err = Clear(got, "description"); err != nil || changed {
		t.Error("clear twice:", changed, err)
	}
}

func TestFields(t *testing.T) {
	byName := map[string]Field{}
	for _, f := range Fields(reflect.TypeFor[cloud.CreateInstancePoolRequest]()) {
		byName[f.Name] = f
	}
	for name, want := range map[string]Sort{"name": Text, "size": Number, "instance-type": Object, "security-groups": List, "labels": Mapping, "ipv6-enabled": Bool} {
		if f, ok := byName[name]; !ok || f.Sort != want {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if !byName["name"].Required || byName["description"].Required || byName["template"].Ref != "template" || !byName["user-data"].Base64 || !byName["user-data"].Secret || byName["name"].Secret {
		t.Errorf("tags are misread: %+v", byName)
	}
	for _, f := range Fields(reflect.TypeFor[cloud.LoadBalancer]()) {
		if f.Name == "ip" && f.Sort != Text || f.Name == "created-at" && f.Sort != Text {
			t.Errorf("%s is of sort %v", f.Name, f.Sort)
		}
	}
}
