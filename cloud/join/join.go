// SPDX-License-Identifier: Apache-2.0

// Package join is what an agent and the control plane must agree on before
// they trust each other: the text of a token, the pin of the authority, names
// in certificates, and the TLS settings of an agent. It signs nothing; that is
// the control plane's. Standard library only.
//
// Start at Token, then Enrolling and Joined in tls.go.
package join

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// Lifetimes.
const (
	TokenLife = time.Hour          // of a token that nobody used
	LeafLife  = 24 * time.Hour     // of a certificate
	Grace     = 7 * 24 * time.Hour // after its end, in which a certificate may renew and do nothing else
)

// Token lets one agent join once. Its text is NAME.SECRET.PIN.
type Token struct {
	Name   string
	Secret string // 32 hexadecimal digits
	Pin    string // of the authority, see Pin
}

var (
	nameForm   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	secretForm = regexp.MustCompile(`^[0-9a-f]{32}$`)
	pinForm    = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// ValidName reports whether a hypervisor may be called so.
func ValidName(name string) bool { return nameForm.MatchString(name) }

// NewToken draws a secret for the agent called name.
func NewToken(name, pin string) (Token, error) {
	var secret [16]byte
	_, _ = rand.Read(secret[:]) // it ends the process rather than fail
	return Parse(Token{Name: name, Secret: hex.EncodeToString(secret[:]), Pin: pin}.String())
}

// Parse reads a token's text.
func Parse(text string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(parts) != 3 {
		return Token{}, errors.New("read token: not of the form NAME.SECRET.PIN")
	}
	t := Token{Name: parts[0], Secret: parts[1], Pin: parts[2]}
	switch {
	case !ValidName(t.Name):
		return Token{}, fmt.Errorf("read token: %q is no name of a hypervisor", t.Name)
	case !secretForm.MatchString(t.Secret):
		return Token{}, errors.New("read token: the secret is not 32 hexadecimal digits")
	case !pinForm.MatchString(t.Pin):
		return Token{}, errors.New("read token: the pin is not 64 hexadecimal digits")
	}
	return t, nil
}

func (t Token) String() string { return t.Name + "." + t.Secret + "." + t.Pin }

// SecretHash is what the control plane keeps of a secret: its SHA-256 in
// hexadecimal. The secret is random, so a plain hash does not weaken it.
func SecretHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// Pin names an authority: the SHA-256 of its public key in hexadecimal.
func Pin(authority *x509.Certificate) string {
	sum := sha256.Sum256(authority.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// AgentID is the name of an agent in its certificate.
func AgentID(zone, name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: zone, Path: "/agent/" + name}
}

// ControlID is the name of the control plane in its certificate.
func ControlID(zone string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: zone, Path: "/control"}
}

// AgentName gives the zone and the name of the agent a certificate is for.
func AgentName(cert *x509.Certificate) (zone, name string, err error) {
	id, err := identity(cert)
	if err != nil {
		return "", "", err
	}
	name, ok := strings.CutPrefix(id.Path, "/agent/")
	if !ok || !ValidName(name) {
		return "", "", fmt.Errorf("certificate of %s: not an agent's", id)
	}
	return id.Host, name, nil
}

func identity(cert *x509.Certificate) (*url.URL, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" || cert.URIs[0].Host == "" {
		return nil, errors.New("certificate: no SPIFFE identity")
	}
	return cert.URIs[0], nil
}
