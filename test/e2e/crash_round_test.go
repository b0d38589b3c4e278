// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/cloud"
	"cairn/controlplane/store"
	"cairn/dataplane/debug"
	"cairn/test/lab"
	"cairn/test/story"
)

// round is the story played once.
type round struct {
	*campaign
	point
	began   time.Time
	looking func(*round) error // see play

	// Guarded by the campaign's mutex while the round is played.
	step    string         // the customer is at
	marks   map[string]int // commits before each step
	base    int            // commits of the running process that are not the round's
	commits int            // of processes that are dead, in the end of all
	deaths  int
	died    string // the step of the first death

	took    time.Duration
	most    time.Duration
	longest string   // the step that took most
	saw     []string // what was there after each step, without ids

	group, pool v3.UUID
	nlb         *v3.LoadBalancer
	service     *v3.LoadBalancerService
	vip         netip.AddrPort
}

type step struct {
	name string
	do   func() error
}

// steps of the story. Each makes one mutation, once, whatever happens to the
// control plane meanwhile, and then looks at what has come of it.
func (r *round) steps() []step {
	return []step{
		{"security group", r.makeGroup},
		{"rule", func() error { return r.Admit(r.group, v3.AddRuleToSecurityGroupRequestProtocolTCP, 80) }},
		{"pool", r.makePool},
		{"load balancer", r.makeLoadBalancer},
		{"service", r.makeService},
		{"scale up", func() error { return r.resize(5, r.Scale(r.pool, 5)) }},
		{"evict", r.evict},
		{"scale down", func() error { return r.resize(2, r.Scale(r.pool, 2)) }},
		{"delete service", func() error {
			return r.delete(r.DeleteLoadBalancerService(r.ctx, r.nlb.ID, r.service.ID))
		}},
		{"delete load balancer", func() error { return r.delete(r.DeleteLoadBalancer(r.ctx, r.nlb.ID)) }},
		{"delete pool", func() error { return r.delete(r.DeleteInstancePool(r.ctx, r.pool)) }},
		{"delete security group", func() error { return r.delete(r.DeleteSecurityGroup(r.ctx, r.group)) }},
		{"nothing left", r.nothingLeft},
	}
}

func (r *round) enter(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.step = name
	r.marks[name] = r.campaign.life.count() - r.base + r.commits
}

// spent notes the step that took longest.
func (r *round) spent(step string, took time.Duration) {
	if took > r.most {
		r.most, r.longest = took, fmt.Sprintf("%s in %q", took.Round(time.Millisecond), step)
	}
}

// otherThan tells how the story went differently, "" if it did not.
func (r *round) otherThan(undisturbed *round) string {
	if slices.Equal(r.saw, undisturbed.saw) {
		return ""
	}
	return strings.Join(r.saw, "\n") + "\nundisturbed:\n" + strings.Join(undisturbed.saw, "\n")
}

func (r *round) makeGroup() (err error) {
	r.group, err = r.Group("web")
	return err
}

func (r *round) makePool() (err error) {
	if r.pool, err = r.Pool("web", 4, r.group); err != nil {
		return err
	}
	return r.resize(4, nil)
}

func (r *round) makeLoadBalancer() (err error) {
	if r.nlb, err = r.LoadBalancer("front"); err != nil {
		return err
	}
	address, ok := netip.AddrFromSlice(r.nlb.IP.To4())
	if !ok {
		return fmt.Errorf("load balancer has no address: %v", r.nlb.IP)
	}
	r.vip = netip.AddrPortFrom(address, 80)
	return nil
}

func (r *round) makeService() (err error) {
	if r.service, err = r.Service(r.nlb.ID, story.ServiceOf("http", r.pool)); err != nil {
		return err
	}
	err = r.soon("next hops of the VIP", func() error {
		hops, err := r.RouterRoutes(netip.PrefixFrom(r.vip.Addr(), 32))
		if err == nil && len(hops) != r.Hypervisors() {
			err = fmt.Errorf("%v", hops)
		}
		return err
	})
	return errors.Join(err, r.resize(4, nil))
}

func (r *round) evict() error {
	p, err := r.GetInstancePool(r.ctx, r.pool)
	if err != nil {
		return err
	}
	if len(p.Instances) == 0 {
		return errors.New("the pool has no member")
	}
	gone := p.Instances[0].ID
	_, err = r.Done(r.EvictInstancePoolMembers(r.ctx, r.pool, v3.EvictInstancePoolMembersRequest{Instances: []v3.UUID{gone}}))
	if err != nil {
		return err
	}
	if _, err := r.GetInstance(r.ctx, gone); !errors.Is(err, v3.ErrNotFound) {
		return fmt.Errorf("the evicted member: %v", err)
	}
	return r.resize(4, nil)
}

func (r *round) delete(op *v3.Operation, err error) error {
	_, err = r.Done(op, err)
	return err
}

func (r *round) soon(what string, cond func() error) error {
	return lab.WaitFor(r.ctx, what, soon, cond)
}

// resize looks at a pool that has been brought to a size by an operation with
// the given end: the API, the hosts, and the client behind the router if there
// is a service.
func (r *round) resize(size int, err error) error {
	if err != nil {
		return err
	}
	if r.looking != nil {
		if err := r.looking(r); err != nil {
			return err
		}
	}
	if r.service != nil {
		s, err := r.GetLoadBalancerService(r.ctx, r.nlb.ID, r.service.ID)
		if err != nil {
			return fmt.Errorf("service: %w", err)
		}
		if s.State != v3.LoadBalancerServiceStateRunning {
			return fmt.Errorf("service is %s", s.State)
		}
	}
	members, err := r.Members(r.pool)
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, m := range members {
		names[m.Name] = true
		if m.State != v3.InstanceStateRunning {
			return fmt.Errorf("member %s is %s", m.Name, m.State)
		}
		if err := r.soon("answer of "+m.Name, func() error { return r.listens(m) }); err != nil {
			return err
		}
	}
	seen, err := r.inventory()
	if err != nil {
		return err
	}
	if len(members) != size {
		return fmt.Errorf("%d members, want %d (%s)", len(members), size, seen)
	}
	r.saw = append(r.saw, fmt.Sprintf("%d members, %s", size, seen))
	if err := r.soon("hosts in step", func() error { return r.hostsHold(size) }); err != nil || r.service == nil {
		return err
	}
	return r.served(names)
}

// inventory is everything that the customer has, in numbers.
func (r *round) inventory() (string, error) {
	pools, err1 := r.ListInstancePools(r.ctx)
	instances, err2 := r.ListInstances(r.ctx)
	balancers, err3 := r.ListLoadBalancers(r.ctx)
	groups, err4 := r.ListSecurityGroups(r.ctx)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return "", err
	}
	var out []string
	for _, p := range pools.InstancePools {
		out = append(out, fmt.Sprintf("pool %s %s size %d", p.Name, p.State, p.Size))
	}
	out = append(out, fmt.Sprintf("%d instances", len(instances.Instances)))
	for _, b := range balancers.LoadBalancers {
		out = append(out, fmt.Sprintf("load balancer %s %s", b.Name, b.State))
		for _, s := range b.Services {
			out = append(out, fmt.Sprintf("service %s %s", s.Name, s.State))
		}
	}
	for _, g := range groups.SecurityGroups {
		out = append(out, fmt.Sprintf("group %s with %d rules", g.Name, len(g.Rules)))
	}
	return strings.Join(out, ", "), nil
}

// hostsHold is nil when the hypervisors run size machines, have programmed what
// is desired, and send new connections to as many backends.
func (r *round) hostsHold(size int) error {
	machines := 0
	for hv := 1; hv <= r.Hypervisors(); hv++ {
		machines += len(r.machines(hv))
		s, err := story.AskAgent[debug.Status](r.ctx, r.Lab, hv, "status")
		if err != nil {
			return err
		}
		if s.Desired != s.Programmed || len(s.Unsettled) > 0 || s.Alarm != "" {
			return fmt.Errorf("hv%d: desired %v, programmed %v, unsettled %v, alarm %q", hv, s.Desired, s.Programmed, s.Unsettled, s.Alarm)
		}
		if err := diff(r.ctx, r.Lab, hv); err != nil {
			return err
		}
		if r.service == nil {
			continue
		}
		services, err := story.AskAgent[[]debug.Service](r.ctx, r.Lab, hv, "nlb")
		if err != nil {
			return err
		}
		if len(services) != 1 {
			return fmt.Errorf("hv%d holds %d services", hv, len(services))
		}
		serving := 0
		for _, b := range services[0].Backends {
			if b.Slots > 0 {
				serving++
			}
		}
		if serving != size {
			return fmt.Errorf("hv%d sends to %d backends, want %d: %+v", hv, serving, size, services[0].Backends)
		}
	}
	if machines != size {
		return fmt.Errorf("%d machines, want %d", machines, size)
	}
	return nil
}

// listens is nil when a member answers at its own address.
func (r *round) listens(m *v3.Instance) error {
	address, ok := netip.AddrFromSlice(m.PublicIP.To4())
	if !ok {
		return fmt.Errorf("its address is %v", m.PublicIP)
	}
	ctx, cancel := context.WithTimeout(r.ctx, time.Second)
	defer cancel()
	a, err := story.Ask(ctx, r.Lab.Client(1), 0, netip.AddrPortFrom(address, 80))
	if err == nil && a.Instance != m.Name {
		err = fmt.Errorf("%s answers at %s", a.Instance, address)
	}
	return err
}

// served sends a few requests: all are answered, by members alone.
func (r *round) served(members map[string]bool) error {
	s := story.AskMany(r.ctx, r.Lab.Client(1), r.vip, story.Ports(20000, 32), 1)
	if len(s.Errors) > 0 || s.Foreign > 0 {
		return fmt.Errorf("of %d requests %d failed and %d saw another client: %w", 32, len(s.Errors), s.Foreign, errors.Join(s.Errors...))
	}
	for name := range s.Answered {
		if !members[name] {
			return fmt.Errorf("answered by %s, who is no member: %s", name, s)
		}
	}
	return nil
}

// nothingLeft: no machine, no item, no route, no row, no number, no address,
// nothing that still wants to be done; and each mutation was made once.
func (r *round) nothingLeft() error {
	for hv := 1; hv <= r.Hypervisors(); hv++ {
		if err := r.soon(fmt.Sprintf("hypervisor %d empty", hv), func() error { return r.empty(hv) }); err != nil {
			return err
		}
	}
	err := r.soon("router without routes", func() error {
		for _, pool := range []netip.Prefix{lab.InstancePrefix, lab.VIPPrefix, netip.MustParsePrefix("198.18.0.0/16")} {
			if routes, err := r.RoutesWithin(pool); err != nil || len(routes) > 0 {
				return errors.Join(err, fmt.Errorf("routes left: %v", routes))
			}
		}
		return nil
	})
	if err == nil {
		err = r.soon("store without traces", func() error { return r.read(r.noTrace) })
	}
	if err == nil {
		err = r.read(r.audited)
	}
	return err
}

func (r *round) noTrace(tx *store.Tx) error {
	tasks, err1 := tx.UnfinishedTasks()
	pending, err2 := tx.Pending(store.Ref{})
	held, err3 := tx.Allocations()
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	if tasks > 0 || len(pending) > 0 || !slices.Equal(held, r.held) {
		return fmt.Errorf("%d tasks, pending %+v, allocated %+v, want %+v", tasks, pending, held, r.held)
	}
	for _, kind := range []store.Kind{store.KindInstance, store.KindPool, store.KindLoadBalancer, store.KindService} {
		if rows, err := tx.Rows(kind, ""); err != nil || len(rows) > 0 {
			return errors.Join(err, fmt.Errorf("%d rows of kind %s left", len(rows), kind))
		}
	}
	if _, err := tx.Slots(cloud.ID(r.service.ID)); !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("the service's slots: %v", err)
	}
	return nil
}

// audited notes which mutations were made, and how often.
func (r *round) audited(tx *store.Tx) error {
	events, err := tx.Audited(cloud.ID(r.organisation), r.began, time.Now())
	if err != nil {
		return err
	}
	made := map[string]int{}
	for _, e := range events {
		var one struct {
			Handler string
			Status  int
		}
		if err := json.Unmarshal([]byte(e.Event), &one); err != nil {
			return err
		}
		made[fmt.Sprintf("%s %d", one.Handler, one.Status)]++
	}
	for _, what := range slices.Sorted(maps.Keys(made)) {
		r.saw = append(r.saw, fmt.Sprintf("%d × %s", made[what], what))
	}
	return nil
}
