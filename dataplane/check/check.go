// SPDX-License-Identifier: Apache-2.0

// Package check runs the health checks of the backends on this host through
// the host's door, and tells each verdict with the generation of the check it
// is of. lb/health judges; what a verdict does to traffic is the control
// plane's. Start at Checks; door.go is the way into the door's namespace.
package check

import (
	"sync"

	"cairn/cloud/wire"
	"cairn/dataplane/table"
	"cairn/lb/health"
)

// Observer is told a verdict; it must not block.
type Observer func(key wire.Key, generation uint64, verdict, reason string)

// Checks are those that the desired tables name.
type Checks struct {
	checker *health.Checker
	observe Observer
	forget  func(wire.Key)

	mu          sync.Mutex
	generations map[string]uint64 // by key
}

// New runs no check yet.
func New(dial health.Dialer, observe Observer, forget func(wire.Key)) *Checks {
	c := &Checks{observe: observe, forget: forget, generations: map[string]uint64{}}
	c.checker = health.NewChecker(dial, c.notify)
	return c
}

func (c *Checks) notify(id string, s health.Status) {
	c.mu.Lock()
	generation, ok := c.generations[id]
	c.mu.Unlock()
	if ok {
		c.observe(wire.Key{Kind: wire.KindCheck, ID: id}, generation, string(s.Verdict), s.Reason)
	}
}

// Set runs the checks of a view. A new one, or one of another generation, is
// told at once with what is known of it.
func (c *Checks) Set(view table.View) {
	want := map[string]health.Check{}
	fresh := []string{}
	c.mu.Lock()
	generations := map[string]uint64{}
	for check := range table.All[wire.Check](view) {
		id := check.Key().ID
		want[id] = translate(check)
		generations[id] = check.Generation
		if old, ok := c.generations[id]; !ok || old != check.Generation {
			fresh = append(fresh, id)
		}
	}
	gone := []string{}
	for id := range c.generations {
		if _, ok := generations[id]; !ok {
			gone = append(gone, id)
		}
	}
	c.generations = generations
	c.mu.Unlock()
	c.checker.Set(want)
	for _, id := range gone {
		c.forget(wire.Key{Kind: wire.KindCheck, ID: id})
	}
	status := c.checker.Status()
	for _, id := range fresh {
		c.notify(id, status[id])
	}
}

func translate(c wire.Check) health.Check {
	return health.Check{
		Mode: health.Mode(c.Mode), Address: c.Address, Port: c.Port, URI: c.URI, SNI: c.TLSSNI,
		Verify:   c.Elastic != 0 && !c.TLSSkipVerify, // a backend of a service is never asked who it is
		Interval: c.Interval, Timeout: c.Timeout, Retries: int(c.Retries), Rise: int(c.StrikesOK),
	}
}

// Status of all checks by key.
func (c *Checks) Status() map[string]health.Status { return c.checker.Status() }

// Close ends all checks.
func (c *Checks) Close() { c.checker.Close() }
