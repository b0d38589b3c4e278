// SPDX-License-Identifier: Apache-2.0

// Package eventlog owns the log of what happens in a zone beside its mutations,
// which have the change log of the store: flows that begin, end and are denied,
// and what was used. It is an append-only log in a folder of its own, bounded in
// size and age. Who offers events never waits; what there is no room for is
// counted. It judges no event and knows nothing of the zone.
//
// Start at Log.Offer and Log.Append for what goes in, Reader for what comes out;
// write.go is what puts it into files, and 0001-segments.md says why.
package eventlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
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

var _ io.Closer = (*Log)(nil)
