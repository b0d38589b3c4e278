// SPDX-License-Identifier: Apache-2.0

// Package pki is the zone's own certificate authority: it signs the leaves of
// agents and of the control plane, spends the tokens by which agents join, and
// says what a caller with a given certificate may do. It keeps the authority's
// key and nothing else; tokens and serials are kept by a Registry.
//
// Start at Issuer, then Desk for joining and renewing, and ServerConfig for
// who is let in.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"cairn/cloud/join"
)

// Issuer signs. The one here keeps its key in a file; one that asks a hardware
// module, or another authority, can take its place.
type Issuer interface {
	// Zone is the trust domain: the host of every name in a certificate.
	Zone() string
	// Authority is the certificate that everybody trusts.
	Authority() *x509.Certificate
	// Agent signs a leaf for the agent called name, whatever name the request gives.
	Agent(name string, request []byte) (*x509.Certificate, error)
	// Control makes a leaf with a new key for the control plane itself.
	Control() (*tls.Certificate, error)
}

const (
	keyFile       = "ca.key"
	authorityFile = "ca.pem"
	authorityLife = 20 * 365 * 24 * time.Hour
	// backdate lets leaves be used by hosts whose clocks are behind ours.
	backdate = 5 * time.Minute
)

// FileIssuer is an authority whose key lies in a folder.
type FileIssuer struct {
	zone      string
	key       crypto.Signer
	authority *x509.Certificate
	now       func() time.Time
}

// Open reads the authority of a zone from the folder and makes it if there is
// none. Key (0600) and certificate are written in this order, so a crash
// between them leaves a key without a certificate: the next Open makes the
// certificate anew, and the pin, which is the key's, stays the same.
func Open(folder, zone string, now func() time.Time) (*FileIssuer, error) {
	i := &FileIssuer{zone: zone, now: now}
	if err := i.open(folder); err != nil {
		return nil, fmt.Errorf("open authority in %s: %w", folder, err)
	}
	return i, nil
}

func (i *FileIssuer) open(folder string) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	keyPath, certPath := filepath.Join(folder, keyFile), filepath.Join(folder, authorityFile)
	key, err := readKey(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(certPath); err == nil {
			return fmt.Errorf("%s is there without its key", certPath)
		}
		key, err = makeKey(keyPath)
	}
	if err != nil {
		return err
	}
	i.key = key
	i.authority, err = readCertificate(certPath)
	if errors.Is(err, fs.ErrNotExist) {
		return i.makeAuthority(certPath)
	}
	if err != nil {
		return err
	}
	if !key.PublicKey.Equal(i.authority.PublicKey) {
		return fmt.Errorf("%s is for another key than %s", certPath, keyPath)
	}
	if id := i.authority.URIs; len(id) != 1 || id[0].Host != i.zone {
		return fmt.Errorf("%s is of another zone than %s", certPath, i.zone)
	}
	return nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM file", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: a key of type %T", path, key)
	}
	return ec, nil
}

func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeNew(path, "PRIVATE KEY", der)
}

func readCertificate(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM file", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// writeNew writes a file that is complete when it has its name.
func writeNew(path, kind string, der []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600 from the start
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no such file once it was renamed
	if err := errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func (i *FileIssuer) makeAuthority(path string) error {
	now := i.now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "cairn " + i.zone},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: i.zone}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, i.key.Public(), i.key)
	if err != nil {
		return err
	}
	if i.authority, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	return writeNew(path, "CERTIFICATE", der)
}

// Zone is the trust domain.
func (i *FileIssuer) Zone() string { return i.zone }

// Authority is the certificate that everybody trusts.
func (i *FileIssuer) Authority() *x509.Certificate { return i.authority }

// Agent signs a leaf for an agent.
func (i *FileIssuer) Agent(name string, request []byte) (*x509.Certificate, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", name, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("sign for %s: %w", name, err)
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("sign for %s: the key is not on P-256", name)
	}
	cert, err := i.leaf(join.AgentID(i.zone, name), name, csr.PublicKey, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", name, err)
	}
	return cert, nil
}

// Control makes a leaf for the control plane. The chain holds the authority
// too: an agent that joins finds the key it has the pin of.
func (i *FileIssuer) Control() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("sign for the control plane: %w", err)
	}
	cert, err := i.leaf(join.ControlID(i.zone), "control", key.Public(), x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, fmt.Errorf("sign for the control plane: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw, i.authority.Raw}, PrivateKey: key, Leaf: cert}, nil
}

func (i *FileIssuer) leaf(id *url.URL, name string, key crypto.PublicKey, usage x509.ExtKeyUsage) (*x509.Certificate, error) {
	now := i.now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name},
		URIs:                  []*url.URL{id},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(join.LeafLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{usage},
		BasicConstraintsValid: true,
	}, i.authority, key, i.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it ends the process rather than fail
	b[0] &= 0x7f           // a serial is positive
	b[0] |= 0x40           // and of constant length
	return new(big.Int).SetBytes(b[:])
}
