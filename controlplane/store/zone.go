// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"cairn/cloud"
)

// Zone is the one row that orders everything.
type Zone struct {
	ID    cloud.ID
	Name  string
	Epoch uint64 // raised by whoever takes the zone over; writes of older ones are refused
	Seed  uint32 // of hashes that all load balancers of the zone share
}

// Organization owns resources and keys.
type Organization struct {
	ID   cloud.ID
	Name string
}

// Init makes the zone, and in the same transaction what fn adds to it; fn may
// be nil. A store has one zone for ever: ErrExists if it is there.
func (s *Store) Init(ctx context.Context, name string, fn func(*Tx) error) (Zone, error) {
	z := Zone{ID: cloud.NewID(), Name: name, Epoch: 1, Seed: rand.Uint32()}
	_, err := s.Write(ctx, func(tx *Tx) error {
		var n int
		if err := tx.queryRow([]any{&n}, `SELECT COUNT(*) FROM zone`); err != nil {
			return err
		}
		if n > 0 {
			return ErrExists
		}
		_, err := tx.exec(`INSERT INTO zone (id, name, rev, epoch, compacted, seed, created)
			VALUES ($1, $2, 0, $3, 0, $4, $5)`, z.ID, z.Name, z.Epoch, z.Seed, nanos(tx.Now()))
		if err != nil || fn == nil {
			return err
		}
		return fn(tx)
	})
	if err != nil {
		return Zone{}, fmt.Errorf("make zone %s: %w", name, err)
	}
	s.zoneMu.Lock()
	defer s.zoneMu.Unlock()
	s.zone = z
	return z, nil
}

// Zone says which zone this is, with the epoch under which this process
// writes; ErrNoZone before Init.
func (s *Store) Zone(ctx context.Context) (Zone, error) {
	s.zoneMu.Lock()
	defer s.zoneMu.Unlock()
	if s.zone.ID != "" {
		return s.zone, nil
	}
	var z Zone
	err := s.Read(ctx, func(tx *Tx) (err error) { z, err = tx.readZone(); return err })
	if err == nil {
		s.zone = z
	}
	return z, err
}

// zone is the one this process writes under; inside a transaction it is read
// there, since the readers may not see it yet.
func (tx *Tx) zone() (Zone, error) {
	tx.store.zoneMu.Lock()
	z := tx.store.zone
	tx.store.zoneMu.Unlock()
	if z.ID != "" {
		return z, nil
	}
	return tx.readZone()
}

func (tx *Tx) readZone() (Zone, error) {
	var z Zone
	err := tx.queryRow([]any{&z.ID, &z.Name, &z.Epoch, &z.Seed}, `SELECT id, name, epoch, seed FROM zone`)
	if errors.Is(err, ErrNotFound) {
		err = ErrNoZone
	}
	return z, err
}

// TakeOver raises the epoch: from here on every process that opened the store
// earlier is refused with ErrFenced.
func (s *Store) TakeOver(ctx context.Context) (Zone, error) {
	z, err := s.Zone(ctx)
	if err != nil {
		return z, fmt.Errorf("take over: %w", err)
	}
	_, err = s.Write(ctx, func(tx *Tx) error {
		return tx.queryRowWriting([]any{&z.Epoch},
			`UPDATE zone SET epoch = epoch + 1 WHERE id = $1 RETURNING epoch`, z.ID)
	})
	if err != nil {
		return z, fmt.Errorf("take over: %w", err)
	}
	s.zoneMu.Lock()
	defer s.zoneMu.Unlock()
	s.zone = z
	return z, nil
}

// queryRowWriting is queryRow for statements that write and return.
func (tx *Tx) queryRowWriting(dest []any, text string, args ...any) error {
	if !tx.writable {
		return errors.New("write in a read transaction")
	}
	err := tx.queryRow(dest, text, args...)
	tx.dirty = tx.dirty || err == nil
	return err
}

// Revision is that of the last commit this transaction sees.
func (tx *Tx) Revision() (Revision, error) {
	var rev Revision
	err := tx.queryRow([]any{&rev}, `SELECT rev FROM zone`)
	if errors.Is(err, ErrNotFound) {
		err = ErrNoZone
	}
	return rev, err
}

// AddOrganization makes an organisation.
func (tx *Tx) AddOrganization(o Organization) error {
	n, err := tx.exec(`INSERT INTO organization (id, name, created) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO NOTHING`, o.ID, o.Name, nanos(tx.Now()))
	if err == nil && n == 0 {
		err = ErrExists
	}
	if err != nil {
		return fmt.Errorf("add organisation %s: %w", o.Name, err)
	}
	return nil
}

// Organizations lists all of them.
func (tx *Tx) Organizations() ([]Organization, error) {
	return query(tx, func(scan func(...any) error) (o Organization, err error) {
		return o, scan(&o.ID, &o.Name)
	}, `SELECT id, name FROM organization ORDER BY created, id`)
}

// Change is one entry of the change log: this resource was written, or
// deleted, by the commit with this revision.
type Change struct {
	Revision  Revision
	Seq       int // within the commit, from 0
	Kind      Kind
	ID        cloud.ID
	Deleted   bool
	Operation cloud.ID // may be empty
	Org       cloud.ID
}

// Changes reads the change log after a revision, in order, at most limit
// entries, and then the rest of the last commit. ErrCompacted if what comes next is gone.
// Slot tables and intents have no entries of their own: they are written with
// a change of their service, or under the operation of the change.
func (tx *Tx) Changes(after Revision, limit int) ([]Change, error) {
	var compacted Revision
	if err := tx.queryRow([]any{&compacted}, `SELECT compacted FROM zone`); err != nil {
		return nil, fmt.Errorf("changes: %w", err)
	}
	if after < compacted {
		return nil, ErrCompacted
	}
	all, err := query(tx, scanChange, `SELECT revision, seq, kind, id, deleted, operation, org FROM change
		WHERE revision > $1 ORDER BY revision, seq LIMIT $2`, after, limit)
	if err == nil && len(all) == limit {
		var rest []Change // of the last commit
		last := all[len(all)-1]
		rest, err = query(tx, scanChange, `SELECT revision, seq, kind, id, deleted, operation, org FROM change
			WHERE revision = $1 AND seq > $2 ORDER BY seq`, last.Revision, last.Seq)
		all = append(all, rest...)
	}
	if err != nil {
		return nil, fmt.Errorf("changes after %d: %w", after, err)
	}
	return all, nil
}

func scanChange(scan func(...any) error) (c Change, err error) {
	return c, scan(&c.Revision, &c.Seq, &c.Kind, &c.ID, &c.Deleted, &c.Operation, &c.Org)
}

// ChangesOf reads what an operation has changed, as far as it is not
// compacted.
func (tx *Tx) ChangesOf(operation cloud.ID) ([]Change, error) {
	return query(tx, scanChange, `SELECT revision, seq, kind, id, deleted, operation, org FROM change
		WHERE operation = $1 ORDER BY revision, seq`, operation)
}

// Compact forgets changes up to and including a revision.
func (tx *Tx) Compact(upTo Revision) error {
	if _, err := tx.exec(`DELETE FROM change WHERE revision <= $1`, upTo); err != nil {
		return fmt.Errorf("compact: %w", err)
	}
	_, err := tx.exec(`UPDATE zone SET compacted = $1 WHERE compacted < $2 AND rev >= $3`, upTo, upTo, upTo)
	if err != nil {
		return fmt.Errorf("compact: %w", err)
	}
	return nil
}

// Intent is the leave to delete: this operation removes count items of a wire
// class. It is written when the operation is accepted, before anything is
// compiled, and nobody else may make one.
type Intent struct {
	Operation cloud.ID
	Class     string
	Count     int
}

// AddIntent adds to what an operation may remove.
func (tx *Tx) AddIntent(i Intent) error {
	_, err := tx.exec(`INSERT INTO intent (operation, class, count) VALUES ($1, $2, $3)
		ON CONFLICT (operation, class) DO UPDATE SET count = intent.count + excluded.count`,
		i.Operation, i.Class, i.Count)
	if err != nil {
		return fmt.Errorf("intent of %s: %w", i.Operation, err)
	}
	return nil
}

// Intents reads what an operation may remove.
func (tx *Tx) Intents(operation cloud.ID) ([]Intent, error) {
	return query(tx, func(scan func(...any) error) (i Intent, err error) {
		return i, scan(&i.Operation, &i.Class, &i.Count)
	}, `SELECT operation, class, count FROM intent WHERE operation = $1 ORDER BY class`, operation)
}

// Slots is the slot table of a service. It is the memory of minimal moves, so
// it is kept, never computed anew. Write it with the service in one
// transaction: the change log names the service.
type Slots struct {
	Service    cloud.ID
	Generation uint64
	Phase      int
	Cells      []byte // as package slots encodes them
}

// PutSlots stores a table in place of the service's former one.
func (tx *Tx) PutSlots(s Slots) error {
	_, err := tx.exec(`INSERT INTO slots (service, generation, phase, cells) VALUES ($1, $2, $3, $4)
		ON CONFLICT (service) DO UPDATE SET generation = excluded.generation, phase = excluded.phase, cells = excluded.cells`,
		s.Service, s.Generation, s.Phase, s.Cells)
	if err != nil {
		return fmt.Errorf("slots of %s: %w", s.Service, err)
	}
	return nil
}

// Slots reads the table of a service; ErrNotFound if it has none yet.
func (tx *Tx) Slots(service cloud.ID) (Slots, error) {
	s := Slots{Service: service}
	err := tx.queryRow([]any{&s.Generation, &s.Phase, &s.Cells},
		`SELECT generation, phase, cells FROM slots WHERE service = $1`, service)
	return s, err
}

// DeleteSlots forgets the table of a service.
func (tx *Tx) DeleteSlots(service cloud.ID) error {
	_, err := tx.exec(`DELETE FROM slots WHERE service = $1`, service)
	return err
}

// Sweep removes what has lost its meaning: answers past their expiry, and
// operations that ended more than keep ago with their tasks and intents.
func (tx *Tx) Sweep(keep time.Duration) error {
	now := tx.Now()
	old := nanos(now.Add(-keep))
	for _, s := range []struct {
		text string
		arg  int64
	}{
		{`DELETE FROM answer WHERE expires < $1`, nanos(now)},
		{`DELETE FROM intent WHERE operation IN (SELECT id FROM operation WHERE finished > 0 AND finished < $1)`, old},
		{`DELETE FROM task_event WHERE task IN (SELECT task.id FROM task JOIN operation ON operation.id = task.operation
			WHERE task.finished = 1 AND operation.finished > 0 AND operation.finished < $1)`, old},
		{`DELETE FROM task WHERE finished = 1 AND operation IN
			(SELECT id FROM operation WHERE finished > 0 AND finished < $1)`, old},
		{`DELETE FROM operation WHERE finished > 0 AND finished < $1`, old},
	} {
		if _, err := tx.exec(s.text, s.arg); err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
	}
	return nil
}
