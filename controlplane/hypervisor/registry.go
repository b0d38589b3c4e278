// SPDX-License-Identifier: Apache-2.0

package hypervisor

import (
	"context"
	"errors"
	"time"

	"cairn/controlplane/pki"
	"cairn/controlplane/store"
)

// Registry keeps the tokens and serials of agents.
func (h *Hypervisors) Registry() pki.Registry { return registry{h.store} }

type registry struct{ store *store.Store }

func (r registry) write(ctx context.Context, fn func(*store.Tx) error) error {
	_, err := r.store.Write(ctx, fn)
	return err
}

// AddToken implements pki.Registry. Only a hypervisor that was added may join.
func (r registry) AddToken(ctx context.Context, name, hash string, expires time.Time) error {
	return r.write(ctx, func(tx *store.Tx) error {
		if _, err := find(tx, name); err != nil {
			return err
		}
		return errors.Join(tx.AddToken(name, hash, expires), tx.RevokeCertificates(name, ""))
	})
}

// Enroll implements pki.Registry.
func (r registry) Enroll(ctx context.Context, name, hash, serial string, notAfter time.Time) error {
	return r.write(ctx, func(tx *store.Tx) error {
		whose, err := tx.SpendToken(hash)
		if errors.Is(err, store.ErrNotFound) || err == nil && whose != name {
			return pki.ErrToken // and nothing is written: the token stays its owner's
		}
		if err != nil {
			return err
		}
		return tx.AddCertificate(store.Certificate{Serial: serial, Name: name, NotAfter: notAfter})
	})
}

// Renew implements pki.Registry.
func (r registry) Renew(ctx context.Context, name, old, serial string, notAfter time.Time) error {
	return r.write(ctx, func(tx *store.Tx) error {
		if err := valid(tx, name, old); err != nil {
			return err
		}
		return tx.AddCertificate(store.Certificate{Serial: serial, Name: name, NotAfter: notAfter})
	})
}

// Valid implements pki.Registry.
func (r registry) Valid(ctx context.Context, name, serial string) error {
	return r.store.Read(ctx, func(tx *store.Tx) error { return valid(tx, name, serial) })
}

func valid(tx *store.Tx, name, serial string) error {
	c, err := tx.Certificate(serial)
	if errors.Is(err, store.ErrNotFound) || err == nil && (c.Revoked || c.Name != name) {
		return pki.ErrRevoked
	}
	return err
}
