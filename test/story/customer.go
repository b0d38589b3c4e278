// SPDX-License-Identifier: Apache-2.0

// Package story owns the acts of the people around Cairn, for the tests of
// test/e2e and for the demo: a customer who works through the public API with
// the unmodified egoscale client, and clients who send requests to what she
// built. It asserts nothing; it returns what happened.
//
// Start at Customer; traffic.go is the clients' side.
package story

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"github.com/exoscale/egoscale/v3/credentials"

	"cairn/test/lab"
)

// Customer works through the public API. Every mutation waits for its operation
// and returns the id that it refers to.
type Customer struct {
	*v3.Client
	InstanceType *v3.InstanceType
	Template     *v3.Template

	ctx context.Context
}

// Failed is an operation that ended otherwise than in success.
type Failed struct{ *v3.Operation }

func (f Failed) Error() string {
	return fmt.Sprintf("operation %s: %s, reason %s: %s", f.ID, f.State, f.Reason, f.Message)
}

// NewCustomer is one of the lab's first organisation.
func NewCustomer(ctx context.Context, l *lab.Lab) (*Customer, error) {
	return NewCustomerOver(ctx, l, &http.Transport{MaxIdleConnsPerHost: 4})
}

// NewCustomerOver reaches the API by a transport of the caller's.
func NewCustomerOver(ctx context.Context, l *lab.Lab, transport http.RoundTripper) (*Customer, error) {
	keys := credentials.NewStaticCredentials(l.Credentials().Key, l.Credentials().Secret)
	client, err := v3.NewClient(keys, v3.ClientOptWithEndpoint(v3.Endpoint(l.API())),
		v3.ClientOptWithHTTPClient(&http.Client{Transport: transport, Timeout: 30 * time.Second}))
	if err != nil {
		return nil, err
	}
	c := &Customer{Client: client, ctx: ctx}
	types, err := c.ListInstanceTypes(ctx)
	if err != nil {
		return nil, fmt.Errorf("list instance types: %w", err)
	}
	templates, err := c.ListTemplates(ctx)
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	if len(types.InstanceTypes) == 0 || len(templates.Templates) == 0 {
		return nil, errors.New("the catalogue is empty")
	}
	c.InstanceType = &v3.InstanceType{ID: types.InstanceTypes[0].ID}
	c.Template = &v3.Template{ID: templates.Templates[0].ID}
	return c, nil
}

// Done takes the two results of a mutation, waits for its end and returns the
// id that it refers to, or Failed.
func (c *Customer) Done(op *v3.Operation, err error) (v3.UUID, error) {
	if err != nil {
		return "", err
	}
	for op.State == v3.OperationStatePending {
		select {
		case <-c.ctx.Done():
			return "", c.ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		if op, err = c.GetOperation(c.ctx, op.ID); err != nil {
			return "", err
		}
	}
	if op.State != v3.OperationStateSuccess {
		return "", Failed{op}
	}
	if op.Reference == nil {
		return "", nil
	}
	return op.Reference.ID, nil
}

// Launch asks for one instance.
func (c *Customer) Launch(name string, antiAffinity, group v3.UUID) (v3.UUID, error) {
	req := v3.CreateInstanceRequest{Name: name, DiskSize: 10, InstanceType: c.InstanceType, Template: c.Template}
	if antiAffinity != "" {
		req.AntiAffinityGroups = []v3.AntiAffinityGroup{{ID: antiAffinity}}
	}
	if group != "" {
		req.SecurityGroups = []v3.SecurityGroup{{ID: group}}
	}
	return c.Done(c.CreateInstance(c.ctx, req))
}

// Group makes a security group that admits the given TCP ports from anywhere.
func (c *Customer) Group(name string, tcp ...int64) (v3.UUID, error) {
	group, err := c.Done(c.CreateSecurityGroup(c.ctx, v3.CreateSecurityGroupRequest{Name: name}))
	if err != nil {
		return "", err
	}
	for _, port := range tcp {
		if err := c.Admit(group, v3.AddRuleToSecurityGroupRequestProtocolTCP, port); err != nil {
			return group, err
		}
	}
	return group, nil
}

// Admit adds a rule for one port from anywhere in IPv4.
func (c *Customer) Admit(group v3.UUID, protocol v3.AddRuleToSecurityGroupRequestProtocol, port int64) error {
	return c.AdmitFrom(group, "0.0.0.0/0", protocol, port)
}

// AdmitFrom adds a rule for one port from a network.
func (c *Customer) AdmitFrom(group v3.UUID, network string, protocol v3.AddRuleToSecurityGroupRequestProtocol, port int64) error {
	_, err := c.Done(c.AddRuleToSecurityGroup(c.ctx, group, v3.AddRuleToSecurityGroupRequest{
		FlowDirection: v3.AddRuleToSecurityGroupRequestFlowDirectionIngress, Protocol: protocol,
		Network: network, StartPort: port, EndPort: port,
	}))
	return err
}

// Pool asks for an instance pool outside any anti-affinity group.
func (c *Customer) Pool(name string, size int64, group v3.UUID) (v3.UUID, error) {
	req := v3.CreateInstancePoolRequest{
		Name: name, Size: size, DiskSize: 10, InstanceType: c.InstanceType, Template: c.Template, InstancePrefix: name,
	}
	if group != "" {
		req.SecurityGroups = []v3.SecurityGroup{{ID: group}}
	}
	return c.Done(c.CreateInstancePool(c.ctx, req))
}

// Scale sets a pool's size.
func (c *Customer) Scale(pool v3.UUID, size int64) error {
	_, err := c.Done(c.ScaleInstancePool(c.ctx, pool, v3.ScaleInstancePoolRequest{Size: size}))
	return err
}

// Members of a pool, whole.
func (c *Customer) Members(pool v3.UUID) ([]*v3.Instance, error) {
	p, err := c.GetInstancePool(c.ctx, pool)
	if err != nil {
		return nil, err
	}
	var out []*v3.Instance
	for _, ref := range p.Instances {
		i, err := c.GetInstance(c.ctx, ref.ID)
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	return out, nil
}

// LoadBalancer makes one and returns it with its address.
func (c *Customer) LoadBalancer(name string) (*v3.LoadBalancer, error) {
	id, err := c.Done(c.CreateLoadBalancer(c.ctx, v3.CreateLoadBalancerRequest{Name: name}))
	if err != nil {
		return nil, err
	}
	return c.GetLoadBalancer(c.ctx, id)
}

// ServiceOf is what a service of a load balancer is asked to be: port 80 to
// port 80 by the five-tuple, checked over HTTP, unless set otherwise.
func ServiceOf(name string, pool v3.UUID) v3.AddServiceToLoadBalancerRequest {
	return v3.AddServiceToLoadBalancerRequest{
		Name: name, InstancePool: &v3.InstancePool{ID: pool}, Port: 80, TargetPort: 80,
		Protocol: v3.AddServiceToLoadBalancerRequestProtocolTCP,
		Strategy: v3.AddServiceToLoadBalancerRequestStrategyRoundRobin,
		Healthcheck: &v3.LoadBalancerServiceHealthcheck{
			Mode: v3.LoadBalancerServiceHealthcheckModeHTTP, Port: 80, URI: "/healthz", Interval: 5, Timeout: 2, Retries: 1,
		},
	}
}

// Service adds a service and finds it, as clients do: by its name in the load
// balancer read again.
func (c *Customer) Service(nlb v3.UUID, req v3.AddServiceToLoadBalancerRequest) (*v3.LoadBalancerService, error) {
	if _, err := c.Done(c.AddServiceToLoadBalancer(c.ctx, nlb, req)); err != nil {
		return nil, err
	}
	l, err := c.GetLoadBalancer(c.ctx, nlb)
	if err != nil {
		return nil, err
	}
	for i := range l.Services {
		if l.Services[i].Name == req.Name {
			return &l.Services[i], nil
		}
	}
	return nil, fmt.Errorf("load balancer %s has no service %s after its operation succeeded", nlb, req.Name)
}

// Health is nil when exactly want backends of a service have the status.
func (c *Customer) Health(nlb, service v3.UUID, status v3.LoadBalancerServerStatusStatus, want int) error {
	s, err := c.GetLoadBalancerService(c.ctx, nlb, service)
	if err != nil {
		return err
	}
	n := 0
	for _, b := range s.HealthcheckStatus {
		if b.Status == status {
			n++
		}
	}
	if n != want {
		return fmt.Errorf("%d of %d backends are %q, want %d: %v", n, len(s.HealthcheckStatus), status, want, s.HealthcheckStatus)
	}
	return nil
}
