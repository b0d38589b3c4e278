// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/lb/health"
)

// backends is a network in memory: an address answers, refuses or is silent.
type backends struct {
	mu     sync.Mutex
	state  map[string]string
	dialed map[string][]time.Time
	log    []string
}

func newBackends() *backends {
	return &backends{state: map[string]string{}, dialed: map[string][]time.Time{}}
}

func (b *backends) set(i int, state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state[check(i).Address.String()] = state
}

func (b *backends) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	b.mu.Lock()
	b.dialed[host] = append(b.dialed[host], time.Now())
	state := b.state[host]
	b.mu.Unlock()
	switch state {
	case "up":
		near, far := net.Pipe()
		far.Close()
		return near, nil
	case "silent":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, errors.New("refused")
}

// dials returns when a backend was dialed.
func (b *backends) dials(i int) []time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.dialed[check(i).Address.String()])
}

func (b *backends) notify(key string, s health.Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(b.log, key+" "+string(s.Verdict))
}

func (b *backends) notified(t *testing.T, want ...string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.Sort(b.log)
	if !slices.Equal(b.log, want) {
		t.Errorf("notified of %v, want %v", b.log, want)
	}
	b.log = nil
}

func check(i int) health.Check {
	return health.Check{Mode: health.TCP, Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Port: 80,
		Interval: 10 * time.Second, Timeout: 3 * time.Second, Retries: 2}
}

func checks(n int) map[string]health.Check {
	set := map[string]health.Check{}
	for i := range n {
		set[fmt.Sprint("b", i)] = check(i)
	}
	return set
}

func TestCheckerVerdicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackends()
		c := health.NewChecker(b.dial, b.notify)
		defer c.Close()
		b.set(0, "up")
		c.Set(checks(2))
		time.Sleep(time.Second)
		b.notified(t, "b0 success")
		// b1 refuses: three failures, at most 1 s + 20 s after the start.
		time.Sleep(20 * time.Second)
		b.notified(t, "b1 failure")
		if s := c.Status()["b1"]; s.Verdict != health.Failure || s.Reason != "connect: refused" || s.Failures != 3 || s.Probes < 3 {
			t.Errorf("got %+v", s)
		}
		b.set(1, "up")
		time.Sleep(10 * time.Second)
		b.notified(t)
		time.Sleep(10 * time.Second)
		b.notified(t, "b1 success")
		// b0 falls silent: interval × (retries + 1) + timeout, no later.
		b.set(0, "silent")
		time.Sleep(33 * time.Second)
		b.notified(t, "b0 failure")
		if s := c.Status()["b0"]; s.Reason != "connect: context deadline exceeded" {
			t.Errorf("got %+v", s)
		}
	})
}

// Fifty checks whose path is cut: none is ever a failure. The control: with one
// answer the same checker finds the others dead.
func TestCheckerWithoutASuccessHasNoVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackends()
		c := health.NewChecker(b.dial, b.notify)
		defer c.Close()
		c.Set(checks(50))
		time.Sleep(time.Hour)
		b.notified(t)
		for key, s := range c.Status() {
			if s.Verdict != health.Initial || s.Failures < 300 {
				t.Errorf("%s: %+v", key, s)
			}
		}
		b.set(0, "up")
		time.Sleep(20 * time.Second)
		b.mu.Lock()
		n := len(b.log)
		b.mu.Unlock()
		if n != 50 {
			t.Errorf("%d verdicts after the first success, want 50", n)
		}
	})
}

func TestCheckerSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackends()
		c := health.NewChecker(b.dial, b.notify)
		defer c.Close()
		for i := range 4 {
			b.set(i, "up")
		}
		c.Set(checks(4))
		time.Sleep(time.Second)
		b.notified(t, "b0 success", "b1 success", "b2 success", "b3 success")

		set := checks(3) // b3 is gone
		again := set["b1"]
		again.Interval = 5 * time.Second // keeps its verdict
		set["b1"] = again
		other := set["b2"]
		other.Port = 81 // starts anew
		set["b2"] = other
		probes := len(b.dials(0))
		c.Set(set)
		if got := c.Status(); len(got) != 3 || got["b1"].Verdict != health.Success || got["b2"].Verdict != health.Initial {
			t.Errorf("after the change: %v", got)
		}
		time.Sleep(time.Second)
		b.notified(t, "b2 success")
		if got := len(b.dials(0)); got != probes {
			t.Error("a check that stayed was disturbed")
		}
		gone := len(b.dials(3))
		b.set(3, "refuses")
		time.Sleep(time.Minute)
		b.notified(t)
		if got := len(b.dials(3)); got != gone {
			t.Error("a check that is gone goes on")
		}
	})
}

func TestCheckerEndsProbesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackends()
		b.set(0, "silent")
		b.set(1, "up")
		c := health.NewChecker(b.dial, b.notify)
		c.Set(checks(2))
		time.Sleep(time.Second + time.Millisecond)
		start := time.Now()
		c.Close()
		if took := time.Since(start); took != 0 {
			t.Errorf("close took %v", took)
		}
		b.notified(t, "b1 success")
	})
}

// A backend that comes up a while after its check is found within little more
// than a second, whatever the interval; then its probes are an interval apart.
func TestCheckerFindsANewBackendSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackends()
		c := health.NewChecker(b.dial, b.notify)
		defer c.Close()
		const interval = 5 * time.Minute
		set := map[string]health.Check{}
		for i, state := range []string{"refuses", "silent"} {
			b.set(i, state)
			one := check(i)
			one.Interval = interval
			set[fmt.Sprint("b", i)] = one
		}
		c.Set(set)
		time.Sleep(30 * time.Second)
		b.notified(t)
		b.set(0, "up")
		b.set(1, "up")
		time.Sleep(time.Second)
		if got := c.Status()["b0"].Verdict; got != health.Success {
			t.Errorf("b0 is %s a second after it came up", got)
		}
		time.Sleep(3 * time.Second) // the probe that got no answer has its timeout
		b.notified(t, "b0 success", "b1 success")
		found := [2]int{len(b.dials(0)), len(b.dials(1))}
		time.Sleep(5 * interval)
		for i, n := range found {
			if more := len(b.dials(i)) - n; more < 4 || more > 6 {
				t.Errorf("b%d: %d probes in five intervals after its verdict", i, more)
			}
		}
	})
}

// Probes without a verdict are many, and those that fail between two intervals
// do not count: a failure takes as long as it would without them. The many end
// after the failures that would be a verdict if there were a vote.
func TestCheckerIsEagerNotRash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackends()
		c := health.NewChecker(b.dial, b.notify)
		defer c.Close()
		b.set(0, "up") // there is a vote
		c.Set(checks(2))
		time.Sleep(18 * time.Second)
		b.notified(t, "b0 success")
		if n := len(b.dials(1)); n < 17 || n > 20 {
			t.Errorf("%d probes in 18 seconds without a verdict", n)
		}
		time.Sleep(3 * time.Second)
		b.notified(t, "b1 failure")
		n := len(b.dials(1))
		time.Sleep(time.Minute)
		if more := len(b.dials(1)) - n; more < 5 || more > 7 {
			t.Errorf("%d probes in the minute after the verdict", more)
		}
	})
	synctest.Test(t, func(t *testing.T) { // nobody answers: no vote
		b := newBackends()
		c := health.NewChecker(b.dial, b.notify)
		defer c.Close()
		c.Set(checks(1))
		time.Sleep(30 * time.Second)
		n := len(b.dials(0))
		time.Sleep(time.Minute)
		if more := len(b.dials(0)) - n; n < 17 || more < 5 || more > 7 {
			t.Errorf("%d probes, then %d in a minute", n, more)
		}
		b.notified(t)
	})
}

// Checks that are set together do not probe together, and no interval is longer
// than asked for or shorter by more than a twentieth.
func TestCheckerSpreads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackends()
		c := health.NewChecker(b.dial, b.notify)
		defer c.Close()
		for i := range 100 {
			b.set(i, "up")
		}
		c.Set(checks(100))
		time.Sleep(10 * time.Minute)
		first := map[time.Time]int{}
		for host := range 100 {
			times := b.dials(host)
			first[times[0]]++
			for i := 1; i < len(times); i++ {
				if d := times[i].Sub(times[i-1]); d > 10*time.Second || d < 9500*time.Millisecond {
					t.Fatalf("check %d: %v between probes", host, d)
				}
			}
		}
		if len(first) < 90 {
			t.Errorf("the first probes of 100 checks came at %d instants", len(first))
		}
	})
}
