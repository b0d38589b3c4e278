// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"cairn/cloud/join"
)

// Errors that callers tell apart.
var (
	// ErrToken: the token is unknown, too old, spent, or another agent's.
	ErrToken = errors.New("the token is not valid (unknown, expired, spent or for another name)")
	// ErrRevoked: the certificate was replaced by a new join of the same name.
	ErrRevoked = errors.New("the certificate is revoked")
)

// Registry keeps tokens and serials. Each call is one transaction.
type Registry interface {
	// AddToken keeps the hash of a secret with which the agent called name may
	// join until expires, and revokes every serial of that name.
	AddToken(ctx context.Context, name, hash string, expires time.Time) error
	// Enroll spends the token and records the serial of the leaf it paid for;
	// ErrToken if there is no such unspent token of that name.
	Enroll(ctx context.Context, name, hash, serial string, notAfter time.Time) error
	// Renew records the serial that follows another one; ErrRevoked if that
	// one is revoked or unknown.
	Renew(ctx context.Context, name, old, serial string, notAfter time.Time) error
	// Valid returns ErrRevoked unless the serial was recorded for the name and
	// is not revoked.
	Valid(ctx context.Context, name, serial string) error
}

// Desk gives out tokens and leaves.
type Desk struct {
	Issuer   Issuer
	Registry Registry
	Now      func() time.Time
}

// Token makes a token for the hypervisor called name. What certificates the
// name has are revoked: their holder has to join anew.
func (d *Desk) Token(ctx context.Context, name string) (join.Token, error) {
	token, err := join.NewToken(name, join.Pin(d.Issuer.Authority()))
	if err != nil {
		return join.Token{}, fmt.Errorf("make token: %w", err)
	}
	if err := d.Registry.AddToken(ctx, name, join.SecretHash(token.Secret), d.Now().Add(join.TokenLife)); err != nil {
		return join.Token{}, fmt.Errorf("make token for %s: %w", name, err)
	}
	return token, nil
}

// Enroll exchanges a token for a leaf. A leaf that could not be recorded is
// thrown away; a token whose leaf got lost on the way is spent, and the
// operator makes another.
func (d *Desk) Enroll(ctx context.Context, name, secret string, request []byte) (*x509.Certificate, error) {
	if !join.ValidName(name) {
		return nil, fmt.Errorf("enroll %q: %w", name, ErrToken)
	}
	leaf, err := d.Issuer.Agent(name, request)
	if err != nil {
		return nil, fmt.Errorf("enroll %s: %w", name, err)
	}
	if err := d.Registry.Enroll(ctx, name, join.SecretHash(secret), Serial(leaf), leaf.NotAfter); err != nil {
		return nil, fmt.Errorf("enroll %s: %w", name, err)
	}
	return leaf, nil
}

// Renew gives the holder of a certificate, expired by at most join.Grace, a
// new one. The old one lives on until it ends: its holder may not have got the
// new one.
func (d *Desk) Renew(ctx context.Context, cert *x509.Certificate, request []byte) (*x509.Certificate, error) {
	_, name, err := join.AgentName(cert)
	if err != nil {
		return nil, fmt.Errorf("renew: %w", err)
	}
	leaf, err := d.Issuer.Agent(name, request)
	if err != nil {
		return nil, fmt.Errorf("renew: %w", err)
	}
	if err := d.Registry.Renew(ctx, name, Serial(cert), Serial(leaf), leaf.NotAfter); err != nil {
		return nil, fmt.Errorf("renew %s: %w", name, err)
	}
	return leaf, nil
}

// Serial is a certificate's serial number in hexadecimal.
func Serial(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }
