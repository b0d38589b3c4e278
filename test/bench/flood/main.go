// SPDX-License-Identifier: Apache-2.0

// Command flood sends floods of SYNs and of datagrams with forged sources to one
// port, as fast as it can, and tells what its 10,000 connections, its new ones
// and those of another port notice of it. Start at floodBench.run; world.go is
// what is flooded, people.go who uses it meanwhile.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"cairn/bpf"
	"cairn/test/bench"
	"cairn/test/rig"
)

func main() {
	b := floodBench{Report: &bench.Report{Out: os.Stdout}, floods: floods}
	flag.DurationVar(&b.lasts, "time", 10*time.Second, "of each flood")
	flag.IntVar(&b.established, "established", 10_000, "connections of the flooded port")
	flag.IntVar(&b.dials, "dials", 1000, "new connections during each flood, at the flooded port and at another")
	server := flag.Bool("serve", false, "be the machine behind a port")
	flag.Parse()
	if *server {
		fmt.Fprintln(os.Stderr, "bench-flood:", serveHere())
		os.Exit(1)
	}
	folder, err := rig.Alone()
	b.server = serveElsewhere
	if err == nil {
		b.Machine()
		err = b.run(folder)
	}
	met := b.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-flood:", err)
	}
	if err != nil || !met {
		os.Exit(1)
	}
}

type floodBench struct {
	*bench.Report
	lasts       time.Duration
	established int
	dials       int
	floods      []flood
	server      func(*rig.Guest) (stop func() error, err error)

	world  *world
	driver *bench.Driver
	flows  *connections
	keys   map[bpf.CtKey]uint64 // of the established flows: when each began
}

// freshFlows is the size of ct_new: a flood has to be twenty times as many.
const freshFlows = 1024

func (b *floodBench) run(folder string) (err error) {
	if b.world, err = newWorld(folder, b.server); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.world.Close()) }()
	if b.driver, err = bench.NewDriver(); err != nil {
		return err
	}
	defer b.driver.Close()
	if b.flows, err = b.world.connect(b.established); err != nil {
		return err
	}
	defer b.flows.close()
	if b.keys, err = b.confirmed(); err != nil {
		return err
	}
	b.Title("%d connections are established, %d of them in ct_est", b.established, len(b.keys))
	b.Least("established flows are in ct_est", float64(len(b.keys)), float64(b.established))
	quiet := b.world.dial(b.world.other, b.dials)
	b.Note("no flood: %d of %d new connections to the other port, %s", len(quiet.took), b.dials, quiet.took)
	for _, f := range b.floods {
		if err := b.flood(f, quiet.took); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// confirmed reads the established flows of the flooded port.
func (b *floodBench) confirmed() (map[bpf.CtKey]uint64, error) {
	flows, err := b.world.hypervisor.Host.Flows(flooded)
	if err != nil {
		return nil, err
	}
	defer flows.Close()
	keys := map[bpf.CtKey]uint64{}
	var key bpf.CtKey
	var ct bpf.Ct
	it := flows.Confirmed.Iterate()
	for it.Next(&key, &ct) {
		keys[key] = ct.Created
	}
	return keys, it.Err()
}

func (b *floodBench) flood(f flood, quiet bench.Durations) error {
	before, err := b.world.hypervisor.Host.Reasons()
	if err != nil {
		return err
	}
	known, err := b.confirmed()
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	alive := b.flows.use(stop)
	here, there := make(chan dialled, 1), make(chan dialled, 1)
	spraying := make(chan error, 1)
	var sent uint64
	began := time.Now()
	go func() {
		spraying <- b.world.rig.Wire().Do(func() (err error) {
			sent, err = b.spray(f, stop)
			return err
		})
	}()
	go func() { here <- b.world.dial(b.world.target, b.dials) }()
	go func() { there <- b.world.dial(b.world.other, b.dials) }()
	own, others := <-here, <-there
	rest := time.NewTimer(time.Until(began.Add(b.lasts)))
	select {
	case <-rest.C:
	case err := <-spraying: // it has not been told to end
		close(stop)
		return errors.Join(errors.New("the flood ended early"), err)
	}
	close(stop)
	if err := <-spraying; err != nil {
		return err
	}
	took := time.Since(began)
	after, err := b.world.hypervisor.Host.Reasons()
	if err != nil {
		return err
	}
	b.tell(f, sent, took, moved(before, after))
	return b.judge(f, own, others, quiet, <-alive, known)
}

func moved(before, after map[bpf.Reason]uint64) map[bpf.Reason]uint64 {
	by := map[bpf.Reason]uint64{}
	for r, n := range after {
		if n > before[r] {
			by[r] = n - before[r]
		}
	}
	return by
}

// tell what was offered and what became of it. What was not processed found the
// generator's queue of the link full, in front of all programs. Packets of the
// connections are among those processed.
func (b *floodBench) tell(f flood, sent uint64, took time.Duration, by map[bpf.Reason]uint64) {
	rate := func(n uint64) float64 { return float64(n) / took.Seconds() / 1e6 }
	b.Title("%s, %.1f s", f.name, took.Seconds())
	b.Note("offered %d (%.3f Mpps), processed %d (%.3f Mpps), the machine has answered %d times", sent, rate(sent),
		by[bpf.ReasonPassHost], rate(by[bpf.ReasonPassHost]), by[bpf.ReasonToUplink])
	var rest []string
	for _, r := range bpf.Reasons() {
		if by[r] > 0 {
			rest = append(rest, fmt.Sprintf("%s %d", r, by[r]))
		}
	}
	b.Note("%v", rest)
	b.Least(f.name+": processed, × the size of ct_new", float64(by[f.end])/freshFlows, 20)
}

func (b *floodBench) judge(f flood, own, others dialled, quiet bench.Durations, alive used, known map[bpf.CtKey]uint64) error {
	reset := b.flows.ask()
	now, err := b.confirmed()
	if err != nil {
		return err
	}
	evicted := 0
	for key, created := range b.keys {
		if now[key] != created {
			evicted++
		}
	}
	grown := 0
	for key, created := range now {
		if known[key] != created {
			grown++
		}
	}
	b.Note("conns_established %d reset=%d evicted=%d; during the flood %d echoes over them, failed=%d, %s",
		b.established, reset, evicted, len(alive.took), alive.failed, alive.took)
	b.Note("new connections here:     %4d of %d, %s", len(own.took), b.dials, own.took)
	b.Note("new connections to other: %4d of %d, %s (no flood: p50 %s p99 %s)", len(others.took), b.dials, others.took,
		quiet.Percentile(50).Round(time.Microsecond), quiet.Percentile(99).Round(time.Microsecond))
	b.Note("ct_est has %d flows that it had not before", grown)
	for _, failure := range append(own.failures, others.failures...) {
		b.Note("failed: %v", failure)
	}
	b.Bar(f.name+": established connections reset or silent", float64(reset+alive.failed), 0)
	b.Bar(f.name+": established flows evicted", float64(evicted), 0)
	b.Least(f.name+": new connections here, per cent", 100*float64(len(own.took))/float64(b.dials), 99)
	b.Least(f.name+": new connections to another port, per cent", 100*float64(len(others.took))/float64(b.dials), 100)
	if f.again > 0 {
		b.Least(f.name+": ct_est has grown, × the sources", float64(grown)/float64(f.again), 0.5)
		return nil
	}
	b.Bar(f.name+": ct_est has grown, × the new connections", float64(grown)/float64(b.dials), 1)
	return nil
}
