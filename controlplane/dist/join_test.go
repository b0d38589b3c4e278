// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"cairn/cloud/join"
	"cairn/controlplane/pki"
	agentv1 "cairn/proto/agent/v1"
)

// sync opens a stream and says Hello as a name; what comes back first, or nil
// after the server's first message.
func (b *bench) sync(with credentials.TransportCredentials, hello *agentv1.FromAgent) error {
	b.Helper()
	conn, err := grpc.NewClient(b.addr, grpc.WithTransportCredentials(with))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	stream, err := agentv1.NewAgentsClient(conn).Sync(b.Context())
	if err != nil {
		return err
	}
	_ = stream.Send(hello) // a refusal is seen by Recv
	_, err = stream.Recv()
	return err
}

func (b *bench) wasRefused(what string) {
	b.Helper()
	b.eventually("audit: "+what, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.ContainsFunc(b.refused, func(s string) bool { return strings.Contains(s, what) })
	})
}

// signed gives an agent's name a leaf by another authority or another clock.
func (b *bench) signed(by *pki.FileIssuer, name string) join.Credentials {
	b.Helper()
	key, err := join.NewKey()
	if err != nil {
		b.Fatal(err)
	}
	csr, err := join.Request(key, name)
	if err != nil {
		b.Fatal(err)
	}
	leaf, err := by.Agent(name, csr)
	if err != nil {
		b.Fatal(err)
	}
	c, err := join.NewCredentials(key, leaf.Raw, by.Authority().Raw)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func (b *bench) trusting(leaf tls.Certificate) credentials.TransportCredentials {
	return credentials.NewTLS(join.Joined(b.issuer.Authority(), "ch-gva-2", func() *tls.Certificate { return &leaf }))
}

func TestWhoIsRefused(t *testing.T) {
	b := newBench(t)
	a := b.join("hv1")
	b.join("hv2")
	if err := b.sync(b.trusting(a.leaf.Leaf), a.hello("hv1")); err != nil {
		t.Fatalf("the control is refused: %v", err)
	}

	if err := b.sync(insecure.NewCredentials(), a.hello("hv1")); err == nil {
		t.Error("plaintext was served")
	}
	b.wasRefused("does not look like a TLS handshake")

	foreign, err := pki.Open(t.TempDir(), "ch-gva-2", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.sync(b.trusting(b.signed(foreign, "hv1").Leaf), a.hello("hv1")); err == nil {
		t.Error("a foreign authority's certificate was served")
	}
	b.wasRefused("unknown authority")

	err = b.sync(b.trusting(a.leaf.Leaf), a.hello("hv2"))
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("hv1 says Hello as hv2: %v", err)
	}
	b.wasRefused(`hv1: says Hello as "hv2"`)

	err = b.sync(credentials.NewTLS(join.Enrolling(join.Pin(b.issuer.Authority()))), a.hello("hv1"))
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a certificate: %v", err)
	}
	b.wasRefused("a certificate is needed")

	if err := b.sync(b.trusting(b.signed(b.issuer, "hv1").Leaf), a.hello("hv1")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a certificate that was never recorded: %v", err)
	}

	if _, err := b.desk.Token(t.Context(), "hv1"); err != nil {
		t.Fatal(err)
	}
	if err := b.sync(b.trusting(a.leaf.Leaf), a.hello("hv1")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a certificate that a new token has revoked: %v", err)
	}
	b.wasRefused("revoked")
}

func TestTokenJoinsOnce(t *testing.T) {
	b := newBench(t)
	token, err := b.desk.Token(t.Context(), "hv1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.enroll(token); err != nil {
		t.Fatal(err)
	}
	if _, err := b.enroll(token); status.Code(err) != codes.PermissionDenied {
		t.Errorf("second use: %v", err)
	}
	b.wasRefused("token is not valid")
	token.Pin = strings.Repeat("0", 64)
	if _, err := b.enroll(token); err == nil || !strings.Contains(err.Error(), "pin") {
		t.Errorf("the agent trusts a control plane with another key: %v", err)
	}
}

func TestExpiredCertificateMayRenewAndNothingElse(t *testing.T) {
	b := newBench(t)
	a := b.join("hv1")
	b.offset.Store(int64(25 * time.Hour)) // a day later
	err := b.sync(b.trusting(a.leaf.Leaf), a.hello("hv1"))
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "expired") {
		t.Errorf("stream: %v", err)
	}
	conn := a.conn()
	defer conn.Close()
	key, err := join.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := join.Request(key, "hv1")
	if err != nil {
		t.Fatal(err)
	}
	r, err := agentv1.NewAgentsClient(conn).Renew(t.Context(), &agentv1.RenewRequest{Csr: csr})
	if err != nil {
		t.Fatalf("renew: %v", err)
	}
	if _, err := join.NewCredentials(key, r.Certificate, b.issuer.Authority().Raw); err != nil {
		t.Error(err)
	}

	b.offset.Store(int64(25*time.Hour + join.Grace)) // a week after that
	late := a.conn()
	defer late.Close()
	if _, err := agentv1.NewAgentsClient(late).Renew(t.Context(), &agentv1.RenewRequest{Csr: csr}); err == nil {
		t.Error("renewed after the grace was over")
	}
	b.wasRefused("expired on")
}

func TestWhoOnlyLooksIsNotAudited(t *testing.T) {
	b := newBench(t)
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	b.join("hv1") // enrolls, so that the server has been busy since
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.refused) > 0 {
		t.Errorf("audited %q", b.refused)
	}
}
