// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/cloud"
)

// Tx is a transaction: all reads see one state. It is not safe for concurrent
// use and ends with the function it was given to.
type Tx struct {
	ctx      context.Context
	sql      *sql.Tx
	store    *Store
	writable bool
	dirty    bool // something was written
	redoable bool

	pending    map[key]*pendingRow // resources to be written at the end
	order      []key               // in which they were first touched
	operations []cloud.ID          // made here; they get the revision too
	after      []func()            // what others are told, once it is true
}

type key struct {
	kind Kind
	id   cloud.ID
}

// pendingRow is a resource held back until the revision is known.
type pendingRow struct {
	row       Row
	base      Revision // of the stored row, 0 if there is none
	deleted   bool
	operation cloud.ID
}

// Context carries the deadline of the transaction.
func (tx *Tx) Context() context.Context { return tx.ctx }

// Now is the store's clock.
func (tx *Tx) Now() time.Time { return tx.store.clock() }

// AfterCommit calls fn once the transaction is committed; never if it is not.
// What is told this way is told late or, after a crash, never: it may speed
// things up and nothing else.
func (tx *Tx) AfterCommit(fn func()) { tx.after = append(tx.after, fn) }

// Redoable says that what this transaction writes would be found out again if
// the loss of power took it: Write does not wait for the disk.
func (tx *Tx) Redoable() { tx.redoable = true }

// exec writes rows that carry no revision.
func (tx *Tx) exec(query string, args ...any) (int64, error) {
	if !tx.writable {
		return 0, errors.New("write in a read transaction")
	}
	r, err := tx.sql.ExecContext(tx.ctx, query, args...)
	if err != nil {
		return 0, tx.store.dialect.classify(err)
	}
	n, err := r.RowsAffected()
	tx.dirty = tx.dirty || n > 0
	return n, err
}

// queryRow reads one row; ErrNotFound if there is none.
func (tx *Tx) queryRow(dest []any, query string, args ...any) error {
	return tx.store.dialect.classify(tx.sql.QueryRowContext(tx.ctx, query, args...).Scan(dest...))
}

// query reads all rows before it returns, since a connection carries one
// answer at a time.
func query[T any](tx *Tx, scan func(func(...any) error) (T, error), text string, args ...any) ([]T, error) {
	rows, err := tx.sql.QueryContext(tx.ctx, text, args...)
	if err != nil {
		return nil, tx.store.dialect.classify(err)
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		one, err := scan(rows.Scan)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, tx.store.dialect.classify(rows.Err())
}

// hold keeps a resource back until flush.
func (tx *Tx) hold(p pendingRow) {
	k := key{p.row.Kind, p.row.ID}
	if had, ok := tx.pending[k]; ok {
		p.base = had.base
		if p.operation == "" {
			p.operation = had.operation
		}
	} else {
		tx.order = append(tx.order, k)
	}
	tx.pending[k] = &p
	tx.dirty = true
}

// flush takes the next revision and writes what carries it. The row of the
// zone is locked from here to the commit and no longer.
func (tx *Tx) flush() (Revision, error) {
	// A resource that was made and deleted in the same transaction never was.
	tx.order = slices.DeleteFunc(tx.order, func(k key) bool {
		p := tx.pending[k]
		return p.deleted && p.base == 0
	})
	if len(tx.order) == 0 {
		return 0, nil
	}
	zone, err := tx.zone()
	if err != nil {
		return 0, err
	}
	// RETURNING would save a statement, but SQLite makes a table for it: 0.3 ms.
	n, err := tx.exec(`UPDATE zone SET rev = rev + 1 WHERE id = $1 AND epoch = $2`, zone.ID, zone.Epoch)
	if err == nil && n == 0 {
		return 0, ErrFenced
	}
	var rev Revision
	if err == nil {
		rev, err = tx.Revision()
	}
	if err != nil {
		return 0, fmt.Errorf("take the next revision: %w", err)
	}
	for seq, k := range tx.order {
		if err := tx.writeRow(rev, seq, tx.pending[k]); err != nil {
			return 0, fmt.Errorf("%s %s: %w", k.kind, k.id, err)
		}
	}
	for _, id := range tx.operations {
		if _, err := tx.exec(`UPDATE operation SET revision = $1 WHERE id = $2`, rev, id); err != nil {
			return 0, fmt.Errorf("operation %s: %w", id, err)
		}
	}
	return rev, nil
}

func (tx *Tx) writeRow(rev Revision, seq int, p *pendingRow) error {
	r := &p.row
	var err error
	switch {
	case p.deleted:
		_, err = tx.exec(`DELETE FROM resource WHERE kind = $1 AND id = $2`, r.Kind, r.ID)
	case p.base == 0:
		_, err = tx.exec(`INSERT INTO resource
			(kind, id, org, name, unique_name, state, generation, revision, born, document)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			r.Kind, r.ID, r.Org, r.Name, nullable(r.unique), r.State, r.Generation, rev, rev, string(r.Document))
	default:
		_, err = tx.exec(`UPDATE resource
			SET name = $1, unique_name = $2, state = $3, generation = $4, revision = $5, document = $6
			WHERE kind = $7 AND id = $8`,
			r.Name, nullable(r.unique), r.State, r.Generation, rev, string(r.Document), r.Kind, r.ID)
	}
	if err != nil {
		return err
	}
	_, err = tx.exec(`INSERT INTO change (revision, seq, kind, id, deleted, operation, org)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		rev, seq, r.Kind, r.ID, boolean(p.deleted), p.operation, r.Org)
	return err
}

func nullable(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}

// nanos and moment turn times into the integers that both databases share;
// zero is "never".
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func moment(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}
