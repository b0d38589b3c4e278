// SPDX-License-Identifier: Apache-2.0

// Package eventlog owns the log of what happens in a zone beside its mutations,
// which have the change log of the store: flows that begin, end and are denied,
// and what was used. It is an append-only log in a folder of its own, bounded in
// size and age. Who offers events never waits; what there is no room for is
// counted. It judges no event and knows nothing of the zone.
//
// Start at Log.Offer and Log.Append for what goes in, Reader for what comes out;
// 0001-segments.md says why it is made of files.
package eventlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"cairn/cloud"
)

// Config of a log. The zero value of a field means its default.
type Config struct {
	Folder       string
	SegmentBytes int64         // of one file, 16 MiB
	MaxBytes     int64         // of all files, 1 GiB
	MaxAge       time.Duration // of the oldest event, 30 days
	Queue        int           // events that may wait to be written, 65,536
	Log          *slog.Logger
	Now          func() time.Time
}

func (c Config) complete() Config {
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 16 << 20
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 1 << 30
	}
	if c.MaxAge == 0 {
		c.MaxAge = 30 * 24 * time.Hour
	}
	if c.Queue == 0 {
		c.Queue = 1 << 16
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Stats count what a log has done.
type Stats struct {
	Written atomic.Uint64
	Full    atomic.Uint64 // events that found no room in the queue
	Failed  atomic.Uint64 // events that could not be written
	Torn    atomic.Uint64 // bytes cut from the end of the log when it was opened
	Damaged atomic.Uint64 // lines that readers passed over
	Dropped atomic.Uint64 // bytes of segments that were removed for age or size
}

// Log is a log that is written.
type Log struct {
	cfg   Config
	Stats Stats

	mu     sync.Mutex
	queue  []Event
	sure   []appending
	closed bool
	wake   chan struct{}

	segments struct {
		sync.RWMutex
		list []*segment // the last is written to
	}

	state struct { // for readers that wait
		sync.Mutex
		next  uint64 // offset of the next event
		grown chan struct{}
	}

	writer writer
}

// appending are events whose writing is waited for.
type appending struct {
	events []Event
	done   chan error
}

// Open opens the log in a folder, which is made if need be. What a killed process
// had half written at its end is cut off.
func Open(cfg Config) (*Log, error) {
	cfg = cfg.complete()
	l := &Log{cfg: cfg, wake: make(chan struct{}, 1)}
	l.state.grown = make(chan struct{})
	if err := os.MkdirAll(cfg.Folder, 0o700); err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	all, err := list(cfg.Folder)
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	l.segments.list = all
	if err := l.openWriter(); err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	return l, nil
}

// Offer hands events in and returns how many were taken: fewer than all when the
// log does not keep up. It never waits.
func (l *Log) Offer(events []Event) (taken int) {
	l.mu.Lock()
	if !l.closed {
		taken = max(0, min(len(events), l.cfg.Queue-len(l.queue)))
		l.queue = append(l.queue, events[:taken]...)
	}
	l.mu.Unlock()
	l.Stats.Full.Add(uint64(len(events) - taken))
	l.poke()
	return taken
}

// Append writes events and returns when they are on the disk.
func (l *Log) Append(ctx context.Context, events []Event) error {
	a := appending{events, make(chan error, 1)}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return errors.New("append events: the log is closed")
	}
	l.sure = append(l.sure, a)
	l.mu.Unlock()
	l.poke()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-a.done:
		return err
	}
}

func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default: // it is awake
	}
}

func (l *Log) take() (queue []Event, sure []appending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue, sure = l.queue, l.sure
	l.queue, l.sure = nil, nil
	return queue, sure
}

// How long what was written may stay out of the disk, and how often it is looked
// for segments that are too old.
const (
	syncGap = time.Second
	trimGap = time.Minute
)

// Run writes until ctx ends, and then what was handed in before.
func (l *Log) Run(ctx context.Context) {
	sync, trim := time.NewTicker(syncGap), time.NewTicker(trimGap)
	defer sync.Stop()
	defer trim.Stop()
	for {
		select {
		case <-ctx.Done():
			l.mu.Lock()
			l.closed = true
			l.mu.Unlock()
			l.write()
			l.sync()
			return
		case <-l.wake:
			l.write()
		case <-sync.C:
			l.sync()
		case <-trim.C:
			l.trim()
		}
	}
}

// Close the files, after Run.
func (l *Log) Close() error { return l.writer.file.Close() }

func (l *Log) write() {
	queue, sure := l.take()
	l.put(queue)
	for _, a := range sure {
		err := l.put(a.events)
		if err == nil {
			err = l.sync()
		}
		a.done <- err
	}
}

// writer is what only the goroutine that writes has to do with.
type writer struct {
	file  *os.File
	to    *segment
	next  uint64 // offset
	born  time.Time
	dirty bool
	ill   bool // the last write failed
	buf   []byte
}

func (l *Log) openWriter() error {
	w := &l.writer
	all := l.segments.list
	if len(all) == 0 {
		return l.roll()
	}
	w.to = all[len(all)-1]
	w.next, w.born = w.to.base, w.to.last
	f, err := os.OpenFile(w.to.path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	w.to.index = map[cloud.ID][]uint32{}
	size := w.to.size.Load()
	end, _, err := scan(f, 0, size, func(at int64, line line) bool {
		w.next = line.offset + 1
		return w.to.visit(at, line)
	})
	if err == nil && end < size {
		l.Stats.Torn.Add(uint64(size - end))
		l.cfg.Log.Warn("the event log ended in half a line", "segment", w.to.path, "bytes cut", size-end)
		err = f.Truncate(end)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.to.size.Store(end)
	w.file = f
	l.grow()
	return nil
}

// chunk is about how much is written at once.
const chunk = 1 << 20

// put writes events. Those that cannot be written are counted, and the log goes
// on without them.
func (l *Log) put(events []Event) error {
	var first error
	for len(events) > 0 {
		n, err := l.putSome(events)
		events = events[n:]
		if err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (l *Log) putSome(events []Event) (n int, err error) {
	w := &l.writer
	if w.to.size.Load() >= l.cfg.SegmentBytes || l.cfg.Now().Sub(w.born) > l.cfg.MaxAge/8 {
		if err := l.roll(); err != nil {
			return len(events), l.fail(len(events), err)
		}
		l.trim()
	}
	base, next := w.to.size.Load(), w.next
	w.buf = w.buf[:0]
	starts := make([]int64, 0, len(events))
	var bad error
	for n < len(events) && int64(len(w.buf)) < min(chunk, l.cfg.SegmentBytes-base) {
		e := &events[n]
		e.Offset = next
		begin := len(w.buf)
		if w.buf, err = appendLine(w.buf, e); err != nil {
			starts, bad = append(starts, -1), l.fail(1, err)
		} else {
			starts = append(starts, base+int64(begin))
			next++
		}
		n++
	}
	if _, err := w.file.WriteAt(w.buf, base); err != nil {
		// What stands behind the size is no part of the log, and is written over.
		return n, errors.Join(bad, l.fail(int(next-w.next), err), w.file.Truncate(base))
	}
	w.to.mu.Lock()
	for i, at := range starts {
		if at >= 0 {
			w.to.note(events[i].Instance, at)
		}
	}
	w.to.mu.Unlock()
	w.to.size.Store(base + int64(len(w.buf)))
	w.to.last, w.dirty, w.ill = l.cfg.Now(), true, false
	l.Stats.Written.Add(next - w.next)
	w.next = next
	l.grow()
	return n, bad
}

// fail counts events that are lost, and says so the first time.
func (l *Log) fail(n int, err error) error {
	l.Stats.Failed.Add(uint64(n))
	if !l.writer.ill {
		l.writer.ill = true
		l.cfg.Log.Error("events not written", "error", err)
	}
	return fmt.Errorf("write events: %w", err)
}

// grow tells those who wait that there is more.
func (l *Log) grow() {
	l.state.Lock()
	defer l.state.Unlock()
	l.state.next = l.writer.next
	close(l.state.grown)
	l.state.grown = make(chan struct{})
}

func (l *Log) sync() error {
	w := &l.writer
	if !w.dirty {
		return nil
	}
	if err := w.file.Sync(); err != nil {
		return l.fail(0, err)
	}
	w.dirty = false
	return nil
}

// roll begins a new segment.
func (l *Log) roll() error {
	w := &l.writer
	if w.file != nil {
		if err := l.sync(); err != nil {
			return err
		}
	}
	s := &segment{base: w.next, path: segmentPath(l.cfg.Folder, w.next), last: l.cfg.Now(), index: map[cloud.ID][]uint32{}}
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := syncFolder(l.cfg.Folder); err != nil {
		return errors.Join(err, f.Close())
	}
	if w.file != nil {
		w.file.Close() // it was synced
	}
	w.file, w.to, w.born = f, s, l.cfg.Now()
	l.segments.Lock()
	defer l.segments.Unlock()
	if n := len(l.segments.list); n > 0 && l.segments.list[n-1].base == s.base {
		l.segments.list = l.segments.list[:n-1] // an empty one, whose file this is now
	}
	l.segments.list = append(l.segments.list, s)
	return nil
}

func syncFolder(path string) error {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// trim removes the oldest segments: those that are too many, and those whose last
// event is too old. The one that is written to stays.
func (l *Log) trim() {
	l.segments.Lock()
	defer l.segments.Unlock()
	var sum int64
	for _, s := range l.segments.list {
		sum += s.size.Load()
	}
	for len(l.segments.list) > 1 {
		oldest := l.segments.list[0]
		if sum <= l.cfg.MaxBytes && l.cfg.Now().Sub(oldest.last) <= l.cfg.MaxAge {
			return
		}
		if err := os.Remove(oldest.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			l.cfg.Log.Error("old events not removed", "error", err)
			return
		}
		sum -= oldest.size.Load()
		l.Stats.Dropped.Add(uint64(oldest.size.Load()))
		l.segments.list = l.segments.list[1:]
	}
}

var _ io.Closer = (*Log)(nil)
