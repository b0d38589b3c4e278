// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"cairn/cloud"
)

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
