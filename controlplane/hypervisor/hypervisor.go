// SPDX-License-Identifier: Apache-2.0

// Package hypervisor keeps the rows of the zone's hypervisors: added by the
// operator, filled in when their agents join, and found reachable or not. It
// talks to no agent and judges no silence: it commits what it is told, with
// what follows from it.
//
// Start at Add; registry.go keeps tokens and certificates.
package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"time"

	"cairn/cloud"
	"cairn/controlplane/store"
)

// ErrUnknown: there is no hypervisor of that name.
var ErrUnknown = errors.New("no such hypervisor")

// Inventory is what an agent brings when it says hello.
type Inventory struct {
	Endpoint netip.Addr // of the tunnel
	MTU      uint32
	Roles    []string
	Drivers  []string
	CPUs     int
	Memory   int64 // octets
	Version  string
}

// Hypervisors keeps the rows.
type Hypervisors struct {
	store *store.Store
	log   *slog.Logger

	// Changed, if set, is called in the transaction that finds hypervisors
	// reachable or not, so that what follows (slot tables) is committed with it.
	Changed func(tx *store.Tx, found []store.Doc[store.HypervisorDoc]) error
}

// New keeps the rows in a store.
func New(s *store.Store, log *slog.Logger) *Hypervisors { return &Hypervisors{store: s, log: log} }

// Add makes the row of a hypervisor, and gives it its number. Adding one again
// changes its failure domain and nothing else: its operator wants a new token.
func (h *Hypervisors) Add(ctx context.Context, name, failureDomain string) (store.HypervisorDoc, error) {
	var doc store.HypervisorDoc
	_, err := h.store.Write(ctx, func(tx *store.Tx) error {
		d, err := find(tx, name)
		if errors.Is(err, ErrUnknown) {
			d = store.Doc[store.HypervisorDoc]{ID: cloud.NewID(), Generation: 1}
			d.Body = store.HypervisorDoc{ID: d.ID, Name: name}
			d.Body.Number, err = tx.Allocate(store.NumberHost, string(d.ID))
		}
		if err != nil {
			return err
		}
		d.Body.FailureDomain = failureDomain
		doc = d.Body
		return store.Put(tx, "", d)
	})
	if err != nil {
		return doc, fmt.Errorf("add hypervisor %s: %w", name, err)
	}
	return doc, nil
}

// Hello takes in what an agent brought. An inventory that is known already
// changes nothing. The row is returned as it then stands.
func (h *Hypervisors) Hello(ctx context.Context, name string, i Inventory) (store.HypervisorDoc, error) {
	var doc store.HypervisorDoc
	_, err := h.store.Write(ctx, func(tx *store.Tx) error {
		d, err := find(tx, name)
		if err != nil {
			return err
		}
		b := d.Body
		b.Joined, b.Endpoint, b.MTU, b.Roles, b.Drivers = true, i.Endpoint, i.MTU, i.Roles, i.Drivers
		b.CPUs, b.Memory, b.Version = i.CPUs, i.Memory, i.Version
		doc = b
		if reflect.DeepEqual(b, d.Body) {
			return nil
		}
		d.Body = b
		d.Generation++
		return store.Put(tx, "", d)
	})
	if err != nil {
		return doc, fmt.Errorf("hello of %s: %w", name, err)
	}
	return doc, nil
}

// Drain takes a hypervisor out of placement, or back into it.
func (h *Hypervisors) Drain(ctx context.Context, name string, draining bool) error {
	_, err := h.store.Write(ctx, func(tx *store.Tx) error {
		d, err := find(tx, name)
		if err != nil || d.Body.Draining == draining {
			return err
		}
		d.Body.Draining = draining
		return store.Put(tx, "", d)
	})
	if err != nil {
		return fmt.Errorf("drain hypervisor %s: %w", name, err)
	}
	return nil
}

// List reads all hypervisors.
func (h *Hypervisors) List(ctx context.Context) ([]store.HypervisorDoc, error) {
	var all []store.HypervisorDoc
	err := h.store.Read(ctx, func(tx *store.Tx) error {
		docs, err := store.List[store.HypervisorDoc](tx, "")
		for _, d := range docs {
			all = append(all, d.Body)
		}
		return err
	})
	return all, err
}

// Fact is what was found about a hypervisor.
type Fact struct {
	Name        string
	Unreachable bool // its lease has expired, no packet reaches it, or its uplink is down
	UplinkDown  bool
	Since       time.Time // unreachable since
}

// Commit stores facts, all in one transaction, with what follows from them.
func (h *Hypervisors) Commit(ctx context.Context, facts ...Fact) error {
	_, err := h.store.Write(ctx, func(tx *store.Tx) error {
		var found []store.Doc[store.HypervisorDoc]
		for _, f := range facts {
			d, err := find(tx, f.Name)
			if errors.Is(err, ErrUnknown) {
				continue // removed meanwhile
			}
			if err != nil {
				return err
			}
			if d.Body.Unreachable == f.Unreachable && d.Body.UplinkDown == f.UplinkDown {
				continue
			}
			d.Body.Unreachable, d.Body.UplinkDown, d.Body.Since = f.Unreachable, f.UplinkDown, time.Time{}
			if f.Unreachable {
				d.Body.Since = f.Since.UTC()
			}
			if err := store.Put(tx, "", d); err != nil {
				return err
			}
			found = append(found, d)
		}
		if len(found) == 0 || h.Changed == nil {
			return nil
		}
		return h.Changed(tx, found)
	})
	if err != nil {
		return fmt.Errorf("commit facts about hypervisors: %w", err)
	}
	return nil
}

// find reads the row of a name. Names are unique in the zone.
func find(tx *store.Tx, name string) (store.Doc[store.HypervisorDoc], error) {
	d, err := store.Named[store.HypervisorDoc](tx, "", name)
	if errors.Is(err, store.ErrNotFound) {
		err = ErrUnknown
	}
	return d, err
}
