// SPDX-License-Identifier: Apache-2.0

package hypervisor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cairn/controlplane/pki"
	"cairn/controlplane/store"
)

func newBench(t *testing.T) (*Hypervisors, context.Context) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "cairn.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.Init(t.Context(), "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	return New(s, slog.New(slog.DiscardHandler)), t.Context()
}

func TestAddAndHello(t *testing.T) {
	h, ctx := newBench(t)
	one, err := h.Add(ctx, "hv1", "rack1")
	if err != nil || one.Number != 1 || one.Joined {
		t.Fatalf("%+v %v", one, err)
	}
	if two, err := h.Add(ctx, "hv2", "rack2"); err != nil || two.Number != 2 {
		t.Fatalf("%+v %v", two, err)
	}
	again, err := h.Add(ctx, "hv1", "rack3")
	if err != nil || again.ID != one.ID || again.Number != 1 || again.FailureDomain != "rack3" {
		t.Fatalf("%+v %v", again, err)
	}
	i := Inventory{Endpoint: netip.MustParseAddr("10.64.0.1"), MTU: 1600, Roles: []string{"compute", "lb"},
		Drivers: []string{"netns"}, CPUs: 2, Memory: 1 << 30, Version: "1"}
	got, err := h.Hello(ctx, "hv1", i)
	if err != nil || !got.Joined || got.Endpoint != i.Endpoint || !got.HasRole(store.RoleLB) || got.HasRole(store.RoleDNS) {
		t.Fatalf("%+v %v", got, err)
	}
	before := h.store.Commits()
	if _, err := h.Hello(ctx, "hv1", i); err != nil || h.store.Commits() != before {
		t.Errorf("the same hello again: %v, %d commits", err, h.store.Commits()-before)
	}
	if _, err := h.Hello(ctx, "hv9", i); !errors.Is(err, ErrUnknown) {
		t.Errorf("hello of a stranger: %v", err)
	}
	if err := h.Drain(ctx, "hv2", true); err != nil {
		t.Fatal(err)
	}
	all, err := h.List(ctx)
	if err != nil || len(all) != 2 || all[0].Index().State != store.HypervisorJoined || all[1].Joined || !all[1].Draining {
		t.Errorf("%+v %v", all, err)
	}
}

func TestFactsAreCommittedWithWhatFollows(t *testing.T) {
	h, ctx := newBench(t)
	for _, name := range []string{"hv1", "hv2"} {
		if _, err := h.Add(ctx, name, ""); err != nil {
			t.Fatal(err)
		}
	}
	var told []string
	refuse := errors.New("no")
	var fail error
	h.Changed = func(_ *store.Tx, found []store.Doc[store.HypervisorDoc]) error {
		for _, d := range found {
			told = append(told, d.Body.Name)
		}
		return fail
	}
	since := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	before := h.store.Commits()
	facts := []Fact{{Name: "hv1", Unreachable: true, UplinkDown: true, Since: since}, {Name: "hv2"}, {Name: "gone", Unreachable: true}}
	for range 2 { // the second time nothing is new
		if err := h.Commit(ctx, facts...); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(told, []string{"hv1"}) || h.store.Commits()-before != 1 {
		t.Errorf("told %v in %d commits", told, h.store.Commits()-before)
	}
	all, err := h.List(ctx)
	if err != nil || !all[0].Unreachable || !all[0].UplinkDown || all[0].Since != since || all[1].Unreachable {
		t.Errorf("%+v %v", all, err)
	}
	// If what follows cannot be done, the fact is not committed either.
	fail = refuse
	if err := h.Commit(ctx, Fact{Name: "hv1"}); !errors.Is(err, refuse) {
		t.Errorf("commit: %v", err)
	}
	if all, _ := h.List(ctx); !all[0].Unreachable {
		t.Error("half of a transaction was committed")
	}
}

func TestRegistry(t *testing.T) {
	h, ctx := newBench(t)
	issuer, err := pki.Open(t.TempDir(), "ch-gva-2", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	desk := pki.Desk{Issuer: issuer, Registry: h.Registry(), Now: func() time.Time { return now }}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := desk.Token(ctx, "hv1"); !errors.Is(err, ErrUnknown) {
		t.Errorf("token for a stranger: %v", err)
	}
	for _, name := range []string{"hv1", "hv2"} {
		if _, err := h.Add(ctx, name, ""); err != nil {
			t.Fatal(err)
		}
	}
	token, err := desk.Token(ctx, "hv1")
	if err != nil {
		t.Fatal(err)
	}
	// Under another name the token buys nothing, and is not spent.
	if _, err := desk.Enroll(ctx, "hv2", token.Secret, csr); !errors.Is(err, pki.ErrToken) {
		t.Errorf("another's token: %v", err)
	}
	first, err := desk.Enroll(ctx, "hv1", token.Secret, csr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := desk.Enroll(ctx, "hv1", token.Secret, csr); !errors.Is(err, pki.ErrToken) {
		t.Errorf("a spent token: %v", err)
	}
	second, err := desk.Renew(ctx, first, csr)
	if err != nil {
		t.Fatal(err)
	}
	for _, leaf := range []*x509.Certificate{first, second} {
		if err := h.Registry().Valid(ctx, "hv1", pki.Serial(leaf)); err != nil {
			t.Error(err)
		}
		if err := h.Registry().Valid(ctx, "hv2", pki.Serial(leaf)); !errors.Is(err, pki.ErrRevoked) {
			t.Errorf("under another name: %v", err)
		}
	}
	// A new token revokes what the name has.
	if _, err := desk.Token(ctx, "hv1"); err != nil {
		t.Fatal(err)
	}
	if _, err := desk.Renew(ctx, second, csr); !errors.Is(err, pki.ErrRevoked) {
		t.Errorf("renew after a new token: %v", err)
	}
	if err := h.Registry().Valid(ctx, "hv1", "unknown"); !errors.Is(err, pki.ErrRevoked) {
		t.Errorf("a serial nobody issued: %v", err)
	}
}
