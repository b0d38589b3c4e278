// SPDX-License-Identifier: Apache-2.0

package pki_test

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"cairn/cloud/join"
	"cairn/controlplane/hypervisor"
	"cairn/controlplane/pki"
	"cairn/controlplane/store"
)

func TestTokenIsSpentOnce(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	ctx := t.Context()
	s, err := store.Open(ctx, filepath.Join(t.TempDir(), "zone.db"), store.WithClock(clock))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Init(ctx, "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	rows := hypervisor.New(s, slog.New(slog.DiscardHandler))
	if _, err := rows.Add(ctx, "hv1", "rack1"); err != nil {
		t.Fatal(err)
	}
	issuer, err := pki.Open(t.TempDir(), "ch-gva-2", clock)
	if err != nil {
		t.Fatal(err)
	}
	desk := &pki.Desk{Issuer: issuer, Registry: rows.Registry(), Now: clock}
	token, err := desk.Token(ctx, "hv1")
	if err != nil {
		t.Fatal(err)
	}
	key, err := join.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := join.Request(key, "hv9") // the name in the request counts for nothing
	if err != nil {
		t.Fatal(err)
	}
	if _, err := desk.Enroll(ctx, "hv2", token.Secret, csr); !errors.Is(err, pki.ErrToken) {
		t.Errorf("another name: %v", err)
	}
	leaf, err := desk.Enroll(ctx, "hv1", token.Secret, csr)
	if err != nil {
		t.Fatal(err)
	}
	credentials, err := join.NewCredentials(key, leaf.Raw, desk.Issuer.Authority().Raw)
	if err != nil || credentials.Name != "hv1" || credentials.Zone != "ch-gva-2" {
		t.Errorf("%+v, %v", credentials, err)
	}
	if _, err := desk.Enroll(ctx, "hv1", token.Secret, csr); !errors.Is(err, pki.ErrToken) {
		t.Errorf("second use: %v", err)
	}
	if err := desk.Registry.Valid(ctx, "hv1", pki.Serial(leaf)); err != nil {
		t.Error(err)
	}
	late, err := desk.Token(ctx, "hv1")
	if err != nil {
		t.Fatal(err)
	}
	if err := desk.Registry.Valid(ctx, "hv1", pki.Serial(leaf)); !errors.Is(err, pki.ErrRevoked) {
		t.Errorf("a new token left the old serial alone: %v", err)
	}
	if _, err := desk.Renew(ctx, leaf, csr); !errors.Is(err, pki.ErrRevoked) {
		t.Errorf("renewed a revoked certificate: %v", err)
	}
	now = now.Add(join.TokenLife)
	if _, err := desk.Enroll(ctx, "hv1", late.Secret, csr); !errors.Is(err, pki.ErrToken) {
		t.Errorf("expired token: %v", err)
	}
}
