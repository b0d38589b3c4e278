// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"fmt"
	"time"

	"cairn/bpf"
)

// Samples has the programs tell of packets of services that are sampled, of one
// service or of all (0), as Drops does of drops.
func (h *Host) Samples(ctx context.Context, service uint32, each func(*bpf.Event, EventLoss) error) error {
	takes := func(e bpf.Event) bool {
		return e.Audience&bpf.EventForSample != 0 && (service == 0 || service == e.Service)
	}
	if err := h.listen(ctx, func(on bool) error { return h.askForSamples(&service, on) }, takes, each); err != nil {
		return fmt.Errorf("watch samples: %w", err)
	}
	return nil
}

func (h *Host) askForSamples(service *uint32, on bool) error {
	w := &h.watchers
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.samples == nil {
		w.samples = map[*uint32]bool{}
	}
	if on {
		w.samples[service] = true
	} else {
		delete(w.samples, service)
	}
	until, want, first := time.Time{}, uint32(0), true
	for one := range w.samples {
		until = time.Now().Add(watchFor)
		if !first && *one != want {
			want = 0
			break
		}
		want, first = *one, false
	}
	return h.editWatch(func(watch *bpf.Watch) error {
		end, err := onClock(until)
		if err != nil {
			return err
		}
		watch.SamplesUntil, watch.SamplesService = end, want
		return nil
	})
}
