// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"cairn/dataplane/debug"
	"cairn/test/lab"
	"cairn/test/story"
)

const (
	rate        = 200 // requests a second, each over a new connection, one second of patience, no retry
	controlRate = 20
	// window is how long requests may fail after an uplink went down.
	window = 2 * time.Second
	settle = 2000 // requests after the window, of which none may fail
)

// stream is the load on the VIP, beside a control flow that goes past
// everything under test and shows what the machine itself costs.
type stream struct {
	d       *demo
	load    *story.Load
	control *story.Load
	end     func()
}

// flow starts the load, and lets it run for a second of calm.
func (d *demo) flow() (*stream, error) {
	control, end, err := story.ControlFlow(d.ctx, d.lab, controlRate)
	if err != nil {
		return nil, err
	}
	s := &stream{d, story.StartLoad(d.ctx, d.lab.Client(1), d.vip, rate), control, end}
	if err := s.more(time.Second); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// more waits until as many more requests have started as fit into the time.
func (s *stream) more(time time.Duration) error {
	want := s.load.Sent() + int(time.Seconds()*rate)
	return s.d.wait(fmt.Sprintf("%d requests", want), 3*time+5e9, func() error {
		if got := s.load.Sent(); got < want {
			return fmt.Errorf("%d sent", got)
		}
		return nil
	})
}

// stop ends both and returns the load's requests.
func (s *stream) stop() []story.Request {
	defer s.end()
	all, calm := s.load.Stop(), s.control.Stop()
	broken, _ := story.Failures(calm, time.Time{}, time.Time{})
	s.d.say("control flow past it all: %d of %d failed, longest gap %s", len(broken), len(calm), took(story.Gap(calm)))
	return all
}

// failures prints how a span of requests went and returns how many failed.
func (d *demo) failures(what string, all []story.Request, from, to time.Time) int {
	failed, sent := story.Failures(all, from, to)
	words := ""
	if len(failed) > 0 {
		words = fmt.Sprintf("; the first: %v", failed[0].Err)
	}
	d.say("%s: %d of %d requests failed%s", what, len(failed), sent, words)
	return len(failed)
}

// forgotten waits until the router has a hypervisor as next hop of the VIP no
// more, and returns when that was, to the millisecond.
func (d *demo) forgotten(hv int) (time.Time, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; {
		hops, err := d.hops()
		now := time.Now()
		switch {
		case err != nil || !slices.Contains(hops, d.lab.Endpoint(hv)):
			return now, err
		case now.After(deadline):
			return now, fmt.Errorf("the router still has hv%d as next hop of %s: %v", hv, d.vip.Addr(), hops)
		}
		select {
		case <-d.ctx.Done():
			return now, d.ctx.Err()
		case <-tick.C:
		}
	}
}

// silence is how long the router may take to notice a speaker that says nothing
// any more: three intervals of BFD, and what it needs to act on it.
const silence = 3*100*time.Millisecond + 250*time.Millisecond

func (d *demo) speakers() error {
	killed := 50 * time.Millisecond
	if d.cfg.Router == lab.FRR {
		killed = 400 * time.Millisecond
	}
	err := d.loseSpeaker("killed", 1, killed, (*lab.Daemon).Kill, (*lab.Daemon).Start)
	if err != nil {
		return err
	}
	return d.loseSpeaker("frozen", 2, silence, (*lab.Daemon).Freeze, (*lab.Daemon).Thaw)
}

// loseSpeaker takes a speaker away and brings it back, under load.
func (d *demo) loseSpeaker(how string, hv int, wanted time.Duration, lose, regain func(*lab.Daemon) error) error {
	s, err := d.flow()
	if err != nil {
		return err
	}
	at := time.Now()
	d.say("hv%d/bgpd is %s", hv, how)
	gone, err := d.without(s, hv, lose, regain)
	all := s.stop()
	if err != nil {
		return err
	}
	failed, sent := story.Failures(all, time.Time{}, time.Time{})
	d.check(len(failed) == 0 && sent >= 3*rate, "a speaker %s, and back again: %d of %d requests failed", how, len(failed), sent)
	d.bar("path to the VIP, speaker "+how+": the router has forgotten its next hop after", gone.Sub(at), wanted)
	return nil
}

func (d *demo) without(s *stream, hv int, lose, regain func(*lab.Daemon) error) (gone time.Time, err error) {
	if err = lose(d.lab.Speaker(hv)); err != nil {
		return gone, err
	}
	if gone, err = d.forgotten(hv); err != nil {
		return gone, err
	}
	if err = s.more(2 * time.Second); err != nil {
		return gone, err
	}
	begin := time.Now()
	if err = regain(d.lab.Speaker(hv)); err != nil {
		return gone, err
	}
	if err = d.announced(d.lab.Hypervisors()); err != nil {
		return gone, err
	}
	d.did(begin, "it is back, and its hypervisor is a next hop again")
	return gone, s.more(time.Second)
}

func (d *demo) uplinkDown() error {
	hv := d.hostOfOne()
	s, err := d.flow()
	if err != nil {
		return err
	}
	at := time.Now()
	gone, up, err := d.pullUplink(s, hv)
	all := s.stop()
	if err != nil {
		return err
	}
	before := d.failures("before", all, time.Time{}, at)
	d.failures(fmt.Sprintf("while the router still used hv%d", hv), all, at, gone)
	d.failures("after that, while others still sent to its backend", all, gone, at.Add(window))
	_, rest := story.Failures(all, at.Add(window), up)
	late := d.failures(fmt.Sprintf("later than %s after it", took(window)), all, at.Add(window), up)
	returning := d.failures("since the uplink is up again", all, up, time.Time{})
	d.bar("path to the VIP, uplink down: the router has forgotten its next hop after", gone.Sub(at), window)
	d.bar("path to the backends, uplink down: the last request that failed started after", lastFailed(all, at, up), window)
	d.check(before == 0 && late == 0 && rest >= settle, "uplink down: requests failed only in the first %s, then %d of %d", took(window), late, rest)
	d.check(returning == 0, "uplink up again: %d requests failed, all %d next hops and backends are back", returning, d.lab.Hypervisors())
	return nil
}

// lastFailed is how long after an event the last request started that failed,
// of those that started before the end.
func lastFailed(all []story.Request, event, end time.Time) time.Duration {
	failed, _ := story.Failures(all, event, end)
	if len(failed) == 0 {
		return 0
	}
	return failed[len(failed)-1].Start.Sub(event)
}

// hostOfOne is a hypervisor with one member of the pool.
func (d *demo) hostOfOne() int {
	count := map[int]int{}
	for _, p := range d.hosts {
		count[p.hv]++
	}
	for hv := d.lab.Hypervisors(); hv > 1; hv-- {
		if count[hv] == 1 {
			return hv
		}
	}
	return 1
}

// pullUplink pulls it, waits out the window and what has to be seen after it,
// and plugs it in again.
func (d *demo) pullUplink(s *stream, hv int) (gone, up time.Time, err error) {
	d.say("hv%d loses its uplink", hv)
	if err = d.lab.Uplink(hv, false); err != nil {
		return gone, up, err
	}
	if gone, err = d.forgotten(hv); err != nil {
		return gone, up, err
	}
	if err = s.more(window + (settle+rate)/rate*time.Second); err != nil {
		return gone, up, err
	}
	up = time.Now()
	if err = d.lab.Uplink(hv, true); err != nil {
		return gone, up, err
	}
	if err = d.announced(d.lab.Hypervisors()); err != nil {
		return gone, up, err
	}
	d.did(up, "hv%d has its uplink again and is a next hop", hv)
	if err = d.used(hv); err != nil {
		return gone, up, err
	}
	d.did(up, "its backend has slots again on every hypervisor")
	return gone, up, s.more(2 * time.Second)
}

// used waits until every hypervisor gives slots to all members of the pool.
func (d *demo) used(back int) error {
	return d.wait(fmt.Sprintf("slots for the backends of hv%d", back), 20*time.Second, func() error {
		for hv := 1; hv <= d.lab.Hypervisors(); hv++ {
			services, err := story.AskAgent[[]debug.Service](d.ctx, d.lab, hv, "nlb")
			if err != nil {
				return err
			}
			if err := d.owners(services); err != nil {
				return fmt.Errorf("hv%d: %w", hv, err)
			}
		}
		return nil
	})
}

func (d *demo) owners(services []debug.Service) error {
	owners := map[netip.AddrPort]bool{}
	for _, s := range services {
		for _, b := range s.Backends {
			if a, err := netip.ParseAddrPort(b.Address); err == nil && b.Slots > 0 {
				owners[a] = true
			}
		}
	}
	for n, p := range d.hosts {
		if !owners[netip.AddrPortFrom(p.address, 80)] {
			return fmt.Errorf("no slot for %s", n)
		}
	}
	return nil
}

// programmed is what the restart of an agent must leave alone.
func (d *demo) programmed(hv int) (string, error) {
	s, err := story.AskAgent[debug.Status](d.ctx, d.lab, hv, "status")
	if err == nil && (len(s.Programs) == 0 || len(s.Maps) == 0) {
		err = fmt.Errorf("the agent of hv%d names no programs or no maps", hv)
	}
	return fmt.Sprint(s.Programs, s.Maps), err
}

func (d *demo) growth() error {
	const hv = 1
	before, err := d.programmed(hv)
	if err != nil {
		return err
	}
	s, err := d.flow()
	if err != nil {
		return err
	}
	err = d.growWithout(hv, s)
	all := s.stop()
	if err != nil {
		return err
	}
	if err := d.locate(); err != nil {
		return err
	}
	d.members()
	d.failures("all the while", all, time.Time{}, time.Time{})
	failed, sent := story.Failures(all, time.Time{}, time.Time{})
	d.check(len(failed) == 0 && sent >= 3*rate, "pool 4 → 6 with an agent killed and started again: %d of %d requests failed", len(failed), sent)
	after, err := d.programmed(hv)
	if err != nil {
		return err
	}
	d.check(before == after, "the agent took over the same BPF programs and maps, by their ids in the kernel")
	return d.inStep()
}

// growWithout scales the pool while an agent is dead, and starts that again.
func (d *demo) growWithout(hv int, s *stream) error {
	if err := d.lab.Agent(hv).Kill(); err != nil {
		return err
	}
	d.say("kill -9 of hv%d/agent", hv)
	begin := time.Now()
	grown := make(chan error, 1)
	go func() { grown <- d.customer.Scale(d.pool, 6) }()
	err := d.wait("six members", 10*time.Second, func() error {
		members, err := d.customer.Members(d.pool)
		if err == nil && len(members) != 6 {
			err = fmt.Errorf("%d members", len(members))
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := s.more(time.Second); err != nil {
		return err
	}
	if err := d.lab.Agent(hv).Start(); err != nil {
		return err
	}
	d.say("hv%d/agent started again", hv)
	if err := <-grown; err != nil {
		return fmt.Errorf("scale: %w", err)
	}
	d.did(begin, "scale-instance-pool web 6, all running")
	if err := d.healthy(6); err != nil {
		return err
	}
	d.did(begin, "all six backends are healthy")
	return s.more(2 * time.Second)
}

// inStep checks that every hypervisor has programmed what it is wanted to, and
// that all hold the same slots.
func (d *demo) inStep() error {
	var slots debug.Digest
	begin := time.Now()
	err := d.wait("agents in step", 10*time.Second, func() error {
		for hv := 1; hv <= d.lab.Hypervisors(); hv++ {
			s, err := story.AskAgent[debug.Status](d.ctx, d.lab, hv, "status")
			if err != nil {
				return err
			}
			if hv == 1 {
				slots = s.Digests["slots"]
			}
			if s.Desired != s.Programmed || len(s.Unsettled) > 0 || s.Digests["slots"] != slots {
				return fmt.Errorf("hv%d: desired %v, programmed %v, unsettled %v, slots %v", hv, s.Desired, s.Programmed, s.Unsettled, s.Digests["slots"])
			}
			diff, err := story.AskAgent[debug.Diff](d.ctx, d.lab, hv, "diff")
			if err != nil {
				return err
			}
			if !diff.Empty() {
				return fmt.Errorf("hv%d: programmed differs from desired: %+v", hv, diff)
			}
		}
		return nil
	})
	if err == nil {
		d.did(begin, "cairn debug diff is empty everywhere")
	}
	d.check(err == nil, "all hypervisors hold what the control plane wants, and the same slots%s", because(err))
	return d.ctx.Err()
}
