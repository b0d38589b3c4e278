// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// platter keeps what the loss of power would leave of a database: its files as
// they were when the log was flushed last.
type platter struct {
	folder  string
	flushes int
	fails   error
}

func (p *platter) flush(log string) error {
	if p.fails != nil {
		return p.fails
	}
	p.flushes++
	for _, file := range []string{strings.TrimSuffix(log, "-wal"), log} {
		data, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(p.folder, filepath.Base(file)), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// left opens a copy of what is on the platter.
func (p *platter) left(t *testing.T) *Store {
	t.Helper()
	folder := t.TempDir()
	if err := os.CopyFS(folder, os.DirFS(p.folder)); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), filepath.Join(folder, "cairn.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func onPlatter(t *testing.T) (*Store, *platter) {
	t.Helper()
	p := &platter{folder: t.TempDir()}
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "cairn.db"), WithFlush(p.flush))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.Init(t.Context(), "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	return s, p
}

func rowsOf(t *testing.T, s *Store) (n int, rev Revision) {
	t.Helper()
	read(t, s, func(tx *Tx) error {
		rows, err := tx.Rows(KindAntiAffinity, org)
		if err != nil {
			return err
		}
		n = len(rows)
		rev, err = tx.Revision()
		return err
	})
	return n, rev
}

// TestPowerLoss: what was acknowledged is left; what can be found out again is
// left from the next flush on, whoever asks for it, and not before.
func TestPowerLoss(t *testing.T) {
	s, p := onPlatter(t)
	want := func(what string, n int, rev Revision) {
		t.Helper()
		if gotN, gotRev := rowsOf(t, p.left(t)); gotN != n || gotRev != rev {
			t.Errorf("%s: %d rows and revision %d are left, want %d and %d", what, gotN, gotRev, n, rev)
		}
	}
	put := func(redoable bool) Revision {
		return write(t, s, func(tx *Tx) error {
			if redoable {
				tx.Redoable()
			}
			return Put(tx, "", group("g"+strings.Repeat("x", int(s.Commits()))))
		})
	}
	put(false)
	want("acknowledged", 1, 1)
	rev := put(true)
	if n, now := rowsOf(t, s); n != 2 || now != rev {
		t.Errorf("readers see %d rows and revision %d", n, now)
	}
	want("can be found out again", 1, 1)
	if err := s.Durable(rev); err != nil {
		t.Fatal(err)
	}
	want("asked for", 2, 2)
	put(true)
	put(false)
	want("flushed with the next", 4, 4)
	before := p.flushes
	if err := s.Durable(4); err != nil || p.flushes != before {
		t.Errorf("asked for what is safe: %v, %d flushes more", err, p.flushes-before)
	}
}

// TestDurableOfAnother: a revision that another process committed is flushed
// too.
func TestDurableOfAnother(t *testing.T) {
	s, p := onPlatter(t)
	other, err := Open(t.Context(), strings.TrimSuffix(s.disk.log, "-wal"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	rev := write(t, other, func(tx *Tx) error { return Put(tx, "", group("theirs")) })
	if err := s.Durable(rev); err != nil {
		t.Fatal(err)
	}
	if n, at := rowsOf(t, p.left(t)); n != 1 || at != rev {
		t.Errorf("%d rows, revision %d", n, at)
	}
}

// TestFlushFails: after it nothing is acknowledged any more, not even when the
// next flush would succeed.
func TestFlushFails(t *testing.T) {
	s, p := onPlatter(t)
	p.fails = errors.New("no such device")
	told := false
	for range 2 {
		_, err := s.Write(t.Context(), func(tx *Tx) error {
			tx.AfterCommit(func() { told = true })
			return Put(tx, "", group("g"+strings.Repeat("x", int(s.Commits()))))
		})
		if err == nil || !strings.Contains(err.Error(), "flush the log: no such device") || told {
			t.Errorf("write: %v, told %v", err, told)
		}
		p.fails = nil
	}
	if err := s.Durable(1); err == nil {
		t.Error("the revision is said to be safe")
	}
}

// TestFlushOfNothing: a log that is not there is a mistake, not a success.
func TestFlushOfNothing(t *testing.T) {
	if err := flushFile(filepath.Join(t.TempDir(), "cairn.db-wal")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("flushed: %v", err)
	}
}
