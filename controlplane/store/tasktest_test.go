// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"path/filepath"
	"testing"

	"cairn/controlplane/program"
	"cairn/controlplane/program/tasktest"
)

// TestTasksKeepTheirPromises runs the checks that every store of tasks must
// pass, each call of the Inbox in a transaction of its own.
func TestTasksKeepTheirPromises(t *testing.T) {
	tasktest.Run(t, func(t *testing.T) tasktest.Store {
		s, err := Open(t.Context(), filepath.Join(t.TempDir(), "tasks.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if _, err := s.Init(t.Context(), "ch-gva-2", nil); err != nil {
			t.Fatal(err)
		}
		return inboxOf{s.Tasks(), s}
	})
}

type inboxOf struct {
	program.Tasks
	s *Store
}

func (i inboxOf) Insert(ctx context.Context, t program.Task) error {
	_, err := i.s.Write(ctx, func(tx *Tx) error { return tx.Inbox().Insert(ctx, t) })
	return err
}

func (i inboxOf) Signal(ctx context.Context, subject string, e program.Event) (n int, err error) {
	_, err = i.s.Write(ctx, func(tx *Tx) (err error) { n, err = tx.Inbox().Signal(ctx, subject, e); return err })
	return n, err
}

func (i inboxOf) Cancel(ctx context.Context, subject string) (n int, err error) {
	_, err = i.s.Write(ctx, func(tx *Tx) (err error) { n, err = tx.Inbox().Cancel(ctx, subject); return err })
	return n, err
}
