// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"golang.org/x/sync/errgroup"

	"cairn/bpf"
	"cairn/dataplane/debug"
	"cairn/test/lab"
	"cairn/test/story"
)

// TestAnOperationWaitsForTheAgent: success means programmed, so it does not come
// while an agent stands still, and the operation says for whom it waits.
func TestAnOperationWaitsForTheAgent(t *testing.T) {
	c := newCloud(t, lab.Config{})
	c.web(3)
	must(t, "freeze agent", c.Agent(2).Freeze())
	req := story.ServiceOf("second", c.pool)
	req.Port = 81
	op, err := c.AddServiceToLoadBalancer(t.Context(), c.nlb.ID, req)
	must(t, "add service", err)
	if op.State != v3.OperationStatePending {
		t.Errorf("operation is %s while an agent stands still", op.State)
	}
	again, err := c.GetOperation(t.Context(), op.ID)
	must(t, "get operation", err)
	if again.State != v3.OperationStatePending || !strings.Contains(again.Message, "hv2") {
		t.Errorf("operation is %s and says %q, want pending and hv2", again.State, again.Message)
	}
	must(t, "thaw agent", c.Agent(2).Thaw())
	lab.Eventually(t, "success after the agent goes on", time.Second, func() error {
		op, err := c.GetOperation(t.Context(), op.ID)
		if err == nil && op.State != v3.OperationStateSuccess {
			err = fmt.Errorf("operation is %s: %s", op.State, op.Message)
		}
		return err
	})
}

// TestFullMapFailsOneOperation: an agent that has no room says so, the operation
// that asked for it fails with the agent's words, and the others go on.
func TestFullMapFailsOneOperation(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{Hypervisors: 1, Agent: []string{"--map-size", "slots=512"}})
	c.web(2)
	add := func(port int64) error {
		req := story.ServiceOf(fmt.Sprintf("on-%d", port), c.pool)
		req.Port = port
		_, err := c.Service(c.nlb.ID, req)
		return err
	}
	must(t, "second service, the last with room", add(81))
	var failed story.Failed
	if err := add(82); !errors.As(err, &failed) {
		t.Fatalf("third service in a map for two: %v", err)
	}
	if failed.State != v3.OperationStateFailure || failed.Reason != v3.OperationReasonFault || !strings.Contains(failed.Message, "slots") {
		t.Errorf("operation ended otherwise than in a fault that names the slots: %v", failed)
	}
	c.requests(story.Ports(20000, 100), 1)
	must(t, "a change of another service", c.Admit(c.group, v3.AddRuleToSecurityGroupRequestProtocolTCP, 7))
}

// TestRestartOfTheControlPlaneMovesNoSlot: tables are stored, not drawn anew.
func TestRestartOfTheControlPlaneMovesNoSlot(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	c.web(3)
	before := c.services(1)
	streams := c.streams(1)
	must(t, "restart cairnd", c.Control().Restart())
	lab.Eventually(t, "agent connected anew", 30*time.Second, func() error {
		s, err := story.AskAgent[debug.Status](c.Context(), c.Lab, 1, "status")
		if err == nil && (!s.Control.Connected || s.Control.Streams == streams) {
			err = fmt.Errorf("%+v", s.Control)
		}
		return err
	})
	must(t, "a change after the restart", c.Admit(c.group, v3.AddRuleToSecurityGroupRequestProtocolTCP, 7))
	if after := c.services(1); !slices.EqualFunc(before, after, sameTable) {
		t.Errorf("slots moved:\nbefore %+v\nafter  %+v", before, after)
	}
	s, err := story.AskAgent[debug.Status](c.Context(), c.Lab, 1, "status")
	must(t, "status", err)
	if s.Control.Snapshots > 1 {
		t.Errorf("%d snapshots: a restart of the control plane is no reason for one", s.Control.Snapshots)
	}
	c.requests(story.Ports(20000, 100), 1)
}

func (c *cloudUnderTest) services(hv int) []debug.Service {
	c.Helper()
	s, err := story.AskAgent[[]debug.Service](c.Context(), c.Lab, hv, "nlb")
	must(c.T, "services", err)
	if len(s) == 0 {
		c.Fatalf("hv%d holds no service", hv)
	}
	return s
}

func (c *cloudUnderTest) streams(hv int) uint64 {
	c.Helper()
	s, err := story.AskAgent[debug.Status](c.Context(), c.Lab, hv, "status")
	must(c.T, "status", err)
	return s.Control.Streams
}

func sameTable(a, b debug.Service) bool {
	return a.ID == b.ID && a.Generation == b.Generation && a.Slots == b.Slots &&
		slices.EqualFunc(a.Backends, b.Backends, func(x, y debug.Backend) bool {
			return x.ID == y.ID && x.Slots == y.Slots && x.Former == y.Former
		})
}

// TestSecurityGroupDecides: without the rule nothing is answered, and each SYN
// is counted under its reason; with it everything is.
func TestSecurityGroupDecides(t *testing.T) {
	c := newCloud(t, lab.Config{Hypervisors: 1})
	var err error
	c.group, err = c.Group("closed")
	must(t, "security group", err)
	c.pool, err = c.Pool("web", 2, c.group)
	must(t, "instance pool", err)
	c.balance()
	c.healthy(2) // the checks come through the host's own door and need no rule

	reason := bpf.ReasonPolicyIn
	denied := c.drops(1, reason)
	syns := c.synsOf(100)
	if got := c.drops(1, reason) - denied; got != syns {
		t.Errorf("%s rose by %d for %d SYNs", reason, got, syns)
	}
	must(t, "add rule", c.Admit(c.group, v3.AddRuleToSecurityGroupRequestProtocolTCP, 80))
	c.requests(story.Ports(20000, 100), 1)
}

// synsOf sends one SYN from each of n ports, none of which may be answered: each
// connection is given up before its first retransmission, a second later.
func (c *cloudUnderTest) synsOf(n int) uint64 {
	c.Helper()
	const patience = 400 * time.Millisecond
	var answered atomic.Int32
	var g errgroup.Group
	g.SetLimit(16)
	for _, port := range story.Ports(40000, n) {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(c.Context(), patience)
			defer cancel()
			conn, err := c.Lab.Client(1).DialFrom(ctx, "tcp4", port, c.vip.String())
			switch {
			case err == nil:
				answered.Add(1)
				return conn.Close()
			case !os.IsTimeout(err):
				return err
			}
			return nil
		})
	}
	must(c.T, "send SYNs", g.Wait())
	if got := answered.Load(); got > 0 {
		c.Errorf("%d of %d connections were answered without a rule", got, n)
	}
	return uint64(n)
}
