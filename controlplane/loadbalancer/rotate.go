// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"cairn/cloud"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

// Rotate gives services another seed, all of them if none is named. Their flows go
// on: a packet names who had it by the seed before, until hosts say that nobody has
// any such flow. A service whose slots still remember a former owner, or whose seed
// rotates already, is busy: a packet can name but one.
func Rotate(ctx context.Context, s *store.Store, ids ...cloud.ID) (rotated, busy []cloud.ID, err error) {
	_, err = s.Write(ctx, func(tx *store.Tx) error {
		rotated, busy = nil, nil
		var all []service
		for _, id := range ids {
			one, err := store.Get[store.ServiceDoc](tx, "", id)
			if errors.Is(err, store.ErrNotFound) {
				err = cloud.Missing("service", id)
			}
			if err != nil {
				return err
			}
			all = append(all, one)
		}
		if len(ids) == 0 {
			if all, err = store.List[store.ServiceDoc](tx, ""); err != nil {
				return err
			}
		}
		for _, one := range all {
			done, err := rotate(tx, one)
			if err != nil {
				return fmt.Errorf("service %s: %w", one.ID, err)
			}
			if done {
				rotated = append(rotated, one.ID)
			} else {
				busy = append(busy, one.ID)
			}
		}
		return nil
	})
	return rotated, busy, err
}

func rotate(tx *store.Tx, s service) (bool, error) {
	stored, err := tx.Slots(s.ID)
	if errors.Is(err, store.ErrNotFound) || !serves(s) || s.Body.Rotating {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	table, err := slots.Decode(stored.Cells)
	if err != nil || len(table.Draining()) > 0 {
		return false, err
	}
	d := &s.Body
	d.PrevSeed, d.Seed, d.Rotating = d.Seed, rand.Uint32(), true
	d.SlotsGeneration++ // what hosts say from now on is of the new seed
	stored.Generation = d.SlotsGeneration
	return true, errors.Join(tx.PutSlots(stored), store.Put(tx, "", s))
}

// rotated ends a rotation when no backend that lives has flows by the seed before.
func rotated(d *store.ServiceDoc) {
	if !d.Rotating {
		return
	}
	for _, b := range d.Backends {
		if b.Empty != d.SlotsGeneration && b.State != store.BackendDead {
			return
		}
	}
	d.Rotating, d.PrevSeed = false, 0
}
