// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"cairn/controlplane/store"
)

func TestSMTPIsPermittedByOrganization(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "cairn.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Init(t.Context(), "ch-gva-2", func(tx *store.Tx) error {
		return errors.Join(
			tx.AddOrganization(store.Organization{ID: "1", Name: "red"}),
			tx.AddOrganization(store.Organization{ID: "2", Name: "blue"}))
	})
	if err != nil {
		t.Fatal(err)
	}
	permitted := func(want ...string) {
		t.Helper()
		var got []string
		if err := s.Read(t.Context(), func(tx *store.Tx) (err error) { got, err = SMTPPermits(tx); return err }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%v may send mail, want %v", got, want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	permitted()
	do(PermitSMTP(t.Context(), s, "red"))
	do(PermitSMTP(t.Context(), s, "1"))
	permitted("red")
	do(PermitSMTP(t.Context(), s, "blue"))
	do(BlockSMTP(t.Context(), s, "red"))
	do(BlockSMTP(t.Context(), s, "red"))
	permitted("blue")
	if err := PermitSMTP(t.Context(), s, "green"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an organisation that is not there: %v", err)
	}
}
