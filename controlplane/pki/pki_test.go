// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/cloud/join"
)

func openTest(t *testing.T, folder string, now func() time.Time) *FileIssuer {
	t.Helper()
	issuer, err := Open(folder, "ch-gva-2", now)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

func request(t *testing.T, name string) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := join.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := join.Request(key, name)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

func TestAuthorityStaysTheSame(t *testing.T) {
	folder := t.TempDir()
	pin := join.Pin(openTest(t, folder, time.Now).Authority())
	info, err := os.Stat(filepath.Join(folder, keyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode: %v, %v", info.Mode(), err)
	}
	if again := join.Pin(openTest(t, folder, time.Now).Authority()); again != pin {
		t.Errorf("pin %s, then %s", pin, again)
	}
	if err := os.Remove(filepath.Join(folder, authorityFile)); err != nil {
		t.Fatal(err)
	}
	if again := join.Pin(openTest(t, folder, time.Now).Authority()); again != pin {
		t.Errorf("pin %s, then %s after the certificate was lost", pin, again)
	}
	if _, err := Open(folder, "de-fra-1", time.Now); err == nil {
		t.Error("opened as another zone's")
	}
	if err := os.Remove(filepath.Join(folder, keyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(folder, "ch-gva-2", time.Now); err == nil {
		t.Error("made a new key beside the old certificate")
	}
}

func TestSaveAndLoadCredentials(t *testing.T) {
	issuer := openTest(t, t.TempDir(), time.Now)
	key, csr := request(t, "hv1")
	leaf, err := issuer.Agent("hv1", csr)
	if err != nil {
		t.Fatal(err)
	}
	want, err := join.NewCredentials(key, leaf.Raw, issuer.Authority().Raw)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if _, err := join.Load(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing saved: %v", err)
	}
	if err := want.Save(folder); err != nil {
		t.Fatal(err)
	}
	got, err := join.Load(folder)
	if err != nil || got.Name != "hv1" || !got.Leaf.Leaf.Equal(want.Leaf.Leaf) || !got.Authority.Equal(want.Authority) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := join.NewCredentials(key, leaf.Raw, openTest(t, t.TempDir(), time.Now).Authority().Raw); err == nil {
		t.Error("took a leaf of another authority")
	}
}

func TestAgentRefusesOtherKeys(t *testing.T) {
	issuer := openTest(t, t.TempDir(), time.Now)
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := join.Request(key, "hv1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := issuer.Agent("hv1", csr); err == nil {
		t.Error("signed a key that is not on P-256")
	}
	csr[len(csr)-1] ^= 1
	if _, err := issuer.Agent("hv1", csr); err == nil {
		t.Error("signed a request whose signature is wrong")
	}
}

// shake does a TLS handshake over a pipe and returns what each side says.
func shake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	s := tls.Server(a, server)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1}) // in TLS 1.3 a client hears of its refusal at its first read
		}
		a.Close()
		done <- err
	}()
	c := tls.Client(b, client)
	if clientErr = c.Handshake(); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	b.Close()
	serverErr = <-done
	return s.ConnectionState(), serverErr, clientErr
}

func agentConfig(t *testing.T, by, trusts *FileIssuer, name string) *tls.Config {
	t.Helper()
	key, csr := request(t, name)
	leaf, err := by.Agent(name, csr)
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	return join.Joined(trusts.Authority(), "ch-gva-2", func() *tls.Certificate { return cert })
}

func TestWhoIsLetIn(t *testing.T) {
	now := time.Now()
	own := openTest(t, t.TempDir(), func() time.Time { return now.Add(-60 * 24 * time.Hour) })
	own.now = time.Now // an old authority that signs today
	foreign := openTest(t, t.TempDir(), time.Now)
	at := func(age time.Duration) *FileIssuer { // signs as if it were age ago
		back := *own
		back.now = func() time.Time { return now.Add(-age) }
		return &back
	}
	tests := []struct {
		what     string
		client   *tls.Config
		standing Standing
		name     string
		fault    string // in what the server says
	}{
		{what: "stranger with the right pin", client: join.Enrolling(join.Pin(own.Authority()))},
		{what: "member", client: agentConfig(t, own, own, "hv1"), standing: Member, name: "hv1"},
		{what: "expired yesterday", client: agentConfig(t, at(48*time.Hour), own, "hv1"), standing: Expired, name: "hv1"},
		{what: "expired for too long", client: agentConfig(t, at(join.Grace+25*time.Hour), own, "hv1"), fault: "expired on"},
		{what: "foreign authority", client: agentConfig(t, foreign, own, "hv1"), fault: "unknown authority"},
		{what: "the control plane's own leaf", client: clientWithControlLeaf(t, own), fault: "incompatible key usage"},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			state, serverErr, clientErr := shake(t, ServerConfig(own, time.Now), test.client)
			if test.fault != "" {
				if serverErr == nil || !strings.Contains(serverErr.Error(), test.fault) {
					t.Errorf("server: %v, want %q", serverErr, test.fault)
				}
				return
			}
			if serverErr != nil || clientErr != nil {
				t.Fatalf("server: %v, client: %v", serverErr, clientErr)
			}
			name, standing, err := Judge(own, state, now)
			if name != test.name || standing != test.standing || err != nil {
				t.Errorf("Judge: %q, %d, %v", name, standing, err)
			}
		})
	}
}

func clientWithControlLeaf(t *testing.T, issuer *FileIssuer) *tls.Config {
	t.Helper()
	cert, err := issuer.Control()
	if err != nil {
		t.Fatal(err)
	}
	return join.Joined(issuer.Authority(), "ch-gva-2", func() *tls.Certificate { return cert })
}

func TestWhomAgentsTrust(t *testing.T) {
	own := openTest(t, t.TempDir(), time.Now)
	foreign := openTest(t, t.TempDir(), time.Now)
	asServer := func(config *tls.Config) *tls.Config { // an agent that plays the control plane
		cert, err := config.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		withChain := *cert
		withChain.Certificate = append(withChain.Certificate[:1:1], own.Authority().Raw)
		return &tls.Config{Certificates: []tls.Certificate{withChain}}
	}
	tests := []struct {
		what           string
		server, client *tls.Config
		fault          string
	}{
		{"pin", ServerConfig(own, time.Now), join.Enrolling(join.Pin(own.Authority())), ""},
		{"another pin", ServerConfig(foreign, time.Now), join.Enrolling(join.Pin(own.Authority())), "pin"},
		{"own authority", ServerConfig(own, time.Now), agentConfig(t, own, own, "hv1"), ""},
		{"foreign authority", ServerConfig(foreign, time.Now), agentConfig(t, own, own, "hv1"), "unknown authority"},
		{"an agent as server", asServer(agentConfig(t, own, own, "hv2")), agentConfig(t, own, own, "hv1"), "incompatible key usage"},
		{"an agent as server, to one that joins", asServer(agentConfig(t, own, own, "hv2")), join.Enrolling(join.Pin(own.Authority())), "incompatible key usage"},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			_, _, err := shake(t, test.server, test.client)
			if (err == nil) != (test.fault == "") || (err != nil && !strings.Contains(err.Error(), test.fault)) {
				t.Errorf("%v, want %q", err, test.fault)
			}
		})
	}
}

func TestOwnLeafRotates(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	r := &rotating{issuer: openTest(t, t.TempDir(), clock), now: clock}
	first, err := r.current()
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	if same, _ := r.current(); same != first {
		t.Error("a new leaf after an hour")
	}
	now = now.Add(12 * time.Hour)
	if second, _ := r.current(); second == first {
		t.Error("the same leaf after half its life")
	}
}
