// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"fmt"
	"testing"
	"time"

	"cairn/test/lab"
	"cairn/test/story"
)

const rate = 200 // requests a second, each a new connection, one second of patience, no retry

// underLoad runs an event in the middle of a load beside a control flow, and
// returns the load's requests and the moment of the event. It goes on for rest
// after the event.
func (c *cloudUnderTest) underLoad(rest time.Duration, event func()) ([]story.Request, time.Time) {
	c.Helper()
	control, end, err := story.ControlFlow(c.Context(), c.Lab, 20)
	must(c.T, "control flow", err)
	defer end()
	load := story.StartLoad(c.Context(), c.Lab.Client(1), c.vip, rate)
	c.sent(load, rate) // one second of calm
	at := time.Now()
	event()
	c.sent(load, load.Sent()+int(rest.Seconds()*rate))
	all := load.Stop()
	calm := control.Stop()
	broken, _ := story.Failures(calm, time.Time{}, time.Time{})
	if len(broken) > 0 {
		c.Fatalf("the control flow itself failed: %v", broken[0].Err)
	}
	before, sent := story.Failures(all, time.Time{}, at)
	for _, r := range before {
		if r.Start.Add(r.Took).Before(at) { // else it was under way when it happened
			c.Errorf("of %d requests before the event one failed: %v", sent, r.Err)
		}
	}
	c.Logf("longest gap of the control flow %s", story.Gap(calm).Round(time.Millisecond))
	return all, at
}

// sent waits until a load has started n requests.
func (c *cloudUnderTest) sent(load *story.Load, n int) {
	c.Helper()
	lab.Eventually(c.T, fmt.Sprintf("%d requests", n), 60*time.Second, func() error {
		if got := load.Sent(); got < n {
			return fmt.Errorf("%d sent", got)
		}
		return nil
	})
}

// healsWithin checks that no request fails that started later than the given
// time after the event, and that 2,000 did start by then.
func (c *cloudUnderTest) healsWithin(all []story.Request, event time.Time, bar time.Duration) {
	c.Helper()
	after, sent := story.Failures(all, event, time.Time{})
	window := story.Window(all, event)
	c.Logf("%d of %d requests failed; the last that failed started %s after the event (bar %s)",
		len(after), sent, window.Round(time.Millisecond), bar)
	if window > bar {
		c.Errorf("requests failed until %s after the event: %v", window, after[len(after)-1].Err)
	}
	if _, rest := story.Failures(all, event.Add(bar), time.Time{}); rest < 2000 {
		c.Errorf("only %d requests started after the window", rest)
	}
}

func TestAgentKilledWhileThePoolGrows(t *testing.T) {
	c := newCloud(t, lab.Config{})
	c.web(4)
	before := c.programmed(1)

	all, at := c.underLoad(5*time.Second, func() {
		grown := make(chan error, 1)
		must(t, "kill agent", c.Agent(1).Kill())
		go func() { grown <- c.Scale(c.pool, 6) }()
		lab.Eventually(t, "six instances known to the control plane", 10*time.Second, func() error {
			if n := len(c.members()); n != 6 {
				return fmt.Errorf("%d members", n)
			}
			return nil
		})
		must(t, "start agent", c.Agent(1).Start())
		must(t, "scale", <-grown)
		c.healthy(6)
	})
	if failed, sent := story.Failures(all, at, time.Time{}); len(failed) > 0 {
		t.Errorf("%d of %d requests failed while an agent was dead: %v", len(failed), sent, failed[0].Err)
	}
	if after := c.programmed(1); after != before {
		t.Errorf("programs or maps were replaced by a restart:\nbefore %+v\nafter  %+v", before, after)
	}
	must(t, "programmed equals desired", diff(c.Context(), c.Lab, 1))
	c.inStep()
}

// TestHypervisorIsLost: first its uplink alone, then, when it is back and the
// control plane past its grace, the whole of it.
func TestHypervisorIsLost(t *testing.T) {
	c := newCloud(t, lab.Config{})
	c.web(4)
	t.Run("its uplink", func(t *testing.T) {
		c := c.within(t)
		all, at := c.underLoad(13*time.Second, func() { must(t, "uplink down", c.Uplink(2, false)) })
		c.healsWithin(all, at, 2*time.Second)
	})
	must(t, "uplink up", c.Uplink(2, true))
	c.healthy(4)
	c.inStep()
	c.pastTheGrace()
	t.Run("the whole of it", func(t *testing.T) {
		c := c.within(t)
		all, at := c.underLoad(18*time.Second, func() { must(t, "kill hypervisor", c.KillHypervisor(2)) })
		c.healsWithin(all, at, 7*time.Second)
	})
}

// pastTheGrace waits until the control plane has run for so long that it lets
// leases expire.
func (c *cloudUnderTest) pastTheGrace() {
	c.Helper()
	const grace = 15 * time.Second
	lab.Eventually(c.T, "end of the control plane's grace", 2*grace, func() error {
		age, err := c.Control().Age()
		if err == nil && age < grace {
			err = fmt.Errorf("it runs for %s", age)
		}
		return err
	})
}
