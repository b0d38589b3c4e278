// SPDX-License-Identifier: Apache-2.0

// Package tenant keeps organisations and the keys that act for them. Secrets
// leave it only to check a signature. Start at Found.
package tenant

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/store"
)

// Found makes an organisation with its default security group and a first key,
// which may do everything in it. The secret is shown this once.
func Found(tx *store.Tx, root *store.RootKey, name string) (store.APIKey, error) {
	org := store.Organization{ID: cloud.NewID(), Name: name}
	k := newKey(org.ID, "first")
	err := tx.AddOrganization(org)
	if err == nil {
		err = securitygroup.AddDefault(tx, org.ID)
	}
	if err == nil {
		err = tx.AddAPIKey(root, k)
	}
	return k, err
}

func newKey(org cloud.ID, name string) store.APIKey {
	id, secret := make([]byte, 12), make([]byte, 32)
	rand.Read(id) // never returns an error
	rand.Read(secret)
	return store.APIKey{
		Key: "EXO" + hex.EncodeToString(id), Org: org, Name: name,
		Secret: base64.RawURLEncoding.EncodeToString(secret),
	}
}

// Keys looks up keys for the HTTP edge.
type Keys struct {
	Store *store.Store
	Root  *store.RootKey
}

var _ api.Keys = Keys{}

// Secret returns the secret of a key and the organisation it acts for.
func (k Keys) Secret(ctx context.Context, key string) (secret string, org cloud.ID, err error) {
	var found store.APIKey
	err = k.Store.Read(ctx, func(tx *store.Tx) (err error) {
		found, err = tx.APIKey(k.Root, key)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		err = cloud.NotFoundf("api key not found")
	}
	return found.Secret, found.Org, err
}
