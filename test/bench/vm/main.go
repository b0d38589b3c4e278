// SPDX-License-Identifier: Apache-2.0

// Command vm measures TCP between two machines with TAPs on two hypervisors,
// beside Linux's own bridge and vxlan over the same underlay: with a program at
// the ends of the underlay, as ours has, and without any. An underlay of veths
// cuts segments where there are programs, so that the last shows how segments
// cross uncut.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"cairn/test/bench"
	"cairn/test/rig"
)

func main() {
	b := vmBench{Report: &bench.Report{Out: os.Stdout}}
	flag.IntVar(&b.rounds, "rounds", 9, "in which all ways take turns")
	flag.DurationVar(&b.lasts, "time", 2*time.Second, "of each transfer")
	flag.Parse()
	folder, err := rig.Alone()
	if err == nil {
		b.Machine()
		err = b.run(folder)
	}
	met := b.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-vm:", err)
	}
	if err != nil || !met {
		os.Exit(1)
	}
}

type vmBench struct {
	*bench.Report
	rounds int
	lasts  time.Duration
}

func (b *vmBench) run(folder string) (err error) {
	r, err := rig.New(folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	ways := []*way{
		{name: "cairn", xdp: true, carry: ours},
		{name: "bridge and vxlan, empty XDP programs", xdp: true, carry: bridge},
		{name: "cairn, its uplink program taken away", carry: ours},
		{name: "bridge and vxlan", carry: bridge},
	}
	for _, w := range ways {
		if err := w.build(r); err != nil {
			return err
		}
	}
	var largest atomic.Int64 // frame on the underlay of cairn without programs
	tap, err := r.Wire().Tap(ways[2].hypervisors[0].RouterDevice())
	if err != nil {
		return err
	}
	rates := make([]bench.Rates, len(ways))
	for round := range b.rounds + 1 {
		for i, w := range ways {
			if round == 0 && i == 2 { // not while it is timed
				tap.Watch(func(frame []byte) { largest.Store(max(largest.Load(), int64(len(frame)))) })
			}
			rate, err := w.transfer(b.lasts)
			if err != nil {
				return err
			}
			if round == 0 && i == 2 {
				if err := tap.Close(); err != nil {
					return err
				}
			}
			if round > 0 { // the first warms up
				rates[i] = append(rates[i], rate/1e9)
			}
		}
	}
	b.Title("TCP between two machines, Gb/s (p25, median, max of %d rounds of %s in turn)", b.rounds, b.lasts)
	for i, w := range ways {
		b.Note("%-44s %s", w.name, rates[i])
	}
	b.Note("largest frame on the underlay without programs: %d bytes; given to the machine: %d bytes with programs, %d without",
		largest.Load(), ways[0].machines[1].largest.Load(), ways[2].machines[1].largest.Load())
	b.Least("cairn, × bridge and vxlan over the same underlay with XDP", rates[0].Median()/rates[1].Median(), 0.9)
	b.Least("largest frame on an underlay without XDP, bytes", float64(largest.Load()), 60_000)
	return nil
}
