// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Status is what a Checker knows of one check.
type Status struct {
	Verdict  Verdict   `json:"verdict"`
	Reason   string    `json:"reason,omitempty"` // why the last probe failed; empty if it did not
	Failures int       `json:"failures"`         // in a row, up to now
	Probes   uint64    `json:"probes"`
	At       time.Time `json:"at,omitzero"` // of the last probe's end
}

// Checker runs a set of checks, each by itself. It has no vote before one of its
// probes has succeeded: see State.Next.
type Checker struct {
	dial   Dialer
	notify func(key string, s Status)
	vote   atomic.Bool

	mu   sync.Mutex
	runs map[string]*run
	all  sync.WaitGroup
}

// run is one check under way; state and status are guarded by the Checker's lock.
type run struct {
	check  Check
	cancel context.CancelFunc
	status Status
	state  State
}

// NewChecker makes a checker without checks. notify is told each changed
// verdict; it must not block, nor call the Checker.
func NewChecker(dial Dialer, notify func(key string, s Status)) *Checker {
	return &Checker{dial: dial, notify: notify, runs: map[string]*run{}}
}

// Set makes checks the set that is run. A check that stays goes on undisturbed;
// one whose interval, timeout or retries change keeps its verdict; one that
// checks something else starts anew. A key that is gone is not notified again.
func (c *Checker) Set(checks map[string]Check) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, old := range c.runs {
		if check, stays := checks[key]; !stays || check != old.check {
			old.cancel()
		}
		if _, stays := checks[key]; !stays {
			delete(c.runs, key)
		}
	}
	for key, check := range checks {
		old := c.runs[key]
		if old != nil && old.check == check {
			continue
		}
		fresh := &run{check: check, status: Status{Verdict: Initial}}
		if old != nil && old.check.place() == check.place() {
			fresh.state, fresh.status = old.state, old.status
		}
		var ctx context.Context
		ctx, fresh.cancel = context.WithCancel(context.Background())
		c.runs[key] = fresh
		c.all.Go(func() { c.loop(ctx, key, fresh) })
	}
}

// Status returns what is known of each check.
func (c *Checker) Status() map[string]Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[string]Status, len(c.runs))
	for key, r := range c.runs {
		all[key] = r.status
	}
	return all
}

// Close ends all checks and returns when no probe is under way.
func (c *Checker) Close() {
	c.Set(nil)
	c.all.Wait()
}

// eagerPeriod is the time from one probe to the next while there is no verdict.
const eagerPeriod = time.Second

// loop probes once an interval, and each second while there is no verdict. The
// first probe comes within a second, or an interval if that is less, so that
// checks that were set together spread; an interval is shortened at random by up
// to a twentieth, so that they do not meet again, and never made longer, so that
// a failure is found in time: the probes in between end before it is over.
func (c *Checker) loop(ctx context.Context, key string, r *run) {
	timer := time.NewTimer(rand.N(max(1, min(time.Second, r.check.Interval))))
	defer timer.Stop()
	var due time.Time // of the next probe that counts
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		begin := time.Now()
		counts, within := !begin.Before(due), due.Sub(begin)
		if counts {
			within = max(r.check.Interval, time.Millisecond)
			due = begin.Add(shortened(within))
		}
		next := due
		if c.probe(ctx, key, r, counts, within) {
			if soon := begin.Add(shortened(eagerPeriod)); soon.Before(next) {
				next = soon
			}
		}
		timer.Reset(max(time.Until(next), 0))
	}
}

// shortened at random by up to a twentieth.
func shortened(d time.Duration) time.Duration { return d - rand.N(max(1, d/20)) }

// probe does one probe, which may take no longer than within, tells what it
// changed, and says whether to be eager for more.
func (c *Checker) probe(ctx context.Context, key string, r *run, counts bool, within time.Duration) (eager bool) {
	limited, cancel := context.WithTimeout(ctx, min(r.check.Timeout, within))
	err := Probe(limited, c.dial, r.check)
	cancel()
	if ctx.Err() != nil {
		return false // whatever it found, it found because the check was ended
	}
	if err == nil {
		c.vote.Store(true)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.runs[key] != r {
		return false
	}
	before := r.state.Verdict()
	if counts {
		r.state = r.state.Next(err == nil, r.check.Retries, cmp.Or(r.check.Rise, Rise), c.vote.Load())
	} else {
		r.state = r.state.Between(err == nil, r.check.Retries)
	}
	r.status = Status{Verdict: r.state.Verdict(), Failures: r.state.Failures(), Probes: r.status.Probes + 1, At: time.Now()}
	if err != nil {
		r.status.Reason = err.Error()
	}
	if r.status.Verdict != before {
		c.notify(key, r.status)
	}
	return r.state.Eager(r.check.Retries)
}
