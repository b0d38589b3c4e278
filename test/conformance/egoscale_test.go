// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"github.com/exoscale/egoscale/v3/credentials"

	"cairn/cloud"
	"cairn/cloud/api/exo2"
)

const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@here"

func egoscale(t *testing.T, endpoint, secret string, opts ...v3.ClientOpt) *v3.Client {
	t.Helper()
	c, err := v3.NewClient(credentials.NewStaticCredentials(key, secret),
		append([]v3.ClientOpt{v3.ClientOptWithEndpoint(v3.Endpoint(endpoint)), v3.ClientOptWithHTTPClient(http.DefaultClient)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// story runs steps with one client against one cloud.
type story struct {
	t *testing.T
	*v3.Client
	ctx context.Context
	f   *fake
}

func newStory(t *testing.T) *story {
	f := &fake{}
	endpoint := serve(t, f, nil, nil, nil)
	return &story{t: t, Client: egoscale(t, endpoint, secret), ctx: t.Context(), f: f}
}

// done takes the two results of a mutation, waits for it and returns the id it
// refers to.
func (s *story) done(op *v3.Operation, err error) v3.UUID {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	end, err := s.Wait(s.ctx, op, v3.OperationStateSuccess)
	if err != nil {
		s.t.Fatal(err)
	}
	if end.Reference == nil {
		return ""
	}
	return end.Reference.ID
}

// must takes the two results of a read: must(read())(t).
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestStory(t *testing.T) {
	s := newStory(t)

	zones := must(s.ListZones(s.ctx))(t)
	if z, err := zones.FindZone(zone); err != nil || !strings.HasPrefix(string(z.APIEndpoint), "http://127.0.0.1") {
		t.Fatal(zones, err)
	}
	if ref := s.done(s.RegisterSSHKey(s.ctx, v3.RegisterSSHKeyRequest{Name: "me", PublicKey: publicKey})); ref != "" {
		t.Errorf("the operation of a key refers to %q", ref)
	}
	if k := must(s.GetSSHKey(s.ctx, "me"))(t); strings.Count(k.Fingerprint, ":") != 15 {
		t.Errorf("key %+v", k)
	}
	types := must(s.ListInstanceTypes(s.ctx))(t)
	small := must(types.FindInstanceTypeByIdOrFamilyAndSize("standard.small"))(t)
	templates := must(s.ListTemplates(s.ctx, v3.ListTemplatesWithVisibility(v3.ListTemplatesVisibilityPublic)))(t)
	echo := must(templates.FindTemplate("Cairn Echo 1"))(t)

	group := s.done(s.CreateAntiAffinityGroup(s.ctx, v3.CreateAntiAffinityGroupRequest{Name: "apart"}))
	if g := must(s.GetAntiAffinityGroup(s.ctx, group))(t); g.Name != "apart" {
		t.Errorf("group %+v", g)
	}
	sg := s.securityGroup()
	// Whole objects where a reference is meant, as clients send them.
	instance := s.done(s.CreateInstance(s.ctx, v3.CreateInstanceRequest{Name: "one", DiskSize: 10, InstanceType: &small, Template: &echo,
		SSHKeys: []v3.SSHKey{{Name: "me"}}, SecurityGroups: []v3.SecurityGroup{*must(s.GetSecurityGroup(s.ctx, sg))(t)}}))
	i := must(s.GetInstance(s.ctx, instance))(t)
	if i.SecurebootEnabled == nil || i.TpmEnabled == nil || i.Labels == nil || i.PublicIP.String() != "198.51.100.7" || i.InstanceType.ID != small.ID || i.SSHKeys[0].Name != "me" {
		t.Errorf("instance %+v", i)
	}
	s.done(s.StopInstance(s.ctx, instance))
	s.done(s.StartInstance(s.ctx, instance, v3.StartInstanceRequest{}))
	s.done(s.AttachInstanceToSecurityGroup(s.ctx, sg, v3.AttachInstanceToSecurityGroupRequest{Instance: i}))
	if l := must(s.ListInstances(s.ctx, v3.ListInstancesWithIPAddress("198.51.100.7")))(t); len(l.Instances) != 1 || l.Instances[0].Name != "one" {
		t.Errorf("instances %+v", l)
	}
	pool := s.pool(&small, &echo)
	s.balancer(pool)

	s.done(s.DeleteInstancePool(s.ctx, pool))
	s.done(s.DeleteInstance(s.ctx, instance))
	s.done(s.DeleteSecurityGroup(s.ctx, sg))
	s.done(s.DeleteAntiAffinityGroup(s.ctx, group))
	s.done(s.DeleteSSHKey(s.ctx, "me"))
	if _, err := s.GetInstance(s.ctx, instance); !errors.Is(err, v3.ErrNotFound) {
		t.Errorf("a deleted instance: %v", err)
	}
}

func (s *story) securityGroup() v3.UUID {
	id := s.done(s.CreateSecurityGroup(s.ctx, v3.CreateSecurityGroupRequest{Name: "web", Description: "a group"}))
	if ref := s.done(s.AddRuleToSecurityGroup(s.ctx, id, v3.AddRuleToSecurityGroupRequest{Protocol: "tcp", FlowDirection: "ingress",
		Network: "10.1.2.3/8", StartPort: 80, EndPort: 81, Description: "as sent"})); ref != id {
		s.t.Errorf("a rule's operation refers to %s, want the group", ref)
	}
	s.done(s.AddRuleToSecurityGroup(s.ctx, id, v3.AddRuleToSecurityGroupRequest{Protocol: "icmp", FlowDirection: "ingress",
		SecurityGroup: &v3.SecurityGroupResource{ID: id}, ICMP: &v3.AddRuleToSecurityGroupRequestICMP{Type: v3.Int64(0)}}))
	g := must(s.GetSecurityGroup(s.ctx, id))(s.t)
	want := v3.SecurityGroupRule{ID: g.Rules[0].ID, Protocol: "tcp", FlowDirection: "ingress", Network: "10.1.2.3/8", StartPort: 80, EndPort: 81, Description: "as sent"}
	if g.Rules[0] != want {
		s.t.Errorf("rule %+v, want %+v", g.Rules[0], want)
	}
	if r := g.Rules[1]; r.ICMP == nil || r.ICMP.Type != 0 || r.ICMP.Code != -1 || r.SecurityGroup.ID != id {
		s.t.Errorf("rule %+v", r)
	}
	s.done(s.DeleteRuleFromSecurityGroup(s.ctx, id, g.Rules[0].ID))
	if g := must(s.GetSecurityGroup(s.ctx, id))(s.t); len(g.Rules) != 1 {
		s.t.Errorf("rules %+v", g.Rules)
	}
	return id
}

func (s *story) pool(small *v3.InstanceType, echo *v3.Template) v3.UUID {
	id := s.done(s.CreateInstancePool(s.ctx, v3.CreateInstancePoolRequest{Name: "pool", Size: 4, DiskSize: 10, InstanceType: small, Template: echo,
		Description: "a pool", InstancePrefix: "web", SSHKey: &v3.SSHKey{Name: "me"}, Labels: v3.Labels{"a": "b"}}))
	// Of this only the name is meant; the client sends null for seven others.
	s.done(s.UpdateInstancePool(s.ctx, id, v3.UpdateInstancePoolRequest{Name: "renamed"}))
	p := must(s.GetInstancePool(s.ctx, id))(s.t)
	if p.Name != "renamed" || p.Description != "a pool" || p.InstancePrefix != "web" || p.Size != 4 || p.Labels["a"] != "b" || p.SSHKey != nil {
		s.t.Errorf("pool %+v", p)
	}
	s.done(s.ScaleInstancePool(s.ctx, id, v3.ScaleInstancePoolRequest{Size: 6}))
	s.done(s.EvictInstancePoolMembers(s.ctx, id, v3.EvictInstancePoolMembersRequest{Instances: []v3.UUID{id}}))
	if p := must(s.GetInstancePool(s.ctx, id))(s.t); p.Size != 5 {
		s.t.Errorf("size %d", p.Size)
	}
	return id
}

func (s *story) balancer(pool v3.UUID) {
	id := s.done(s.CreateLoadBalancer(s.ctx, v3.CreateLoadBalancerRequest{Name: "nlb", Description: "a balancer"}))
	lb := must(s.GetLoadBalancer(s.ctx, id))(s.t)
	if lb.IP.String() != "203.0.113.1" || lb.CreatedAT.IsZero() || lb.State != v3.LoadBalancerStateRunning {
		s.t.Errorf("load balancer %+v", lb)
	}
	_, err := s.CreateLoadBalancer(s.ctx, v3.CreateLoadBalancerRequest{Name: "nlb"})
	var e *v3.APIError
	if !errors.Is(err, v3.ErrConflict) || !errors.As(err, &e) || !strings.Contains(e.Message, "already exists") {
		s.t.Errorf("the same name twice: %v", err)
	}
	add := v3.AddServiceToLoadBalancerRequest{Name: "http", Protocol: "tcp", Strategy: "maglev-hash", Port: 80, TargetPort: 8080,
		InstancePool: must(s.GetInstancePool(s.ctx, pool))(s.t),
		Healthcheck:  &v3.LoadBalancerServiceHealthcheck{Mode: "http", Port: 8080, Interval: 10, Timeout: 5, Retries: 1, URI: "/up", TlsSNI: "x"}}
	if ref := s.done(s.AddServiceToLoadBalancer(s.ctx, id, add)); ref != id {
		s.t.Errorf("a service's operation refers to %s, want the load balancer", ref)
	}
	svc := must(s.GetLoadBalancer(s.ctx, id))(s.t).Services[0]
	if svc.InstancePool.ID != pool || *svc.Healthcheck != *add.Healthcheck || svc.HealthcheckStatus[0].Status != "success" || svc.TargetPort != 8080 {
		s.t.Errorf("service %+v", svc)
	}
	// A nested object is replaced whole: uri and server name go.
	check := v3.LoadBalancerServiceHealthcheck{Mode: "tcp", Port: 8080, Interval: 5, Timeout: 3, Retries: 1}
	s.done(s.UpdateLoadBalancerService(s.ctx, id, svc.ID, v3.UpdateLoadBalancerServiceRequest{Healthcheck: &check, Description: "d"}))
	got := must(s.GetLoadBalancerService(s.ctx, id, svc.ID))(s.t)
	if *got.Healthcheck != check || got.Description != "d" || got.Name != "http" {
		s.t.Errorf("service %+v with %+v", got, got.Healthcheck)
	}
	s.done(s.ResetLoadBalancerServiceField(s.ctx, id, svc.ID, v3.ResetLoadBalancerServiceFieldFieldDescription))
	s.done(s.ResetLoadBalancerField(s.ctx, id, v3.ResetLoadBalancerFieldFieldDescription))
	lb = must(s.GetLoadBalancer(s.ctx, id))(s.t)
	if lb.Description != "" || lb.Services[0].Description != "" || lb.Name != "nlb" {
		s.t.Errorf("load balancer %+v", lb)
	}
	s.done(s.DeleteLoadBalancerService(s.ctx, id, svc.ID))
	s.done(s.DeleteLoadBalancer(s.ctx, id))
	if _, err := s.GetLoadBalancer(s.ctx, id); !errors.Is(err, v3.ErrNotFound) {
		s.t.Errorf("a deleted load balancer: %v", err)
	}
}

func TestWrongSignature(t *testing.T) {
	endpoint := serve(t, &fake{}, nil, nil, nil)
	c := egoscale(t, endpoint, "a guess")
	_, err := c.ListInstances(t.Context())
	var e *v3.APIError
	if !errors.Is(err, v3.ErrForbidden) || !errors.As(err, &e) || e.Message != "Invalid key or request signature" {
		t.Errorf("%v: %+v", err, e)
	}
	if _, err := c.ListZones(t.Context()); err != nil {
		t.Errorf("zones need no signature: %v", err)
	}
}

func TestNotFound(t *testing.T) {
	s := newStory(t)
	for name, call := range map[string]func() error{
		"no such object": func() error { _, err := s.GetInstance(s.ctx, v3.UUID(cloud.NewID())); return err },
		"no UUID":        func() error { _, err := s.GetLoadBalancer(s.ctx, "nlb"); return err },
		"no such child":  func() error { _, err := s.GetLoadBalancerService(s.ctx, v3.UUID(cloud.NewID()), "x"); return err },
		"no such field":  func() error { _, err := s.ResetLoadBalancerField(s.ctx, v3.UUID(cloud.NewID()), "name"); return err },
		"no such family": func() error { _, err := s.ListDNSDomains(s.ctx); return err },
	} {
		err := call()
		var e *v3.APIError
		if !errors.Is(err, v3.ErrNotFound) || !errors.As(err, &e) || e.Message == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryFieldIsNamed(t *testing.T) {
	s := newStory(t)
	lb := s.done(s.CreateLoadBalancer(s.ctx, v3.CreateLoadBalancerRequest{Name: "nlb"}))
	_, err := s.AddServiceToLoadBalancer(s.ctx, lb, v3.AddServiceToLoadBalancerRequest{Protocol: "sctp", Strategy: "round-robin", Port: 70000, TargetPort: 80,
		InstancePool: &v3.InstancePool{ID: "p"}, Healthcheck: &v3.LoadBalancerServiceHealthcheck{Mode: "tcp", Port: 70000, Interval: 5, Timeout: 61}})
	var e *v3.APIError
	if !errors.Is(err, v3.ErrBadRequest) || !errors.As(err, &e) {
		t.Fatal(err)
	}
	var at []string
	for _, f := range e.Errors {
		at = append(at, f.Location)
		if f.Detail == "" {
			t.Errorf("no detail at %s", f.Location)
		}
	}
	slices.Sort(at)
	want := []string{"$['healthcheck']['port']", "$['healthcheck']['timeout']", "$['instance-pool']['id']", "$['name']", "$['port']", "$['protocol']"}
	if !slices.Equal(at, want) {
		t.Errorf("faults at %q, want %q", at, want)
	}
	for _, name := range []string{"name", "port", "protocol", "healthcheck.timeout"} {
		if !strings.Contains(e.Message, name+": ") {
			t.Errorf("message lacks %s: %s", name, e.Message)
		}
	}
}

// The client polls a pending operation by itself; its first poll comes after three
// seconds.
func TestPolling(t *testing.T) {
	s := newStory(t)
	s.f.slow = true
	op := must(s.CreateLoadBalancer(s.ctx, v3.CreateLoadBalancerRequest{Name: "nlb"}))(t)
	if op.State != v3.OperationStatePending || op.Reference == nil || op.Reference.Command != "get-load-balancer" || !strings.HasSuffix(op.Reference.Link, string(op.Reference.ID)) {
		t.Errorf("first answer %+v, %+v", op, op.Reference)
	}
	// Two looks by hand are what the client's Wait would do in six seconds.
	for _, want := range []v3.OperationState{v3.OperationStatePending, v3.OperationStateSuccess} {
		if got := must(s.GetOperation(s.ctx, op.ID))(t); got.State != want || got.Reference.ID != op.Reference.ID {
			t.Errorf("poll %+v, want %s", got, want)
		}
	}
}

// Equal bytes within a second are meant twice: start, stop, start ends running.
func TestStartStopStart(t *testing.T) {
	s := newStory(t)
	types := must(s.ListInstanceTypes(s.ctx))(t)
	templates := must(s.ListTemplates(s.ctx))(t)
	id := s.done(s.CreateInstance(s.ctx, v3.CreateInstanceRequest{DiskSize: 10, InstanceType: &types.InstanceTypes[0], Template: &templates.Templates[0]}))
	for i := range 100 {
		s.done(s.StartInstance(s.ctx, id, v3.StartInstanceRequest{}))
		s.done(s.StopInstance(s.ctx, id))
		s.done(s.StartInstance(s.ctx, id, v3.StartInstanceRequest{}))
		if got := must(s.GetInstance(s.ctx, id))(t); got.State != v3.InstanceStateRunning {
			t.Fatalf("round %d ends %s", i, got.State)
		}
	}
}

// A create whose connection is cut after the commit, and which the client sends
// again as its SDK does, makes one object; without the stored answer it makes two.
func TestACutConnectionMakesOneObject(t *testing.T) {
	for _, remembers := range []bool{true, false} {
		f := &fake{}
		var arrived []string
		endpoint := serve(t, f, nil, nil, func(edge http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost {
					edge.ServeHTTP(w, r)
					return
				}
				arrived = append(arrived, r.Header.Get("Authorization"))
				if len(arrived) > 1 {
					if !remembers {
						r.Header.Set("Authorization", "") // as if it were another request
						exo2.Sign(r, []byte(body), key, secret, time.Now().Add(time.Minute))
					}
					edge.ServeHTTP(w, r)
					return
				}
				edge.ServeHTTP(httptest.NewRecorder(), r)
				conn, _, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				conn.Close()
			})
		})
		c, err := v3.NewClient(credentials.NewStaticCredentials(key, secret), v3.ClientOptWithEndpoint(v3.Endpoint(endpoint)))
		if err != nil {
			t.Fatal(err)
		}
		s := &story{t: t, Client: c, ctx: t.Context(), f: f}
		id := s.done(s.CreateAntiAffinityGroup(s.ctx, v3.CreateAntiAffinityGroupRequest{Name: "apart"}))
		list := must(s.ListAntiAffinityGroups(s.ctx))(t)
		if len(arrived) != 2 || arrived[0] != arrived[1] {
			t.Fatalf("the client sent %d requests", len(arrived))
		}
		if want := map[bool]int{true: 1, false: 2}[remembers]; len(list.AntiAffinityGroups) != want || f.runs["create-anti-affinity-group"] != want {
			t.Errorf("remembering %v: %d objects after %d runs, want %d", remembers, len(list.AntiAffinityGroups), f.runs["create-anti-affinity-group"], want)
		}
		if remembers && list.AntiAffinityGroups[0].ID != id {
			t.Errorf("the retry refers to %s", id)
		}
	}
}

// body is what the client sends in the test above.
const body = `{"name":"apart"}`
