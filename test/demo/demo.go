// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/test/lab"
	"cairn/test/story"
)

// demo is one tour.
type demo struct {
	*report
	ctx  context.Context
	cfg  lab.Config
	keep bool

	lab      *lab.Lab
	customer *story.Customer

	group, pool v3.UUID
	singles     []v3.UUID // the instances that are kept apart
	apart       v3.UUID   // their group
	nlb         *v3.LoadBalancer
	service     *v3.LoadBalancerService
	vip         netip.AddrPort
	hosts       map[string]place // of the pool's members, by name
}

// place is where an instance is.
type place struct {
	id      v3.UUID
	hv      int
	address netip.Addr
}

// act is one step of the tour.
type act struct {
	title, about string
	do           func() error
}

// tour is everything that is shown, in order.
func (d *demo) tour() []act {
	acts := []act{
		{"A cloud on this machine", `
			A client behind a router with BGP and ECMP, three hypervisors, each with an agent and a BGP speaker,
			and the control plane: real programs, each in a network namespace of its own.`, d.up},
		{"A customer and her key", `
			Everything below goes through the public API, signed, with the unmodified egoscale client.`, d.key},
		{"Instances apart", `
			An anti-affinity group keeps its instances on different hypervisors. There are three, so three fit.`, d.antiAffinity},
		{"A pool behind a security group", `
			Four instances of a web server, which the group lets the world reach on TCP port 80 only.`, d.web},
		{"A load balancer", `
			It gets an address of its own, the VIP. All hypervisors announce it over BGP; the router spreads
			connections over them, and any of them can take any packet. The pool's members are checked over HTTP.`, d.balance},
		{"Traffic, and where it goes", `
			1,024 requests, each over a new connection from a source port of its own.`, d.traffic},
		{"One connection, followed", `
			Held open, and looked for on every machine on its way.`, d.follow},
		{"A BGP speaker dies, another one hangs", `
			The path to the VIP, at 200 new connections a second: the router has to forget one next hop of it.
			The hypervisor behind goes on forwarding what still arrives, and serving its own backends.`, d.speakers},
		{"A hypervisor's uplink goes down", `
			Two things must happen: the router stops using it (the path to the VIP), and the others stop sending
			to the backends behind it (the path to the backends). Its own instances cannot be reached meanwhile.`, d.uplinkDown},
		{"The pool grows while an agent is dead", `
			Agents only program the kernel. With one killed the packets go on; it takes over where it finds things.`, d.growth},
		{"How long a change takes", `
			200 updates of the service, one at a time, from the client's first byte to the last hypervisor's
			last map write, and to the answer; beside 200 updates that change nothing.`, d.latency},
		{"A pool of twelve", "From the API call to the last instance running.", d.dozen},
	}
	if !d.keep {
		acts = append(acts, act{"Everything deleted", `
			In the order in which clients do it; then the hypervisors and the router have nothing left of it.`, d.remove})
	}
	return acts
}

// run gives the tour and returns the exit status.
func (d *demo) run(ctx context.Context) int {
	d.ctx = ctx
	err := d.clear()
	for _, a := range d.tour() {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = d.step(a.title, a.about, a.do)
		}
	}
	if ctx.Err() != nil {
		d.printf("\ninterrupted, taking the cloud down\n")
		if err := d.end(); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
		}
		return interrupted
	}
	if err != nil {
		d.check(false, "%v", err)
		d.lastLines()
	}
	if err == nil {
		d.alive()
	}
	if d.lab != nil && !d.keep {
		err := d.end()
		d.check(err == nil, "nothing is left behind%s", because(err))
	}
	ok := d.summary()
	if d.lab != nil && d.keep {
		d.invite()
	}
	if !ok {
		return failed
	}
	return 0
}

// clear ends the cloud of a demo before: one that was kept, or was killed.
func (d *demo) clear() error {
	if len(lab.Left(name)) == 0 {
		return nil
	}
	d.printf("ending the cloud of the demo before\n")
	return lab.Down(name)
}

// end takes the cloud down; it is an error if anything is left of it.
func (d *demo) end() error {
	if d.lab != nil {
		if err := d.lab.Down(); err != nil {
			return err
		}
	}
	if left := lab.Left(name); len(left) > 0 {
		return errors.New("left behind: " + strings.Join(left, ", "))
	}
	return nil
}

// alive checks that no daemon ended by itself.
func (d *demo) alive() {
	var ended []string
	for _, daemon := range d.lab.Daemons() {
		if !daemon.Alive() {
			ended = append(ended, daemon.Name())
		}
	}
	d.check(len(ended) == 0, "all %d daemons run to the end%s", len(d.lab.Daemons()), strings.Join(append([]string{""}, ended...), ", not "))
}

// lastLines shows what the daemons said last, for whoever looks for the cause.
func (d *demo) lastLines() {
	if d.lab == nil {
		return
	}
	for _, daemon := range d.lab.Daemons() {
		state := "runs"
		if !daemon.Alive() {
			state = "has ended"
		}
		d.printf("\n   %s %s; its log ends with\n", daemon.Name(), state)
		for line := range strings.Lines(daemon.Tail(4)) {
			d.printf("     %s\n", strings.TrimRight(line, "\n"))
		}
	}
}

// invite tells how to go on by hand, and how to end it.
func (d *demo) invite() {
	bin, vip := d.cfg.Bin, d.vip
	if here, err := os.Getwd(); err == nil {
		if short, err := filepath.Rel(here, bin); err == nil && len(short) < len(bin) {
			bin = short
		}
	}
	d.printf("\nThe cloud is left running. The environment of the API's clients:\n\n%s\n", d.lab.Environment())
	d.printf("or eval \"$(%s/cairn lab env --name %s)\". As a customer:\n\n", bin, name)
	for _, verb := range []string{"load-balancer list", "load-balancer get front", "instance list", "instance-pool scale web --size 3", "security-group get web"} {
		d.printf("  %s/cairn %s\n", bin, verb)
	}
	d.printf("\nAs a network engineer:\n\n")
	d.printf("  %s/cairn lab status --name %s\n", bin, name)
	for _, verb := range []string{"nlb", fmt.Sprintf("nlb %s:20000 %s/tcp", d.lab.Client(1).Address, vip), "ports", "drops --all", "diff"} {
		d.printf("  %s/cairn debug %s --socket %s\n", bin, verb, d.lab.AgentSocket(1))
	}
	d.printf("  %s/cairn lab exec --name %s cli1 -- curl -s http://%s/\n", bin, name, vip)
	d.printf("  %s/cairn lab exec --name %s rtr -- ip route show %s\n", bin, name, vip.Addr())
	d.printf("\nTo end it:\n\n  %s/cairn lab down --name %s\n", bin, name)
}

// wait asks again and again until cond is nil.
func (d *demo) wait(what string, timeout time.Duration, cond func() error) error {
	return lab.WaitFor(d.ctx, what, timeout, cond)
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}
