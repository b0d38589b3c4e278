// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/dataplane/debug"
	"cairn/test/lab"
	"cairn/test/story"
)

// remove deletes everything and looks whether it is gone.
func (d *demo) remove() error {
	for _, step := range []struct {
		what string
		do   func() (*v3.Operation, error)
	}{
		{"delete-load-balancer-service http", func() (*v3.Operation, error) {
			return d.customer.DeleteLoadBalancerService(d.ctx, d.nlb.ID, d.service.ID)
		}},
		{"delete-load-balancer front", func() (*v3.Operation, error) { return d.customer.DeleteLoadBalancer(d.ctx, d.nlb.ID) }},
		{"delete-instance-pool web", func() (*v3.Operation, error) { return d.customer.DeleteInstancePool(d.ctx, d.pool) }},
		{"delete-instance apart-1", func() (*v3.Operation, error) { return d.customer.DeleteInstance(d.ctx, d.singles[0]) }},
		{"delete-instance apart-2", func() (*v3.Operation, error) { return d.customer.DeleteInstance(d.ctx, d.singles[1]) }},
		{"delete-instance apart-3", func() (*v3.Operation, error) { return d.customer.DeleteInstance(d.ctx, d.singles[2]) }},
		{"delete-security-group web", func() (*v3.Operation, error) { return d.customer.DeleteSecurityGroup(d.ctx, d.group) }},
		{"delete-anti-affinity-group apart", func() (*v3.Operation, error) { return d.customer.DeleteAntiAffinityGroup(d.ctx, d.apart) }},
		{"delete-ssh-key ada", func() (*v3.Operation, error) { return d.customer.DeleteSSHKey(d.ctx, "ada") }},
	} {
		begin := time.Now()
		if _, err := d.customer.Done(step.do()); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		d.did(begin, "%s", step.what)
	}
	err := d.wait("nothing left", 10*time.Second, d.empty)
	d.check(err == nil, "no instance, no item in an agent and no route of the customer is left%s", because(err))
	return d.ctx.Err()
}

// empty is nil when hypervisors and router hold nothing of a customer.
func (d *demo) empty() error {
	for hv := 1; hv <= d.lab.Hypervisors(); hv++ {
		s, err := story.AskAgent[debug.Status](d.ctx, d.lab, hv, "status")
		if err != nil {
			return err
		}
		for kind, digest := range s.Digests {
			if digest.Count > 0 && kind != "host" {
				return fmt.Errorf("hv%d: %d items of kind %s left", hv, digest.Count, kind)
			}
		}
	}
	for _, pool := range []netip.Prefix{lab.InstancePrefix, lab.VIPPrefix} {
		routes, err := d.lab.RoutesWithin(pool)
		if err != nil {
			return err
		}
		if len(routes) > 0 {
			return fmt.Errorf("routes left: %v", routes)
		}
	}
	return nil
}
