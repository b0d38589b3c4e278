// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"

	"cairn/bpf"

	"github.com/cilium/ebpf"
)

// PortStats are what a port has carried since it was attached, whatever agents
// came and went meanwhile. Packets are those on the wire, bytes of IP.
type PortStats struct {
	PacketsIn  uint64 `json:"packets_in"` // to the instance
	BytesIn    uint64 `json:"bytes_in"`
	PacketsOut uint64 `json:"packets_out"` // from it
	BytesOut   uint64 `json:"bytes_out"`
	Dropped    uint64 `json:"packets_dropped"` // either way
}

// PortStats of an attached port; one that is not has ebpf.ErrKeyNotExist.
func (h *Host) PortStats(port uint32) (PortStats, error) {
	var perCPU []bpf.PortStat
	if err := h.Maps.PortStat.Lookup(port, &perCPU); err != nil {
		return PortStats{}, fmt.Errorf("read port_stat of port %d: %w", port, err)
	}
	var sum PortStats
	for _, s := range perCPU {
		sum.PacketsIn += s.PacketsIn
		sum.BytesIn += s.BytesIn
		sum.PacketsOut += s.PacketsOut
		sum.BytesOut += s.BytesOut
		sum.Dropped += s.PacketsDropped
	}
	return sum, nil
}

// AllPortStats are those of all attached ports.
func (h *Host) AllPortStats() (map[uint32]PortStats, error) {
	ports, err := h.Attached()
	if err != nil {
		return nil, fmt.Errorf("read counters of ports: %w", err)
	}
	all := map[uint32]PortStats{}
	for port := range ports {
		s, err := h.PortStats(port)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue // it was detached just now
		}
		if err != nil {
			return nil, err
		}
		all[port] = s
	}
	return all, nil
}

// ensureStat gives the port its counters unless it has them.
func (h *Host) ensureStat(port uint32) error {
	zero := make([]bpf.PortStat, ebpf.MustPossibleCPU())
	if err := h.Maps.PortStat.Update(port, zero, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("write port_stat: %w", err)
	}
	return nil
}

func (h *Host) forgetStat(port uint32) error {
	if err := h.Maps.PortStat.Delete(port); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("write port_stat: %w", err)
	}
	return nil
}
