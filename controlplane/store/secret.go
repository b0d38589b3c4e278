// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cairn/cloud"
)

// RootKey seals secrets at rest. It lives in a file of its own, outside the
// store: a copy of the store alone gives nothing away.
type RootKey struct{ aead cipher.AEAD }

// rootKeySize is that of AES-256.
const rootKeySize = 32

// CreateRootKey draws a key and writes it to a new file (0600); ErrExists if
// there is one already.
func CreateRootKey(path string) (*RootKey, error) {
	key := make([]byte, rootKeySize)
	rand.Read(key) // never returns an error
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make root key %s: %w", path, ErrExists)
	}
	if err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	_, err = f.WriteString(hex.EncodeToString(key) + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	return newRootKey(key)
}

// LoadRootKey reads the file that CreateRootKey wrote.
func LoadRootKey(path string) (*RootKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load root key: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != rootKeySize {
		return nil, fmt.Errorf("load root key %s: not %d octets in hexadecimal", path, rootKeySize)
	}
	return newRootKey(key)
}

func newRootKey(key []byte) (*RootKey, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &RootKey{aead}, nil
}

// seal encrypts a secret, bound to the name it belongs to: it cannot be moved
// to another row.
func (k *RootKey) seal(name, secret string) []byte {
	return k.aead.Seal(nil, nil, []byte(secret), []byte(name))
}

func (k *RootKey) open(name string, sealed []byte) (string, error) {
	secret, err := k.aead.Open(nil, nil, sealed, []byte(name))
	if err != nil {
		return "", fmt.Errorf("open the secret of %s: %w", name, err)
	}
	return string(secret), nil
}

// Seal encrypts what only its owner may read, bound to a name.
func (k *RootKey) Seal(name, secret string) []byte { return k.seal(name, secret) }

// Open is the reverse of Seal.
func (k *RootKey) Open(name string, sealed []byte) (string, error) { return k.open(name, sealed) }

// APIKey is what signs requests. The key selects the organisation.
type APIKey struct {
	Key    string
	Org    cloud.ID
	Name   string
	Secret string
}

// AddAPIKey stores a key with its secret sealed.
func (tx *Tx) AddAPIKey(root *RootKey, k APIKey) error {
	_, err := tx.exec(`INSERT INTO apikey (access_key, org, name, secret, created) VALUES ($1, $2, $3, $4, $5)`,
		k.Key, k.Org, k.Name, root.seal(k.Key, k.Secret), nanos(tx.Now()))
	if err != nil {
		return fmt.Errorf("add api key %s: %w", k.Key, err)
	}
	return nil
}

// APIKey reads a key with its secret; ErrNotFound if there is none.
func (tx *Tx) APIKey(root *RootKey, key string) (APIKey, error) {
	k := APIKey{Key: key}
	var sealed []byte
	err := tx.queryRow([]any{&k.Org, &k.Name, &sealed}, `SELECT org, name, secret FROM apikey WHERE access_key = $1`, key)
	if err != nil {
		return APIKey{}, fmt.Errorf("api key: %w", err)
	}
	if k.Secret, err = root.open(key, sealed); err != nil {
		return APIKey{}, err
	}
	return k, nil
}

// AddToken stores a one-time token to join as name: its hash only, until it
// expires. Earlier tokens of the name that were not spent are void.
func (tx *Tx) AddToken(name, hash string, expires time.Time) error {
	if _, err := tx.exec(`DELETE FROM token WHERE name = $1 AND spent IS NULL`, name); err != nil {
		return fmt.Errorf("add token for %s: %w", name, err)
	}
	_, err := tx.exec(`INSERT INTO token (hash, name, expires, spent) VALUES ($1, $2, $3, NULL)`,
		hash, name, nanos(expires))
	if err != nil {
		return fmt.Errorf("add token for %s: %w", name, err)
	}
	return nil
}

// SpendToken uses a token up and says whose it was. ErrNotFound if there is no
// such token, it was spent, or it has expired: who asks is not told which.
func (tx *Tx) SpendToken(hash string) (name string, err error) {
	err = tx.queryRowWriting([]any{&name},
		`UPDATE token SET spent = $1 WHERE hash = $2 AND spent IS NULL AND expires > $3 RETURNING name`,
		nanos(tx.Now()), hash, nanos(tx.Now()))
	if err != nil {
		return "", fmt.Errorf("spend token: %w", err)
	}
	return name, nil
}

// Certificate is one that was issued to an agent.
type Certificate struct {
	Serial   string
	Name     string
	NotAfter time.Time
	Revoked  bool
}

// AddCertificate records what was issued.
func (tx *Tx) AddCertificate(c Certificate) error {
	_, err := tx.exec(`INSERT INTO certificate (serial, name, not_after, revoked) VALUES ($1, $2, $3, NULL)`,
		c.Serial, c.Name, nanos(c.NotAfter))
	if err != nil {
		return fmt.Errorf("record certificate of %s: %w", c.Name, err)
	}
	return nil
}

// RevokeCertificates revokes all that were issued to a name, but one serial,
// which may be empty.
func (tx *Tx) RevokeCertificates(name, but string) error {
	_, err := tx.exec(`UPDATE certificate SET revoked = $1 WHERE name = $2 AND serial <> $3 AND revoked IS NULL`,
		nanos(tx.Now()), name, but)
	if err != nil {
		return fmt.Errorf("revoke certificates of %s: %w", name, err)
	}
	return nil
}

// Certificate reads what is known of a serial; ErrNotFound if it was never
// issued.
func (tx *Tx) Certificate(serial string) (Certificate, error) {
	c := Certificate{Serial: serial}
	var notAfter int64
	err := tx.queryRow([]any{&c.Name, &notAfter, &c.Revoked},
		`SELECT name, not_after, CASE WHEN revoked IS NULL THEN 0 ELSE 1 END FROM certificate WHERE serial = $1`, serial)
	c.NotAfter = moment(notAfter)
	return c, err
}
