// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"modernc.org/sqlite"
)

func reusingDB(t *testing.T) (*sql.DB, *sql.Conn) {
	t.Helper()
	db := sql.OpenDB(reusing{&sqlite.Driver{}, sqliteDSN(filepath.Join(t.TempDir(), "db"), false)})
	t.Cleanup(func() { db.Close() })
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.ExecContext(t.Context(), `CREATE TABLE n (i INTEGER); INSERT INTO n VALUES (1), (2), (3)`); err != nil {
		t.Fatal(err)
	}
	return db, conn
}

// A statement that is being read from is compiled a second time, not executed
// over itself; and it is the same one that is used afterwards.
func TestAStatementInUseIsLeftAlone(t *testing.T) {
	_, conn := reusingDB(t)
	const text = `SELECT i FROM n WHERE i > $1 ORDER BY i`
	outer, err := conn.QueryContext(t.Context(), text, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for outer.Next() {
		var i, j int
		if err := outer.Scan(&i); err != nil {
			t.Fatal(err)
		}
		switch err := conn.QueryRowContext(t.Context(), text, i).Scan(&j); {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			t.Fatal(err)
		}
		got.WriteString(fmt.Sprintf("%d<%d ", i, j))
	}
	if err := outer.Close(); err != nil || got.String() != "1<2 2<3 3<0 " {
		t.Errorf("read %q, %v", got.String(), err)
	}
	if err := conn.Raw(func(c any) error {
		s := c.(*reusingConn).statements[text]
		if s == nil || s.busy {
			return fmt.Errorf("statement is %+v after use", s)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// Texts beyond the limit are executed all the same, and a change of the tables
// under a kept statement is noticed.
func TestStatementsBeyondTheLimit(t *testing.T) {
	_, conn := reusingDB(t)
	for i := range maxStatements + 10 {
		var sum int
		if err := conn.QueryRowContext(t.Context(), fmt.Sprintf(`SELECT SUM(i) + %d FROM n`, i)).Scan(&sum); err != nil || sum != 6+i {
			t.Fatalf("query %d: %d, %v", i, sum, err)
		}
	}
	if err := conn.Raw(func(c any) error {
		if n := len(c.(*reusingConn).statements); n != maxStatements {
			return fmt.Errorf("%d statements are kept", n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, err := conn.ExecContext(t.Context(), `ALTER TABLE n ADD COLUMN j INTEGER DEFAULT 7`); err != nil {
		t.Fatal(err)
	}
	var sum int
	if err := conn.QueryRowContext(t.Context(), `SELECT SUM(i) + 0 FROM n`).Scan(&sum); err != nil || sum != 6 {
		t.Errorf("after a change of the table: %d, %v", sum, err)
	}
}

func TestAStatementOfAnEndedContextIsNotExecuted(t *testing.T) {
	_, conn := reusingDB(t)
	const text = `INSERT INTO n VALUES (9)`
	if _, err := conn.ExecContext(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := conn.ExecContext(ctx, text); !errors.Is(err, context.Canceled) {
		t.Errorf("executed: %v", err)
	}
	var n int
	if err := conn.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM n`).Scan(&n); err != nil || n != 4 {
		t.Errorf("%d rows, %v", n, err)
	}
}

// BenchmarkSmallWrite is a transaction of five statements, without the disk:
// what keeping them compiled saves. The driver's own connection is beside it.
func BenchmarkSmallWrite(b *testing.B) {
	for _, c := range []struct {
		name string
		open func(dsn string) *sql.DB
	}{
		{"kept", func(dsn string) *sql.DB { return sql.OpenDB(reusing{&sqlite.Driver{}, dsn}) }},
		{"compiled anew", func(dsn string) *sql.DB {
			db, err := sql.Open("sqlite", dsn)
			if err != nil {
				b.Fatal(err)
			}
			return db
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			db := c.open("file::memory:")
			defer db.Close()
			db.SetMaxOpenConns(1)
			if _, err := db.ExecContext(b.Context(), `CREATE TABLE n (id TEXT PRIMARY KEY, a INTEGER, b BLOB);
				INSERT INTO n VALUES ('x', 1, 'body'), ('y', 2, 'body')`); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := smallWrite(b.Context(), db); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func smallWrite(parent context.Context, db *sql.DB) error {
	ctx, cancel := context.WithCancel(parent) // as a request's is
	defer cancel()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var a int
	var body []byte
	for range 2 {
		if err := tx.QueryRowContext(ctx, `SELECT a, b FROM n WHERE id = $1`, "x").Scan(&a, &body); err != nil {
			return err
		}
	}
	if err := tx.QueryRowContext(ctx, `UPDATE n SET a = a + 1 WHERE id = $1 RETURNING a`, "x").Scan(&a); err != nil {
		return err
	}
	for range 2 {
		if _, err := tx.ExecContext(ctx, `UPDATE n SET a = $1, b = $2 WHERE id = $3`, a, body, "y"); err != nil {
			return err
		}
	}
	return tx.Commit()
}
