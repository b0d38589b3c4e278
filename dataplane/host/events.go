// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"cairn/bpf"

	"github.com/cilium/ebpf/ringbuf"
)

// Events is one listener to what the programs tell. The ring has one reader, for
// all listeners: who is slow loses events for itself alone, and they are counted.
type Events struct {
	h       *Host
	queue   chan bpf.Event
	missed  atomic.Uint64
	atStart EventLoss
}

// EventLoss says how many events nobody was told, for good.
type EventLoss struct {
	Lost  uint64 `json:"lost"`  // there was no room: in the ring, or with a slow listener
	Muted uint64 `json:"muted"` // beyond the rate of 1,000 a second, port and CPU
}

// EventCounts are what the programs have told and could not tell since their maps
// were made, whatever agents came and went meanwhile.
type EventCounts struct {
	Told    uint64
	Lost    uint64 // there was no room in the ring
	Muted   uint64
	Waiting uint64 // told, and in the ring: about as many as long as nobody reads
}

// EventCounts of the host.
func (h *Host) EventCounts() (EventCounts, error) {
	var perCPU []bpf.EventStat
	if err := h.Maps.EventStat.Lookup(uint32(0), &perCPU); err != nil {
		return EventCounts{}, fmt.Errorf("read event_stat: %w", err)
	}
	var sum EventCounts
	for _, s := range perCPU {
		sum.Told += s.Told
		sum.Lost += s.Lost
		sum.Muted += s.Muted
	}
	return sum, nil
}

// EventsWaiting is EventCounts with what waits in the ring. It is for who reads it
// next, before that: nobody else may look into it meanwhile.
func (h *Host) EventsWaiting() (EventCounts, error) {
	sum, err := h.EventCounts() // before: what comes in between must not look lost
	if err != nil {
		return sum, err
	}
	ring, err := ringbuf.NewReader(h.Maps.Events)
	if err != nil {
		return sum, fmt.Errorf("open the ring of events: %w", err)
	}
	defer ring.Close()
	const header = 8 // of a record in the ring
	sum.Waiting = uint64(ring.AvailableBytes()) / uint64(binary.Size(bpf.Event{})+header)
	return sum, nil
}

// Missed is how many events this listener was too slow for.
func (e *Events) Missed() uint64 { return e.missed.Load() }

// eventQueue is how far a listener may be behind.
const eventQueue = 4096

// eventReader hands events out. It reads as long as anybody listens: an event
// of no listener waits in the ring.
type eventReader struct {
	turn sync.Mutex // of starting and ending the reader; taken before mu
	stop func()

	mu        sync.Mutex
	listeners map[*Events]bool
}

// Events begins to listen. Events from before may come, those that nobody has
// read yet. The caller closes it.
func (h *Host) Events() (*Events, error) {
	e := &Events{h: h, queue: make(chan bpf.Event, eventQueue)}
	var err error
	if e.atStart, err = h.eventLoss(); err != nil {
		return nil, fmt.Errorf("listen to events: %w", err)
	}
	if err := h.events.add(e); err != nil {
		return nil, fmt.Errorf("listen to events: %w", err)
	}
	return e, nil
}

func (r *eventReader) add(e *Events) error {
	r.turn.Lock()
	defer r.turn.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.listeners) == 0 {
		ring, err := ringbuf.NewReader(e.h.Maps.Events)
		if err != nil {
			return err
		}
		r.listeners = map[*Events]bool{}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.run(ctx, ring)
		}()
		r.stop = func() { cancel(); <-done }
	}
	r.listeners[e] = true
	return nil
}

func (r *eventReader) remove(e *Events) {
	r.turn.Lock()
	defer r.turn.Unlock()
	r.mu.Lock()
	last := r.listeners[e] && len(r.listeners) == 1
	delete(r.listeners, e)
	r.mu.Unlock()
	if last {
		r.stop()
	}
}

// Close ends listening.
func (e *Events) Close() { e.h.events.remove(e) }

// All events until ctx ends, one after the other.
func (e *Events) All(ctx context.Context) iter.Seq[bpf.Event] {
	return func(yield func(bpf.Event) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case event := <-e.queue:
				if !yield(event) {
					return
				}
			}
		}
	}
}

// Loss of events since this listener began, of all ports.
func (e *Events) Loss() (EventLoss, error) {
	now, err := e.h.eventLoss()
	if err != nil {
		return EventLoss{}, err
	}
	return EventLoss{Lost: now.Lost - e.atStart.Lost + e.missed.Load(), Muted: now.Muted - e.atStart.Muted}, nil
}

func (h *Host) eventLoss() (EventLoss, error) {
	c, err := h.EventCounts()
	return EventLoss{Lost: c.Lost, Muted: c.Muted}, err
}

// run reads the ring until ctx ends.
func (r *eventReader) run(ctx context.Context, ring *ringbuf.Reader) {
	defer ring.Close()
	stop := context.AfterFunc(ctx, func() { ring.Close() }) // nothing else wakes it
	defer stop()
	var record ringbuf.Record
	for ctx.Err() == nil {
		err := ring.ReadInto(&record)
		switch {
		case err == nil:
		case errors.Is(err, ringbuf.ErrClosed):
			return
		default:
			pause(time.Millisecond) // nothing a reader does makes it better
			continue
		}
		var event bpf.Event
		if binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &event) != nil {
			continue // of a program of another version
		}
		r.hand(event)
	}
}

func (r *eventReader) hand(event bpf.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for e := range r.listeners {
		select {
		case e.queue <- event:
		default:
			e.missed.Add(1)
		}
	}
}

// TimeOf tells the time of day of a moment on the clock of the programs.
func TimeOf(at uint64) time.Time {
	now, err := monotonic()
	if err != nil {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(at) - now)
}
