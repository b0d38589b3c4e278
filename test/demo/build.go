// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/test/lab"
	"cairn/test/story"
)

const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ada@demo"

func (d *demo) up() error {
	d.cfg.Progress = func(t lab.Took) { d.printf("   %-72s %10s\n", t.Step, took(t.Time)) }
	l, err := lab.Up(d.ctx, d.cfg)
	if err != nil {
		return err
	}
	d.lab = l
	d.picture()
	sessions, err := l.Sessions()
	if err != nil {
		return err
	}
	established := 0
	for _, state := range sessions {
		if state == "Established" {
			established++
		}
	}
	d.check(established == l.Hypervisors(), "%d of %d BGP sessions established (AS %d), the API answers at %s",
		established, l.Hypervisors(), lab.HypervisorAS, l.API())
	all := l.Took()
	d.bar("cloud up", all[len(all)-1].Time, 10*time.Second)
	return nil
}

// picture draws the lab.
func (d *demo) picture() {
	l := d.lab
	trunk := fmt.Sprintf("client %s ── router (%s, AS %d) ──", l.Client(1).Address, d.cfg.Router, lab.RouterAS)
	for hv := 1; hv <= l.Hypervisors(); hv++ {
		joint := "├"
		switch hv {
		case 1:
			joint = "┬"
		case l.Hypervisors():
			joint = "└"
		}
		d.say("  %s%s── hv%d %s", trunk, joint, hv, l.Endpoint(hv))
		trunk = strings.Repeat(" ", utf8.RuneCountInString(trunk))
	}
}

func (d *demo) key() (err error) {
	if d.customer, err = story.NewCustomer(d.ctx, d.lab); err != nil {
		return err
	}
	begin := time.Now()
	_, err = d.customer.Done(d.customer.RegisterSSHKey(d.ctx, v3.RegisterSSHKeyRequest{Name: "ada", PublicKey: publicKey}))
	if err != nil {
		return fmt.Errorf("register ssh key: %w", err)
	}
	d.did(begin, "register-ssh-key ada")
	zones, err := d.customer.ListZones(d.ctx)
	if err != nil {
		return fmt.Errorf("list zones: %w", err)
	}
	d.check(len(zones.Zones) == 1 && string(zones.Zones[0].Name) == lab.Zone, "the zone is %s, and the key is registered", lab.Zone)
	return nil
}

// antiAffinity: three instances of a group have a place each, the fourth none.
func (d *demo) antiAffinity() (err error) {
	begin := time.Now()
	d.apart, err = d.customer.Done(d.customer.CreateAntiAffinityGroup(d.ctx, v3.CreateAntiAffinityGroupRequest{Name: "apart"}))
	if err != nil {
		return fmt.Errorf("create anti-affinity group: %w", err)
	}
	d.did(begin, "create-anti-affinity-group apart")
	on := map[int]bool{}
	for i := range 3 {
		begin = time.Now()
		id, err := d.customer.Launch(fmt.Sprintf("apart-%d", i+1), d.apart, "")
		if err != nil {
			return fmt.Errorf("create instance apart-%d: %w", i+1, err)
		}
		d.singles = append(d.singles, id)
		hosts, err := story.Hosts(d.ctx, d.lab)
		if err != nil {
			return err
		}
		on[hosts[id]] = true
		d.did(begin, "create-instance apart-%d → hv%d", i+1, hosts[id])
	}
	d.check(len(on) == 3, "three instances of one anti-affinity group are on %d hypervisors", len(on))
	begin = time.Now()
	_, err = d.customer.Launch("apart-4", d.apart, "")
	var ended story.Failed
	if err != nil && !errors.As(err, &ended) {
		return fmt.Errorf("create a fourth instance: %w", err)
	}
	d.did(begin, "create-instance apart-4 → no place")
	d.say("  %s", refusal(ended))
	d.check(ended.Operation != nil && ended.State == v3.OperationStateFailure && ended.Reason == v3.OperationReasonUnavailable &&
		strings.Contains(ended.Message, "apart"), "the fourth has no place: its operation fails as unavailable and names the group")
	return nil
}

func refusal(f story.Failed) string {
	if f.Operation == nil {
		return "placed all the same"
	}
	return fmt.Sprintf("its operation: %s, %s: %s", f.State, f.Reason, f.Message)
}

func (d *demo) web() (err error) {
	begin := time.Now()
	if d.group, err = d.customer.Group("web"); err != nil {
		return fmt.Errorf("create security group: %w", err)
	}
	d.did(begin, "create-security-group web")
	begin = time.Now()
	if err = d.customer.Admit(d.group, v3.AddRuleToSecurityGroupRequestProtocolTCP, 80); err != nil {
		return fmt.Errorf("add rule: %w", err)
	}
	d.did(begin, "add-rule-to-security-group web: ingress, tcp 80, from 0.0.0.0/0")
	begin = time.Now()
	if d.pool, err = d.customer.Pool("web", 4, d.group); err != nil {
		return fmt.Errorf("create instance pool: %w", err)
	}
	d.did(begin, "create-instance-pool web, 4 instances, all running")
	if err := d.locate(); err != nil {
		return err
	}
	d.members()
	per := d.perHypervisor()
	d.check(slices.Equal(per, []int{2, 1, 1}), "the pool's %d members are spread %v over the hypervisors", len(d.hosts), per)
	return d.firewall()
}

// echoPort is where the web server's machine listens as well, and where no rule
// lets anybody in.
const echoPort = 7

// firewall asks one member directly, on the port that is open and on one that
// is not.
func (d *demo) firewall() error {
	name := d.names()[0]
	at, client := d.hosts[name], d.lab.Client(1)
	begin := time.Now()
	err := d.wait("answer of "+name+" itself", 5*time.Second, func() error {
		ctx, cancel := context.WithTimeout(d.ctx, time.Second)
		defer cancel()
		_, err := story.Ask(ctx, client, 0, netip.AddrPortFrom(at.address, 80))
		return err
	})
	d.did(begin, "the client asks %s itself, %s:80 → %s", name, at.address, outcome(err))
	before, countErr := d.counters()
	if countErr != nil {
		return countErr
	}
	begin = time.Now()
	ctx, cancel := context.WithTimeout(d.ctx, time.Second)
	defer cancel()
	conn, closed := client.DialContext(ctx, "tcp4", netip.AddrPortFrom(at.address, echoPort).String())
	if closed == nil {
		conn.Close()
	}
	d.did(begin, "and %s:%d, where it listens too → %s", at.address, echoPort, outcome(closed))
	after, countErr := d.counters()
	if countErr != nil {
		return countErr
	}
	dropped := after[at.hv-1]["policy_in"] - before[at.hv-1]["policy_in"]
	d.check(err == nil && closed != nil && dropped > 0,
		"the rule lets port 80 in, and nothing else: hv%d dropped %d packets, reason policy_in", at.hv, dropped)
	return d.ctx.Err()
}

func outcome(err error) string {
	if err == nil {
		return "answered"
	}
	return "no answer"
}

// locate looks up where the pool's members are.
func (d *demo) locate() error {
	members, err := d.customer.Members(d.pool)
	if err != nil {
		return fmt.Errorf("read the pool's members: %w", err)
	}
	on, err := story.Hosts(d.ctx, d.lab)
	if err != nil {
		return err
	}
	d.hosts = map[string]place{}
	for _, m := range members {
		address, _ := netip.AddrFromSlice(m.PublicIP.To4())
		d.hosts[m.Name] = place{m.ID, on[m.ID], address}
	}
	return nil
}

// names of the pool's members, by hypervisor and address.
func (d *demo) names() []string {
	var names []string
	for n := range d.hosts {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		if d.hosts[a].hv != d.hosts[b].hv {
			return d.hosts[a].hv - d.hosts[b].hv
		}
		return d.hosts[a].address.Compare(d.hosts[b].address)
	})
	return names
}

func (d *demo) members() {
	rows := [][]string{{"INSTANCE", "HYPERVISOR", "ADDRESS"}}
	for _, n := range d.names() {
		rows = append(rows, []string{n, fmt.Sprintf("hv%d", d.hosts[n].hv), d.hosts[n].address.String()})
	}
	d.table(rows)
}

// perHypervisor counts the pool's members, the most first.
func (d *demo) perHypervisor() []int {
	count := make([]int, d.lab.Hypervisors())
	for _, p := range d.hosts {
		if p.hv > 0 {
			count[p.hv-1]++
		}
	}
	slices.SortFunc(count, func(a, b int) int { return b - a })
	return count
}

func (d *demo) balance() (err error) {
	begin := time.Now()
	if d.nlb, err = d.customer.LoadBalancer("front"); err != nil {
		return fmt.Errorf("create load balancer: %w", err)
	}
	address, ok := netip.AddrFromSlice(d.nlb.IP.To4())
	if !ok {
		return fmt.Errorf("load balancer has no address: %v", d.nlb.IP)
	}
	d.vip = netip.AddrPortFrom(address, 80)
	d.did(begin, "create-load-balancer front → %s", address)
	begin = time.Now()
	if d.service, err = d.customer.Service(d.nlb.ID, story.ServiceOf("http", d.pool)); err != nil {
		return fmt.Errorf("add service: %w", err)
	}
	d.did(begin, "add-service-to-load-balancer front http: tcp 80 → pool web, port 80")
	begin = time.Now()
	if err := d.announced(d.lab.Hypervisors()); err != nil {
		return err
	}
	hops, err := d.hops()
	if err != nil {
		return err
	}
	d.did(begin, "the router has it")
	d.say("  %s via %s", d.vip.Addr(), d.list(hops))
	begin = time.Now()
	if err := d.healthy(4); err != nil {
		return err
	}
	d.did(begin, "health of all backends is known")
	d.check(len(hops) == d.lab.Hypervisors(), "4 of 4 backends are healthy, and the router has %d equal next hops for the VIP", len(hops))
	return nil
}

// healthy waits until exactly so many backends are.
func (d *demo) healthy(want int) error {
	return d.wait(fmt.Sprintf("%d healthy backends", want), 20*time.Second, func() error {
		return d.customer.Health(d.nlb.ID, d.service.ID, v3.LoadBalancerServerStatusStatusSuccess, want)
	})
}

// hops are the router's next hops of the VIP.
func (d *demo) hops() ([]netip.Addr, error) {
	return d.lab.RouterRoutes(netip.PrefixFrom(d.vip.Addr(), d.vip.Addr().BitLen()))
}

// announced waits until the router spreads the VIP over so many hypervisors.
func (d *demo) announced(want int) error {
	return d.wait(fmt.Sprintf("%d next hops of %s", want, d.vip.Addr()), 10*time.Second, func() error {
		hops, err := d.hops()
		if err == nil && len(hops) != want {
			err = fmt.Errorf("%d next hops: %v", len(hops), hops)
		}
		return err
	})
}

// list prints endpoints with the hypervisors that they are.
func (d *demo) list(endpoints []netip.Addr) string {
	var words []string
	for _, e := range endpoints {
		words = append(words, fmt.Sprintf("%s (hv%d)", e, d.at(e)))
	}
	return strings.Join(words, ", ")
}

// at is the hypervisor with this tunnel endpoint, 0 if there is none.
func (d *demo) at(endpoint netip.Addr) int {
	for hv := 1; hv <= d.lab.Hypervisors(); hv++ {
		if d.lab.Endpoint(hv) == endpoint {
			return hv
		}
	}
	return 0
}
