// SPDX-License-Identifier: Apache-2.0

// Package speaker is what cairn-bgpd runs: it announces what the agent wants
// announced, as long as the dataplane is seen to work.
//
// It owns the loop of wanted set, self-test, decision, routes. It reads the set
// from a file and the dataplane from its pins, so it needs no agent: a dead
// agent is not a dead dataplane. It never decides (lb/announce does), never
// changes the dataplane, and never talks to the agent. Start at Speaker.round.
package speaker

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	judge "cairn/lb/announce"
	"cairn/lb/bgp"

	"cairn/dataplane/announce"
)

// Interval is the time between two rounds of tests. Two failures withdraw, so a
// missing program is noticed within two of them.
const Interval = 200 * time.Millisecond

// Budget is how many prefixes a round tests again; the others follow in turn.
const Budget = 100

// Router carries the decision to the routers: lb/bgp, or a fake in tests.
type Router interface {
	Set([]bgp.Route) ([]bgp.Step, error)
	Sessions() ([]bgp.Session, error)
}

// Dataplane is what the self-test looks at. An error is the reason why the test
// failed; nothing else is told by it.
type Dataplane interface {
	// Link says whether the program on the uplink is attached, and the right one.
	Link() error
	// Probe sends one packet for a VIP's service through that program.
	Probe(vip netip.Addr, s announce.Service) error
	// Port says whether a port's programs are attached.
	Port(id uint32) error
}

// Config of a speaker.
type Config struct {
	File  string // the agent's announcements
	State string // folder for the speaker's own copy of the last good file
	Log   *slog.Logger
}

// Speaker is the loop. Make it with New, then Run it; Status may be called from
// any goroutine meanwhile.
type Speaker struct {
	log       *slog.Logger
	source    source
	dataplane Dataplane
	router    Router
	started   time.Time

	// Touched by Run only.
	state  judge.State
	tested map[netip.Prefix]bool
	turn   int

	mu       sync.Mutex
	verdicts []judge.Verdict
	probes   announce.Probes
	refusal  string
	seen     sourceStatus
}

// New makes a speaker. It touches nothing yet.
func New(c Config, d Dataplane, r Router) *Speaker {
	return &Speaker{
		log:       c.Log,
		source:    newSource(c.File, c.State, c.Log),
		dataplane: d,
		router:    r,
		started:   time.Now(),
		tested:    map[netip.Prefix]bool{},
	}
}

// Run tests and announces until ctx ends. It leaves the routes as they are:
// whoever owns the sessions withdraws them by closing those.
func (s *Speaker) Run(ctx context.Context) {
	changes, stop, err := watch(s.source.path, s.log)
	if err != nil {
		s.log.Error("watch the announcements; changes are seen later", "err", err)
		stop = func() {}
	}
	defer stop()
	s.loop(ctx, changes)
}

func (s *Speaker) loop(ctx context.Context, changes <-chan struct{}) {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	s.source.start()
	s.round(everything)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes:
			if s.source.poll() {
				s.round(newcomers)
			}
		case <-ticker.C:
			s.source.poll()
			s.round(everything)
		}
	}
}

// scope of a round.
type scope int

const (
	everything scope = iota // the link, newcomers, and Budget of the rest in turn
	newcomers               // only what was never tested: rounds count failures, so they keep their distance
)

// round is one pass: test, decide, tell the routers.
func (s *Speaker) round(what scope) {
	want := s.source.set.Wanted
	result, ok := s.test(want, what)
	if ok {
		var verdicts []judge.Verdict
		s.state, verdicts = judge.Decide(s.state, toJudge(want), result)
		s.logChanges(verdicts)
		s.mu.Lock()
		s.verdicts = verdicts
		s.mu.Unlock()
	}
	steps, err := s.router.Set(routes(s.verdicts))
	for _, step := range steps {
		s.log.Info("told the routers", "step", step.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = s.source.status()
	refusal := ""
	if err != nil {
		refusal = err.Error()
	}
	if refusal != "" && refusal != s.refusal {
		s.log.Error("announce", "err", err)
	}
	s.refusal = refusal
}

// test runs the tests of a round. A round of newcomers whose link test fails
// says nothing, so that two failures in a row are Interval apart.
func (s *Speaker) test(want []announce.Wanted, what scope) (judge.Result, bool) {
	result := judge.Result{Prefixes: map[netip.Prefix]judge.Test{}}
	err := s.dataplane.Link()
	if err != nil && what == newcomers {
		return result, false
	}
	s.count(func(p *announce.Probes) *announce.Tally { return &p.Link }, "uplink program", err)
	result.Link = verdict(err)

	budget := Budget
	if what == newcomers {
		budget = 0
	}
	var chosen []int
	chosen, s.turn = choose(want, s.tested, s.turn, budget)
	tested := make(map[netip.Prefix]bool, len(want))
	for _, w := range want {
		tested[w.Prefix] = s.tested[w.Prefix]
	}
	for _, i := range chosen {
		w := want[i]
		if w.Origin == announce.VIP && err != nil {
			continue // there is no program to send a packet through
		}
		result.Prefixes[w.Prefix] = verdict(s.testOne(w))
		tested[w.Prefix] = true
	}
	s.tested = tested
	s.mu.Lock()
	s.probes.Rounds++
	s.mu.Unlock()
	return result, true
}

// testOne tests one prefix: all services of a VIP, or an instance's port. A VIP
// fails with its first service that fails.
func (s *Speaker) testOne(w announce.Wanted) error {
	if w.Origin == announce.Instance {
		err := s.dataplane.Port(w.Port)
		s.count(func(p *announce.Probes) *announce.Tally { return &p.Ports }, fmt.Sprintf("port %d", w.Port), err)
		return err
	}
	for _, service := range w.Services {
		err := s.dataplane.Probe(w.Prefix.Addr(), service)
		s.count(func(p *announce.Probes) *announce.Tally { return &p.Services },
			fmt.Sprintf("probe %s %s", w.Prefix.Addr(), service), err)
		if err != nil {
			return fmt.Errorf("%s: %w", service, err)
		}
	}
	return nil
}

func (s *Speaker) count(of func(*announce.Probes) *announce.Tally, what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tally := of(&s.probes)
	if err == nil {
		tally.Passed++
		return
	}
	tally.Failed++
	s.probes.LastFailed = what + ": " + err.Error()
}

func verdict(err error) judge.Test {
	if err != nil {
		return judge.Fail(err.Error())
	}
	return judge.Pass()
}

func (s *Speaker) logChanges(verdicts []judge.Verdict) {
	before := make(map[netip.Prefix]judge.Verdict, len(s.verdicts))
	for _, v := range s.verdicts {
		before[v.Prefix] = v
	}
	for _, v := range verdicts {
		if old, ok := before[v.Prefix]; ok && old.Announce == v.Announce && old.Reason == v.Reason {
			continue
		}
		level := slog.LevelInfo
		if !v.Announce {
			level = slog.LevelWarn
		}
		s.log.Log(context.Background(), level, "judged", "prefix", v.Prefix, "announce", v.Announce, "reason", v.Reason)
	}
}
