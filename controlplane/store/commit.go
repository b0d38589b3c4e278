// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// crashAid helps tests to stop the process at every commit. With
// CAIRN_CRASH_AFTER_COMMIT=N the process kills itself with SIGKILL right after
// its Nth commit, before anybody hears of it; with CAIRN_COMMIT_COUNT=FILE the
// number of commits so far stands in FILE, so that a test knows how many there
// are to try.
type crashAid struct {
	after uint64
	count string
}

func crashAidFromEnv() crashAid {
	after, _ := strconv.ParseUint(os.Getenv("CAIRN_CRASH_AFTER_COMMIT"), 10, 64)
	return crashAid{after: after, count: os.Getenv("CAIRN_COMMIT_COUNT")}
}

// committed counts a commit, and tells those who wait for changes.
func (s *Store) committed() {
	n := s.commits.Add(1)
	if s.aid.count != "" {
		if err := os.WriteFile(s.aid.count, []byte(strconv.FormatUint(n, 10)), 0o600); err != nil {
			s.log.Error("write the number of commits", "error", err)
		}
	}
	if n == s.aid.after {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way; nothing may be answered meanwhile
	}
	s.hints.tell()
}

// hints tells subscribers that something was committed.
type hints struct {
	mu     sync.Mutex
	subs   map[chan struct{}]struct{}
	closed bool
}

func (h *hints) tell() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.subs {
		select {
		case c <- struct{}{}:
		default: // one hint is waiting already
		}
	}
}

func (h *hints) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.subs {
		close(c)
	}
	h.subs, h.closed = nil, true
}

// Subscribe returns a channel that gets a value after commits: a hint that
// there may be something new, never the news itself. Commits in quick
// succession may share one. Stop ends the subscription; the channel is closed
// by then, or when the store is.
func (s *Store) Subscribe() (hint <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	s.hints.mu.Lock()
	defer s.hints.mu.Unlock()
	if s.hints.closed {
		close(c)
		return c, func() {}
	}
	if s.hints.subs == nil {
		s.hints.subs = map[chan struct{}]struct{}{}
	}
	s.hints.subs[c] = struct{}{}
	return c, func() {
		s.hints.mu.Lock()
		defer s.hints.mu.Unlock()
		if _, ok := s.hints.subs[c]; ok {
			delete(s.hints.subs, c)
			close(c)
		}
	}
}

// Poll gives hints for what other processes commit: it looks at the revision
// four times a second until ctx ends.
func (s *Store) Poll(ctx context.Context) error {
	ticker := time.NewTicker(hintInterval)
	defer ticker.Stop()
	var last Revision
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		var rev Revision
		err := s.Read(ctx, func(tx *Tx) (err error) { rev, err = tx.Revision(); return err })
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.Warn("look for commits of others", "error", err)
		case rev != last:
			last = rev
			s.hints.tell()
		}
	}
}
