// SPDX-License-Identifier: Apache-2.0

// Command upgrade replaces the programs of hypervisors and kills their agents
// under traffic, and counts what was lost and what met no program. The oracle is
// that every counter of the programs has counted exactly as many packets as were
// sent: what passes a host without its programs may arrive all the same. Start
// at upgradeBench.run; streams.go is the traffic, oracle.go the judge.
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"cairn/test/bench"
	"cairn/test/rig"
)

func main() {
	b := upgradeBench{Report: &bench.Report{Out: os.Stdout}}
	flag.IntVar(&b.upgrades, "upgrades", 100, "of all programs of a hypervisor, the two in turn")
	flag.IntVar(&b.kills, "kills", 20, "of the agent of each hypervisor")
	flag.StringVar(&b.agent, "agent", "bin/cairn-agent", "the built agent")
	flag.Parse()
	folder, err := rig.Alone()
	if err == nil {
		b.Machine()
		err = b.run(folder)
	}
	met := b.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-upgrade:", err)
	}
	if err != nil || !met {
		os.Exit(1)
	}
}

type upgradeBench struct {
	*bench.Report
	upgrades, kills int
	agent           string // none: no agent is killed

	folder string
	world  *world
	costs  []cost // of a frame of each stream
}

func (b *upgradeBench) run(folder string) (err error) {
	b.folder = folder
	if b.world, err = newWorld(folder); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.world.rig.Close()) }()
	if err := b.measure(); err != nil {
		return err
	}
	b.Title("%d streams: TCP, UDP, ping, fragments and ICMP errors of public and of private ports, both ways", len(b.world.traffic.streams))
	none, err := b.during(func() error { <-time.After(time.Second); return nil })
	if err != nil {
		return err
	}
	b.tell("nothing happens", none)
	var took bench.Durations
	done, err := b.during(func() error { return b.upgrade(&took) })
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d upgrades of all programs of a hypervisor", b.upgrades)
	b.tell(what, done)
	b.Note("    an upgrade takes %s", took)
	b.judge(what, done)
	if b.agent != "" {
		if err := b.killAgents(); err != nil {
			return err
		}
	}
	return b.control()
}

func (b *upgradeBench) upgrade(took *bench.Durations) error {
	for n := range b.upgrades {
		began := time.Now()
		if err := b.world.hypervisors[n%2].Upgrade(); err != nil {
			return err
		}
		*took = append(*took, time.Since(began))
	}
	return nil
}

// killAgents hands the hypervisors over to agents and kills those, half of them
// while they start.
func (b *upgradeBench) killAgents() error {
	var agents []*rig.Agent
	defer func() {
		for _, a := range agents {
			_ = a.Kill() // at the end, alive or not
		}
	}()
	done, err := b.during(func() error {
		for _, h := range b.world.hypervisors {
			if err := h.Let(); err != nil {
				return err
			}
			a, err := h.Agent(b.agent, filepath.Join(b.folder, rig.Name(h.Number)), h.View())
			if err != nil {
				return err
			}
			agents = append(agents, a)
			if err := a.Start(); err != nil {
				return err
			}
			if err := a.Runs(time.Minute); err != nil {
				return err
			}
		}
		for n := range b.kills {
			for _, a := range agents {
				if err := killOne(a, n%2 == 0); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d × kill -9 of both agents, and starts", b.kills)
	b.tell(what, done)
	b.judge(what, done)
	for _, a := range agents {
		if err := a.Kill(); err != nil {
			return err
		}
	}
	agents = nil
	for _, h := range b.world.hypervisors {
		if err := h.Open(); err != nil {
			return err
		}
	}
	return nil
}

func killOne(a *rig.Agent, midway bool) error {
	if err := a.Kill(); err != nil {
		return err
	}
	if err := a.Start(); err != nil {
		return err
	}
	if midway {
		<-time.After(rand.N(400 * time.Millisecond)) // somewhere in its start
		if err := a.Kill(); err != nil {
			return err
		}
		if err := a.Start(); err != nil {
			return err
		}
	}
	return a.Runs(time.Minute)
}

// control detaches a program and attaches it again: that must be seen.
func (b *upgradeBench) control() error {
	h := b.world.hypervisors[0]
	done, err := b.during(func() error {
		if err := h.Let(); err != nil {
			return err
		}
		if err := h.CutXDP(); err != nil {
			return err
		}
		for deadline := time.Now().Add(5 * time.Second); ; <-time.After(time.Millisecond) {
			has, err := h.HasXDP()
			if err != nil {
				return err
			}
			if !has {
				break
			}
			if time.Now().After(deadline) {
				return errors.New("the uplink keeps its program")
			}
		}
		return h.Open()
	})
	if err != nil {
		return err
	}
	b.tell("control: the uplink's program is detached, and attached again", done)
	b.Least("control: packets that met no program are seen", float64(done.unprocessed), 1)
	return nil
}
