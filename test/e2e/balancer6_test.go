// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/cloud"
	"cairn/cloud/client"
	"cairn/test/lab"
	"cairn/test/story"
)

// dualPool is a pool whose members have IPv6 beside IPv4.
func (c *cloudUnderTest) dualPool(name string, size int64) v3.UUID {
	c.Helper()
	id, err := c.Done(c.CreateInstancePool(c.Context(), v3.CreateInstancePoolRequest{
		Name: name, Size: size, DiskSize: 10, InstanceType: c.InstanceType, Template: c.Template, InstancePrefix: name,
		SecurityGroups: []v3.SecurityGroup{{ID: c.group}}, PublicIPAssignment: v3.CreateInstancePoolRequestPublicIPAssignmentDual,
	}))
	must(c.T, "instance pool "+name, err)
	return id
}

// balancer6 makes a load balancer of IPv6. The egoscale client is older than that.
func (c *cloudUnderTest) balancer6(name string) *v3.LoadBalancer {
	c.Helper()
	op, err := client.New(c.API(), c.Credentials().Key, c.Credentials().Secret).Run(c.Context(), "create-load-balancer",
		client.In{Body: &cloud.CreateLoadBalancerRequest{Name: name, AddressFamily: cloud.Inet6}})
	must(c.T, "load balancer "+name, err)
	l, err := c.GetLoadBalancer(c.Context(), v3.UUID(op.Reference.ID))
	must(c.T, "get load balancer "+name, err)
	return l
}

// A client of IPv6 is served by instances that see its own address, over an
// underlay of IPv4, and nothing is left when all is deleted.
func TestLoadBalancerOfIPv6(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	var err error
	c.group, err = c.Group("six")
	must(t, "security group", err)
	must(t, "rule for TCP", c.AdmitFrom(c.group, "::/0", v3.AddRuleToSecurityGroupRequestProtocolTCP, 80))
	must(t, "rule for UDP", c.AdmitFrom(c.group, "::/0", v3.AddRuleToSecurityGroupRequestProtocolUDP, 7))
	c.nlb = c.balancer6("front")
	address, ok := netip.AddrFromSlice(c.nlb.IP)
	if !ok || !lab.VIPPrefix6.Contains(address) {
		t.Fatalf("the load balancer has %v", c.nlb.IP)
	}
	c.vip = netip.AddrPortFrom(address, 80)

	// Instances without IPv6 could answer nobody.
	four, err := c.Pool("four", 1, c.group)
	must(t, "instance pool", err)
	_, err = c.Service(c.nlb.ID, story.ServiceOf("none", four))
	if !errors.Is(err, v3.ErrConflict) {
		t.Errorf("a service before a pool without IPv6: %v", err)
	}
	c.pool = c.dualPool("six", 3)
	c.service, err = c.Service(c.nlb.ID, story.ServiceOf("http", c.pool))
	must(t, "service over TCP", err)
	dns := story.ServiceOf("dns", c.pool)
	dns.Protocol, dns.Port, dns.TargetPort = v3.AddServiceToLoadBalancerRequestProtocolUDP, 53, 7
	datagrams, err := c.Service(c.nlb.ID, dns)
	must(t, "service over UDP", err)
	c.healthy(3)
	service, err := c.GetLoadBalancerService(c.Context(), c.nlb.ID, c.service.ID)
	must(t, "get service", err)
	for _, s := range service.HealthcheckStatus {
		if a, _ := netip.AddrFromSlice(s.PublicIP); !lab.InstancePrefix6.Contains(a) {
			t.Errorf("a backend was asked at %s", s.PublicIP)
		}
	}

	// New connections from many ports, each answered, each by who sees the client.
	s := story.AskMany(t.Context(), c.Client6(1), c.vip, story.Ports(20000, 400), 1)
	t.Logf("%s", s)
	if len(s.Errors) > 0 || s.Foreign > 0 || len(s.Answered) != 3 {
		t.Errorf("%d of 3 backends answered, %d to another peer, errors %v", len(s.Answered), s.Foreign, s.Errors)
	}
	answered := map[string]int{}
	for range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		a, err := story.AskUDP(ctx, c.Client6(1), netip.AddrPortFrom(address, 53))
		cancel()
		must(t, "ask over UDP", err)
		if a.Peer.Addr() != c.Client6(1).Address {
			t.Fatalf("instance saw %s, not the client", a.Peer)
		}
		answered[a.Instance]++
	}
	if len(answered) != 3 {
		t.Errorf("%d of 3 instances answered: %v", len(answered), answered)
	}
	// The control: what no service has is nobody's.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if a, err := story.Ask(ctx, c.Client6(1), 0, netip.AddrPortFrom(address, 81)); err == nil {
		t.Errorf("%s answers at a port that is not served", a.Instance)
	}

	op, err := c.DeleteLoadBalancerService(c.Context(), c.nlb.ID, datagrams.ID)
	_, err = c.Done(op, err)
	must(t, "delete the service over UDP", err)
	op, err = c.DeleteLoadBalancer(c.Context(), c.nlb.ID)
	_, err = c.Done(op, err)
	must(t, "delete load balancer", err)
	if _, err := c.GetLoadBalancer(c.Context(), c.nlb.ID); !errors.Is(err, v3.ErrNotFound) {
		t.Errorf("after the delete: %v", err)
	}
	for _, pool := range []v3.UUID{four, c.pool} {
		op, err = c.DeleteInstancePool(c.Context(), pool)
		_, err = c.Done(op, err)
		must(t, "delete instance pool", err)
	}
	op, err = c.DeleteSecurityGroup(c.Context(), c.group)
	_, err = c.Done(op, err)
	must(t, "delete security group", err)
	c.nothingLeft()
}
