// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql/driver"
	"errors"

	"modernc.org/sqlite"
)

// maxStatements is how many compiled statements a connection keeps. The package
// has about a hundred; a query with a variable list of conditions is several.
const maxStatements = 256

// reusing is SQLite with connections that keep their compiled statements:
// compiling them anew is about a fifth of a small write without its disk
// (BenchmarkSmallWrite).
type reusing struct {
	driver *sqlite.Driver
	name   string
}

func (r reusing) Driver() driver.Driver { return r.driver }

func (r reusing) Connect(context.Context) (driver.Conn, error) {
	c, err := r.driver.Open(r.name)
	if err != nil {
		return nil, err
	}
	of, ok := c.(sqliteConn)
	if !ok {
		return nil, errors.Join(errors.New("the driver of SQLite lacks what is asked of it"), c.Close())
	}
	return &reusingConn{sqliteConn: of, statements: map[string]*statement{}}, nil
}

// sqliteConn is what database/sql asks of a connection, as far as the driver
// offers it.
type sqliteConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
	driver.Pinger
}

// reusingConn is used by one goroutine at a time, as every driver.Conn.
type reusingConn struct {
	sqliteConn
	statements map[string]*statement
}

// statement is one that may be read from right now, and cannot be executed then.
type statement struct {
	sqliteStmt
	busy bool
}

type sqliteStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// compiled returns the statement of a text; nil if it is busy, or there are too
// many: then the text is compiled for this once.
func (c *reusingConn) compiled(ctx context.Context, text string) (*statement, error) {
	if s, ok := c.statements[text]; ok {
		if s.busy {
			return nil, nil
		}
		return s, nil
	}
	if len(c.statements) >= maxStatements {
		return nil, nil
	}
	prepared, err := c.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	of, ok := prepared.(sqliteStmt)
	if !ok {
		return nil, prepared.Close()
	}
	s := &statement{sqliteStmt: of}
	c.statements[text] = s
	return s, nil
}

// ExecContext does not watch the context while it executes, as the driver does
// with a goroutine each: what is executed here takes microseconds.
func (c *reusingConn) ExecContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.compiled(ctx, text)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.sqliteConn.ExecContext(ctx, text, args)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.ExecContext(context.WithoutCancel(ctx), args)
}

func (c *reusingConn) QueryContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.compiled(ctx, text)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.sqliteConn.QueryContext(ctx, text, args)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(context.WithoutCancel(ctx), args)
	if err != nil {
		return nil, err
	}
	s.busy = true
	return &statementRows{rows, s}, nil
}

func (c *reusingConn) Close() error {
	var errs []error
	for _, s := range c.statements {
		errs = append(errs, s.Close())
	}
	clear(c.statements)
	return errors.Join(append(errs, c.sqliteConn.Close())...)
}

// statementRows give their statement back when they are closed.
type statementRows struct {
	driver.Rows
	of *statement
}

func (r *statementRows) Close() error {
	r.of.busy = false
	return r.Rows.Close()
}
