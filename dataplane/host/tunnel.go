// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net/netip"
	"time"

	"cairn/bpf"
)

// TunnelError is what routers of the underlay have said of the tunnel to a host,
// with the last of it: a path that takes less than the uplink does, or none at all.
type TunnelError struct {
	Count      uint64
	Ago        time.Duration
	From       netip.Addr
	MTU        uint16 // of the outer packet; 0: it is about something else
	Type, Code uint8  // of ICMP
}

// TunnelError of a host, and whether there was ever one.
func (h *Host) TunnelError(host uint32) (TunnelError, bool, error) {
	var e bpf.VtepError
	if err := h.Maps.VtepErrors.Lookup(host, &e); err != nil {
		return TunnelError{}, false, fmt.Errorf("read vtep_errors of host %d: %w", host, err)
	}
	if e.Count == 0 {
		return TunnelError{}, false, nil
	}
	now, err := monotonic()
	if err != nil {
		return TunnelError{}, false, err
	}
	return TunnelError{
		Count: e.Count, Ago: now - time.Duration(e.Seen), From: bpf.AddrBE32(e.From), MTU: e.Mtu, Type: e.Type, Code: e.Code,
	}, true, nil
}

// String is what a person reads.
func (e TunnelError) String() string {
	switch {
	case e.MTU != 0:
		return fmt.Sprintf("%s takes no packet above %d bytes", e.From, e.MTU)
	case e.Type == 11:
		return fmt.Sprintf("%s found no hops left: a loop, perhaps", e.From)
	}
	return fmt.Sprintf("%s answered with ICMP %d, %d", e.From, e.Type, e.Code)
}
