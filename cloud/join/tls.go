// SPDX-License-Identifier: Apache-2.0

package join

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"time"
)

// NewKey makes an agent's key. It never leaves the agent.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// Request is the signing request (DER, PKCS#10) that proves possession of key.
// The name in it is a courtesy: the control plane writes names by itself.
func Request(key *ecdsa.PrivateKey, name string) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name},
	}, key)
}

// Enrolling is the configuration of a client that has a pin and nothing else:
// it accepts only the control plane of the authority that the pin names.
func Enrolling(pin string) *tls.Config {
	return client(func(chain []*x509.Certificate) (*x509.Certificate, string, error) {
		for _, cert := range chain {
			if cert.IsCA && Pin(cert) == pin {
				return cert, "", nil
			}
		}
		return nil, "", errors.New("no certificate of the chain has the token's pin")
	})
}

// Joined is the configuration of an agent that has joined. Leaf is asked at
// each connection, so that a renewed certificate is used from then on.
func Joined(authority *x509.Certificate, zone string, leaf func() *tls.Certificate) *tls.Config {
	config := client(func([]*x509.Certificate) (*x509.Certificate, string, error) { return authority, zone, nil })
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return leaf(), nil }
	return config
}

// client verifies a server by authority and SPIFFE name, since a control plane
// has no host name that could be checked.
func client(authorityOf func(chain []*x509.Certificate) (authority *x509.Certificate, zone string, err error)) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection does it: there is no host name to check
		VerifyConnection: func(state tls.ConnectionState) error {
			authority, zone, err := authorityOf(state.PeerCertificates)
			if err != nil {
				return fmt.Errorf("verify control plane: %w", err)
			}
			leaf := state.PeerCertificates[0] // a server without a certificate does not exist in TLS
			roots := x509.NewCertPool()
			roots.AddCert(authority)
			if _, err := leaf.Verify(x509.VerifyOptions{
				Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			}); err != nil {
				return fmt.Errorf("verify control plane: %w", err)
			}
			id, err := identity(leaf)
			if err != nil {
				return fmt.Errorf("verify control plane: %w", err)
			}
			if id.Path != "/control" || (zone != "" && id.Host != zone) {
				return fmt.Errorf("verify control plane: %s is not the control plane", id)
			}
			return nil
		},
	}
}

// RenewAt is when a certificate should be renewed: at half its life, up to a
// tenth of it earlier, so that agents that joined together do not renew together.
func RenewAt(cert *x509.Certificate) time.Time {
	life := cert.NotAfter.Sub(cert.NotBefore)
	return cert.NotBefore.Add(life/2 - time.Duration(mathrand.Int64N(int64(life/10)+1)))
}
