// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"context"
	"errors"
	"time"

	"cairn/controlplane/store"
)

// StoreRegistry keeps tokens and serials in the zone's store.
type StoreRegistry struct{ Store *store.Store }

var _ Registry = StoreRegistry{}

// AddToken keeps a token and revokes what its name has.
func (r StoreRegistry) AddToken(ctx context.Context, name, hash string, expires time.Time) error {
	_, err := r.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.RevokeCertificates(name, ""); err != nil {
			return err
		}
		return tx.AddToken(name, hash, expires)
	})
	return err
}

// Enroll spends a token and records what it paid for.
func (r StoreRegistry) Enroll(ctx context.Context, name, hash, serial string, notAfter time.Time) error {
	_, err := r.Store.Write(ctx, func(tx *store.Tx) error {
		holder, err := tx.SpendToken(hash)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return ErrToken
		case err != nil:
			return err
		case holder != name:
			return ErrToken // and the token stays what it was: nothing is committed
		}
		return tx.AddCertificate(store.Certificate{Serial: serial, Name: name, NotAfter: notAfter})
	})
	return err
}

// Renew records the serial that follows another.
func (r StoreRegistry) Renew(ctx context.Context, name, old, serial string, notAfter time.Time) error {
	_, err := r.Store.Write(ctx, func(tx *store.Tx) error {
		if err := valid(tx, name, old); err != nil {
			return err
		}
		return tx.AddCertificate(store.Certificate{Serial: serial, Name: name, NotAfter: notAfter})
	})
	return err
}

// Valid returns ErrRevoked for a serial that its name may not use any more.
func (r StoreRegistry) Valid(ctx context.Context, name, serial string) error {
	return r.Store.Read(ctx, func(tx *store.Tx) error { return valid(tx, name, serial) })
}

func valid(tx *store.Tx, name, serial string) error {
	c, err := tx.Certificate(serial)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return ErrRevoked
	case err != nil:
		return err
	case c.Revoked || c.Name != name:
		return ErrRevoked
	}
	return nil
}
