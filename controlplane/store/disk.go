// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"os"
	"sync"
)

// disk makes commits survive the loss of power (0002-durability.md). SQLite
// writes its log and does not wait for it; who must know that a commit is safe
// flushes the log, and takes along what was committed meanwhile.
type disk struct {
	log   string // SQLite's; empty: the database does it by itself
	flush func(log string) error

	tail sync.Mutex
	last point // of what was committed

	mu     sync.Mutex // one flush at a time: who waits for it may find its work done
	safe   point
	broken error
}

// point is how far commits have come.
type point struct {
	commits  uint64
	revision Revision
}

func (p point) past(q point) bool { return p.commits >= q.commits && p.revision >= q.revision }

func (p point) with(q point) point {
	return point{max(p.commits, q.commits), max(p.revision, q.revision)}
}

// wrote notes a commit.
func (d *disk) wrote(p point) {
	d.tail.Lock()
	defer d.tail.Unlock()
	d.last = d.last.with(p)
}

// keep returns once all up to p is safe. A log that could not be flushed once
// is never believed again: what the kernel kept of it is not known.
func (d *disk) keep(p point) error {
	if d.log == "" {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil || d.safe.past(p) {
		return d.broken
	}
	d.tail.Lock()
	all := d.last.with(p)
	d.tail.Unlock()
	if err := d.flush(d.log); err != nil {
		d.broken = fmt.Errorf("flush the log: %w", err)
		return d.broken
	}
	d.safe = d.safe.with(all)
	return nil
}

// flushFile opens the log each time: SQLite may have begun a new one, and what
// was in the one before is in the database then.
func flushFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Durable returns once everything up to a revision survives the loss of power.
// Whoever tells others of a revision that they keep asks first: a number that
// was lost is given out again.
func (s *Store) Durable(rev Revision) error { return s.disk.keep(point{revision: rev}) }

// WithFlush replaces how SQLite's log is flushed. It is for tests, which learn
// what the loss of power would leave, or have it fail.
func WithFlush(fn func(log string) error) Option { return func(s *Store) { s.disk.flush = fn } }
