// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"cairn/bpf"

	"github.com/cilium/ebpf/ringbuf"
)

// What somebody looks at stays on for so long when nobody says so again, which is
// done each second: who dies leaves nothing on.
const (
	watchFor   = 5 * time.Second
	watchPulse = time.Second
)

// DropFilter says which drops somebody wants to hear of.
type DropFilter struct {
	Port   uint32     // 0: of all ports, and where no port is known
	Reason bpf.Reason // bpf.ReasonNone: any
}

func (f DropFilter) takes(e bpf.Event) bool {
	return e.Audience&bpf.EventForWatch != 0 && (f.Port == 0 || f.Port == e.Port) &&
		(f.Reason == bpf.ReasonNone || uint32(f.Reason) == e.Reason)
}

// watchers are all who hear of drops now.
type watchers struct {
	mu  sync.Mutex
	all map[*DropFilter]bool

	samples map[*uint32]bool // who looks at samples, by the service that is wanted
}

// common is what the programs are asked for: what all want, or everything.
func (w *watchers) common() (f DropFilter) {
	first := true
	for one := range w.all {
		if first {
			f, first = *one, false
			continue
		}
		if f.Port != one.Port {
			f.Port = 0
		}
		if f.Reason != one.Reason {
			f.Reason = bpf.ReasonNone
		}
	}
	return f
}

// Drops has the programs tell of dropped packets until ctx ends or each fails.
// It first calls each with nothing, when the programs have been asked; then with
// every event, and at most once a second with what was lost since the start, if
// that has become more.
func (h *Host) Drops(ctx context.Context, filter DropFilter, each func(*bpf.Event, EventLoss) error) error {
	if err := h.listen(ctx, func(on bool) error { return h.askForDrops(&filter, on) }, filter.takes, each); err != nil {
		return fmt.Errorf("watch drops: %w", err)
	}
	return nil
}

// listen hands on the events that are taken, from when ask has asked for them
// until ctx ends or each fails.
func (h *Host) listen(ctx context.Context, ask func(on bool) error, takes func(bpf.Event) bool, each func(*bpf.Event, EventLoss) error) error {
	listener, err := h.Events()
	if err != nil {
		return err
	}
	defer listener.Close()
	started, err := monotonic()
	if err != nil {
		return err
	}
	if err := ask(true); err != nil {
		return err
	}
	defer func() { _ = ask(false) }() // it ends by itself
	if err := each(nil, EventLoss{}); err != nil {
		return err
	}
	pulse := time.NewTicker(watchPulse)
	defer pulse.Stop()
	var told EventLoss
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-listener.queue:
			if e.At >= uint64(started) && takes(e) {
				if err := each(&e, told); err != nil {
					return err
				}
			}
		case <-pulse.C:
			if err := ask(true); err != nil {
				return err
			}
			loss, err := listener.Loss()
			if err != nil {
				return err
			}
			if loss != told {
				told = loss
				if err := each(nil, told); err != nil {
					return err
				}
			}
		}
	}
}

// askForDrops adds or removes one who watches, and asks the programs for what is
// wanted from now on.
func (h *Host) askForDrops(f *DropFilter, on bool) error {
	w := &h.watchers
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[*DropFilter]bool{}
	}
	if on {
		w.all[f] = true
	} else {
		delete(w.all, f)
	}
	until := time.Time{}
	if len(w.all) > 0 {
		until = time.Now().Add(watchFor)
	}
	want := w.common()
	return h.WatchDrops(until, want.Port, want.Reason)
}

// ErrCaptured is the error of a second capture beside one that goes on.
var ErrCaptured = errors.New("somebody else captures a port's frames already")

// Frame of a port, as it came there, with what became of it.
type Frame struct {
	At        time.Time
	Port      uint32
	Direction uint32 // bpf.DirectionIn, DirectionOut
	Reason    bpf.Reason
	Rule      uint32 // that has admitted its flow; 0: none
	Service   uint32
	Length    int // of the frame; Bytes may be fewer
	Bytes     []byte
}

// Capture has the programs hand over a port's frames, size bytes of each, until
// ctx ends or each fails. It calls each with nothing when they were asked, and
// whenever further frames were lost; lost is how many have been.
func (h *Host) Capture(ctx context.Context, port uint32, size int, each func(f *Frame, lost uint64) error) error {
	if !h.capture.TryLock() {
		return ErrCaptured
	}
	defer h.capture.Unlock()
	if err := h.captureFrames(ctx, port, size, each); err != nil {
		return fmt.Errorf("capture port %d: %w", port, err)
	}
	return nil
}

func (h *Host) captureFrames(ctx context.Context, port uint32, size int, each func(f *Frame, lost uint64) error) error {
	ring, err := ringbuf.NewReader(h.Maps.Captures)
	if err != nil {
		return err
	}
	defer ring.Close()
	started, err := monotonic()
	if err != nil {
		return err
	}
	before, err := h.framesLost()
	if err != nil {
		return err
	}
	ask := func(until time.Time) error {
		return h.watchFrames(until, port, min(max(size, 14), bpf.CaptureMax))
	}
	if err := ask(time.Now().Add(watchFor)); err != nil {
		return err
	}
	defer func() { _ = ask(time.Time{}) }() // it ends by itself
	if err := each(nil, 0); err != nil {
		return err
	}
	frames := make(chan *Frame, 64)
	go readFrames(ring, uint64(started), frames)
	pulse := time.NewTicker(watchPulse)
	defer pulse.Stop()
	var told uint64
	for {
		select {
		case <-ctx.Done():
			return nil
		case f, ok := <-frames:
			if !ok {
				return errors.New("the ring of frames is closed")
			}
			if f.Port != port {
				continue
			}
			if err := each(f, told); err != nil {
				return err
			}
		case <-pulse.C:
			if err := ask(time.Now().Add(watchFor)); err != nil {
				return err
			}
			lost, err := h.framesLost()
			if err != nil {
				return err
			}
			if lost -= before; lost != told {
				told = lost
				if err := each(nil, told); err != nil {
					return err
				}
			}
		}
	}
}

var native = binary.NativeEndian

// captureHead is struct capture without the frame's bytes.
const captureHead = 32

// readFrames until the ring is closed, but for those of an earlier capture.
func readFrames(ring *ringbuf.Reader, since uint64, frames chan<- *Frame) {
	defer close(frames)
	for {
		record, err := ring.Read()
		if err != nil {
			return
		}
		f, at, ok := frameOf(record.RawSample)
		if !ok || at < since {
			continue
		}
		select {
		case frames <- f:
		case <-time.After(watchFor):
			return // nobody takes them any more
		}
	}
}

func frameOf(record []byte) (f *Frame, at uint64, ok bool) {
	if len(record) < captureHead {
		return nil, 0, false
	}
	u32 := func(at int) uint32 { return native.Uint32(record[at:]) }
	size := int(native.Uint16(record[28:]))
	if size > len(record)-captureHead {
		return nil, 0, false
	}
	at = native.Uint64(record)
	return &Frame{
		At: TimeOf(at), Port: u32(8), Reason: bpf.Reason(u32(12)), Rule: u32(16), Service: u32(20), Length: int(u32(24)),
		Direction: uint32(record[30]), Bytes: record[captureHead : captureHead+size],
	}, at, true
}

func (h *Host) framesLost() (sum uint64, err error) {
	var perCPU []bpf.EventStat
	if err := h.Maps.EventStat.Lookup(uint32(0), &perCPU); err != nil {
		return 0, fmt.Errorf("read event_stat: %w", err)
	}
	for _, s := range perCPU {
		sum += s.FramesLost
	}
	return sum, nil
}

func (h *Host) watchFrames(until time.Time, port uint32, size int) error {
	return h.editWatch(func(w *bpf.Watch) error {
		end, err := onClock(until)
		if err != nil {
			return err
		}
		w.FramesUntil, w.FramesPort, w.FramesBytes = end, port, uint32(size)
		return nil
	})
}

// WatchDrops has the programs tell of dropped packets until then, of one port (0:
// of all) and for one reason (bpf.ReasonNone: any). The zero time ends it.
func (h *Host) WatchDrops(until time.Time, port uint32, reason bpf.Reason) error {
	return h.editWatch(func(w *bpf.Watch) error {
		end, err := onClock(until)
		if err != nil {
			return err
		}
		w.DropsUntil, w.DropsPort, w.DropsReason = end, port, uint32(reason)
		return nil
	})
}

func (h *Host) editWatch(change func(*bpf.Watch) error) error {
	h.watchMu.Lock()
	defer h.watchMu.Unlock()
	var w bpf.Watch
	if err := h.Maps.Watch.Lookup(uint32(0), &w); err != nil {
		return fmt.Errorf("read watch: %w", err)
	}
	if err := change(&w); err != nil {
		return err
	}
	if err := h.Maps.Watch.Put(uint32(0), &w); err != nil {
		return fmt.Errorf("write watch: %w", err)
	}
	return nil
}

// onClock is a time as programs read it: CLOCK_MONOTONIC ns; the zero time is 0.
func onClock(t time.Time) (uint64, error) {
	if t.IsZero() {
		return 0, nil
	}
	now, err := monotonic()
	if err != nil {
		return 0, err
	}
	return uint64(max(int64(now)+int64(time.Until(t)), 1)), nil
}
