// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
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
// are to try. CAIRN_CRASH_FILE=FILE is for a process that is to die later, of
// the commit whose number a test writes into FILE while it runs.
type crashAid struct {
	after uint64
	file  string
	count string
	death uint64
}

func crashAidFromEnv() crashAid {
	after, _ := strconv.ParseUint(os.Getenv("CAIRN_CRASH_AFTER_COMMIT"), 10, 64)
	return crashAid{after: after, file: os.Getenv("CAIRN_CRASH_FILE"), count: os.Getenv("CAIRN_COMMIT_COUNT")}
}

// note replaces the number in one step: whoever reads it finds one.
func (a crashAid) note(n uint64) error {
	if err := os.WriteFile(a.count+".new", []byte(strconv.FormatUint(n, 10)), 0o600); err != nil {
		return err
	}
	return os.Rename(a.count+".new", a.count)
}

// last tells whether the process dies of its nth commit.
func (a crashAid) last(n uint64) bool {
	if a.file != "" {
		text, err := os.ReadFile(a.file)
		if err != nil {
			return false // nothing is asked for yet
		}
		a.after, _ = strconv.ParseUint(string(text), 10, 64)
	}
	return n == a.after
}

// ErrDead: the store has played dead since the commit that WithDeath named.
var ErrDead = errors.New("killed after its commit")

// WithDeath lets a store play dead from its nth commit on: the commit stands,
// nobody hears of it, and nothing is answered any more. It is for tests that
// stop a control plane at every commit without a process for each.
func WithDeath(n uint64) Option { return func(s *Store) { s.aid.death = n } }

// committed counts a commit, and tells those who wait for changes; ErrDead if
// there is nobody to tell them.
func (s *Store) committed(rev Revision) (point, error) {
	n := s.commits.Add(1)
	at := point{n, rev}
	s.disk.wrote(at)
	if s.aid.count != "" {
		if err := s.aid.note(n); err != nil {
			s.log.Error("write the number of commits", "error", err)
		}
	}
	if s.aid.last(n) {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way; nothing may be answered meanwhile
	}
	if n == s.aid.death {
		s.dead.Store(true)
		return at, ErrDead
	}
	s.hints.tell()
	return at, nil
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
