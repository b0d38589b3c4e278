// SPDX-License-Identifier: Apache-2.0

// Command propagation measures how long a rule takes from a customer's request to
// the last hypervisor: 100 simulated agents that acknowledge, and 3 real ones
// that write it to their maps, with 10,000 members in the group that the rule
// names. Start at propagationBench.run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cairn/dataplane/debug"
	"cairn/test/bench"
	"cairn/test/rig"
)

func main() {
	b := propagationBench{Report: &bench.Report{Out: os.Stdout}}
	flag.IntVar(&b.simulated, "simulated", 100, "agents")
	flag.IntVar(&b.real, "agents", 3, "that are processes")
	flag.IntVar(&b.members, "members", 10_000, "of the group that the rule names")
	flag.IntVar(&b.changes, "changes", 100, "of the rules")
	flag.StringVar(&b.bin, "bin", "bin", "folder of the built commands")
	flag.Parse()
	folder, err := rig.Alone()
	if err == nil {
		b.Machine()
		err = b.run(context.Background(), folder)
	}
	met := b.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-propagation:", err)
	}
	if err != nil || !met {
		os.Exit(1)
	}
}

type propagationBench struct {
	*bench.Report
	simulated, real, members, changes int
	bin                               string

	world *world
	web   v3.UUID // the group whose rules change
	many  v3.UUID // the group that they name
}

// Published for another network's programming of a change: 184 ms p50, 576 ms p99
// (Andromeda, NSDI 2018).
const (
	barP50 = 184
	barP99 = 576
)

func (b *propagationBench) run(parent context.Context, folder string) (err error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if b.world, err = newWorld(ctx, folder); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.world.close()) }()
	if err := b.settle(ctx); err != nil {
		return err
	}
	var last, simulated, real, answered bench.Durations
	const warm = 6                        // caches and pages
	for n := range warm + b.changes/2*2 { // a rule comes, and goes

		t, err := b.change(ctx, n)
		if err != nil {
			return fmt.Errorf("change %d: %w", n+1, err)
		}
		if n < warm {
			continue
		}
		simulated, real, answered = append(simulated, t.simulated), append(real, t.real), append(answered, t.answered)
		last = append(last, max(t.simulated, t.real))
	}
	b.Title("a rule for a group of %d, from the request on, to the last of", b.members)
	b.Note("%d simulated agents, received:     %s", b.simulated, simulated)
	b.Note("%d agents, written to their maps:    %s", b.real, real)
	b.Note("all of them:                        %s", last)
	b.Note("the customer, told of success:      %s", answered)
	if err := b.first(ctx); err != nil {
		return fmt.Errorf("the only rule: %w", err)
	}
	ms := func(p int) float64 { return float64(last.Percentile(p)) / float64(time.Millisecond) }
	b.Bar("a rule is in force everywhere, p50 ms", ms(50), barP50)
	b.Bar("a rule is in force everywhere, p99 ms", ms(99), barP99)
	return nil
}

// first takes the last rule that names the group away, so that all hosts forget
// its members, and adds it again: what that takes has no bar.
func (b *propagationBench) first(ctx context.Context) error {
	remove, err := b.removal(ctx, 22)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := remove(); err != nil {
		return err
	}
	forgotten := time.Since(began)
	began = time.Now()
	if err := b.addRule(ctx, 22); err != nil {
		return err
	}
	b.Note("the last rule that names the group goes, all forget %d members: %.1f s; the first one comes, all learn them: %.1f s",
		b.members, forgotten.Seconds(), time.Since(began).Seconds())
	return nil
}

// settle makes the groups, hosts and instances, and waits until all have what is
// theirs.
func (b *propagationBench) settle(ctx context.Context) (err error) {
	began := time.Now()
	if err := b.world.addAgents(ctx, filepath.Join(b.bin, "cairn-agent"), filepath.Join(b.bin, "cairn-echo"), b.real); err != nil {
		return err
	}
	if err := b.world.addSimulated(ctx, b.simulated); err != nil {
		return err
	}
	if b.web, err = b.world.group(ctx, "web"); err != nil {
		return err
	}
	if b.many, err = b.world.group(ctx, "many"); err != nil {
		return err
	}
	if err := b.addRule(ctx, 22); err != nil {
		return err
	}
	if err := b.world.populate(ctx, b.web, b.many, b.members); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * time.Minute); ; <-time.After(100 * time.Millisecond) {
		err := b.inStep()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("an agent says: %s", b.world.agents[0].Log()))
		}
	}
	b.Note("%d agents and %d simulated ones hold %d members of the group %.1f s after the start", b.real, b.simulated, b.members, time.Since(began).Seconds())
	return nil
}

func (b *propagationBench) addRule(ctx context.Context, port int64) error {
	op, err := b.world.api.AddRuleToSecurityGroup(ctx, b.web, v3.AddRuleToSecurityGroupRequest{
		FlowDirection: "ingress", Protocol: "tcp", StartPort: port, EndPort: port, SecurityGroup: &v3.SecurityGroupResource{ID: b.many},
	})
	_, err = b.world.done(ctx, op, err)
	return err
}

// inStep is nil when every agent holds the members, and the real ones have
// programmed all and have their port.
func (b *propagationBench) inStep() error {
	for _, s := range b.world.simulated {
		if n := s.holds(); n < b.members {
			return fmt.Errorf("%s holds %d items", s.name, n)
		}
	}
	for i, a := range b.world.agents {
		s, err := status(a)
		if err != nil {
			return err
		}
		if s.Desired != s.Programmed || s.Digests["member"].Count < uint64(b.members) || s.Digests["port"].Count != 1 {
			return fmt.Errorf("agent %d: desired %v, programmed %v, holds %v", i+1, s.Desired, s.Programmed, s.Digests)
		}
	}
	return nil
}

func status(a *rig.Agent) (s debug.Status, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", a.Socket())
		},
	}}
	resp, err := client.Get("http://agent/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// times of one change, since the request.
type times struct{ simulated, real, answered time.Duration }

// change adds a rule, or takes the one before away, and waits until it is
// everywhere.
func (b *propagationBench) change(ctx context.Context, n int) (t times, err error) {
	do := func() error { return b.addRule(ctx, int64(1000+n)) }
	if n%2 == 1 {
		if do, err = b.removal(ctx, int64(1000+n-1)); err != nil {
			return t, err
		}
	}
	clock, began := monotonic(), time.Now()
	if err := do(); err != nil {
		return t, err
	}
	t.answered = time.Since(began)
	deadline := began.Add(10 * time.Second)
	for _, s := range b.world.simulated {
		for !s.tookPolicy().After(began) {
			if time.Now().After(deadline) {
				return t, fmt.Errorf("%s has heard of nothing", s.name)
			}
			<-time.After(time.Millisecond)
		}
		t.simulated = max(t.simulated, s.tookPolicy().Sub(began))
	}
	for i, a := range b.world.agents {
		at, err := written(a, clock, deadline)
		if err != nil {
			return t, fmt.Errorf("agent %d: %w", i+1, err)
		}
		t.real = max(t.real, at)
	}
	return t, nil
}

// removal of the rule for a port.
func (b *propagationBench) removal(ctx context.Context, port int64) (func() error, error) {
	g, err := b.world.api.GetSecurityGroup(ctx, b.web)
	if err != nil {
		return nil, err
	}
	for _, r := range g.Rules {
		if r.StartPort == port {
			return func() error {
				op, err := b.world.api.DeleteRuleFromSecurityGroup(ctx, b.web, r.ID)
				_, err = b.world.done(ctx, op, err)
				return err
			}, nil
		}
	}
	return nil, fmt.Errorf("no rule for port %d", port)
}

// written is when an agent has first written to its maps since, as it says of its
// last round: what programmed_ns of its acknowledgement is.
func written(a *rig.Agent, since int64, deadline time.Time) (time.Duration, error) {
	for {
		s, err := status(a)
		if err != nil {
			return 0, err
		}
		for _, r := range s.Rounds {
			if r.ProgrammedNS > since {
				return time.Duration(r.ProgrammedNS - since), nil
			}
		}
		if time.Now().After(deadline) {
			return 0, errors.New("has written nothing")
		}
		<-time.After(time.Millisecond)
	}
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it has no way to fail
	return ts.Nano()
}
