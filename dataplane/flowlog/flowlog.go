// SPDX-License-Identifier: Apache-2.0

// Package flowlog is what an agent has to tell of packets: it takes what the
// programs tell of flows, keeps it until the stream takes it, and reads the
// counters of ports. Nobody waits for it: what there is no room for is lost and
// counted, by a ledger that outlives the process. It judges nothing.
//
// Start at Log.Run for what comes in, Log.Take for what goes out.
package flowlog

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"cairn/bpf"
	"cairn/dataplane/host"
	dsync "cairn/dataplane/sync"
)

// Host is the dataplane, as far as it tells of packets.
type Host interface {
	EventCounts() (host.EventCounts, error)
	EventsWaiting() (host.EventCounts, error)
	AllPortStats() (map[uint32]host.PortStats, error)
}

// Events are what a host tells from now on; *host.Events.
type Events interface {
	All(ctx context.Context) iter.Seq[bpf.Event]
	Missed() uint64
}

// Config of a log. The zero value of a field means its default.
type Config struct {
	Host   Host
	Ledger string // file
	Queue  int    // flows that may wait for the stream, 16,384
	Log    *slog.Logger
	Time   func(at uint64) time.Time // of the programs' clock; host.TimeOf
}

// farewell is for how long what a port had counted when it went is told.
const farewell = time.Minute

// Log is what there is to tell.
type Log struct {
	cfg    Config
	events Events
	wake   chan struct{}

	mu     sync.Mutex
	ledger *ledger
	queue  []dsync.Flow
	waits  map[uint32]int // flows in the queue, by port
	missed uint64         // by the listener, as far as it is in the ledger
	lost   uint64         // as it was taken last
	gone   map[uint32]gone
}

var _ dsync.Traffic = (*Log)(nil)

// gone is a port that was detached.
type gone struct {
	stats host.PortStats
	at    time.Time
}

// New goes on where the agent before has stopped. It is called before anybody
// listens to the host's events; listen does so then.
func New(cfg Config, listen func() (Events, error)) (*Log, error) {
	if cfg.Queue == 0 {
		cfg.Queue = 16384
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Time == nil {
		cfg.Time = host.TimeOf
	}
	counts, err := cfg.Host.EventsWaiting()
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, wake: make(chan struct{}, 1), gone: map[uint32]gone{}, waits: map[uint32]int{}}
	if l.ledger, err = openLedger(cfg.Ledger, counts); err != nil {
		// What is lost with this process will not be counted, and all else goes on.
		cfg.Log.Warn("losses of the flow log are not kept", "error", err)
	}
	if l.events, err = listen(); err != nil {
		return nil, errors.Join(err, l.ledger.close())
	}
	return l, nil
}

// Close the ledger, after Run.
func (l *Log) Close() error { return l.ledger.close() }

// Run takes what the programs tell until ctx ends.
func (l *Log) Run(ctx context.Context) {
	for e := range l.events.All(ctx) {
		l.add(e)
	}
}

func (l *Log) add(e bpf.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, ok := l.flowOf(&e)
	switch {
	case !ok: // for others who listen
		l.ledger.add(settled, 1)
	case len(l.queue) >= l.cfg.Queue && !l.yield(f.Port):
		l.ledger.add(dropped, 1)
		l.ledger.add(settled, 1)
	default:
		l.queue = append(l.queue, f)
		l.waits[f.Port]++
		l.poke()
	}
}

// yield makes room in a full queue for a flow of port: the last one is lost of the
// port that has most there, so that who floods one costs others nothing. It fails
// if that would be the port itself, or one that has no more.
func (l *Log) yield(port uint32) bool {
	most := port
	for p, n := range l.waits {
		if n > l.waits[most] {
			most = p
		}
	}
	if l.waits[most] <= l.waits[port]+1 {
		return false
	}
	at := len(l.queue) - 1
	for l.queue[at].Port != most {
		at--
	}
	l.queue = slices.Delete(l.queue, at, at+1)
	l.waits[most]--
	l.ledger.add(dropped, 1)
	l.ledger.add(settled, 1)
	return true
}

func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default: // it is awake
	}
}

// Wake implements sync.Traffic.
func (l *Log) Wake() <-chan struct{} { return l.wake }

// Take implements sync.Traffic. What was taken and does not arrive is found
// missing by who counts what arrives.
func (l *Log) Take(most int) (flows []dsync.Flow, lost, taken uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(most, len(l.queue))
	flows = slices.Clone(l.queue[:n])
	l.queue = l.queue[n:]
	for _, f := range flows {
		if l.waits[f.Port]--; l.waits[f.Port] == 0 {
			delete(l.waits, f.Port)
		}
	}
	if len(l.queue) == 0 {
		l.queue = nil
	} else {
		l.poke()
	}
	l.ledger.add(taking, uint64(n))
	l.ledger.add(settled, uint64(n))
	l.lost = l.losses()
	return flows, l.lost, l.ledger.get(taking)
}

// losses up to now: by the programs, by the listener and here.
func (l *Log) losses() uint64 {
	if missed := l.events.Missed(); missed > l.missed {
		l.ledger.add(dropped, missed-l.missed)
		l.ledger.add(settled, missed-l.missed)
		l.missed = missed
	}
	counts, err := l.cfg.Host.EventCounts()
	if err != nil {
		return max(l.lost, l.ledger.get(dropped)) // it is said with the next one
	}
	return l.ledger.get(dropped) + l.ledger.kernel(counts)
}

// Detached notes what a port had counted when it went. The port's number may not
// be known here any more when that is told.
func (l *Log) Detached(port uint32, last host.PortStats) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone[port] = gone{last, time.Now()}
}

// Usage implements sync.Traffic. A port that went and is back is told of twice:
// first how it ended.
func (l *Log) Usage() []dsync.PortUsage {
	all, err := l.cfg.Host.AllPortStats()
	if err != nil {
		l.cfg.Log.Warn("counters of ports not read", "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]dsync.PortUsage, 0, len(all)+len(l.gone))
	for port, g := range l.gone {
		if time.Since(g.at) <= farewell {
			out = append(out, usageOf(port, g.stats))
		}
		if _, back := all[port]; back || time.Since(g.at) > farewell {
			delete(l.gone, port)
		}
	}
	for _, port := range slices.Sorted(maps.Keys(all)) {
		out = append(out, usageOf(port, all[port]))
	}
	if l.losses() != l.lost {
		l.poke() // with no flow to tell, that is told
	}
	return out
}

func usageOf(port uint32, s host.PortStats) dsync.PortUsage {
	return dsync.PortUsage{
		Port: port, PacketsIn: s.PacketsIn, BytesIn: s.BytesIn, PacketsOut: s.PacketsOut, BytesOut: s.BytesOut, Dropped: s.Dropped,
	}
}

var kinds = map[uint8]dsync.FlowEvent{
	bpf.EventOpened: dsync.FlowOpened, bpf.EventClosed: dsync.FlowClosed, bpf.EventDenied: dsync.FlowDenied,
}

// flowOf an event, if it is one for the log.
func (l *Log) flowOf(e *bpf.Event) (dsync.Flow, bool) {
	kind, ok := kinds[e.Kind]
	if !ok || e.Audience&bpf.EventForLog == 0 || e.Port == 0 {
		return dsync.Flow{}, false
	}
	f := dsync.Flow{
		Event: kind, At: l.cfg.Time(e.At), Port: e.Port, Egress: uint32(e.Direction) == bpf.DirectionOut, Protocol: e.Proto,
		Source: addressOf(e.Src), Destination: addressOf(e.Dst), SourcePort: bpf.BE16(e.Sport), DestinationPort: bpf.BE16(e.Dport),
		Rule: e.Rule, Service: e.Service,
	}
	if bpf.Reason(e.Reason) != bpf.ReasonNone {
		f.Reason = bpf.Reason(e.Reason).String()
	}
	if kind == dsync.FlowClosed {
		f.Opened, f.Packets, f.Bytes = l.cfg.Time(e.Opened), e.Packets, e.Bytes
	}
	return f, true
}

// addressOf a packet; what is no IP has none.
func addressOf(ip bpf.Ip16) netip.Addr {
	a := ip.Addr()
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
