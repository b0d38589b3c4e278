// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/cloud/wire"
	"cairn/controlplane/dist"
	"cairn/controlplane/store"
)

func tcpCheck(port int64) *v3.LoadBalancerServiceHealthcheck {
	return &v3.LoadBalancerServiceHealthcheck{Mode: v3.LoadBalancerServiceHealthcheckModeTCP, Port: port, Interval: 10, Timeout: 5, Retries: 1}
}

func (s *story) poolOf(size int64) v3.UUID {
	s.t.Helper()
	o := s.order("")
	return s.gets(s.CreateInstancePool(s.ctx, v3.CreateInstancePoolRequest{
		Name: "web", Size: size, DiskSize: 10, InstanceType: o.InstanceType, Template: o.Template}))
}

func (s *story) serviceRequest(pool v3.UUID, name string, port int64) v3.AddServiceToLoadBalancerRequest {
	return v3.AddServiceToLoadBalancerRequest{
		Name: name, InstancePool: &v3.InstancePool{ID: pool}, Protocol: v3.AddServiceToLoadBalancerRequestProtocolTCP,
		Strategy: v3.AddServiceToLoadBalancerRequestStrategyRoundRobin, Port: port, TargetPort: 8080, Healthcheck: tcpCheck(8080),
	}
}

func (s *story) readBalancer(id v3.UUID) *v3.LoadBalancer {
	s.t.Helper()
	return must(s.GetLoadBalancer(s.ctx, id))(s.t)
}

// TestLoadBalancers: what a client does with a load balancer, without a host in
// its way: a load balancer without services reaches none.
func TestLoadBalancers(t *testing.T) {
	z := newInhabited(t, 3, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	op := must(s.CreateLoadBalancer(s.ctx, v3.CreateLoadBalancerRequest{Name: "front", Description: "d", Labels: v3.Labels{"a": "b"}}))(t)
	if op.State != v3.OperationStateSuccess || op.Reference == nil || !strings.HasSuffix(op.Reference.Link, "/load-balancer/"+string(op.Reference.ID)) || op.Reference.Command != "get-load-balancer" {
		t.Errorf("first answer %+v", op)
	}
	id := op.Reference.ID
	l := s.readBalancer(id)
	if l.Name != "front" || l.Description != "d" || l.Labels["a"] != "b" || l.IP.String() != "203.0.113.1" ||
		l.State != v3.LoadBalancerStateRunning || l.CreatedAT.IsZero() || len(l.Services) != 0 {
		t.Errorf("load balancer %+v", l)
	}
	_, err := s.CreateLoadBalancer(s.ctx, v3.CreateLoadBalancerRequest{Name: "front"})
	refused(t, err, v3.ErrConflict, "already exists")
	s.gets(s.UpdateLoadBalancer(s.ctx, id, v3.UpdateLoadBalancerRequest{Name: "back"}))
	if l = s.readBalancer(id); l.Name != "back" || l.Description != "d" || l.Labels["a"] != "b" {
		t.Errorf("what was not named has changed: %+v", l)
	}
	s.gets(s.ResetLoadBalancerField(s.ctx, id, v3.ResetLoadBalancerFieldFieldDescription))
	s.gets(s.ResetLoadBalancerField(s.ctx, id, v3.ResetLoadBalancerFieldFieldLabels))
	if l = s.readBalancer(id); l.Description != "" || len(l.Labels) != 0 {
		t.Errorf("reset: %+v", l)
	}
	list := must(s.ListLoadBalancers(s.ctx))(t)
	if found, err := list.FindLoadBalancer("back"); err != nil || found.ID != id {
		t.Errorf("by name: %+v %v", found, err)
	}
	other := z.tenant("evil", z.endpoint, once)
	_, err = other.GetLoadBalancer(other.ctx, id)
	refused(t, err, v3.ErrNotFound, string(id))
	_, err = other.DeleteLoadBalancer(other.ctx, id)
	refused(t, err, v3.ErrNotFound, string(id))
	other.gets(other.CreateLoadBalancer(other.ctx, v3.CreateLoadBalancerRequest{Name: "back"}))
	s.gets(s.DeleteLoadBalancer(s.ctx, id))
	_, err = s.GetLoadBalancer(s.ctx, id)
	refused(t, err, v3.ErrNotFound, string(id))
}

// TestServices: services as clients add, compare, change and remove them.
func TestServices(t *testing.T) {
	z := newInhabited(t, 3, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	pool := s.poolOf(3)
	nlb := s.gets(s.CreateLoadBalancer(s.ctx, v3.CreateLoadBalancerRequest{Name: "front"}))
	if ref := s.gets(s.AddServiceToLoadBalancer(s.ctx, nlb, s.serviceRequest(pool, "http", 80))); ref != nlb {
		t.Errorf("the operation refers to %s, want the load balancer %s", ref, nlb)
	}
	dns := s.serviceRequest(pool, "dns", 80)
	dns.Protocol = v3.AddServiceToLoadBalancerRequestProtocolUDP
	s.gets(s.AddServiceToLoadBalancer(s.ctx, nlb, dns))
	services := s.readBalancer(nlb).Services
	if len(services) != 2 || services[0].Name != "http" || services[1].Protocol != v3.LoadBalancerServiceProtocolUDP {
		t.Fatalf("services %+v", services)
	}
	http, udp := services[0], services[1]
	want := v3.LoadBalancerService{
		ID: http.ID, Name: "http", InstancePool: &v3.InstancePool{ID: pool}, Protocol: "tcp", Strategy: "round-robin", Port: 80,
		TargetPort: 8080, Healthcheck: tcpCheck(8080), State: v3.LoadBalancerServiceStateRunning, HealthcheckStatus: http.HealthcheckStatus,
	}
	if !reflect.DeepEqual(http, want) {
		t.Errorf("service differs from what was sent:\n%+v\n%+v", http, want)
	}
	_, err := s.AddServiceToLoadBalancer(s.ctx, nlb, s.serviceRequest(pool, "http2", 80))
	refused(t, err, v3.ErrConflict, "80/tcp already exists")
	_, err = s.AddServiceToLoadBalancer(s.ctx, nlb, s.serviceRequest(pool, "http", 81))
	refused(t, err, v3.ErrConflict, "already exists")
	_, err = s.AddServiceToLoadBalancer(s.ctx, nlb, s.serviceRequest(nlb, "none", 81))
	refused(t, err, v3.ErrBadRequest, "instance-pool.id")
	bad := s.serviceRequest(pool, "bad", 81)
	bad.Healthcheck.Timeout = 11
	_, err = s.AddServiceToLoadBalancer(s.ctx, nlb, bad)
	refused(t, err, v3.ErrBadRequest, "healthcheck.timeout")

	// A check is replaced whole; what is not named stays.
	check := &v3.LoadBalancerServiceHealthcheck{Mode: "http", Port: 8080, Interval: 10, Timeout: 5, Retries: 1, URI: "/up"}
	s.gets(s.UpdateLoadBalancerService(s.ctx, nlb, http.ID, v3.UpdateLoadBalancerServiceRequest{Healthcheck: check, Description: "d"}))
	s.gets(s.UpdateLoadBalancerService(s.ctx, nlb, http.ID, v3.UpdateLoadBalancerServiceRequest{Healthcheck: tcpCheck(8080), Port: 8000}))
	one := must(s.GetLoadBalancerService(s.ctx, nlb, http.ID))(t)
	if one.Healthcheck.URI != "" || one.Port != 8000 || one.Description != "d" || one.State != v3.LoadBalancerServiceStateRunning {
		t.Errorf("updated: %+v", one)
	}
	s.gets(s.ResetLoadBalancerServiceField(s.ctx, nlb, http.ID, v3.ResetLoadBalancerServiceFieldFieldDescription))
	if one = must(s.GetLoadBalancerService(s.ctx, nlb, http.ID))(t); one.Description != "" {
		t.Errorf("reset: %+v", one)
	}
	_, err = s.UpdateLoadBalancerService(s.ctx, nlb, pool, v3.UpdateLoadBalancerServiceRequest{Port: 1})
	refused(t, err, v3.ErrNotFound, string(pool))

	_, err = s.DeleteInstancePool(s.ctx, pool)
	refused(t, err, v3.ErrConflict, "in use")
	s.gets(s.DeleteLoadBalancerService(s.ctx, nlb, udp.ID))
	if left := s.readBalancer(nlb).Services; len(left) != 1 || z.onHosts(wire.KindService) != 3 {
		t.Errorf("left %+v", left)
	}
	s.gets(s.DeleteLoadBalancer(s.ctx, nlb)) // with the other one
	for _, kind := range []wire.Kind{wire.KindService, wire.KindSlots, wire.KindBackend, wire.KindCheck} {
		if n := z.onHosts(kind); n != 0 {
			t.Errorf("hosts still hold %d of kind %s", n, kind)
		}
	}
	s.gets(s.DeleteInstancePool(s.ctx, pool))
}

// TestServiceOnTheWire: the bytes of a service hold what was sent and what the
// contract adds, and no field besides: some clients compare it whole.
func TestServiceOnTheWire(t *testing.T) {
	z := newInhabited(t, 1, "198.51.100.0/24")
	var body []byte
	s := z.tenant("acme", z.endpoint, v3.ClientOptWithHTTPClient(&http.Client{Transport: tap{&body}}))
	pool := s.poolOf(1)
	nlb := s.gets(s.CreateLoadBalancer(s.ctx, v3.CreateLoadBalancerRequest{Name: "front"}))
	s.gets(s.AddServiceToLoadBalancer(s.ctx, nlb, s.serviceRequest(pool, "http", 80)))
	s.readBalancer(nlb)
	var l map[string]any
	if err := json.Unmarshal(body, &l); err != nil {
		t.Fatal(err)
	}
	keys := func(of any) string {
		var names []string
		for name := range of.(map[string]any) {
			names = append(names, name)
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	service := l["services"].([]any)[0].(map[string]any)
	for got, want := range map[string]string{
		keys(l):                        "addressfamily created-at id ip name services state",
		keys(service):                  "healthcheck healthcheck-status id instance-pool name port protocol state strategy target-port",
		keys(service["healthcheck"]):   "interval mode port retries timeout",
		keys(service["instance-pool"]): "id",
	} {
		if got != want {
			t.Errorf("fields %q, want %q", got, want)
		}
	}
}

// tap keeps the last body.
type tap struct{ body *[]byte }

func (p tap) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	*p.body, err = io.ReadAll(answer.Body)
	answer.Body.Close()
	answer.Body = io.NopCloser(strings.NewReader(string(*p.body)))
	return answer, err
}

// TestHealthcheckStatus: what hosts find is what a client reads.
func TestHealthcheckStatus(t *testing.T) {
	z := newInhabited(t, 3, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	pool := s.poolOf(4)
	nlb := s.gets(s.CreateLoadBalancer(s.ctx, v3.CreateLoadBalancerRequest{Name: "front"}))
	s.gets(s.AddServiceToLoadBalancer(s.ctx, nlb, s.serviceRequest(pool, "http", 80)))
	if status := s.readBalancer(nlb).Services[0].HealthcheckStatus; len(status) != 0 {
		t.Errorf("before anybody was asked: %+v", status)
	}
	counts := func() map[v3.LoadBalancerServerStatusStatus]int {
		n := map[v3.LoadBalancerServerStatusStatus]int{}
		for _, one := range s.readBalancer(nlb).Services[0].HealthcheckStatus {
			n[one.Status]++
		}
		return n
	}
	find := func(verdict string, which func(i int) bool) {
		t.Helper()
		z.report(verdict, which)
		want := map[v3.LoadBalancerServerStatusStatus]int{}
		for i := range 4 {
			if which(i) {
				want[v3.LoadBalancerServerStatusStatus(verdict)]++
			} else {
				want[v3.LoadBalancerServerStatusStatusSuccess]++
			}
		}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for limit := time.After(10 * time.Second); !reflect.DeepEqual(counts(), want); {
			select {
			case <-tick.C:
			case <-limit:
				t.Fatalf("status %v, want %v", counts(), want)
			}
		}
	}
	find(store.VerdictSuccess, func(int) bool { return true })
	find(store.VerdictFailure, func(i int) bool { return i == 2 })
	find(store.VerdictSuccess, func(i int) bool { return i == 2 })
	if got := must(s.GetLoadBalancerService(s.ctx, nlb, s.readBalancer(nlb).Services[0].ID))(t).HealthcheckStatus; len(got) != 4 || !strings.HasPrefix(got[0].PublicIP.String(), "198.51.100.") {
		t.Errorf("status of the service alone: %+v", got)
	}
}

// report has the hosts of the zone's one service say a verdict on some of its
// backends.
func (z *inhabited) report(verdict string, which func(i int) bool) {
	z.t.Helper()
	var services []store.Doc[store.ServiceDoc]
	err := z.store.Read(z.t.Context(), func(tx *store.Tx) (err error) {
		services, err = store.List[store.ServiceDoc](tx, "")
		return err
	})
	if err != nil || len(services) != 1 {
		z.t.Fatal(services, err)
	}
	for i, b := range services[0].Body.Backends {
		if !which(i) {
			continue
		}
		err := z.balancers.Reported(z.t.Context(), fmt.Sprintf("hv%d", b.Host), []dist.Report{{
			Kind: wire.KindCheck, Key: wire.CheckKey(services[0].Body.Number, b.Number).ID, Generation: b.Generation, State: verdict,
		}})
		if err != nil {
			z.t.Fatal(err)
		}
	}
}
