// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"golang.org/x/sys/unix"

	"cairn/cloud/compute"
	"cairn/dataplane/debug"
	"cairn/test/lab"
	"cairn/test/story"
)

// TestUnhealthyBackendIsLeftOut: a workload that stopped is found within its
// check's time, and then no request fails.
func TestUnhealthyBackendIsLeftOut(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	c.web(3)
	const interval, retries = 5 * time.Second, 1
	must(t, "stop workload", c.stopWorkload(c.members()[0]))
	stopped := time.Now()
	lab.Eventually(t, "verdict failure", interval*(retries+1)+2*time.Second, func() error {
		return c.Health(c.nlb.ID, c.service.ID, v3.LoadBalancerServerStatusStatusFailure, 1)
	})
	t.Logf("verdict after %s", time.Since(stopped).Round(time.Millisecond))
	lab.Eventually(t, "two backends that own slots, on all hosts", time.Second, func() error {
		for hv := 1; hv <= c.Hypervisors(); hv++ {
			if n := c.owners(hv); n != 2 {
				return fmt.Errorf("hv%d: %d backends own slots", hv, n)
			}
		}
		return nil
	})
	s := story.AskMany(t.Context(), c.Lab.Client(1), c.vip, story.Ports(20000, 500), 1)
	for _, err := range s.Errors {
		t.Error(err)
	}
	if len(s.Answered) != 2 {
		t.Errorf("%d backends answered, want the two that live: %s", len(s.Answered), s)
	}
}

// owners counts the backends that own slots in a host's table.
func (c *cloudUnderTest) owners(hv int) (n int) {
	c.Helper()
	for _, b := range c.services(hv)[0].Backends {
		if b.Slots > 0 {
			n++
		}
	}
	return n
}

// stopWorkload freezes an instance's process: its port stays, its service does
// not answer.
func (c *cloudUnderTest) stopWorkload(id v3.UUID) error {
	for hv := 1; hv <= c.Hypervisors(); hv++ {
		record, err := os.ReadFile(filepath.Join(compute.MachinesFolder(c.AgentState(hv)), string(id), "record.json"))
		if err != nil {
			continue
		}
		var machine struct {
			Process struct {
				PID int `json:"pid"`
			} `json:"process"`
		}
		if err := json.Unmarshal(record, &machine); err != nil {
			return err
		}
		return unix.Kill(machine.Process.PID, unix.SIGSTOP)
	}
	return fmt.Errorf("no hypervisor knows instance %s", id)
}

// TestSilencedChecksRemoveNothing: when no check of any host gets an answer, it
// is the checking that broke, and everything stays in use.
func TestSilencedChecksRemoveNothing(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	c.web(3)
	for hv := 1; hv <= c.Hypervisors(); hv++ {
		must(t, "close the door", c.CloseDoor(hv))
	}
	lab.Eventually(t, "a check that fails on each host", 25*time.Second, func() error {
		for hv := 1; hv <= c.Hypervisors(); hv++ {
			if !slices.ContainsFunc(c.services(hv)[0].Backends, func(b debug.Backend) bool { return b.Check == "failure" }) {
				return fmt.Errorf("hv%d sees no failure", hv)
			}
		}
		return nil
	})
	lab.Eventually(t, "all three backends in use", 5*time.Second, func() error {
		if n := c.owners(1); n != 3 {
			return fmt.Errorf("%d backends own slots", n)
		}
		return nil
	})
	c.requests(story.Ports(20000, 200), 1)
}

// TestVIPOutlivesItsAgent: a dead agent is no dead dataplane. CAIRN_LONG=1 (make
// long) looks for a whole minute. The negative control, of
// TestAgentKilledWhileThePoolGrows as well, is the loss of the program: that
// fails requests.
func TestVIPOutlivesItsAgent(t *testing.T) {
	t.Parallel()
	look := 15 * time.Second // three leases
	if os.Getenv("CAIRN_LONG") != "" {
		look = time.Minute
	}
	c := newCloud(t, lab.Config{Hypervisors: 1})
	c.web(2)
	must(t, "kill agent", c.Agent(1).Kill())
	all := story.StartLoad(t.Context(), c.Lab.Client(1), c.vip, 20)
	c.sent(all, int(look.Seconds())*20)
	requests := all.Stop()
	if failed, sent := story.Failures(requests, time.Time{}, time.Time{}); len(failed) > 0 {
		t.Errorf("%d of %d requests failed without an agent: %v", len(failed), sent, failed[0].Err)
	}
	c.announced(1)

	requests, at := c.underLoad(time.Second, func() { c.detach(1) })
	if failed, sent := story.Failures(requests, at, time.Time{}); len(failed) == 0 {
		t.Errorf("0 of %d requests failed with the uplink program detached", sent)
	}
}

// TestDetachedProgramWithdrawsTheVIP: the speaker looks for itself.
func TestDetachedProgramWithdrawsTheVIP(t *testing.T) {
	c := newCloud(t, lab.Config{})
	c.web(3)
	c.detach(2)
	at := time.Now()
	lab.Eventually(t, "VIP withdrawn by hv2", time.Second, func() error {
		hops, err := c.RouterRoutes(netip.PrefixFrom(c.vip.Addr(), 32))
		if err == nil && slices.Contains(hops, c.Endpoint(2)) {
			err = fmt.Errorf("still a next hop of %v", hops)
		}
		return err
	})
	t.Logf("withdrawn after %s", time.Since(at).Round(time.Millisecond))
	hops, err := c.RouterRoutes(netip.PrefixFrom(c.vip.Addr(), 32))
	must(t, "router's routes", err)
	if len(hops) != 2 {
		t.Errorf("%d next hops, want the two others: %v", len(hops), hops)
	}
}
