// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"cairn/bpf"
)

// cost of a frame is which exits it takes, on each hypervisor.
type cost []map[bpf.Reason]uint64

// measure sends a few packets of each stream alone: every exit that counts, counts
// each of them equally often.
func (b *upgradeBench) measure() error {
	const packets = 40
	for _, s := range b.world.traffic.streams {
		before, err := b.counts()
		if err != nil {
			return err
		}
		sent := s.sent
		for range packets {
			if err := s.send(); err != nil {
				return err
			}
		}
		if sent, got := b.world.traffic.arrived(); sent != got {
			after, _ := b.counts()
			return fmt.Errorf("%s: %d of %d frames arrived while nothing happened: %v", s.name, got, sent, after.since(before))
		}
		after, err := b.counts()
		if err != nil {
			return err
		}
		c, frames := after.since(before), s.sent-sent
		for h := range c {
			for r, n := range c[h] {
				if n%frames != 0 {
					return fmt.Errorf("%s: %d frames, %s counts %d", s.name, frames, r, n)
				}
				c[h][r] = n / frames
			}
		}
		b.costs = append(b.costs, cost(c))
	}
	return nil
}

// counts of all exits, of each hypervisor.
type counts []map[bpf.Reason]uint64

func (b *upgradeBench) counts() (counts, error) {
	var c counts
	for _, h := range b.world.hypervisors {
		reasons, err := h.Reasons()
		if err != nil {
			return nil, err
		}
		c = append(c, reasons)
	}
	return c, nil
}

func (c counts) since(before counts) counts {
	by := make(counts, len(c))
	for h := range c {
		by[h] = map[bpf.Reason]uint64{}
		for r, n := range c[h] {
			if n > before[h][r] {
				by[h][r] = n - before[h][r]
			}
		}
	}
	return by
}

// outcome of something that happened under traffic.
type outcome struct {
	sent, lost, double uint64
	processed          uint64 // exits of the programs
	unprocessed        uint64 // exits that are missing
	drops              map[bpf.Reason]uint64
	lines              []string
}

// during lets all streams flow while something is done.
func (b *upgradeBench) during(do func() error) (outcome, error) {
	t := &b.world.traffic
	before, err := b.counts()
	if err != nil {
		return outcome{}, err
	}
	type tally struct{ sent, arrived, double uint64 }
	begin := make([]tally, len(t.streams))
	for i, s := range t.streams {
		begin[i].sent = s.sent
		begin[i].arrived, begin[i].double = s.tally()
	}
	stop, flowing := make(chan struct{}), make(chan error, 1)
	go func() { flowing <- t.flow(stop) }()
	done := do()
	close(stop)
	if err := <-flowing; err != nil {
		return outcome{}, err
	}
	if done != nil {
		return outcome{}, done
	}
	t.arrived()
	after, err := b.counts()
	if err != nil {
		return outcome{}, err
	}
	out := outcome{drops: map[bpf.Reason]uint64{}}
	want := counts{{}, {}}
	for i, s := range t.streams {
		arrived, double := s.tally()
		frames, got := s.sent-begin[i].sent, arrived-begin[i].arrived
		out.double += double - begin[i].double
		out.sent, out.lost = out.sent+frames, out.lost+frames-got
		if frames != got {
			out.lines = append(out.lines, fmt.Sprintf("%s: %d of %d arrived", s.name, got, frames))
		}
		for h := range b.costs[i] {
			for r, n := range b.costs[i][h] {
				want[h][r] += frames * n
			}
		}
	}
	out.compare(want, after.since(before))
	return out, nil
}

// compare what the exits should have counted with what they have.
func (o *outcome) compare(want, got counts) {
	for h := range want {
		for r, n := range want[h] {
			o.processed += got[h][r]
			if got[h][r] != n {
				o.unprocessed += max(n, got[h][r]) - min(n, got[h][r])
				o.lines = append(o.lines, fmt.Sprintf("hv%d: %s counts %d, want %d", h+1, r, got[h][r], n))
			}
		}
		for r, n := range got[h] {
			if r.IsDrop() && n > want[h][r] {
				o.drops[r] += n - want[h][r]
			}
		}
	}
}

func (b *upgradeBench) tell(what string, o outcome) {
	b.Note("%s", what)
	b.Note("    pkts sent %d lost=%d double=%d; exits of programs %d unprocessed=%d; unexpected_drops=%v",
		o.sent, o.lost, o.double, o.processed, o.unprocessed, o.drops)
	for _, line := range o.lines {
		b.Note("    %s", line)
	}
}

func (b *upgradeBench) judge(what string, o outcome) {
	b.Bar(what+": lost", float64(o.lost), 0)
	b.Bar(what+": unprocessed", float64(o.unprocessed), 0)
	b.Bar(what+": unexpected drops", float64(len(o.drops)), 0)
}
