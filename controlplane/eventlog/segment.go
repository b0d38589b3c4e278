// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cairn/cloud"
)

// segment is one file of the log: whole lines, with ascending offsets, from base
// on, which the file is named after.
type segment struct {
	base uint64
	path string
	size atomic.Int64 // of what may be read
	last time.Time    // when it was written to last; of the writer

	mu    sync.Mutex
	index map[cloud.ID][]uint32 // where the lines of an instance begin; nil until it is asked for
}

const suffix = ".events"

func segmentPath(folder string, base uint64) string {
	return filepath.Join(folder, fmt.Sprintf("%020d%s", base, suffix))
}

// list the segments of a folder by their bases.
func list(folder string) ([]*segment, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var all []*segment
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		base, err := strconv.ParseUint(name, 10, 64)
		if !ok || err != nil || e.IsDir() {
			continue // not ours
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // it was the oldest
		}
		if err != nil {
			return nil, err
		}
		s := &segment{base: base, path: filepath.Join(folder, e.Name()), last: info.ModTime()}
		s.size.Store(info.Size())
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *segment) int { return cmp.Compare(a.base, b.base) })
	return all, nil
}

// scan visits the lines of a file from a position on, up to size, with the
// positions where they begin, until visit says false. Damaged lines are counted
// and passed over; the end of the last whole line is returned.
func scan(f io.ReaderAt, from, size int64, visit func(at int64, l line) bool) (end int64, damaged int, err error) {
	in := bufio.NewReaderSize(io.NewSectionReader(f, from, size-from), maxLine)
	at, end := from, from
	for {
		text, err := in.ReadSlice('\n')
		next := at + int64(len(text))
		for errors.Is(err, bufio.ErrBufferFull) { // longer than any line of ours
			text, err = in.ReadSlice('\n')
			next += int64(len(text))
			text = nil
		}
		if errors.Is(err, io.EOF) {
			return end, damaged, nil
		}
		if err != nil {
			return end, damaged, err
		}
		l, err := cutLine(bytes.TrimSuffix(text, []byte("\n")))
		if err != nil {
			damaged++
		} else {
			end = next
			if !visit(at, l) {
				return end, damaged, nil
			}
		}
		at = next
	}
}

// seek finds a position before the line of an offset, and not far before it: by
// halves, since offsets ascend.
func seek(f io.ReaderAt, size int64, offset uint64) (int64, error) {
	const near = 4 << 10
	low, high := int64(0), size
	for high-low > near {
		mid := low + (high-low)/2
		at, found, err := lineAfter(f, mid, size)
		if err != nil {
			return 0, err
		}
		if found == nil || found.offset > offset {
			high = mid
		} else {
			low = at
			if at >= high {
				break
			}
		}
	}
	return low, nil
}

// lineAfter finds the first good line that begins behind a position, nil if
// there is none.
func lineAfter(f io.ReaderAt, from, size int64) (at int64, found *line, err error) {
	in := bufio.NewReaderSize(io.NewSectionReader(f, from, size-from), 4<<10)
	skipped := 0
	for { // the line that the position is in
		part, err := in.ReadSlice('\n')
		skipped += len(part)
		if err == nil {
			break
		}
		if errors.Is(err, io.EOF) {
			return 0, nil, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return 0, nil, err
		}
	}
	_, _, err = scan(f, from+int64(skipped), size, func(begin int64, l line) bool {
		at, found = begin, &line{offset: l.offset}
		return false
	})
	return at, found, err
}

// read events of a segment from an offset on.
func (s *segment) read(from uint64, most int) (events []Event, damaged int, err error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	size := s.size.Load()
	at, err := seek(f, size, from)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", s.path, err)
	}
	_, damaged, err = scan(f, at, size, func(_ int64, l line) bool {
		if l.offset < from {
			return true
		}
		e, err := l.event()
		if err == nil {
			events = append(events, e)
		}
		return len(events) < most
	})
	if err != nil {
		return nil, damaged, fmt.Errorf("read %s: %w", s.path, err)
	}
	return events, damaged, nil
}

// note that lines of instances begin at positions.
func (s *segment) note(instance cloud.ID, at int64) {
	if s.index != nil && instance != "" {
		s.index[instance] = append(s.index[instance], uint32(at))
	}
}

// of lists where the lines of an instance begin. The first question makes the
// index, which reads the whole file.
func (s *segment) of(instance cloud.ID) ([]uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.index == nil {
		f, err := os.Open(s.path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		s.index = map[cloud.ID][]uint32{}
		if _, _, err := scan(f, 0, s.size.Load(), s.visit); err != nil {
			s.index = nil
			return nil, fmt.Errorf("index %s: %w", s.path, err)
		}
	}
	return s.index[instance], nil
}

func (s *segment) visit(at int64, l line) bool {
	if string(l.instance) != nobody {
		s.note(cloud.ID(l.instance), at)
	}
	return true
}

// at reads the event whose line begins at a position.
func at(f io.ReaderAt, position, size int64) (Event, error) {
	for room := int64(2 << 10); ; room = maxLine + 1 { // nearly all fit at once
		b := make([]byte, min(room, size-position))
		if _, err := f.ReadAt(b, position); err != nil && !errors.Is(err, io.EOF) {
			return Event{}, err
		}
		if text, _, ok := bytes.Cut(b, []byte("\n")); ok {
			l, err := cutLine(text)
			if err != nil {
				return Event{}, err
			}
			return l.event()
		}
		if room > maxLine {
			return Event{}, errLine
		}
	}
}
