// SPDX-License-Identifier: Apache-2.0

package join

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Credentials are what joining gave an agent.
type Credentials struct {
	Zone, Name string
	Authority  *x509.Certificate
	Leaf       tls.Certificate // Leaf.Leaf is set
}

// NewCredentials checks what the control plane answered: the leaf is for key,
// the authority signed it.
func NewCredentials(key *ecdsa.PrivateKey, leaf, authority []byte) (Credentials, error) {
	fail := func(err error) (Credentials, error) { return Credentials{}, fmt.Errorf("read credentials: %w", err) }
	cert, err := x509.ParseCertificate(leaf)
	if err != nil {
		return fail(err)
	}
	ca, err := x509.ParseCertificate(authority)
	if err != nil {
		return fail(err)
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return fail(err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return fail(errors.New("the certificate is for another key"))
	}
	zone, name, err := AgentName(cert)
	if err != nil {
		return fail(err)
	}
	return Credentials{
		Zone: zone, Name: name, Authority: ca,
		Leaf: tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: key, Leaf: cert},
	}, nil
}

// credentialsFile holds key, leaf and authority in one file, so that a crash
// leaves the old three or the new three.
const credentialsFile = "credentials.pem"

// Save writes the credentials to the folder, readable by the owner only.
func (c Credentials) Save(folder string) error {
	key, err := x509.MarshalPKCS8PrivateKey(c.Leaf.PrivateKey)
	if err != nil {
		return fmt.Errorf("save credentials: %w", err)
	}
	var text []byte
	for _, block := range []pem.Block{
		{Type: "PRIVATE KEY", Bytes: key},
		{Type: "CERTIFICATE", Bytes: c.Leaf.Certificate[0]},
		{Type: "CERTIFICATE", Bytes: c.Authority.Raw},
	} {
		text = append(text, pem.EncodeToMemory(&block)...)
	}
	if err := replaceFile(filepath.Join(folder, credentialsFile), text); err != nil {
		return fmt.Errorf("save credentials: %w", err)
	}
	return nil
}

// Load reads what Save wrote. The error is fs.ErrNotExist for an agent that
// has not joined.
func Load(folder string) (Credentials, error) {
	text, err := os.ReadFile(filepath.Join(folder, credentialsFile))
	if err != nil {
		return Credentials{}, fmt.Errorf("load credentials: %w", err)
	}
	var blocks [3][]byte
	for i := range blocks {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return Credentials{}, errors.New("load credentials: the file is cut short")
		}
		blocks[i] = block.Bytes
	}
	parsed, err := x509.ParsePKCS8PrivateKey(blocks[0])
	if err != nil {
		return Credentials{}, fmt.Errorf("load credentials: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return Credentials{}, fmt.Errorf("load credentials: a key of type %T", parsed)
	}
	return NewCredentials(key, blocks[1], blocks[2])
}

// replaceFile leaves the old file or the new one, never half of it.
func replaceFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600 from the start
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no such file once it was renamed
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
