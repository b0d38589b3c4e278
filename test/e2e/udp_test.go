// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/test/lab"
	"cairn/test/story"
)

// TestDatagramsBehindFRR: 53/udp beside 53/tcp on one VIP, to another port of
// the instances, in front of the other router.
func TestDatagramsBehindFRR(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{Router: lab.FRR})
	var err error
	c.group, err = c.Group("dns", 7)
	must(t, "security group", err)
	must(t, "rule for UDP", c.Admit(c.group, v3.AddRuleToSecurityGroupRequestProtocolUDP, 7))
	c.pool, err = c.Pool("dns", 3, c.group)
	must(t, "instance pool", err)
	c.nlb, err = c.LoadBalancer("front")
	must(t, "load balancer", err)
	for _, protocol := range []v3.AddServiceToLoadBalancerRequestProtocol{"udp", "tcp"} {
		req := story.ServiceOf("dns-"+string(protocol), c.pool)
		req.Protocol, req.Port, req.TargetPort = protocol, 53, 7
		req.Healthcheck = &v3.LoadBalancerServiceHealthcheck{
			Mode: v3.LoadBalancerServiceHealthcheckModeTCP, Port: 7, Interval: 5, Timeout: 2, Retries: 1,
		}
		c.service, err = c.Service(c.nlb.ID, req)
		must(t, "service over "+string(protocol), err)
	}
	address, _ := netip.AddrFromSlice(c.nlb.IP.To4())
	c.vip = netip.AddrPortFrom(address, 53)
	c.healthy(3)

	answered := map[string]int{}
	for range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		a, err := story.AskUDP(ctx, c.Lab.Client(1), c.vip)
		cancel()
		must(t, "ask over UDP", err)
		if a.Peer.Addr() != c.Lab.Client(1).Address {
			t.Fatalf("instance saw %s, not the client", a.Peer)
		}
		answered[a.Instance]++
	}
	if len(answered) != 3 {
		t.Errorf("%d of 3 instances answered: %v", len(answered), answered)
	}
	conn, err := c.Lab.Client(1).DialContext(t.Context(), "tcp4", c.vip.String())
	must(t, "dial over TCP", err)
	defer conn.Close()
	must(t, "set deadline", conn.SetDeadline(time.Now().Add(5*time.Second)))
	_, err = fmt.Fprintln(conn, "hello")
	must(t, "write", err)
	n, err := conn.Read(make([]byte, 1024))
	if err != nil || n == 0 {
		t.Errorf("no answer over TCP: %v", err)
	}
}
