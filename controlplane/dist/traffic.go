// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"net/netip"
	"strconv"
	"sync"
	"time"

	"cairn/cloud/wire"
	"cairn/controlplane/compile"
	agentv1 "cairn/proto/agent/v1"
)

// FlowEvent is what is said of a flow.
type FlowEvent uint8

// The events.
const (
	FlowOpened FlowEvent = iota + 1
	FlowClosed
	FlowDenied
)

// Flow is an entry of the flow log: of a port that is on the host that tells of
// it. Addresses and ports are those of the first packet; of ICMP
// DestinationPort is type << 8 | code.
type Flow struct {
	Event           FlowEvent
	At              time.Time
	Opened          time.Time // of one that closed; zero if it is not known
	Port            uint32
	Direction       wire.Direction
	Protocol        uint8
	Source          netip.Addr
	Destination     netip.Addr
	SourcePort      uint16
	DestinationPort uint16
	Rule            uint32 // that admitted it; 0: none
	Service         uint32 // through which it came; 0: none
	Reason          string // of a denial, or of an end that was not the flow's own
	Packets, Bytes  uint64 // of one that closed, both ways
}

// PortUsage is what the counters of a port say, which is on the host that tells
// of it. Bytes are of IP.
type PortUsage struct {
	Port                 uint32
	PacketsIn, BytesIn   uint64 // towards the instance
	PacketsOut, BytesOut uint64
	Dropped              uint64 // packets, either way
}

// FlowBatch is what one message brings of a host's flow log. Lost and Taken count
// for good: Lost is what the host had no room for, Taken what it has sent, this
// batch included; 0 if it does not count that. One that falls has begun anew.
type FlowBatch struct {
	Flows       []Flow
	Refused     int // entries of ports that are not on the host, or illegible
	Lost, Taken uint64
}

// Traffic hears what agents tell of packets. Its methods must not wait: the
// stream does.
type Traffic interface {
	// Flows brings entries of the flow log.
	Flows(host string, batch FlowBatch)
	// Usage brings counters as they were at a time. They count from 0 in each
	// boot of the host.
	Usage(host, boot string, at time.Time, ports []PortUsage)
}

// What a message may hold: more is counted as illegible.
const (
	maxFlows  = 4096
	maxUsage  = 65536
	maxReason = 64
)

// A host's clock may be so far off; beyond that our own time is taken.
const (
	clockBehind = 24 * time.Hour
	clockAhead  = time.Minute
)

// afterlife is how long a host may still tell of a port that it had to let go.
const afterlife = time.Minute

// left is a port that hosts had to let go.
type left struct {
	grave grave
	at    time.Time
}

// leavings remembers ports that went a moment ago.
type leavings struct {
	mu    sync.Mutex
	ports map[wire.Key]left
}

// note the ports that a batch takes from hosts.
func (l *leavings) note(r compile.Result, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, old := range l.ports {
		if now.Sub(old.at) > afterlife {
			delete(l.ports, key)
		}
	}
	for _, step := range r.Steps {
		if step.Key().Kind != wire.KindPort {
			continue
		}
		if g, ok := graveOf(step, r.Revision); ok {
			l.ports[g.Key] = left{g, now}
		}
	}
}

func (l *leavings) had(host uint32, key wire.Key, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	one, ok := l.ports[key]
	return ok && one.grave.held(host) && now.Sub(one.at) <= afterlife
}

// mine tells whether a port is on the session's host, or was a moment ago.
func (s *session) mine(port uint32, now time.Time) bool {
	shelf := s.server.shelf
	key := wire.Key{Kind: wire.KindPort, ID: strconv.FormatUint(uint64(port), 10)}
	shelf.mu.RLock()
	_, ok := shelf.holds(s.number, key)
	shelf.mu.RUnlock()
	return ok || s.server.leavings.had(s.number, key, now)
}

// flows takes in entries of the flow log. What is wrong with one is counted and
// ends nothing.
func (s *session) flows(m *agentv1.Flows) {
	stats, now := &s.server.Stats, s.server.config.Now()
	list, over := m.Flows, 0
	if len(list) > maxFlows {
		list, over = list[:maxFlows], len(list)-maxFlows
	}
	taken := make([]Flow, 0, len(list))
	bad, foreign := over, 0
	for _, one := range list {
		flow, ok := flowOf(one, now)
		switch {
		case !ok:
			bad++
		case !s.mine(flow.Port, now):
			foreign++
		default:
			taken = append(taken, flow)
		}
	}
	stats.Flows.Add(uint64(len(taken)))
	stats.FlowsIllegible.Add(uint64(bad))
	stats.FlowsForeign.Add(uint64(foreign))
	if t := s.server.config.Traffic; t != nil {
		t.Flows(s.name, FlowBatch{Flows: taken, Refused: bad + foreign, Lost: m.Lost, Taken: m.Taken})
	}
}

var flowEvents = map[agentv1.Flow_Event]FlowEvent{
	agentv1.Flow_EVENT_OPENED: FlowOpened, agentv1.Flow_EVENT_CLOSED: FlowClosed, agentv1.Flow_EVENT_DENIED: FlowDenied,
}

func flowOf(m *agentv1.Flow, now time.Time) (Flow, bool) {
	f := Flow{
		Event: flowEvents[m.GetEvent()], At: timeOf(m.GetAtNs(), now), Port: m.GetPort(), Protocol: uint8(m.GetProtocol()),
		SourcePort: uint16(m.GetSourcePort()), DestinationPort: uint16(m.GetDestinationPort()),
		Rule: m.GetRule(), Service: m.GetService(), Reason: m.GetReason(), Packets: m.GetPackets(), Bytes: m.GetBytes(),
	}
	if m.GetEgress() {
		f.Direction = wire.Egress
	}
	if m.GetOpenedNs() > 0 {
		f.Opened = time.Unix(0, m.GetOpenedNs()).UTC()
	}
	var legible [2]bool
	f.Source, legible[0] = addressOf(m.GetSource())
	f.Destination, legible[1] = addressOf(m.GetDestination())
	return f, f.Event != 0 && f.Port != 0 && legible[0] && legible[1] && m.GetProtocol() <= 255 &&
		m.GetSourcePort() <= 65535 && m.GetDestinationPort() <= 65535 && isWord(f.Reason)
}

// addressOf a packet; one that is no IP has none.
func addressOf(b []byte) (netip.Addr, bool) {
	if len(b) == 0 {
		return netip.Addr{}, true
	}
	a, ok := netip.AddrFromSlice(b)
	return a.Unmap(), ok
}

// isWord: reasons are words, such as policy_in. Nothing else gets into a log
// that people and programs read.
func isWord(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return len(s) <= maxReason
}

// timeOf what a host says; its clock may be wrong.
func timeOf(ns int64, now time.Time) time.Time {
	at := time.Unix(0, ns)
	if at.Before(now.Add(-clockBehind)) || at.After(now.Add(clockAhead)) {
		at = now
	}
	return at.UTC()
}

// usage takes in counters of ports.
func (s *session) usage(m *agentv1.Usage) {
	stats, now := &s.server.Stats, s.server.config.Now()
	list := m.Ports
	if len(list) > maxUsage {
		stats.UsageIllegible.Add(uint64(len(list) - maxUsage))
		list = list[:maxUsage]
	}
	taken := make([]PortUsage, 0, len(list))
	for _, one := range list {
		switch {
		case one.GetPort() == 0:
			stats.UsageIllegible.Add(1)
		case !s.mine(one.GetPort(), now):
			stats.UsageForeign.Add(1)
		default:
			taken = append(taken, PortUsage{
				Port: one.GetPort(), PacketsIn: one.GetPacketsIn(), BytesIn: one.GetBytesIn(),
				PacketsOut: one.GetPacketsOut(), BytesOut: one.GetBytesOut(), Dropped: one.GetPacketsDropped(),
			})
		}
	}
	stats.Usage.Add(uint64(len(taken)))
	if t := s.server.config.Traffic; t != nil && len(taken) > 0 {
		t.Usage(s.name, s.boot, timeOf(m.AtNs, now), taken)
	}
}
