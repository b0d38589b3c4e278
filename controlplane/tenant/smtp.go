// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"context"
	"errors"
	"fmt"

	"cairn/controlplane/store"
)

// PermitSMTP lets the instances of an organisation send mail; they may not
// before. It is named, or given by its id.
func PermitSMTP(ctx context.Context, s *store.Store, org string) error {
	return withOrganization(ctx, s, org, func(tx *store.Tx, o store.Organization) error {
		switch _, err := store.Get[store.SMTPDoc](tx, "", o.ID); {
		case err == nil:
			return nil // it may already
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		return store.Put(tx, "", store.Doc[store.SMTPDoc]{ID: o.ID, Generation: 1, Body: store.SMTPDoc{Organization: o.Name}})
	})
}

// BlockSMTP takes the permit back. Connections that are there end with their
// next packet.
func BlockSMTP(ctx context.Context, s *store.Store, org string) error {
	return withOrganization(ctx, s, org, func(tx *store.Tx, o store.Organization) error {
		d, err := store.Get[store.SMTPDoc](tx, "", o.ID)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return tx.Delete("", d.Ref())
	})
}

// SMTPPermits are the organisations that may send mail, by name.
func SMTPPermits(tx *store.Tx) (names []string, err error) {
	docs, err := store.List[store.SMTPDoc](tx, "")
	for _, d := range docs {
		names = append(names, d.Body.Organization)
	}
	return names, err
}

func withOrganization(ctx context.Context, s *store.Store, name string, fn func(*store.Tx, store.Organization) error) error {
	_, err := s.Write(ctx, func(tx *store.Tx) error {
		all, err := tx.Organizations()
		if err != nil {
			return err
		}
		for _, o := range all {
			if o.Name == name || string(o.ID) == name {
				return fn(tx, o)
			}
		}
		return fmt.Errorf("organisation %q: %w", name, store.ErrNotFound)
	})
	return err
}
