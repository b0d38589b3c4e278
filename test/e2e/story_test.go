// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/cloud/compute"
	"cairn/dataplane/debug"
	"cairn/test/lab"
	"cairn/test/story"
)

const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@here"

// TestCustomerBuildsAWebService is the main thread: everything a customer does
// from the first key to the last delete, and packets that prove it.
func TestCustomerBuildsAWebService(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	ctx := t.Context()

	_, err := c.Done(c.RegisterSSHKey(ctx, v3.RegisterSSHKeyRequest{Name: "me", PublicKey: publicKey}))
	must(t, "register ssh key", err)
	singles := c.antiAffinity()

	c.group, err = c.Group("web", 80)
	must(t, "security group", err)
	c.pool, err = c.Pool("web", 4, c.group)
	must(t, "instance pool", err)
	c.spread(4, []int{2, 1, 1})
	c.balance()
	c.healthy(4)

	c.requests(story.Ports(20000, 1024), 1)
	c.backendsSawTheClient()
	c.requests(story.Ports(30000, 64), 16)

	must(t, "scale to 6", c.Scale(c.pool, 6))
	c.healthy(6)
	c.requests(story.Ports(40000, 600), 1)
	must(t, "scale to 2", c.Scale(c.pool, 2))
	c.healthy(2)
	c.requests(story.Ports(50000, 200), 1)

	c.removeEverything(singles)
}

// antiAffinity: three instances of a group land on three hypervisors, and the
// fourth has no place.
func (c *cloudUnderTest) antiAffinity() (made []v3.UUID) {
	c.Helper()
	group, err := c.Done(c.CreateAntiAffinityGroup(c.Context(), v3.CreateAntiAffinityGroupRequest{Name: "apart"}))
	must(c.T, "anti-affinity group", err)
	for i := range 3 {
		id, err := c.Launch(fmt.Sprintf("apart-%d", i+1), group, "")
		must(c.T, "instance in the anti-affinity group", err)
		made = append(made, id)
	}
	_, err = c.Launch("apart-4", group, "")
	var failed story.Failed
	if !errors.As(err, &failed) {
		c.Fatalf("a fourth instance in an anti-affinity group on three hypervisors: %v", err)
	}
	if failed.State != v3.OperationStateFailure || failed.Reason != v3.OperationReasonUnavailable || !strings.Contains(failed.Message, "apart") {
		c.Errorf("the fourth instance ended otherwise than unavailable, naming the group: %v", err)
	}
	if hosts := c.hostsOf(made); len(hosts) != 3 {
		c.Errorf("three instances of an anti-affinity group are on %d hypervisors", len(hosts))
	}
	return made
}

// machines lists the instances that each hypervisor's driver has made.
func (c *cloudUnderTest) machines(hv int) []string {
	entries, err := os.ReadDir(compute.MachinesFolder(c.AgentState(hv)))
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// hostsOf counts the given instances on each hypervisor that has one.
func (c *cloudUnderTest) hostsOf(ids []v3.UUID) map[int]int {
	out := map[int]int{}
	for hv := 1; hv <= c.Hypervisors(); hv++ {
		for _, id := range c.machines(hv) {
			if slices.Contains(ids, v3.UUID(id)) {
				out[hv]++
			}
		}
	}
	return out
}

func (c *cloudUnderTest) members() (ids []v3.UUID) {
	c.Helper()
	members, err := c.Members(c.pool)
	must(c.T, "pool's members", err)
	for _, m := range members {
		ids = append(ids, m.ID)
	}
	return ids
}

// spread checks how many of the pool's members are on the hypervisors.
func (c *cloudUnderTest) spread(size int, want []int) {
	c.Helper()
	ids := c.members()
	var got []int
	for _, n := range c.hostsOf(ids) {
		got = append(got, n)
	}
	slices.SortFunc(got, func(a, b int) int { return b - a })
	if len(ids) != size || !slices.Equal(got, want) {
		c.Errorf("pool of %d has %d members, spread %v, want %v", size, len(ids), got, want)
	}
}

// requests sends a request from each port, times over: all are answered, by
// all backends alike, and each sees the client's own address. The tolerance is
// 6 points for 1,024 requests, and grows as the binomial spread does for fewer.
func (c *cloudUnderTest) requests(ports []int, times int) {
	c.Helper()
	s := story.AskMany(c.Context(), c.Lab.Client(1), c.vip, ports, times)
	c.Logf("%d requests from %d ports: %s", len(ports)*times, len(ports), s)
	for _, err := range s.Errors {
		c.Error(err)
	}
	if s.Foreign > 0 {
		c.Errorf("%d answers to a peer that is not the client", s.Foreign)
	}
	members := len(c.members())
	if len(s.Answered) != members {
		c.Errorf("%d of %d backends answered", len(s.Answered), members)
	}
	tolerance := 6 * math.Sqrt(1024/float64(len(ports)))
	for name, n := range s.Answered {
		share, fair := 100*float64(n)/float64(s.Total()), 100/float64(members)
		if math.Abs(share-fair) > tolerance {
			c.Errorf("%s answered %.1f %%, want %.1f ± %.1f", name, share, fair, tolerance)
		}
	}
}

// backendsSawTheClient reads the workloads' own logs.
func (c *cloudUnderTest) backendsSawTheClient() {
	c.Helper()
	client := fmt.Sprintf("%q:%q", "peer", c.Lab.Client(1).Address.String()+":")
	client = client[:len(client)-1] // without the closing quote: a port follows
	for _, id := range c.members() {
		found := false
		for hv := 1; hv <= c.Hypervisors(); hv++ {
			log, err := os.ReadFile(compute.LogPath(c.AgentState(hv), string(id)))
			found = found || err == nil && strings.Contains(string(log), client)
		}
		if !found {
			c.Errorf("no log of instance %s has a line with %s", id, client)
		}
	}
}

// removeEverything deletes in the order in which clients do, and finds nothing
// left of it.
func (c *cloudUnderTest) removeEverything(instances []v3.UUID) {
	c.Helper()
	ctx := c.Context()
	remove := func(what string, op *v3.Operation, err error) {
		c.Helper()
		_, err = c.Done(op, err)
		must(c.T, "delete "+what, err)
	}
	op, err := c.DeleteLoadBalancerService(ctx, c.nlb.ID, c.service.ID)
	remove("service", op, err)
	op, err = c.DeleteLoadBalancer(ctx, c.nlb.ID)
	remove("load balancer", op, err)
	op, err = c.DeleteInstancePool(ctx, c.pool)
	remove("instance pool", op, err)
	for _, id := range instances {
		op, err = c.DeleteInstance(ctx, id)
		remove("instance", op, err)
	}
	op, err = c.DeleteSecurityGroup(ctx, c.group)
	remove("security group", op, err)
	groups, err := c.ListAntiAffinityGroups(ctx)
	must(c.T, "list anti-affinity groups", err)
	for _, g := range groups.AntiAffinityGroups {
		op, err = c.DeleteAntiAffinityGroup(ctx, g.ID)
		remove("anti-affinity group", op, err)
	}
	op, err = c.DeleteSSHKey(ctx, "me")
	remove("ssh key", op, err)
	c.nothingLeft()
}

func (c *cloudUnderTest) nothingLeft() {
	c.Helper()
	for hv := 1; hv <= c.Hypervisors(); hv++ {
		lab.Eventually(c.T, fmt.Sprintf("hypervisor %d empty", hv), 30*time.Second, func() error { return c.empty(hv) })
	}
	for _, pool := range []netip.Prefix{lab.InstancePrefix, lab.VIPPrefix, lab.InstancePrefix6, lab.VIPPrefix6} {
		lab.Eventually(c.T, "router without routes to "+pool.String(), 30*time.Second, func() error {
			routes, err := c.RoutesWithin(pool)
			if err == nil && len(routes) > 0 {
				err = fmt.Errorf("routes left: %v", routes)
			}
			return err
		})
	}
}

// empty is nil when a hypervisor holds no machine, and its agent's desired
// tables and maps nothing of a customer.
func (c *cloudUnderTest) empty(hv int) error {
	if left := c.machines(hv); len(left) > 0 {
		return fmt.Errorf("machines left: %v", left)
	}
	status, err := story.AskAgent[debug.Status](c.Context(), c.Lab, hv, "status")
	if err != nil {
		return err
	}
	for kind, d := range status.Digests {
		if d.Count > 0 && kind != "host" {
			return fmt.Errorf("hv%d: %d items of kind %s left", hv, d.Count, kind)
		}
	}
	return diff(c.Context(), c.Lab, hv)
}
