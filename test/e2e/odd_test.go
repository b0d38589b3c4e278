// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/test/lab"
	"cairn/test/story"
)

// TestWhatIsNotPlain: through the balancer, between stacks that know nothing of it, a
// datagram of 4,000 bytes comes back, a port where nobody listens is refused, and a
// long answer finds its way over a link that takes less than all others.
func TestWhatIsNotPlain(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	var err error
	c.group, err = c.Group("odd", 7, 80)
	must(t, "security group", err)
	for _, port := range []int64{7, 9} {
		must(t, "rule for UDP", c.Admit(c.group, v3.AddRuleToSecurityGroupRequestProtocolUDP, port))
	}
	c.pool, err = c.Pool("odd", 3, c.group)
	must(t, "instance pool", err)
	c.balance()
	for port, target := range map[int64]int64{53: 7, 99: 9} {
		req := story.ServiceOf(fmt.Sprintf("udp-%d", port), c.pool)
		req.Protocol, req.Port, req.TargetPort = "udp", port, target
		req.Healthcheck = &v3.LoadBalancerServiceHealthcheck{
			Mode: v3.LoadBalancerServiceHealthcheckModeTCP, Port: 7, Interval: 5, Timeout: 2, Retries: 1,
		}
		_, err = c.Service(c.nlb.ID, req)
		must(t, "service over UDP", err)
	}
	c.healthy(3)
	for _, name := range []string{"large datagrams", "port unreachable", "small link"} {
		part := map[string]func(*cloudUnderTest){
			"large datagrams": largeDatagrams, "port unreachable": portUnreachable, "small link": smallLink,
		}[name]
		t.Run(name, func(t *testing.T) { part(c.within(t)) })
	}
}

func (c *cloudUnderTest) at(port uint16) string {
	return netip.AddrPortFrom(c.vip.Addr(), port).String()
}

// largeDatagrams asks from ports of its own, so that other nodes own other datagrams.
func largeDatagrams(c *cloudUnderTest) {
	sent := strings.Repeat("0123456789", 400)
	for i := range 20 {
		lab.Eventually(c.T, fmt.Sprintf("datagram %d comes back", i), 10*time.Second, func() error {
			conn, err := c.Lab.Client(1).DialContext(c.Context(), "udp4", c.at(53))
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			if _, err := io.WriteString(conn, sent); err != nil {
				return err
			}
			buffer := make([]byte, 8<<10)
			n, err := conn.Read(buffer)
			if err != nil {
				return err
			}
			var a struct{ Data string }
			if err := json.Unmarshal(buffer[:n], &a); err != nil || a.Data != sent {
				return fmt.Errorf("%d bytes of data: %v", len(a.Data), err)
			}
			return nil
		})
	}
}

func portUnreachable(c *cloudUnderTest) {
	lab.Eventually(c.T, "a datagram is refused", 20*time.Second, func() error {
		conn, err := c.Lab.Client(1).DialContext(c.Context(), "udp4", c.at(99))
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := io.WriteString(conn, "anybody?"); err != nil {
			return err
		}
		if _, err = conn.Read(make([]byte, 64)); errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
		return fmt.Errorf("not refused: %w", err)
	})
}

// smallLink has the router's way to the client take 1,300 bytes. Who is told so is the
// VIP; if the instance were not, its full segments would be sent for ever.
func smallLink(c *cloudUnderTest) {
	router, client := c.Lab.Router(), c.Lab.Client(1)
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	way, err := router.Run(ctx, "ip", "-o", "route", "get", client.Address.String())
	must(c.T, "the router's way to the client", err)
	_, device, _ := strings.Cut(way, " dev ")
	device, _, _ = strings.Cut(device, " ")
	_, err = router.Run(ctx, "ip", "route", "replace", client.Address.String()+"/32", "dev", device, "mtu", "1300")
	must(c.T, "a small link", err)
	before := fragFails(c)
	const size = 4 << 20
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/bytes/%d", c.vip, size), nil)
	must(c.T, "request", err)
	resp, err := client.HTTP(30 * time.Second).Do(req)
	must(c.T, "ask for a long answer", err)
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != size {
		c.Errorf("%d of %d bytes came: %v", n, size, err)
	}
	if now := fragFails(c); now == before {
		c.Error("the link was large enough for all: this showed nothing")
	}
}

// fragFails is how many packets the router found too large for their way.
func fragFails(c *cloudUnderTest) string {
	c.Helper()
	text, err := c.Lab.Router().Run(c.Context(), "cat", "/proc/net/snmp")
	must(c.T, "counters of the router", err)
	names, values, ok := strings.Cut(text, "\n")
	if !ok {
		c.Fatalf("no counters: %q", text)
	}
	all := strings.Fields(values)
	for i, name := range strings.Fields(names) {
		if name == "FragFails" {
			return all[i]
		}
	}
	c.Fatal("no FragFails among the counters")
	return ""
}
