// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"

	"cairn/bpf"

	"github.com/cilium/ebpf"
)

// ServiceStat is what this host has forwarded of a service since it came up, as an
// LB node; Forwarded is what it has handed on to the other owner of a slot.
func (h *Host) ServiceStat(service uint32) (sum bpf.Stat, err error) {
	var perCPU []bpf.Stat
	if err := h.Maps.SvcStat.Lookup(service, &perCPU); err != nil {
		return sum, fmt.Errorf("read svc_stat of service %d: %w", service, err)
	}
	for _, s := range perCPU {
		sum = added(sum, s)
	}
	return sum, nil
}

// BackendStat is the same of one of its backends.
func (h *Host) BackendStat(backend uint32) (sum bpf.Stat, err error) {
	var perCPU []bpf.StatPage
	if err := h.Maps.BackendStat.Lookup(backend/bpf.StatsPerPage, &perCPU); err != nil {
		return sum, fmt.Errorf("read backend_stat of backend %d: %w", backend, err)
	}
	for i := range perCPU {
		sum = added(sum, perCPU[i].Of[backend%bpf.StatsPerPage])
	}
	return sum, nil
}

func added(a, b bpf.Stat) bpf.Stat {
	return bpf.Stat{Packets: a.Packets + b.Packets, Bytes: a.Bytes + b.Bytes, Opened: a.Opened + b.Opened, Forwarded: a.Forwarded + b.Forwarded}
}

// ConnStat is what this host has counted of a backend's connections, if the backend
// is on it.
func (h *Host) ConnStat(backend uint32) (s bpf.ConnStat, err error) {
	if err := h.Maps.BackendConn.Lookup(backend, &s); err != nil {
		return s, fmt.Errorf("read backend_conn of backend %d: %w", backend, err)
	}
	return s, nil
}

// Latency is how long the backends on this host have taken to answer a service's SYNs.
func (h *Host) Latency(service uint32) (sum bpf.Latency, err error) {
	var perCPU []bpf.Latency
	err = h.Maps.SvcLatency.Lookup(service, &perCPU)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return sum, nil
	}
	if err != nil {
		return sum, fmt.Errorf("read svc_latency of service %d: %w", service, err)
	}
	for _, l := range perCPU {
		for i, n := range l.Count {
			sum.Count[i] += n
		}
		sum.Sum += l.Sum
	}
	return sum, nil
}

// KeepLatency forgets the latencies of all services but these.
func (h *Host) KeepLatency(services map[uint32]bool) error {
	var gone []uint32
	var service uint32
	var perCPU []bpf.Latency
	entries := h.Maps.SvcLatency.Iterate()
	for entries.Next(&service, &perCPU) {
		if !services[service] {
			gone = append(gone, service)
		}
	}
	errs := []error{entries.Err()}
	for _, service := range gone {
		if err := h.Maps.SvcLatency.Delete(service); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forget latencies: %w", err)
	}
	return nil
}
