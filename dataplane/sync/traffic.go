// SPDX-License-Identifier: Apache-2.0

package sync

import (
	"fmt"
	"net/netip"
	"time"

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

// Flow is an entry of the flow log. Addresses and ports are those of the first
// packet, as the instance sees it.
type Flow struct {
	Event           FlowEvent
	At              time.Time
	Opened          time.Time // of one that closed
	Port            uint32
	Egress          bool
	Protocol        uint8
	Source          netip.Addr // none: of no IP packet
	Destination     netip.Addr
	SourcePort      uint16
	DestinationPort uint16
	Rule            uint32
	Service         uint32
	Reason          string
	Packets, Bytes  uint64
}

// PortUsage is what the counters of a port say.
type PortUsage struct {
	Port                 uint32
	PacketsIn, BytesIn   uint64 // towards the instance
	PacketsOut, BytesOut uint64
	Dropped              uint64
}

// Traffic is what there is to tell of packets. Its methods do not wait.
type Traffic interface {
	// Wake says that there may be flows to take.
	Wake() <-chan struct{}
	// Take up to most flows, with how many are lost and how many were taken up to
	// now, these included; both for good.
	Take(most int) (flows []Flow, lost, taken uint64)
	// Usage is what counters say now.
	Usage() []PortUsage
}

// The flow log gives way to everything else: one message of so many flows, then
// this long none, which is 5,000 flows a second.
const (
	maxFlows = 500
	flowGap  = 100 * time.Millisecond
	maxUsage = 4096 // ports of a message
)

// telling is what is told of packets on one stream.
type telling struct {
	traffic Traffic
	wake    <-chan struct{} // nil while nothing is to be told
	rest    *time.Timer     // of the flow log
	every   *time.Ticker    // of usage
	lost    uint64          // that was said
	counted bool            // usage was told
}

func (c *Client) tell() *telling {
	t := &telling{traffic: c.cfg.Traffic, rest: time.NewTimer(0), every: time.NewTicker(c.cfg.UsageEvery)}
	if t.traffic == nil {
		t.rest.Stop()
		t.every.Stop()
	}
	return t
}

func (t *telling) end() {
	t.rest.Stop()
	t.every.Stop()
}

// rested: the flow log may go on. A stream begins with usage, so that what was
// counted while there was none is known at once.
func (t *telling) rested(s *sending) error {
	t.wake = t.traffic.Wake()
	if t.counted {
		return nil
	}
	t.counted = true
	return t.usage(s)
}

// flows sends what there is of the flow log, one message.
func (t *telling) flows(s *sending) error {
	t.wake = nil
	t.rest.Reset(flowGap)
	flows, lost, taken := t.traffic.Take(maxFlows)
	if len(flows) == 0 && lost == t.lost {
		return nil
	}
	t.lost = lost
	m := &agentv1.Flows{Lost: lost, Taken: taken}
	for _, f := range flows {
		m.Flows = append(m.Flows, flowOf(f))
	}
	if err := s.stream.Send(&agentv1.FromAgent{Message: &agentv1.FromAgent_Flows{Flows: m}}); err != nil {
		return fmt.Errorf("send flows: %w", err)
	}
	return nil
}

var flowEvents = map[FlowEvent]agentv1.Flow_Event{
	FlowOpened: agentv1.Flow_EVENT_OPENED, FlowClosed: agentv1.Flow_EVENT_CLOSED, FlowDenied: agentv1.Flow_EVENT_DENIED,
}

func flowOf(f Flow) *agentv1.Flow {
	m := &agentv1.Flow{
		Event: flowEvents[f.Event], AtNs: f.At.UnixNano(), Port: f.Port, Egress: f.Egress, Protocol: uint32(f.Protocol),
		Source: f.Source.Unmap().AsSlice(), Destination: f.Destination.Unmap().AsSlice(),
		SourcePort: uint32(f.SourcePort), DestinationPort: uint32(f.DestinationPort),
		Rule: f.Rule, Service: f.Service, Reason: f.Reason, Packets: f.Packets, Bytes: f.Bytes,
	}
	if !f.Opened.IsZero() {
		m.OpenedNs = f.Opened.UnixNano()
	}
	return m
}

// usage sends what counters say.
func (t *telling) usage(s *sending) error {
	ports := t.traffic.Usage()
	for len(ports) > 0 {
		some := ports[:min(len(ports), maxUsage)]
		ports = ports[len(some):]
		m := &agentv1.Usage{AtNs: time.Now().UnixNano()}
		for _, p := range some {
			m.Ports = append(m.Ports, &agentv1.PortUsage{
				Port: p.Port, PacketsIn: p.PacketsIn, BytesIn: p.BytesIn, PacketsOut: p.PacketsOut, BytesOut: p.BytesOut,
				PacketsDropped: p.Dropped,
			})
		}
		if err := s.stream.Send(&agentv1.FromAgent{Message: &agentv1.FromAgent_Usage{Usage: m}}); err != nil {
			return fmt.Errorf("send usage: %w", err)
		}
	}
	return nil
}
