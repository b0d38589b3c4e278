// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"cairn/bpf"
)

// forgetNotes removes what the programs have noted of a port beside its flows:
// how it keeps its rates, and to which groups it listens.
func (h *Host) forgetNotes(port uint32) error {
	var errs []error
	for _, m := range []*ebpf.Map{h.Maps.Pace, h.Maps.Told, h.Maps.CtSwept} {
		if err := m.Put(port, make([]byte, m.ValueSize())); err != nil {
			errs = append(errs, fmt.Errorf("forget its rates: %w", err))
		}
	}
	var key bpf.ListenerKey
	var at uint64
	var groups []bpf.ListenerKey
	entries := h.Maps.Listeners.Iterate()
	for entries.Next(&key, &at) {
		if key.Port == port {
			groups = append(groups, key)
		}
	}
	// Who joins meanwhile may hide an entry from this walk: it falls out of the
	// table, or is forgotten with the next port of the number.
	if err := entries.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		errs = append(errs, fmt.Errorf("read listeners: %w", err))
	}
	for _, key := range groups {
		if err := h.Maps.Listeners.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("forget its groups: %w", err))
		}
	}
	return errors.Join(errs...)
}
