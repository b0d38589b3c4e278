// SPDX-License-Identifier: Apache-2.0

// Package traffic is where what agents tell of packets becomes the zone's: flows
// get the names of what their numbers stand for, as they are when they come in,
// and go to the event log; counters of ports become sums by the hour. It decides
// no verdict and asks no agent. The rules of metering are cloud/meter's, the log
// is controlplane/eventlog's.
//
// Start at Traffic.Flows and Traffic.Usage; usage.go closes windows, answer.go
// serves the flow log to customers.
package traffic

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"cairn/cloud"
	"cairn/cloud/firewall"
	"cairn/cloud/meter"
	"cairn/controlplane/dist"
	"cairn/controlplane/eventlog"
	"cairn/controlplane/replica"
)

// Config of traffic. The zero value of a field means its default.
type Config struct {
	Zone     string
	Events   *eventlog.Log
	Snapshot func() replica.Snapshot
	File     string        // that keeps the sums which are not closed
	Window   time.Duration // an hour
	Grace    time.Duration // until a window that has ended is closed: a twelfth of it
	Log      *slog.Logger
	Now      func() time.Time
}

// Stats count what could not be used.
type Stats struct {
	AgentLost  atomic.Uint64 // flows that agents had no room for, or that got lost on the way
	Refused    atomic.Uint64 // of ports that are not on the host, or illegible
	Throttled  atomic.Uint64 // beyond a host's rate
	Overflowed atomic.Uint64 // that the event log had no room for
	Unknown    atomic.Uint64 // of ports that no instance has
	Resets     atomic.Uint64 // counters of ports that have begun anew
	Abandoned  atomic.Uint64 // reports of before they did
}

// Traffic takes what agents tell.
type Traffic struct {
	cfg   Config
	Stats Stats

	ports    recent[portFacts]
	rules    recent[cloud.FlowRule]
	services recent[cloud.FlowService]

	mu      sync.Mutex
	meter   *meter.Meter
	hosts   map[string]*host
	pending []meter.Usage // of windows that are closed, until they are in the log
}

var _ dist.Traffic = (*Traffic)(nil)

// host is what is counted of one.
type host struct {
	said  counts        // by its agent
	loss  eventlog.Loss // since it was told last
	room  float64       // flows that it may bring at once
	since time.Time     // when that was so
}

// counts that an agent keeps for good.
type counts struct{ Lost, Taken uint64 }

// since is how many flows are missing, given how many have come. Where it is not
// known what was taken before, nothing can be said of the way.
func (c counts) since(before counts, came uint64) (missing uint64) {
	if c.Lost >= before.Lost {
		missing = c.Lost - before.Lost
	} else {
		missing = c.Lost // it counts anew
	}
	if before.Taken != 0 && c.Taken > before.Taken+came {
		missing += c.Taken - before.Taken - came
	}
	return missing
}

// What one host may bring: a compromised one must not take the others' room in
// the log. Ports have a rate of their own at the host.
const (
	hostRate  = 5000 // flows a second
	hostBurst = 20000
)

type portFacts struct {
	instance, org cloud.ID
	network       cloud.ID // "" for the public one
}

// Flows implements dist.Traffic.
func (t *Traffic) Flows(name string, batch dist.FlowBatch) {
	now := t.cfg.Now()
	flows := batch.Flows
	t.mu.Lock()
	h := t.host(name, now)
	said := counts{batch.Lost, batch.Taken}
	more := said.since(h.said, uint64(len(flows)+batch.Refused))
	h.said = said
	allowed := h.allow(len(flows), now)
	h.loss.Agent += more
	h.loss.ControlPlane += uint64(len(flows) - allowed + batch.Refused)
	t.mu.Unlock()
	t.Stats.AgentLost.Add(more)
	t.Stats.Refused.Add(uint64(batch.Refused))
	t.Stats.Throttled.Add(uint64(len(flows) - allowed))

	snap := t.cfg.Snapshot()
	events := make([]eventlog.Event, 0, allowed)
	for i := range flows[:allowed] {
		if e, ok := t.event(snap, name, &flows[i], now); ok {
			events = append(events, e)
		}
	}
	unknown := allowed - len(events)
	over := len(events) - t.cfg.Events.Offer(events)
	t.Stats.Unknown.Add(uint64(unknown))
	t.Stats.Overflowed.Add(uint64(over))
	t.missed(name, unknown+over)
}

func (t *Traffic) missed(name string, flows int) {
	if flows > 0 {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.host(name, t.cfg.Now()).loss.ControlPlane += uint64(flows)
	}
}

func (t *Traffic) host(name string, now time.Time) *host {
	h := t.hosts[name]
	if h == nil {
		h = &host{room: hostBurst, since: now}
		t.hosts[name] = h
	}
	return h
}

// allow takes as many of n as the host's rate permits.
func (h *host) allow(n int, now time.Time) int {
	h.room = min(hostBurst, h.room+hostRate*max(0, now.Sub(h.since).Seconds()))
	h.since = now
	n = min(n, int(h.room))
	h.room -= float64(n)
	return n
}

var flowKinds = map[dist.FlowEvent]struct {
	kind eventlog.Kind
	name string
}{
	dist.FlowOpened: {eventlog.FlowOpened, cloud.FlowOpened},
	dist.FlowClosed: {eventlog.FlowClosed, cloud.FlowClosed},
	dist.FlowDenied: {eventlog.FlowDenied, cloud.FlowDenied},
}

// event is an entry of the flow log with the names of what it tells of.
func (t *Traffic) event(snap replica.Snapshot, host string, f *dist.Flow, now time.Time) (eventlog.Event, bool) {
	port, ok := t.portOf(snap, f.Port, now)
	if !ok {
		return eventlog.Event{}, false
	}
	kind := flowKinds[f.Event]
	flow := &cloud.Flow{
		At: f.At, Event: kind.name, Direction: cloud.FlowDirection(f.Direction.String()), Protocol: firewall.ProtocolName(f.Protocol),
		Source: f.Source, SourcePort: f.SourcePort, Destination: f.Destination, DestinationPort: f.DestinationPort,
		Reason: f.Reason, OpenedAt: f.Opened, Packets: f.Packets, Bytes: f.Bytes,
	}
	if f.Rule != 0 {
		rule := t.ruleOf(snap, f.Rule, now)
		flow.Rule = &rule
	}
	if f.Service != 0 {
		if service, ok := t.serviceOf(snap, f.Service, now); ok {
			flow.LoadBalancer = &service
		}
	}
	if port.network != "" {
		flow.PrivateNetwork = cloud.RefTo(port.network)
	}
	return eventlog.Event{
		Time: f.At, Kind: kind.kind, Zone: t.cfg.Zone, Host: host, Org: port.org, Instance: port.instance, Port: f.Port, Flow: flow,
	}, true
}

func (t *Traffic) portOf(snap replica.Snapshot, n uint32, now time.Time) (portFacts, bool) {
	return t.ports.find(n, now, func() (portFacts, bool) {
		i, ok := snap.InstanceAt(n)
		if !ok {
			return portFacts{}, false
		}
		facts := portFacts{instance: i.ID, org: i.Org}
		for _, a := range i.Body.Networks {
			if a.Port == n {
				facts.network = a.Network
			}
		}
		return facts, true
	})
}

// ruleOf a number. One that has gone long ago is a number and nothing else.
func (t *Traffic) ruleOf(snap replica.Snapshot, n uint32, now time.Time) cloud.FlowRule {
	rule, ok := t.rules.find(n, now, func() (cloud.FlowRule, bool) {
		g, ok := snap.GroupOfRule(n)
		if !ok {
			return cloud.FlowRule{}, false
		}
		for id, number := range g.Body.RuleNumbers {
			if number == n {
				return cloud.FlowRule{ID: id, SecurityGroup: cloud.RefTo(g.ID), Number: n}, true
			}
		}
		return cloud.FlowRule{}, false
	})
	if !ok {
		return cloud.FlowRule{Number: n}
	}
	return rule
}

func (t *Traffic) serviceOf(snap replica.Snapshot, n uint32, now time.Time) (cloud.FlowService, bool) {
	return t.services.find(n, now, func() (cloud.FlowService, bool) {
		s, ok := snap.ServiceByNumber(n)
		if !ok {
			return cloud.FlowService{}, false
		}
		return cloud.FlowService{ID: s.Body.LoadBalancer, Service: s.ID}, true
	})
}
