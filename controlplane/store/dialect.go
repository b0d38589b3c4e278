// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // registers the driver "pgx"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

//go:embed migrations/*.sql
var migrations embed.FS

// errConflict says that another writer was in the way and the transaction may
// be tried again from its beginning.
var errConflict = errors.New("conflict with another writer")

type dialect int

const (
	sqliteDialect dialect = iota
	postgresDialect
)

// connect opens the writer (one connection) and the readers.
func (s *Store) connect(dsn string) error {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		s.dialect = postgresDialect
		bounded, err := withTimeouts(dsn)
		if err != nil {
			return err
		}
		if s.writer, err = sql.Open("pgx", bounded); err != nil {
			return err
		}
		if s.readers, err = sql.Open("pgx", bounded); err != nil {
			s.writer.Close()
			return err
		}
	} else {
		s.dialect, s.disk.log = sqliteDialect, dsn+"-wal"
		s.writer = sql.OpenDB(reusing{&sqlite.Driver{}, sqliteDSN(dsn, false)})
		s.readers = sql.OpenDB(reusing{&sqlite.Driver{}, sqliteDSN(dsn, true)})
	}
	s.writer.SetMaxOpenConns(1)
	s.readers.SetMaxOpenConns(8)
	s.readers.SetMaxIdleConns(4)
	return nil
}

// sqliteDSN is the file with the settings of a connection. A commit is written
// and not flushed: that is what disk does.
func sqliteDSN(path string, readOnly bool) string {
	q := url.Values{"_pragma": {
		fmt.Sprintf("busy_timeout(%d)", waitForWriter/time.Millisecond),
		"journal_mode(WAL)",
		"synchronous(NORMAL)",
	}}
	if readOnly {
		q.Add("_pragma", "query_only(1)")
	} else {
		q.Set("_txlock", "immediate")
	}
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
}

// withTimeouts bounds what a statement, a lock and a forgotten transaction may
// cost the others.
func withTimeouts(dsn string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return "", err
	}
	q := u.Query()
	for name, value := range map[string]string{
		"statement_timeout": "10s", "lock_timeout": "5s",
		"idle_in_transaction_session_timeout": "10s",
	} {
		if !q.Has(name) {
			q.Set(name, value)
		}
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

func migrate(ctx context.Context, d dialect, db *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	name := goose.DialectSQLite3
	if d == postgresDialect {
		name = goose.DialectPostgres
	}
	provider, err := goose.NewProvider(name, db, files)
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// writeOptions: PostgreSQL finds out by itself when two replicas' decisions
// contradict each other; SQLite has one writer at a time.
func (d dialect) writeOptions() *sql.TxOptions {
	if d == postgresDialect {
		return &sql.TxOptions{Isolation: sql.LevelSerializable}
	}
	return nil
}

func (d dialect) readOptions() *sql.TxOptions {
	if d == postgresDialect {
		return &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
	}
	return nil
}

// classify gives a driver's error the store's meaning and keeps its words.
func (d dialect) classify(err error) error {
	var pg *pgconn.PgError
	var lite *sqlite.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return ErrNotFound
	case errors.As(err, &pg):
		switch pg.Code {
		// Serialization failure, deadlock, and a unique violation: names are
		// looked up before they are written, so it is a race as well.
		case "40001", "40P01", "23505":
			return fmt.Errorf("%w: %w", errConflict, err)
		case "55P03", "57014": // lock timeout, statement timeout
			return fmt.Errorf("%w: %w", ErrBusy, err)
		}
	case errors.As(err, &lite):
		switch lite.Code() & 0xff {
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			return fmt.Errorf("%w: %w", ErrBusy, err)
		case sqlite3.SQLITE_CONSTRAINT:
			return fmt.Errorf("%w: %w", ErrExists, err)
		}
	}
	return err
}
