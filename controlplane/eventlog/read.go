// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"cairn/cloud"
)

// Reader reads a log from anywhere. A reader that keeps the offset that it has
// come to, such as a relay to another system, goes on there after a restart.
type Reader interface {
	// Read returns up to most events from an offset on, and the offset to go on
	// from. Where events were removed, for age, size or damage, the next ones
	// follow: their offsets show the gap. At the end of the log it returns none.
	Read(from uint64, most int) (events []Event, next uint64, err error)
	// Wait returns when there is an event at an offset or behind it, or when ctx
	// ends, with its error.
	Wait(ctx context.Context, from uint64) error
}

// Follow hands all events from an offset on to take, in pages of up to most, and
// waits for more until ctx ends or take says no. An error means that the page
// was not taken.
func Follow(ctx context.Context, r Reader, from uint64, most int, take func([]Event) error) error {
	for {
		events, next, err := r.Read(from, most)
		if err != nil {
			return err
		}
		if len(events) > 0 {
			if err := take(events); err != nil {
				return err
			}
		}
		if from = next; len(events) > 0 {
			continue
		}
		if err := r.Wait(ctx, from); err != nil {
			return err
		}
	}
}

var _ Reader = (*Log)(nil)

// Read implements Reader.
func (l *Log) Read(from uint64, most int) ([]Event, uint64, error) {
	end := l.Next() // before the reading: what comes meanwhile is left to the next one
	l.segments.RLock()
	all := slices.Clone(l.segments.list)
	l.segments.RUnlock()
	events, damaged, err := readSegments(all, from, most)
	l.Stats.Damaged.Add(uint64(damaged))
	if err != nil {
		return nil, from, err
	}
	if len(events) > 0 {
		return events, events[len(events)-1].Offset + 1, nil
	}
	return nil, end, nil // what should have been there is damaged, or was never reached
}

func readSegments(all []*segment, from uint64, most int) (events []Event, damaged int, err error) {
	for i, s := range all {
		if i+1 < len(all) && all[i+1].base <= from {
			continue
		}
		some, bad, err := s.read(from, most-len(events))
		damaged += bad
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has become too old meanwhile
		}
		if err != nil {
			return nil, damaged, err
		}
		if events = append(events, some...); len(events) >= most {
			break
		}
	}
	return events, damaged, nil
}

// Next is the offset of the next event.
func (l *Log) Next() uint64 {
	l.state.Lock()
	defer l.state.Unlock()
	return l.state.next
}

// Wait implements Reader.
func (l *Log) Wait(ctx context.Context, from uint64) error {
	for {
		l.state.Lock()
		next, grown := l.state.next, l.state.grown
		l.state.Unlock()
		if next > from {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-grown:
		}
	}
}

// Latest returns the last events of an instance that keep says yes to, up to
// most, in their order.
func (l *Log) Latest(instance cloud.ID, most int, keep func(*Event) bool) ([]Event, error) {
	l.segments.RLock()
	all := slices.Clone(l.segments.list)
	l.segments.RUnlock()
	var out []Event
	for _, s := range slices.Backward(all) {
		err := s.each(instance, 0, true, func(e Event) bool {
			if keep(&e) {
				out = append(out, e)
			}
			return len(out) < most
		})
		if err != nil {
			return nil, err
		}
		if len(out) >= most {
			break
		}
	}
	slices.Reverse(out)
	return out, nil
}

// From returns the first events of an instance from an offset on that keep says
// yes to, up to most.
func (l *Log) From(instance cloud.ID, from uint64, most int, keep func(*Event) bool) ([]Event, error) {
	l.segments.RLock()
	all := slices.Clone(l.segments.list)
	l.segments.RUnlock()
	var out []Event
	for i, s := range all {
		if i+1 < len(all) && all[i+1].base <= from {
			continue
		}
		err := s.each(instance, from, false, func(e Event) bool {
			if e.Offset >= from && keep(&e) {
				out = append(out, e)
			}
			return len(out) < most
		})
		if err != nil {
			return nil, err
		}
		if len(out) >= most {
			break
		}
	}
	return out, nil
}

// each visits the events of an instance in a segment, from the last or from the
// first, until visit says false. Most of those before an offset are passed over.
func (s *segment) each(instance cloud.ID, from uint64, backward bool, visit func(Event) bool) error {
	positions, err := s.of(instance)
	if errors.Is(err, fs.ErrNotExist) || len(positions) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	size := s.size.Load()
	if from > s.base {
		begin, err := seek(f, size, from)
		if err != nil {
			return fmt.Errorf("read %s: %w", s.path, err)
		}
		first, _ := slices.BinarySearch(positions, uint32(begin))
		positions = positions[first:]
	}
	for i := range positions {
		if backward {
			i = len(positions) - 1 - i
		}
		if int64(positions[i]) >= size {
			continue // not to be read yet
		}
		e, err := at(f, int64(positions[i]), size)
		if errors.Is(err, errLine) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", s.path, err)
		}
		if !visit(e) {
			return nil
		}
	}
	return nil
}

// Folder reads the log in a folder that another process may be writing.
type Folder string

var _ Reader = Folder("")

// Read implements Reader.
func (f Folder) Read(from uint64, most int) ([]Event, uint64, error) {
	all, err := list(string(f))
	if err != nil {
		return nil, from, fmt.Errorf("read event log: %w", err)
	}
	events, _, err := readSegments(all, from, most)
	if err != nil {
		return nil, from, err
	}
	if len(events) > 0 {
		from = events[len(events)-1].Offset + 1
	}
	return events, from, nil
}

// lookGap is between looks into a folder.
const lookGap = 100 * time.Millisecond

// Wait implements Reader.
func (f Folder) Wait(ctx context.Context, from uint64) error {
	tick := time.NewTicker(lookGap)
	defer tick.Stop()
	for {
		if events, _, err := f.Read(from, 1); err != nil || len(events) > 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
