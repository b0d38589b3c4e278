// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// SSHKey is a public key, known by its name; it has no id.
type SSHKey struct {
	Name        string `json:"name" table:"true"`
	Fingerprint string `json:"fingerprint" doc:"MD5 of the key, sixteen octets with colons" table:"true"`
}

// SSHKeyRef points at a key by its name.
type SSHKeyRef struct {
	Name string `json:"name" minLength:"1" maxLength:"255"`
}

// SSHKeyList answers list-ssh-keys.
type SSHKeyList struct {
	SSHKeys []SSHKey `json:"ssh-keys"`
}

// RegisterSSHKeyRequest asks for a key to be kept.
type RegisterSSHKeyRequest struct {
	Name      string `json:"name" pattern:"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,254}$" doc:"name of the key"`
	PublicKey string `json:"public-key" minLength:"1" maxLength:"16384" file:"true" doc:"the key as in authorized_keys"`
}

// Validate checks that the text is a public key.
func (r *RegisterSSHKeyRequest) Validate() []FieldError {
	if _, err := Fingerprint(r.PublicKey); err != nil && r.PublicKey != "" {
		return []FieldError{Fault("public-key", "expected a public key in authorized_keys format: %v", err)}
	}
	return nil
}

// Fingerprint computes the fingerprint of a key in authorized_keys format: the MD5
// of its blob (RFC 4716 section 4).
func Fingerprint(publicKey string) (string, error) {
	fields := strings.Fields(publicKey)
	if len(fields) < 2 {
		return "", fmt.Errorf("expected a type and a key")
	}
	blob, err := base64.StdEncoding.DecodeString(fields[1])
	if err != nil {
		return "", fmt.Errorf("decode key: %w", err)
	}
	// The blob starts with its own type, as a counted string (RFC 4253 section 6.6).
	if len(blob) < 4 {
		return "", fmt.Errorf("key is too short")
	}
	n := binary.BigEndian.Uint32(blob)
	if uint64(n) > uint64(len(blob)-4) || string(blob[4:4+n]) != fields[0] {
		return "", fmt.Errorf("key is not of type %q", fields[0])
	}
	sum := md5.Sum(blob)
	octets := make([]string, len(sum))
	for i := range sum {
		octets[i] = hex.EncodeToString(sum[i : i+1])
	}
	return strings.Join(octets, ":"), nil
}
