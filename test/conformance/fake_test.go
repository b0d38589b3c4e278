// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/controlplane/api"
)

const (
	key    = "EXOconformance"
	secret = "a secret of the conformance tests"
	zone   = "ch-gva-2"
)

// fake is a cloud in memory: objects by noun and id, and operations that end at once
// or when told.
type fake struct {
	mu      sync.Mutex
	objects map[string]map[cloud.ID]any
	keys    []cloud.SSHKey
	ops     map[cloud.ID]*cloud.Operation
	answers map[string]answer
	slow    bool // operations stay pending for two polls
	polls   map[cloud.ID]int
	runs    map[string]int // of handlers, by operation
}

type answer struct {
	body []byte
	at   time.Time
}

func (f *fake) Secret(_ context.Context, k string) (string, cloud.ID, error) {
	if k != key {
		return "", "", cloud.NotFoundf("no key %s", k)
	}
	return secret, "0c0a1ca5-0000-4000-8000-000000000001", nil
}

func (f *fake) Answer(_ context.Context, signature string) (int, []byte, time.Time, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.answers[signature]
	return http.StatusOK, a.body, a.at, ok, nil
}

// done commits a mutation: its operation and the answer for a retry.
func (f *fake) done(c api.Call, id cloud.ID) *cloud.Operation {
	op := &cloud.Operation{ID: cloud.NewID(), State: cloud.OperationSuccess, Reference: c.Operation.Refer(id)}
	if f.slow {
		op.State = cloud.OperationPending
	}
	f.ops[op.ID] = op
	if _, ok := f.answers[c.Signature]; !ok {
		body, _ := json.Marshal(op)
		f.answers[c.Signature] = answer{body, c.Arrived}
	}
	return op
}

func all[T any](f *fake, noun string) []T {
	var out []T
	for _, o := range f.objects[noun] {
		out = append(out, *o.(*T))
	}
	return out
}

// find returns an object, or the refusal of the contract.
func find[T any](f *fake, noun string, id cloud.ID) (*T, error) {
	o, ok := f.objects[noun][id].(*T)
	if !ok {
		return nil, cloud.Missing(noun, id)
	}
	return o, nil
}

func (f *fake) put(noun string, id cloud.ID, o any) {
	if f.objects[noun] == nil {
		f.objects[noun] = map[cloud.ID]any{}
	}
	f.objects[noun][id] = o
}

// noun returns the handlers that are alike for every noun.
func noun[T, R any](f *fake, name string, list func([]T) any, create func(*R, cloud.ID) (*T, error)) api.Handlers {
	return api.Handlers{
		"list-" + name + "s": f.locked(func(api.Call) (any, error) { return list(all[T](f, name)), nil }),
		"get-" + name:        f.locked(func(c api.Call) (any, error) { return find[T](f, name, c.ID("id")) }),
		"create-" + name: f.locked(func(c api.Call) (any, error) {
			id := cloud.NewID()
			o, err := create(c.Body.(*R), id)
			if err != nil {
				return nil, err
			}
			f.put(name, id, o)
			return f.done(c, id), nil
		}),
		"delete-" + name: f.locked(func(c api.Call) (any, error) {
			if _, err := find[T](f, name, c.ID("id")); err != nil {
				return nil, err
			}
			delete(f.objects[name], c.ID("id"))
			return f.done(c, c.ID("id")), nil
		}),
	}
}

// on is a handler that changes one object.
func on[T any](f *fake, name string, change func(api.Call, *T) error) api.Handler {
	return f.locked(func(c api.Call) (any, error) {
		o, err := find[T](f, name, c.ID("id"))
		if err != nil {
			return nil, err
		}
		if err := change(c, o); err != nil {
			return nil, err
		}
		return f.done(c, c.ID("id")), nil
	})
}

func (f *fake) locked(h func(api.Call) (any, error)) api.Handler {
	return func(_ context.Context, c api.Call) (any, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.runs[c.Operation.ID]++
		return h(c)
	}
}

func (f *fake) handlers(url string) api.Handlers {
	return api.Merge(api.Catalogue(zone, url), f.operations(), f.sshKeys(), f.instances(), f.groups(), f.pools(), f.balancers(), f.networks())
}

func (f *fake) operations() api.Handlers {
	return api.Handlers{"get-operation": f.locked(func(c api.Call) (any, error) {
		op, ok := f.ops[c.ID("id")]
		if !ok {
			return nil, cloud.Missing("operation", c.ID("id"))
		}
		f.polls[op.ID]++
		if f.polls[op.ID] >= 2 {
			op.State = cloud.OperationSuccess
		}
		return *op, nil
	})}
}

func (f *fake) sshKeys() api.Handlers {
	at := func(name string) int {
		return slices.IndexFunc(f.keys, func(k cloud.SSHKey) bool { return k.Name == name })
	}
	return api.Handlers{
		"list-ssh-keys": f.locked(func(api.Call) (any, error) { return cloud.SSHKeyList{SSHKeys: f.keys}, nil }),
		"register-ssh-key": f.locked(func(c api.Call) (any, error) {
			r := c.Body.(*cloud.RegisterSSHKeyRequest)
			if at(r.Name) >= 0 {
				return nil, cloud.Exists("ssh-key", r.Name)
			}
			print, err := cloud.Fingerprint(r.PublicKey)
			f.keys = append(f.keys, cloud.SSHKey{Name: r.Name, Fingerprint: print})
			return f.done(c, ""), err
		}),
		"get-ssh-key": f.locked(func(c api.Call) (any, error) {
			if i := at(c.Args["name"]); i >= 0 {
				return f.keys[i], nil
			}
			return nil, cloud.NotFoundf("ssh-key %q not found", c.Args["name"])
		}),
		"delete-ssh-key": f.locked(func(c api.Call) (any, error) {
			i := at(c.Args["name"])
			if i < 0 {
				return nil, cloud.NotFoundf("ssh-key %q not found", c.Args["name"])
			}
			f.keys = slices.Delete(f.keys, i, i+1)
			return f.done(c, ""), nil
		}),
	}
}

func (f *fake) instances() api.Handlers {
	return api.Merge(
		noun(f, "instance", func(l []cloud.Instance) any {
			var rows cloud.InstanceList
			for _, i := range l {
				rows.Instances = append(rows.Instances, i.Row())
			}
			return rows
		}, func(r *cloud.CreateInstanceRequest, id cloud.ID) (*cloud.Instance, error) {
			return &cloud.Instance{ID: id, Name: r.Name, State: cloud.InstanceRunning, CreatedAt: time.Now().UTC(), InstanceType: r.InstanceType, Template: r.Template,
				DiskSize: r.DiskSize, PublicIP: netip.MustParseAddr("198.51.100.7"), PublicIPAssignment: cloud.PublicIPInet4, SecurityGroups: r.SecurityGroups, SSHKeys: r.SSHKeys}, nil
		}),
		api.Handlers{
			"start-instance": on(f, "instance", func(_ api.Call, i *cloud.Instance) error { i.State = cloud.InstanceRunning; return nil }),
			"stop-instance":  on(f, "instance", func(_ api.Call, i *cloud.Instance) error { i.State = cloud.InstanceStopped; return nil }),
		})
}

func (f *fake) groups() api.Handlers {
	member := func(api.Call, *cloud.SecurityGroup) error { return nil }
	return api.Merge(
		noun(f, "anti-affinity-group", func(l []cloud.AntiAffinityGroup) any { return cloud.AntiAffinityGroupList{AntiAffinityGroups: l} },
			func(r *cloud.CreateAntiAffinityGroupRequest, id cloud.ID) (*cloud.AntiAffinityGroup, error) {
				return &cloud.AntiAffinityGroup{ID: id, Name: r.Name, Description: r.Description}, nil
			}),
		noun(f, "security-group", func(l []cloud.SecurityGroup) any { return cloud.SecurityGroupList{SecurityGroups: l} },
			func(r *cloud.CreateSecurityGroupRequest, id cloud.ID) (*cloud.SecurityGroup, error) {
				return &cloud.SecurityGroup{ID: id, Name: r.Name, Description: r.Description}, nil
			}),
		api.Handlers{
			"add-rule-to-security-group": on(f, "security-group", func(c api.Call, g *cloud.SecurityGroup) error {
				g.Rules = append(g.Rules, c.Body.(*cloud.AddRuleRequest).Rule(cloud.NewID()))
				return nil
			}),
			"delete-rule-from-security-group": on(f, "security-group", func(c api.Call, g *cloud.SecurityGroup) error {
				n := len(g.Rules)
				g.Rules = slices.DeleteFunc(g.Rules, func(r cloud.SecurityGroupRule) bool { return r.ID == c.ID("rule-id") })
				if len(g.Rules) == n {
					return cloud.Missing("rule", c.ID("rule-id"))
				}
				return nil
			}),
			"add-external-source-to-security-group": on(f, "security-group", func(c api.Call, g *cloud.SecurityGroup) error {
				g.ExternalSources = append(g.ExternalSources, c.Body.(*cloud.ExternalSourceRequest).CIDR)
				return nil
			}),
			"remove-external-source-from-security-group": on(f, "security-group", func(c api.Call, g *cloud.SecurityGroup) error {
				g.ExternalSources = slices.DeleteFunc(g.ExternalSources, func(s string) bool { return s == c.Body.(*cloud.ExternalSourceRequest).CIDR })
				return nil
			}),
			"attach-instance-to-security-group":   on(f, "security-group", member),
			"detach-instance-from-security-group": on(f, "security-group", member),
		})
}

func (f *fake) pools() api.Handlers {
	return api.Merge(
		noun(f, "instance-pool", func(l []cloud.InstancePool) any { return cloud.InstancePoolList{InstancePools: l} },
			func(r *cloud.CreateInstancePoolRequest, id cloud.ID) (*cloud.InstancePool, error) {
				p := r.Pool(id)
				p.State = cloud.PoolRunning
				return p, nil
			}),
		api.Handlers{
			"update-instance-pool": on(f, "instance-pool", func(c api.Call, p *cloud.InstancePool) error {
				next, _, err := capi.Overlay(*p, c.Body, c.Keys)
				if err == nil {
					*p = next
				}
				return err
			}),
			"scale-instance-pool": on(f, "instance-pool", func(c api.Call, p *cloud.InstancePool) error {
				p.Size = c.Body.(*cloud.ScaleInstancePoolRequest).Size
				return nil
			}),
			"evict-instance-pool-members": on(f, "instance-pool", func(c api.Call, p *cloud.InstancePool) error {
				p.Size -= len(c.Body.(*cloud.EvictInstancePoolMembersRequest).Instances)
				return nil
			}),
		})
}

func (f *fake) balancers() api.Handlers {
	type lb = cloud.LoadBalancer
	service := func(l *lb, c api.Call) (*cloud.LoadBalancerService, error) {
		if s := l.Service(c.ID("service-id")); s != nil {
			return s, nil
		}
		return nil, cloud.Missing("service", c.ID("service-id"))
	}
	return api.Merge(
		noun(f, "load-balancer", func(l []lb) any { return cloud.LoadBalancerList{LoadBalancers: l} },
			func(r *cloud.CreateLoadBalancerRequest, id cloud.ID) (*lb, error) {
				for _, l := range all[lb](f, "load-balancer") {
					if l.Name == r.Name {
						return nil, cloud.Exists("load-balancer", r.Name)
					}
				}
				return &lb{ID: id, Name: r.Name, Description: r.Description, Labels: r.Labels, State: cloud.BalancerRunning,
					CreatedAt: time.Now().UTC(), IP: netip.MustParseAddr("203.0.113.1")}, nil
			}),
		api.Handlers{
			"update-load-balancer": on(f, "load-balancer", func(c api.Call, l *lb) error {
				next, _, err := capi.Overlay(*l, c.Body, c.Keys)
				if err == nil {
					*l = next
				}
				return err
			}),
			"reset-load-balancer-field": on(f, "load-balancer", func(c api.Call, l *lb) (err error) {
				*l, _, err = capi.Clear(*l, c.Args["field"])
				return err
			}),
			"add-service-to-load-balancer": on(f, "load-balancer", func(c api.Call, l *lb) error {
				s := c.Body.(*cloud.AddServiceRequest).Service(cloud.NewID())
				s.State = cloud.ServiceRunning
				s.HealthcheckStatus = []cloud.HealthcheckStatus{{PublicIP: netip.MustParseAddr("198.51.100.7"), Status: cloud.HealthSuccess}}
				l.Services = append(l.Services, *s)
				return nil
			}),
			"get-load-balancer-service": f.locked(func(c api.Call) (any, error) {
				l, err := find[lb](f, "load-balancer", c.ID("id"))
				if err != nil {
					return nil, err
				}
				return service(l, c)
			}),
			"update-load-balancer-service": on(f, "load-balancer", func(c api.Call, l *lb) error {
				s, err := service(l, c)
				if err != nil {
					return err
				}
				next, _, err := capi.Overlay(*s, c.Body, c.Keys)
				if err == nil {
					*s = next
				}
				return err
			}),
			"delete-load-balancer-service": on(f, "load-balancer", func(c api.Call, l *lb) error {
				l.Services = slices.DeleteFunc(l.Services, func(s cloud.LoadBalancerService) bool { return s.ID == c.ID("service-id") })
				return nil
			}),
			"reset-load-balancer-service-field": on(f, "load-balancer", func(c api.Call, l *lb) error {
				s, err := service(l, c)
				if err == nil {
					*s, _, err = capi.Clear(*s, c.Args["field"])
				}
				return err
			}),
		})
}

// serve starts the edge over the fake cloud and returns its base URL. wrap, if not
// nil, stands in front.
func serve(t *testing.T, f *fake, operations []capi.Operation, more api.Handlers, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	f.objects, f.ops, f.answers = map[string]map[cloud.ID]any{}, map[cloud.ID]*cloud.Operation{}, map[string]answer{}
	f.polls, f.runs = map[cloud.ID]int{}, map[string]int{}
	var h http.Handler
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	h, err := api.New(api.Config{Operations: operations, Handlers: api.Merge(f.handlers(server.URL), more), Keys: f, Answers: f, Zone: zone, PublicURL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	if wrap != nil {
		h = wrap(h)
	}
	return strings.TrimSuffix(server.URL, "/") + capi.Prefix
}
