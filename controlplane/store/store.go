// SPDX-License-Identifier: Apache-2.0

// Package store keeps the state of a zone in SQL: SQLite in one file, or
// PostgreSQL, with the same text of every statement. It owns the tables, the
// revision that orders commits, allocation of numbers and addresses, and the
// sealing of secrets. It never judges: which step a machine takes, what an
// operation means and who may do it is decided by those who call it, inside
// Write. There is no way around Read and Write; the pools are not exported.
//
// Start at Write in store.go, then tx.go for what a transaction offers and
// documents.go for what is kept.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Revision counts the commits that changed a resource: ordered as they were
// committed, without gaps. Zero is before the first.
type Revision uint64

// Errors that callers tell apart.
var (
	// ErrNotFound: no such row, or not one of this organisation.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name, number or prefix is taken.
	ErrExists = errors.New("already exists")
	// ErrStale: the document was read in an earlier transaction and has
	// changed since; read again and decide again.
	ErrStale = errors.New("changed since it was read")
	// ErrBusy: the store could not be had in time. Nothing was written; the
	// caller may try again later.
	ErrBusy = errors.New("store busy")
	// ErrCompacted: changes that old are gone; start from the whole state.
	ErrCompacted = errors.New("changes compacted")
	// ErrNoZone: the store has not been initialised.
	ErrNoZone = errors.New("no zone in the store: run cairnd init")
	// ErrFenced: another process has taken over the zone.
	ErrFenced = errors.New("fenced by a newer epoch")
)

// Limits of one transaction. A hung writer must not stop the others: a write
// that cannot begin within waitForWriter answers ErrBusy.
const (
	waitForWriter = 5 * time.Second
	maxAttempts   = 8
	hintInterval  = 250 * time.Millisecond
)

// Store is an open store. It is safe for concurrent use.
type Store struct {
	dialect dialect
	writer  *sql.DB // one connection
	readers *sql.DB
	clock   func() time.Time
	log     *slog.Logger

	zoneMu sync.Mutex
	zone   Zone // read once, after Init or at Open

	commits  atomic.Uint64
	disk     disk
	dead     atomic.Bool // plays dead, in tests
	aid      crashAid
	patience time.Duration // for the writer
	hints    hints
}

// Option changes how a store is opened.
type Option func(*Store)

// WithClock replaces the clock by which numbers rest and answers expire.
func WithClock(now func() time.Time) Option { return func(s *Store) { s.clock = now } }

// WithLog sets where the store reports what nobody else can.
func WithLog(log *slog.Logger) Option { return func(s *Store) { s.log = log } }

// Open opens the store at dsn and brings its tables up to date: a
// "postgres://" URL, or the path of an SQLite file, which is made if missing.
func Open(ctx context.Context, dsn string, options ...Option) (*Store, error) {
	s := &Store{clock: time.Now, log: slog.Default(), aid: crashAidFromEnv(), patience: waitForWriter}
	s.disk.flush = flushFile
	for _, o := range options {
		o(s)
	}
	if err := s.connect(dsn); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := migrate(ctx, s.dialect, s.writer); err != nil {
		s.Close()
		return nil, fmt.Errorf("open store: migrate: %w", err)
	}
	if err := s.disk.keep(point{commits: 1}); err != nil {
		s.Close()
		return nil, fmt.Errorf("open store: %w", err)
	}
	if _, err := s.Zone(ctx); err != nil && !errors.Is(err, ErrNoZone) {
		s.Close()
		return nil, fmt.Errorf("open store: %w", err)
	}
	return s, nil
}

// Close ends the subscriptions and closes the connections.
func (s *Store) Close() error {
	s.hints.close()
	return errors.Join(s.readers.Close(), s.writer.Close())
}

// Now is the store's clock.
func (s *Store) Now() time.Time { return s.clock() }

// Commits counts the transactions that this process has committed and that
// changed something.
func (s *Store) Commits() uint64 { return s.commits.Load() }

// Read calls fn with a transaction that sees one state of the store and
// writes nothing.
func (s *Store) Read(ctx context.Context, fn func(*Tx) error) error {
	if s.dead.Load() {
		return ErrDead
	}
	t, err := s.readers.BeginTx(ctx, s.dialect.readOptions())
	if err != nil {
		return fmt.Errorf("begin read: %w", s.dialect.classify(err))
	}
	defer t.Rollback()
	return fn(&Tx{ctx: ctx, sql: t, store: s})
}

// Write calls fn with a transaction and commits what it wrote, or nothing.
// Resources are held back in the transaction and written last, after the
// revision they carry was taken; reads inside fn see them all the same. The
// revision is zero if no resource changed. An error of fn is returned as it
// is. What was written survives the loss of power, unless fn said Redoable.
//
// fn may be called more than once, when another replica wrote in between: it
// must do nothing but read and write through the transaction. It must not call
// Write again: the one writing connection is taken.
func (s *Store) Write(ctx context.Context, fn func(*Tx) error) (Revision, error) {
	if ctx.Value(insideWrite{}) != nil {
		return 0, errors.New("write inside a write")
	}
	for attempt := 1; ; attempt++ {
		rev, err := s.writeOnce(ctx, fn)
		if !errors.Is(err, errConflict) {
			return rev, err
		}
		if attempt == maxAttempts {
			return 0, fmt.Errorf("%w: %w", ErrBusy, err)
		}
		if err := pause(ctx, attempt); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrBusy, err)
		}
	}
}

// insideWrite marks the context of a writing transaction.
type insideWrite struct{}

func (s *Store) writeOnce(ctx context.Context, fn func(*Tx) error) (Revision, error) {
	conn, err := s.writerConn(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if s.dead.Load() {
		return 0, ErrDead
	}
	t, err := conn.BeginTx(ctx, s.dialect.writeOptions())
	if err != nil {
		return 0, fmt.Errorf("begin write: %w", s.dialect.classify(err))
	}
	defer t.Rollback()
	tx := &Tx{
		ctx: context.WithValue(ctx, insideWrite{}, true), sql: t, store: s,
		writable: true, pending: map[key]*pendingRow{},
	}
	if err := fn(tx); err != nil {
		return 0, err
	}
	rev, err := tx.flush()
	if err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	if !tx.dirty {
		return 0, nil
	}
	if err := t.Commit(); err != nil {
		return 0, fmt.Errorf("commit: %w", s.dialect.classify(err))
	}
	at, err := s.committed(rev)
	if err != nil {
		return 0, err
	}
	conn.Close() // the next one writes while this one waits for the disk
	if !tx.redoable {
		if err := s.disk.keep(at); err != nil {
			return 0, err
		}
	}
	for _, fn := range tx.after {
		fn()
	}
	return rev, nil
}

// writerConn waits for the writing connection, but not for ever.
func (s *Store) writerConn(ctx context.Context) (*sql.Conn, error) {
	wait, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	conn, err := s.writer.Conn(wait)
	if err == nil {
		return conn, nil
	}
	if wait.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("wait for the writer: %w", ErrBusy)
	}
	return nil, fmt.Errorf("wait for the writer: %w", s.dialect.classify(err))
}

// pause lets another replica finish: 1 ms doubled each time.
func pause(ctx context.Context, attempt int) error {
	timer := time.NewTimer(time.Millisecond << attempt)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
