// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"path/filepath"
	"testing"
)

// TestDeath: the commit stands, its writer does not hear of it, and nobody else
// hears of anything.
func TestDeath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cairn.db")
	s, err := Open(t.Context(), path, WithDeath(2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Init(t.Context(), "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	g, told := group("the last"), false
	_, err = s.Write(t.Context(), func(tx *Tx) error {
		tx.AfterCommit(func() { told = true })
		return Put(tx, "", g)
	})
	if !errors.Is(err, ErrDead) || told {
		t.Errorf("the last write: %v, told %v", err, told)
	}
	nothing := func(*Tx) error { return nil }
	if err := s.Read(t.Context(), nothing); !errors.Is(err, ErrDead) {
		t.Errorf("a read: %v", err)
	}
	if _, err := s.Write(t.Context(), nothing); !errors.Is(err, ErrDead) {
		t.Errorf("a write: %v", err)
	}
	s.Close()
	if s, err = Open(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.Read(t.Context(), func(tx *Tx) error {
		_, err := Get[AntiAffinityDoc](tx, org, g.ID)
		return err
	})
	if err != nil {
		t.Errorf("what was committed: %v", err)
	}
}
