// SPDX-License-Identifier: Apache-2.0

package hypervisor

import (
	"context"
	"errors"
	"sync"
	"time"

	"cairn/controlplane/store"
)

const (
	// Lease is how long an agent may be silent. It says so much as once a second
	// that it lives.
	Lease = 5 * time.Second
	// grace is how long after its own start the control plane expires no lease:
	// agents come back one after the other.
	grace = 15 * time.Second
	// burst is the time within which half of the zone falling silent is taken
	// for a fault of our own.
	burst = 30 * time.Second
	// round is how often leases are looked at.
	round = 250 * time.Millisecond
)

// Lessee is what the leases know of one hypervisor.
type Lessee struct {
	Name       string
	Seen       time.Time // last sign of life; of the table's own start if there was none
	UplinkDown bool
	InStep     bool // the agent holds what it should: only then is it credited again

	Unreachable     bool // as committed
	UplinkCommitted bool
	Since           time.Time // of the committed silence
}

// Judge says which facts are to be committed at now. It is pure.
//
// A lease that has expired changes what the others do, never what the silent
// one does. More than half of the zone silent within half a minute is no fact
// about hypervisors: then nothing is expired. An uplink that its own agent
// reports as down is a fact at once, under the same limit.
func Judge(now, started time.Time, zone []Lessee) []Fact {
	var facts, lost []Fact
	down := 0 // lost within the burst, committed or about to be
	for _, l := range zone {
		silent := now.Sub(l.Seen) >= Lease && now.Sub(started) >= grace
		switch {
		case l.UplinkDown || silent:
			if l.Unreachable {
				if now.Sub(l.Since) < burst {
					down++
				}
				if l.UplinkDown != l.UplinkCommitted {
					facts = append(facts, Fact{Name: l.Name, Unreachable: true, UplinkDown: l.UplinkDown, Since: l.Since})
				}
				continue
			}
			down++
			since := now
			if silent {
				since = l.Seen
			}
			lost = append(lost, Fact{Name: l.Name, Unreachable: true, UplinkDown: l.UplinkDown, Since: since})
		case l.Unreachable && l.InStep && now.Sub(l.Seen) < Lease:
			facts = append(facts, Fact{Name: l.Name})
		}
	}
	if down*2 > len(zone) {
		return facts
	}
	return append(facts, lost...)
}

// Leases hears agents and commits what follows from their silence.
type Leases struct {
	hypervisors *Hypervisors
	now         func() time.Time
	started     time.Time

	// InStep, if set, says whether an agent that was unreachable holds by now
	// what it should.
	InStep func(name string) bool
	// Expired and Returned, if set, are told once it is committed.
	Expired  func(name string, number uint32, since time.Time)
	Returned func(name string, number uint32)

	mu     sync.Mutex
	seen   map[string]time.Time
	uplink map[string]bool // down
	look   chan struct{}
}

// NewLeases starts the clock.
func NewLeases(h *Hypervisors, now func() time.Time) *Leases {
	return &Leases{
		hypervisors: h, now: now, started: now(),
		seen: map[string]time.Time{}, uplink: map[string]bool{}, look: make(chan struct{}, 1),
	}
}

// Seen is called for every sign of life of an agent, with what it says of its
// uplink.
func (l *Leases) Seen(name string, uplinkDown bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[name] = l.now()
	if l.uplink[name] != uplinkDown {
		l.uplink[name] = uplinkDown
		select {
		case l.look <- struct{}{}:
		default: // Run will look anyway
		}
	}
}

// Silent says since when an agent has not been heard of; zero if its lease is
// good.
func (l *Leases) Silent(name string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen, ok := l.seen[name]
	if !ok {
		seen = l.started
	}
	if l.now().Sub(seen) < Lease {
		return time.Time{}
	}
	return seen
}

// Run looks at the leases until ctx ends.
func (l *Leases) Run(ctx context.Context) error {
	ticker := time.NewTicker(round)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.look:
		case <-ticker.C:
		}
		if err := l.Round(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrNoZone) {
			l.hypervisors.log.Warn("look at the leases", "error", err)
		}
	}
}

// Round looks once, and commits what it finds.
func (l *Leases) Round(ctx context.Context) error {
	rows, err := l.hypervisors.List(ctx)
	if err != nil {
		return err
	}
	numbers := map[string]uint32{}
	zone := make([]Lessee, 0, len(rows))
	for _, r := range rows {
		if !r.Joined {
			continue
		}
		numbers[r.Name] = r.Number
		zone = append(zone, l.lessee(r))
	}
	facts := Judge(l.now(), l.started, zone)
	if len(facts) == 0 {
		return nil
	}
	if err := l.hypervisors.Commit(ctx, facts...); err != nil {
		return err
	}
	for _, f := range facts {
		l.hypervisors.log.Info("hypervisor", "name", f.Name, "unreachable", f.Unreachable, "uplink_down", f.UplinkDown)
		switch {
		case f.Unreachable && l.Expired != nil:
			l.Expired(f.Name, numbers[f.Name], f.Since)
		case !f.Unreachable && l.Returned != nil:
			l.Returned(f.Name, numbers[f.Name])
		}
	}
	return nil
}

func (l *Leases) lessee(r store.HypervisorDoc) Lessee {
	l.mu.Lock()
	seen, ok := l.seen[r.Name]
	down := l.uplink[r.Name]
	l.mu.Unlock()
	if !ok {
		seen = l.started
		if r.Unreachable {
			// It was silent before we started and has not been heard of since: no
			// reason to credit it, none to expire it again.
			seen = r.Since
		}
		down = r.UplinkDown
	}
	return Lessee{
		Name: r.Name, Seen: seen, UplinkDown: down,
		InStep:      l.InStep == nil || l.InStep(r.Name),
		Unreachable: r.Unreachable, UplinkCommitted: r.UplinkDown, Since: r.Since,
	}
}
