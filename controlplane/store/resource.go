// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/cloud"
)

// Kind names what a resource is, with the words of the API.
type Kind string

// The kinds of resources.
const (
	KindSSHKey        Kind = "ssh-key"
	KindAntiAffinity  Kind = "anti-affinity-group"
	KindSecurityGroup Kind = "security-group"
	KindInstance      Kind = "instance"
	KindPool          Kind = "instance-pool"
	KindLoadBalancer  Kind = "load-balancer"
	KindService       Kind = "load-balancer-service"
	KindHypervisor    Kind = "hypervisor"

	KindPrivateNetwork Kind = "private-network"
	KindElasticIP      Kind = "elastic-ip"
)

// Row is a resource as it is stored: what every kind has, and the document.
type Row struct {
	Kind       Kind
	ID         cloud.ID
	Org        cloud.ID // empty for what belongs to the zone
	Name       string
	State      string
	Generation uint64
	Revision   Revision // of the commit that wrote it
	Born       Revision // of the commit that made it
	Document   []byte   // JSON

	unique string
}

// Index is what a document shows of itself to those who search.
type Index struct {
	Name   string
	Unique string // a name no other resource of the kind and organisation has; empty: may repeat
	State  string
}

// Document is the content of a resource. Each kind has one type, listed in
// documents.go.
type Document interface {
	Kind() Kind
	Index() Index
}

// Referrer is a document that uses other resources. Put takes note of it, and
// as long as it stands what it names cannot be deleted.
type Referrer interface {
	References() []Ref
}

// Doc is a resource with its document decoded. Revision says which state of
// it was read: Put refuses a document that has changed since, with ErrStale.
type Doc[T Document] struct {
	ID         cloud.ID
	Org        cloud.ID
	Generation uint64
	Revision   Revision
	Body       T
}

// Ref names a resource.
type Ref struct {
	Kind Kind
	ID   cloud.ID
}

func (r Ref) String() string { return string(r.Kind) + "/" + string(r.ID) }

// Ref names the resource of a document.
func (d Doc[T]) Ref() Ref { return Ref{d.Body.Kind(), d.ID} }

// InUseError says that a resource cannot be deleted, and what uses it.
type InUseError struct {
	What  Ref
	Users []Ref // at least one
}

func (e *InUseError) Error() string {
	names := make([]string, len(e.Users))
	for i, u := range e.Users {
		names[i] = fmt.Sprintf("%s %s", u.Kind, u.ID)
	}
	return fmt.Sprintf("%s %s is in use by %s", e.What.Kind, e.What.ID, strings.Join(names, ", "))
}

// Get reads a resource, of one organisation if org is not empty: what belongs
// to another is not found.
func Get[T Document](tx *Tx, org, id cloud.ID) (Doc[T], error) {
	var zero T
	row, err := tx.Row(zero.Kind(), id)
	if err == nil && org != "" && row.Org != org {
		err = ErrNotFound
	}
	if err != nil {
		return Doc[T]{}, fmt.Errorf("%s %s: %w", zero.Kind(), id, err)
	}
	return Decode[T](row)
}

// Named reads the resource of an organisation that has the name; of several,
// the oldest.
func Named[T Document](tx *Tx, org cloud.ID, name string) (Doc[T], error) {
	all, err := List[T](tx, org)
	if err != nil {
		return Doc[T]{}, err
	}
	for _, d := range all {
		if d.Body.Index().Name == name {
			return d, nil
		}
	}
	var zero T
	return Doc[T]{}, fmt.Errorf("%s %q: %w", zero.Kind(), name, ErrNotFound)
}

// List reads the resources of a kind, oldest first: all of them, or those of
// one organisation.
func List[T Document](tx *Tx, org cloud.ID) ([]Doc[T], error) {
	var zero T
	rows, err := tx.Rows(zero.Kind(), org)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", zero.Kind(), err)
	}
	docs := make([]Doc[T], len(rows))
	for i, row := range rows {
		if docs[i], err = Decode[T](row); err != nil {
			return nil, err
		}
	}
	return docs, nil
}

// Decode gives a row's document its type.
func Decode[T Document](row Row) (Doc[T], error) {
	d := Doc[T]{ID: row.ID, Org: row.Org, Generation: row.Generation, Revision: row.Revision}
	if err := json.Unmarshal(row.Document, &d.Body); err != nil {
		return d, fmt.Errorf("%s %s: decode: %w", row.Kind, row.ID, err)
	}
	return d, nil
}

// Put stores a resource: a new one if its Revision is zero. The change is
// noted as made for operation, which may be empty. A document equal to the
// stored one changes nothing and takes no revision.
func Put[T Document](tx *Tx, operation cloud.ID, d Doc[T]) error {
	document, err := json.Marshal(d.Body)
	if err != nil {
		return fmt.Errorf("%s %s: encode: %w", d.Body.Kind(), d.ID, err)
	}
	x := d.Body.Index()
	row := Row{
		Kind: d.Body.Kind(), ID: d.ID, Org: d.Org, Name: x.Name, unique: x.Unique,
		State: x.State, Generation: d.Generation, Revision: d.Revision, Document: document,
	}
	if err := tx.put(operation, row); err != nil {
		return fmt.Errorf("%s %s: %w", row.Kind, row.ID, err)
	}
	if r, ok := any(d.Body).(Referrer); ok {
		return tx.setReferences(d.Ref(), r.References())
	}
	return nil
}

func (tx *Tx) put(operation cloud.ID, row Row) error {
	if !tx.writable {
		return errors.New("write in a read transaction")
	}
	stored, err := tx.Row(row.Kind, row.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		if row.Revision != 0 {
			return ErrStale
		}
	case err != nil:
		return err
	case stored.Revision != row.Revision:
		return ErrStale
	case stored.Generation == row.Generation && stored.State == row.State &&
		stored.Name == row.Name && bytes.Equal(stored.Document, row.Document):
		return nil
	}
	if row.unique != "" {
		if err := tx.nameIsFree(row); err != nil {
			return err
		}
	}
	row.Born = stored.Born
	tx.hold(pendingRow{row: row, base: row.Revision, operation: operation})
	return nil
}

// nameIsFree looks in the table and in what is held back.
func (tx *Tx) nameIsFree(row Row) error {
	taken := fmt.Errorf("name %q: %w", row.Name, ErrExists)
	for k, p := range tx.pending {
		if k.kind == row.Kind && k.id != row.ID && p.row.Org == row.Org && !p.deleted && p.row.unique == row.unique {
			return taken
		}
	}
	var holder cloud.ID
	err := tx.queryRow([]any{&holder},
		`SELECT id FROM resource WHERE kind = $1 AND org = $2 AND unique_name = $3 AND id <> $4`,
		row.Kind, row.Org, row.unique, row.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	if p, ok := tx.pending[key{row.Kind, holder}]; ok && (p.deleted || p.row.unique != row.unique) {
		// The holder gives the name up in this transaction. The table's own
		// constraint is checked row by row, so the holder has to go first: it
		// does, since it was touched before.
		return nil
	}
	return taken
}

// Delete removes a resource. What others refer to stays, with an InUseError;
// what it referred to itself is let go.
func (tx *Tx) Delete(operation cloud.ID, ref Ref) error {
	row, err := tx.Row(ref.Kind, ref.ID)
	if err != nil {
		return fmt.Errorf("delete %s %s: %w", ref.Kind, ref.ID, err)
	}
	users, err := tx.Referrers(ref)
	if err != nil {
		return fmt.Errorf("delete %s %s: %w", ref.Kind, ref.ID, err)
	}
	if len(users) > 0 {
		return &InUseError{What: ref, Users: users}
	}
	if err := tx.setReferences(ref, nil); err != nil {
		return fmt.Errorf("delete %s %s: %w", ref.Kind, ref.ID, err)
	}
	tx.hold(pendingRow{row: row, base: row.Revision, deleted: true, operation: operation})
	return nil
}

const rowColumns = `kind, id, org, name, unique_name, state, generation, revision, born, document`

func scanRow(scan func(...any) error) (Row, error) {
	var r Row
	var unique *string
	var document string
	err := scan(&r.Kind, &r.ID, &r.Org, &r.Name, &unique, &r.State, &r.Generation, &r.Revision, &r.Born, &document)
	if unique != nil {
		r.unique = *unique
	}
	r.Document = []byte(document)
	return r, err
}

// Row reads a resource of any kind, as it stands in this transaction.
func (tx *Tx) Row(kind Kind, id cloud.ID) (Row, error) {
	if p, ok := tx.pending[key{kind, id}]; ok {
		if p.deleted {
			return Row{}, ErrNotFound
		}
		return p.row, nil
	}
	row, err := scanRow(tx.sql.QueryRowContext(tx.ctx,
		`SELECT `+rowColumns+` FROM resource WHERE kind = $1 AND id = $2`, kind, id).Scan)
	return row, tx.store.dialect.classify(err)
}

// Rows reads all resources of a kind as they stand in this transaction, oldest
// first; of one organisation if org is not empty.
func (tx *Tx) Rows(kind Kind, org cloud.ID) ([]Row, error) {
	text, args := `SELECT `+rowColumns+` FROM resource WHERE kind = $1`, []any{kind}
	if org != "" {
		text, args = text+` AND org = $2`, append(args, org)
	}
	rows, err := query(tx, scanRow, text+` ORDER BY born, id`, args...)
	if err != nil {
		return nil, err
	}
	rows = slices.DeleteFunc(rows, func(r Row) bool {
		p, ok := tx.pending[key{kind, r.ID}]
		return ok && p.deleted
	})
	for i, r := range rows {
		if p, ok := tx.pending[key{kind, r.ID}]; ok {
			rows[i] = p.row
		}
	}
	for _, k := range tx.order {
		p := tx.pending[k]
		if k.kind == kind && p.base == 0 && !p.deleted && (org == "" || p.row.Org == org) {
			rows = append(rows, p.row)
		}
	}
	return rows, nil
}

// Count counts the stored resources of a kind in given states, without those
// that this transaction holds back.
func (tx *Tx) Count(kind Kind, states ...string) (int, error) {
	var n int
	text, args := `SELECT COUNT(*) FROM resource WHERE kind = $1`, []any{kind}
	if len(states) > 0 {
		marks := make([]string, len(states))
		for i, state := range states {
			marks[i], args = fmt.Sprintf("$%d", i+2), append(args, state)
		}
		text += ` AND state IN (` + strings.Join(marks, ", ") + `)`
	}
	err := tx.queryRow([]any{&n}, text, args...)
	return n, err
}

// setReferences replaces what a resource refers to.
func (tx *Tx) setReferences(from Ref, to []Ref) error {
	have, err := query(tx, scanRef, `SELECT to_kind, to_id FROM reference WHERE from_kind = $1 AND from_id = $2`,
		from.Kind, from.ID)
	if err != nil {
		return fmt.Errorf("references of %s: %w", from, err)
	}
	for _, r := range have {
		if slices.Contains(to, r) {
			continue
		}
		_, err := tx.exec(`DELETE FROM reference WHERE from_kind = $1 AND from_id = $2 AND to_kind = $3 AND to_id = $4`,
			from.Kind, from.ID, r.Kind, r.ID)
		if err != nil {
			return fmt.Errorf("reference from %s to %s: %w", from, r, err)
		}
	}
	for _, r := range to {
		if slices.Contains(have, r) {
			continue
		}
		_, err := tx.exec(`INSERT INTO reference (from_kind, from_id, to_kind, to_id) VALUES ($1, $2, $3, $4)
			ON CONFLICT (from_kind, from_id, to_kind, to_id) DO NOTHING`, from.Kind, from.ID, r.Kind, r.ID)
		if err != nil {
			return fmt.Errorf("reference from %s to %s: %w", from, r, err)
		}
	}
	return nil
}

func scanRef(scan func(...any) error) (r Ref, err error) { return r, scan(&r.Kind, &r.ID) }

// Referrers lists who refers to a resource.
func (tx *Tx) Referrers(to Ref) ([]Ref, error) {
	refs, err := query(tx, scanRef, `SELECT from_kind, from_id FROM reference WHERE to_kind = $1 AND to_id = $2
		ORDER BY from_kind, from_id`, to.Kind, to.ID)
	if err != nil {
		return nil, fmt.Errorf("referrers of %s: %w", to, err)
	}
	return refs, nil
}
