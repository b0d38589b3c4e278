// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/test/lab"
	"cairn/test/story"
)

// cloudUnderTest is a lab, its customer, and a web service behind a load
// balancer if the test asked for one.
type cloudUnderTest struct {
	*testing.T
	*lab.Lab
	*story.Customer

	group, pool v3.UUID
	nlb         *v3.LoadBalancer
	service     *v3.LoadBalancerService
	vip         netip.AddrPort
}

func newCloud(t *testing.T, cfg lab.Config) *cloudUnderTest {
	t.Helper()
	l := lab.New(t, cfg)
	customer, err := story.NewCustomer(t.Context(), l)
	must(t, "customer", err)
	return &cloudUnderTest{T: t, Lab: l, Customer: customer}
}

// within is the same cloud under a part of its test.
func (c *cloudUnderTest) within(t *testing.T) *cloudUnderTest {
	part := *c
	part.T = t
	return &part
}

// web builds group, pool, load balancer and service, and waits until every
// backend is healthy.
func (c *cloudUnderTest) web(size int64) {
	c.Helper()
	var err error
	c.group, err = c.Group("web", 80)
	must(c.T, "security group", err)
	c.pool, err = c.Pool("web", size, c.group)
	must(c.T, "instance pool", err)
	c.balance()
	c.healthy(int(size))
}

func (c *cloudUnderTest) balance() {
	c.Helper()
	var err error
	c.nlb, err = c.LoadBalancer("front")
	must(c.T, "load balancer", err)
	c.service, err = c.Service(c.nlb.ID, story.ServiceOf("http", c.pool))
	must(c.T, "service", err)
	address, ok := netip.AddrFromSlice(c.nlb.IP.To4())
	if !ok {
		c.Fatalf("load balancer has no address: %v", c.nlb.IP)
	}
	c.vip = netip.AddrPortFrom(address, 80)
}

func (c *cloudUnderTest) healthy(want int) {
	c.Helper()
	lab.Eventually(c.T, fmt.Sprintf("%d healthy backends", want), 40*time.Second, func() error {
		return c.Health(c.nlb.ID, c.service.ID, v3.LoadBalancerServerStatusStatusSuccess, want)
	})
	c.announced(c.Hypervisors())
}

// announced waits until the router spreads the VIP over n hypervisors.
func (c *cloudUnderTest) announced(n int) {
	c.Helper()
	lab.Eventually(c.T, fmt.Sprintf("%d next hops of the VIP", n), 30*time.Second, func() error {
		hops, err := c.RouterRoutes(netip.PrefixFrom(c.vip.Addr(), c.vip.Addr().BitLen()))
		if err == nil && len(hops) != n {
			err = fmt.Errorf("%d next hops: %v", len(hops), hops)
		}
		return err
	})
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
