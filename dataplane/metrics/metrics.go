// SPDX-License-Identifier: Apache-2.0

// Package metrics says what an agent counts in the text format of Prometheus
// (version 0.0.4), and serves it. It owns the names of metrics, and counts nothing
// itself: it asks the source that `cairn debug` asks. The format is a line a value;
// the client library of Prometheus would bring a registry of counters of its own, and
// seven modules. Start at Write.
package metrics

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"cairn/dataplane/debug"
)

// Source is what an agent knows.
type Source interface {
	Status() debug.Status
	Ports() []debug.Port
	Services() []debug.Service
	Drops() ([]debug.Drop, error)
}

// page collects the lines of one answer.
type page struct{ w *bufio.Writer }

// family begins a metric: its kind is counter, gauge or histogram.
func (p page) family(name, kind, help string) {
	fmt.Fprintf(p.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// value writes one line; labels are names and values in turn.
func (p page) value(name string, v any, labels ...any) {
	p.w.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		p.w.WriteByte("{,"[min(i, 1)])
		fmt.Fprintf(p.w, "%s=\"%s\"", labels[i], escaper.Replace(fmt.Sprint(labels[i+1])))
	}
	if len(labels) > 0 {
		p.w.WriteByte('}')
	}
	fmt.Fprintf(p.w, " %v\n", v)
}

var escaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// Write all metrics. An error is of w, or of counters that cannot be read.
func Write(w io.Writer, s Source) error {
	p := page{bufio.NewWriter(w)}
	drops, err := s.Drops()
	if err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	p.agent(s.Status())
	p.reasons(drops)
	p.ports(s.Ports())
	services := s.Services()
	p.services(services)
	p.backends(services)
	if err := p.w.Flush(); err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	return nil
}

func (p page) agent(s debug.Status) {
	for _, g := range []struct {
		name, help string
		v          any
	}{
		{"cairn_agent_start_time_seconds", "When the agent started, in Unix time.", s.Started.Unix()},
		{"cairn_agent_connected", "Whether the agent has a stream from the control plane.", number(s.Control.Connected)},
		{"cairn_agent_desired_revision", "The revision that the agent was told of last.", s.Desired.Revision},
		{"cairn_agent_programmed_revision", "The revision that is in force.", s.Programmed.Revision},
		{"cairn_agent_uplink_up", "Whether the uplink has a carrier.", number(!s.UplinkDown)},
		{"cairn_agent_unsettled_units", "Units of map entries that are not as wanted.", len(s.Unsettled)},
		{"cairn_agent_flows", "Live flows of all ports at the last sweep.", s.Flows},
		{"cairn_agent_resident_bytes", "Resident memory of the agent.", s.Memory},
	} {
		p.family(g.name, "gauge", g.help)
		p.value(g.name, g.v)
	}
	for _, c := range []struct {
		name, help string
		v          uint64
	}{
		{"cairn_agent_starts_before_total", "Starts before this one with the same state.", s.Restarts},
		{"cairn_agent_refused_changes_total", "Changes of the control plane that the agent has refused.", s.Refusals},
		{"cairn_agent_repaired_entries_total", "Map entries that somebody else had changed.", s.Repaired},
	} {
		p.family(c.name, "counter", c.help)
		p.value(c.name, c.v)
	}
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p page) reasons(all []debug.Drop) {
	for _, kind := range []struct {
		name, help string
		drop       bool
	}{
		{"cairn_dropped_packets_total", "Packets that were dropped, by reason.", true},
		{"cairn_left_packets_total", "Packets that left a program otherwise, by reason.", false},
	} {
		p.family(kind.name, "counter", kind.help)
		for _, d := range all {
			if d.Drop == kind.drop {
				p.value(kind.name, d.Count, "reason", d.Reason)
			}
		}
	}
}

func (p page) ports(all []debug.Port) {
	for _, c := range []struct {
		name, help string
		of         func(debug.Counters) (in, out uint64)
	}{
		{"cairn_port_packets_total", "Packets of a port; in is to its instance.", func(c debug.Counters) (uint64, uint64) { return c.PacketsIn, c.PacketsOut }},
		{"cairn_port_bytes_total", "Bytes of IP of a port.", func(c debug.Counters) (uint64, uint64) { return c.BytesIn, c.BytesOut }},
	} {
		p.family(c.name, "counter", c.help)
		for _, port := range all {
			in, out := c.of(port.Counters)
			p.value(c.name, in, "port", port.ID, "instance", port.Instance, "direction", "in")
			p.value(c.name, out, "port", port.ID, "instance", port.Instance, "direction", "out")
		}
	}
	p.family("cairn_port_dropped_packets_total", "counter", "Packets dropped at a port, either way.")
	for _, port := range all {
		p.value("cairn_port_dropped_packets_total", port.Counters.Dropped, "port", port.ID, "instance", port.Instance)
	}
}

func (p page) services(all []debug.Service) {
	for _, c := range []struct {
		name, help string
		of         func(debug.Traffic) uint64
	}{
		{"cairn_vip_packets_total", "Packets of a service that this host has taken as an LB node.", func(t debug.Traffic) uint64 { return t.Packets }},
		{"cairn_vip_bytes_total", "Bytes of IP of the same.", func(t debug.Traffic) uint64 { return t.Bytes }},
		{"cairn_vip_opened_total", "TCP SYNs of the same.", func(t debug.Traffic) uint64 { return t.Opened }},
		{"cairn_vip_forwarded_total", "Packets that this host has handed on to the other owner of their slot.", func(t debug.Traffic) uint64 { return t.Forwarded }},
	} {
		p.family(c.name, "counter", c.help)
		for _, s := range all {
			p.value(c.name, c.of(s.Traffic), "service", s.ID, "vip", s.VIP)
		}
	}
	p.family("cairn_vip_slots_skew", "gauge", "Largest share of slots over the mean.")
	for _, s := range all {
		p.value("cairn_vip_slots_skew", s.Skew(), "service", s.ID, "vip", s.VIP)
	}
	const name = "cairn_vip_connect_seconds"
	p.family(name, "histogram", "From a SYN to its answer, at the host of the backend.")
	for _, s := range all {
		if s.Latency.Total() == 0 {
			continue
		}
		var below uint64
		last := len(s.Latency.Count) - 1 // has no end
		for i, n := range s.Latency.Count[:last] {
			below += n
			p.value(name+"_bucket", below, "service", s.ID, "vip", s.VIP, "le", s.Latency.Bound(i).Seconds())
		}
		p.value(name+"_bucket", s.Latency.Total(), "service", s.ID, "vip", s.VIP, "le", "+Inf")
		p.value(name+"_sum", float64(s.Latency.Micros)/1e6, "service", s.ID, "vip", s.VIP)
		p.value(name+"_count", s.Latency.Total(), "service", s.ID, "vip", s.VIP)
	}
}

func (p page) backends(all []debug.Service) {
	for _, m := range []struct {
		name, kind, help string
		of               func(debug.Backend) uint64
		local            bool // counted at the backend's host alone
	}{
		{"cairn_backend_packets_total", "counter", "Packets that this host, as an LB node, has chosen a backend for.", func(b debug.Backend) uint64 { return b.Traffic.Packets }, false},
		{"cairn_backend_bytes_total", "counter", "Bytes of IP of the same.", func(b debug.Backend) uint64 { return b.Traffic.Bytes }, false},
		{"cairn_backend_opened_total", "counter", "TCP SYNs of the same.", func(b debug.Backend) uint64 { return b.Traffic.Opened }, false},
		{"cairn_backend_slots", "gauge", "Slots that a backend owns.", func(b debug.Backend) uint64 { return uint64(b.Slots) }, false},
		{"cairn_backend_connections", "gauge", "Live connections of a backend on this host.", func(b debug.Backend) uint64 { return b.Connections.Live }, true},
		{"cairn_backend_connections_opened_total", "counter", "Connections that were confirmed.", func(b debug.Backend) uint64 { return b.Connections.Opened }, true},
		{"cairn_backend_refused_total", "counter", "SYNs that a backend did not take: draining, unhealthy, at its limit.", func(b debug.Backend) uint64 { return b.Connections.Refused }, true},
	} {
		p.family(m.name, m.kind, m.help)
		p.each(all, m.local, func(b debug.Backend, labels []any) { p.value(m.name, m.of(b), labels...) })
	}
	for _, m := range []struct {
		name, help string
		of         func(debug.Connections) (in, out uint64)
	}{
		{"cairn_backend_resets_total", "RSTs that ended a connection; in is from the client.", func(c debug.Connections) (uint64, uint64) { return c.ResetsIn, c.ResetsOut }},
		{"cairn_backend_retransmits_total", "Segments with what had been sent before.", func(c debug.Connections) (uint64, uint64) { return c.RetransmitsIn, c.RetransmitsOut }},
	} {
		p.family(m.name, "counter", m.help)
		p.each(all, true, func(b debug.Backend, labels []any) {
			in, out := m.of(b.Connections)
			p.value(m.name, in, append(labels, "direction", "in")...)
			p.value(m.name, out, append(labels, "direction", "out")...)
		})
	}
}

func (p page) each(all []debug.Service, local bool, f func(debug.Backend, []any)) {
	for _, s := range all {
		for _, b := range s.Backends {
			if local && b.Endpoint != "local" {
				continue
			}
			f(b, []any{"service", s.ID, "vip", s.VIP, "backend", b.ID, "address", b.Address})
		}
	}
}
