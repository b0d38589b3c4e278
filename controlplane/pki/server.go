// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"cairn/cloud/join"
)

// Standing is what a caller's certificate, or the lack of one, lets it do.
type Standing int

// Standings.
const (
	Stranger Standing = iota // no certificate: may only enroll
	Expired                  // may only renew
	Member                   // may renew and be served
)

// ServerConfig is the TLS configuration of the control plane's server. A
// client may come without a certificate; one that it shows must be an agent's,
// signed by the authority, and expired for less than join.Grace. What the
// caller may then call is decided by Judge.
func ServerConfig(issuer Issuer, now func() time.Time) *tls.Config {
	own := &rotating{issuer: issuer, now: now}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own.current() },
		ClientAuth:             tls.RequestClientCert, // VerifyConnection verifies: expired ones may renew
		SessionTicketsDisabled: true,                  // every connection shows its certificate
		VerifyConnection: func(state tls.ConnectionState) error {
			_, _, err := Judge(issuer, state, now())
			return err
		},
	}
}

// Judge says which agent a connection is of and what it may do.
func Judge(issuer Issuer, state tls.ConnectionState, now time.Time) (name string, standing Standing, err error) {
	if len(state.PeerCertificates) == 0 {
		return "", Stranger, nil
	}
	cert := state.PeerCertificates[0]
	at := now
	if now.After(cert.NotAfter) {
		if now.Sub(cert.NotAfter) > join.Grace {
			return "", Stranger, fmt.Errorf("verify agent: expired on %s", cert.NotAfter.UTC().Format(time.DateTime))
		}
		at = cert.NotAfter
	}
	roots := x509.NewCertPool()
	roots.AddCert(issuer.Authority())
	if _, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return "", Stranger, fmt.Errorf("verify agent: %w", err)
	}
	zone, name, err := join.AgentName(cert)
	if err == nil && zone != issuer.Zone() {
		err = errors.New("another zone's")
	}
	if err != nil {
		return "", Stranger, fmt.Errorf("verify agent: %w", err)
	}
	if now.After(cert.NotAfter) {
		return name, Expired, nil
	}
	return name, Member, nil
}

// rotating holds the control plane's own leaf and makes a new one at half life.
type rotating struct {
	issuer Issuer
	now    func() time.Time

	mu   sync.Mutex
	cert *tls.Certificate
}

func (r *rotating) current() (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cert != nil && r.now().Before(r.cert.Leaf.NotBefore.Add(join.LeafLife/2)) {
		return r.cert, nil
	}
	cert, err := r.issuer.Control()
	if err != nil {
		if r.cert != nil {
			return r.cert, nil // half of its life is left to mend the issuer
		}
		return nil, err
	}
	r.cert = cert
	return cert, nil
}
