// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/bpf"
	"cairn/test/lab"
	"cairn/test/story"
)

// TestScaleDownLosesNoRequest: while members leave under load every new
// connection is answered, twice: the second time soon after the pool has grown,
// when the drains of that may not have ended. Its negative control is the pure
// TestNoHostSendsToAPortThatIsGone of controlplane/pool.
func TestScaleDownLosesNoRequest(t *testing.T) {
	c := newCloud(t, lab.Config{})
	c.web(6)
	for round := range 2 {
		if round > 0 {
			must(t, "scale to 6", c.Scale(c.pool, 6))
			c.healthy(6)
		}
		var took time.Duration
		all, at := c.underLoad(2*time.Second, func() {
			begin := time.Now()
			must(t, "scale to 2", c.Scale(c.pool, 2))
			took = time.Since(begin)
		})
		failed, sent := story.Failures(all, at, time.Time{})
		t.Logf("round %d: %d of %d new connections failed; the operation took %s", round+1, len(failed), sent, took.Round(time.Millisecond))
		for hv := 1; hv <= c.Hypervisors() && len(failed) > 0; hv++ {
			t.Logf("hv%d: refused %d, no_local %d, no_port %d, draining %d", hv, c.drops(hv, bpf.ReasonRefused),
				c.drops(hv, bpf.ReasonNoLocal), c.drops(hv, bpf.ReasonNoPort), c.drops(hv, bpf.ReasonDraining))
		}
		for _, r := range failed {
			t.Errorf("%s after the event: %v", r.Start.Sub(at).Round(time.Millisecond), r.Err)
		}
		if took > 10*time.Second {
			t.Errorf("without long flows the operation took %s", took)
		}
		if n := len(c.members()); n != 2 {
			t.Errorf("%d members are left", n)
		}
	}
}

// TestLeavingMemberKeepsItsFlow: a connection to a member that leaves goes on,
// and the pool shrinks until it ends.
func TestLeavingMemberKeepsItsFlow(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	c.web(3)
	members, err := c.Members(c.pool)
	must(t, "members", err)
	stays := members[len(members)-1].Name // the youngest
	flow := c.flowTo(func(instance string) bool { return instance != stays })
	op, err := c.ScaleInstancePool(t.Context(), c.pool, v3.ScaleInstancePoolRequest{Size: 1})
	must(t, "scale to 1", err)
	for range 8 { // four seconds, longer than drains without flows take
		lab.Eventually(t, "half a second", 10*time.Second, flow.idle(500*time.Millisecond))
		must(t, "a request over the old connection", flow.ask())
	}
	p, err := c.GetInstancePool(t.Context(), c.pool)
	must(t, "get pool", err)
	if p.State != v3.InstancePoolStateScalingDown || len(p.Instances) != 3 {
		t.Errorf("pool is %s with %d members while a flow goes on", p.State, len(p.Instances))
	}
	s := story.AskMany(t.Context(), c.Lab.Client(1), c.vip, story.Ports(20000, 100), 1)
	if len(s.Errors) > 0 || len(s.Answered) != 1 || s.Answered[stays] == 0 {
		t.Errorf("new connections: %s, want all at %s", s, stays)
	}
	must(t, "close the connection", flow.conn.Close())
	closed := time.Now()
	_, err = c.Done(op, nil)
	must(t, "scale to 1", err)
	if took := time.Since(closed); took > 8*time.Second {
		t.Errorf("the members were gone %s after their last flow", took)
	}
	if left := c.members(); len(left) != 1 || !slices.Contains(left, members[len(members)-1].ID) {
		t.Errorf("left are %v, want the youngest", left)
	}
}

// flow is one connection that is used again and again.
type flow struct {
	conn     net.Conn
	in       *bufio.Reader
	host     string
	instance string // that answered first
	last     time.Time
}

// flowTo opens connections until an instance that is wanted has one.
func (c *cloudUnderTest) flowTo(wanted func(instance string) bool) *flow {
	c.Helper()
	for range 64 {
		ctx, cancel := context.WithTimeout(c.Context(), 2*time.Second)
		conn, err := c.Lab.Client(1).DialContext(ctx, "tcp4", c.vip.String())
		cancel()
		must(c.T, "connect", err)
		f := &flow{conn: conn, in: bufio.NewReader(conn), host: c.vip.String()}
		must(c.T, "first request", f.ask())
		if wanted(f.instance) {
			c.Cleanup(func() { conn.Close() })
			return f
		}
		conn.Close()
	}
	c.Fatal("no connection came to an instance that is wanted")
	return nil
}

// ask sends a request over the flow; the instance must be the same as before.
func (f *flow) ask() error {
	_ = f.conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := fmt.Fprintf(f.conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", f.host); err != nil {
		return err
	}
	resp, err := http.ReadResponse(f.in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var a story.Answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return err
	}
	if f.instance != "" && f.instance != a.Instance {
		return fmt.Errorf("%s answers on a connection to %s", a.Instance, f.instance)
	}
	f.instance, f.last = a.Instance, time.Now()
	return nil
}

// idle is met when the flow was not used for so long.
func (f *flow) idle(d time.Duration) func() error {
	return func() error {
		if since := time.Since(f.last); since < d {
			return fmt.Errorf("used %s ago", since)
		}
		return nil
	}
}
