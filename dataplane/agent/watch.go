// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"

	"cairn/bpf"
	"cairn/cloud/firewall"
	"cairn/cloud/wire"
	"cairn/dataplane/debug"
	"cairn/dataplane/host"
	"cairn/dataplane/table"
)

// rules finds rules by their numbers in what is wanted now. Each is built once a
// stream, and again when a number is not known: policies change meanwhile.
type rules struct {
	a  *Agent
	by map[uint32]wire.Rule
}

func (r *rules) get(id uint32) (wire.Rule, bool) {
	if id == 0 {
		return wire.Rule{}, false
	}
	if rule, ok := r.by[id]; ok {
		return rule, rule.ID != 0
	}
	r.by = map[uint32]wire.Rule{}
	for p := range table.All[wire.Policy](r.a.table.View()) {
		for _, rule := range p.Rules {
			r.by[rule.ID] = rule
		}
	}
	rule, ok := r.by[id]
	r.by[id] = rule // also that there is none
	return rule, ok
}

func (r *rules) origin(id uint32) string {
	rule, _ := r.get(id)
	return rule.Origin
}

func directionName(d uint32) string {
	return map[uint32]string{bpf.DirectionIn: "in", bpf.DirectionOut: "out"}[d]
}

// WatchDrops implements debug.Source.
func (a *Agent) WatchDrops(ctx context.Context, f debug.DropFilter, line func(debug.DropEvent) error) error {
	filter := host.DropFilter{Port: f.Port}
	if f.Reason != "" {
		for _, r := range bpf.Reasons() {
			if r.String() == f.Reason {
				filter.Reason = r
			}
		}
		if filter.Reason == bpf.ReasonNone {
			return fmt.Errorf("--reason %q is no reason for which packets drop", f.Reason)
		}
	}
	if err := a.here(f.Port); err != nil {
		return err
	}
	known := &rules{a: a}
	return a.host.Drops(ctx, filter, func(e *bpf.Event, loss host.EventLoss) error {
		if e == nil {
			return line(debug.DropEvent{Loss: &debug.Loss{Lost: loss.Lost, Muted: loss.Muted}})
		}
		return line(debug.DropEvent{Packet: &debug.DroppedPacket{
			At: host.TimeOf(e.At), Port: e.Port, From: e.From, Direction: directionName(uint32(e.Direction)),
			Reason: bpf.Reason(e.Reason).String(), Rule: e.Rule, Origin: known.origin(e.Rule), Service: e.Service, Protocol: e.Proto,
			Src: netip.AddrPortFrom(e.Src.Addr(), bpf.BE16(e.Sport)), Dst: netip.AddrPortFrom(e.Dst.Addr(), bpf.BE16(e.Dport)),
			Flags: debug.FlagNames(e.TcpFlags), EtherType: bpf.BE16(e.Type), Packets: e.Packets, Bytes: e.Bytes,
		}})
	})
}

// WatchSamples implements debug.Source.
func (a *Agent) WatchSamples(ctx context.Context, service uint32, line func(debug.SampleEvent) error) error {
	if _, ok := table.Get[wire.Service](a.table.View(), fmt.Sprint(service)); !ok && service != 0 {
		return fmt.Errorf("--service %d is not on this host", service)
	}
	return a.host.Samples(ctx, service, func(e *bpf.Event, loss host.EventLoss) error {
		if e == nil {
			return line(debug.SampleEvent{Loss: &debug.Loss{Lost: loss.Lost, Muted: loss.Muted}})
		}
		return line(debug.SampleEvent{Packet: &debug.SampledPacket{
			At: host.TimeOf(e.At), Service: e.Service, Backend: e.From, Protocol: e.Proto, Bytes: e.Bytes, Flags: debug.FlagNames(e.TcpFlags),
			Src: netip.AddrPortFrom(e.Src.Addr(), bpf.BE16(e.Sport)), Dst: netip.AddrPortFrom(e.Dst.Addr(), bpf.BE16(e.Dport)),
		}})
	})
}

// here tells whether a port is on this host; 0 stands for all of them.
func (a *Agent) here(port uint32) error {
	if port == 0 {
		return nil
	}
	if _, ok := table.Get[wire.Port](a.table.View(), fmt.Sprint(port)); !ok {
		return fmt.Errorf("--port %d is not on this host", port)
	}
	return nil
}

// Capture implements debug.Source.
func (a *Agent) Capture(ctx context.Context, r debug.CaptureRequest, line func(debug.CaptureEvent) error) error {
	if err := a.here(r.Port); err != nil {
		return err
	}
	known := &rules{a: a}
	return a.host.Capture(ctx, r.Port, r.Bytes, func(f *host.Frame, lost uint64) error {
		if f == nil {
			return line(debug.CaptureEvent{Loss: &debug.Loss{Lost: lost}})
		}
		return line(debug.CaptureEvent{Frame: &debug.CapturedFrame{
			At: f.At, Port: f.Port, Direction: directionName(f.Direction), Dropped: f.Reason.IsDrop(), Reason: f.Reason.String(),
			Rule: f.Rule, Origin: known.origin(f.Rule), Service: f.Service, Length: f.Length, Bytes: f.Bytes,
		}})
	})
}

// Trace implements debug.Source.
func (a *Agent) Trace(r debug.TraceRequest) (debug.Trace, error) {
	if err := a.here(r.Port); err != nil {
		return debug.Trace{}, err
	}
	t, err := a.tracer.Trace(r)
	if err != nil {
		return t, err
	}
	if rule, ok := (&rules{a: a}).get(t.Rule); ok {
		t.Origin, t.Text = rule.Origin, firewall.Describe(rule)
	}
	return t, nil
}
