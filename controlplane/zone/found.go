// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"cairn/cloud/join"
	"cairn/controlplane/hypervisor"
	"cairn/controlplane/pki"
	"cairn/controlplane/store"
	"cairn/controlplane/tenant"
)

// Founding says what zone is wanted.
type Founding struct {
	Zone, Organisation string
	Pools              map[string]*[]string // kind of addresses → prefixes
}

// Found makes the zone, its first organisation and that one's key, all of it or
// nothing but keys in the folder, which the next call uses. A zone that is there
// is store.ErrExists.
func (f Folder) Found(ctx context.Context, wanted Founding) (key store.APIKey, err error) {
	s, err := f.Open(ctx)
	if err != nil {
		return key, err
	}
	defer s.Close()
	root, err := store.CreateRootKey(f.rootKey())
	if errors.Is(err, store.ErrExists) { // of a call that did not end
		root, err = store.LoadRootKey(f.rootKey())
	}
	if err != nil {
		return key, err
	}
	if _, err := f.issuer(wanted.Zone); err != nil {
		return key, err
	}
	_, err = s.Init(ctx, wanted.Zone, func(tx *store.Tx) (err error) {
		for _, kind := range store.AddressKinds {
			if prefixes := wanted.Pools[kind]; prefixes != nil {
				if err := addPools(tx, kind, *prefixes); err != nil {
					return err
				}
			}
		}
		key, err = tenant.Found(tx, root, wanted.Organisation)
		return err
	})
	return key, err
}

// AddPools adds prefixes that addresses of a kind are taken from.
func (f Folder) AddPools(ctx context.Context, kind string, prefixes []string) error {
	if !slices.Contains(store.AddressKinds, kind) {
		return fmt.Errorf("pool %q: expected one of %v", kind, store.AddressKinds)
	}
	s, err := f.Open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	_, err = s.Write(ctx, func(tx *store.Tx) error { return addPools(tx, kind, prefixes) })
	return err
}

func addPools(tx *store.Tx, kind string, prefixes []string) error {
	for _, text := range prefixes {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		if err := tx.AddPool(kind, prefix); err != nil {
			return err
		}
	}
	return nil
}

// Admit adds a hypervisor, or lets one join anew, and returns its token.
func (f Folder) Admit(ctx context.Context, name, domain string) (join.Token, error) {
	s, err := f.Open(ctx)
	if err != nil {
		return join.Token{}, err
	}
	defer s.Close()
	zone, err := s.Zone(ctx)
	if err != nil {
		return join.Token{}, err
	}
	issuer, err := f.issuer(zone.Name)
	if err != nil {
		return join.Token{}, err
	}
	h := hypervisor.New(s, slog.Default())
	if _, err := h.Add(ctx, name, domain); err != nil {
		return join.Token{}, err
	}
	desk := pki.Desk{Issuer: issuer, Registry: h.Registry(), Now: time.Now}
	return desk.Token(ctx, name)
}
