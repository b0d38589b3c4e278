// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"cairn/cloud"
)

// Operation is a mutation that was accepted: what a client polls, and what the
// zone owes until it is finished.
type Operation struct {
	ID      cloud.ID
	Org     cloud.ID
	Command string // the API's id of the operation: "create-instance"

	// Subject is the resource that moves; its kind says which orchestrator
	// does it. Shown is the one the client is told of, which is the parent
	// where a child comes or goes; empty if none is shown.
	Subject Ref
	Shown   Ref

	State   cloud.OperationState
	Reason  cloud.Reason
	Message string

	Tightens   bool     // what it takes away may still be there on a silent host
	Generation uint64   // of the subject that settles it
	Revision   Revision // of the commit that accepted it; 0 if no resource changed
	Created    time.Time
	Deadline   time.Time
	Finished   time.Time // zero while pending
	Detail     string    // JSON, for the orchestrator of the subject alone
}

// AddOperation stores an operation. Its Revision is set when the transaction
// ends.
func (tx *Tx) AddOperation(o Operation) error {
	_, err := tx.exec(`INSERT INTO operation (id, org, command, kind, subject, ref_kind, ref_id, state, reason,
		message, tightens, generation, revision, created, deadline, finished, detail)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 0, $13, $14, $15, $16)`,
		o.ID, o.Org, o.Command, o.Subject.Kind, o.Subject.ID, o.Shown.Kind, o.Shown.ID, o.State, o.Reason,
		o.Message, boolean(o.Tightens), o.Generation, nanos(o.Created), nanos(o.Deadline), nanos(o.Finished), o.Detail)
	if err != nil {
		return fmt.Errorf("add operation %s: %w", o.Command, err)
	}
	tx.operations = append(tx.operations, o.ID)
	return nil
}

// FinishOperation ends a pending operation. It reports whether this call ended
// it: one that has ended stays as it ended.
func (tx *Tx) FinishOperation(id cloud.ID, state cloud.OperationState, reason cloud.Reason, message string) (bool, error) {
	n, err := tx.exec(`UPDATE operation SET state = $1, reason = $2, message = $3, finished = $4
		WHERE id = $5 AND state = $6`, state, reason, message, nanos(tx.Now()), id, cloud.OperationPending)
	if err != nil {
		return false, fmt.Errorf("finish operation %s: %w", id, err)
	}
	return n > 0, nil
}

// NoteOperation says what a pending operation is waiting for.
func (tx *Tx) NoteOperation(id cloud.ID, message string) error {
	_, err := tx.exec(`UPDATE operation SET message = $1 WHERE id = $2 AND state = $3 AND message <> $4`,
		message, id, cloud.OperationPending, message)
	return err
}

// DetailOperation replaces what the orchestrator keeps with a pending
// operation.
func (tx *Tx) DetailOperation(id cloud.ID, detail string) error {
	_, err := tx.exec(`UPDATE operation SET detail = $1 WHERE id = $2 AND state = $3`,
		detail, id, cloud.OperationPending)
	return err
}

const operationColumns = `SELECT id, org, command, kind, subject, ref_kind, ref_id, state, reason, message,
	tightens, generation, revision, created, deadline, finished, detail FROM operation `

func scanOperation(scan func(...any) error) (o Operation, err error) {
	var created, deadline, finished int64
	err = scan(&o.ID, &o.Org, &o.Command, &o.Subject.Kind, &o.Subject.ID, &o.Shown.Kind, &o.Shown.ID, &o.State,
		&o.Reason, &o.Message, &o.Tightens, &o.Generation, &o.Revision, &created, &deadline, &finished, &o.Detail)
	o.Created, o.Deadline, o.Finished = moment(created), moment(deadline), moment(finished)
	return o, err
}

// Operation reads one, of one organisation if org is not empty.
func (tx *Tx) Operation(org, id cloud.ID) (Operation, error) {
	o, err := scanOperation(tx.sql.QueryRowContext(tx.ctx, operationColumns+`WHERE id = $1`, id).Scan)
	err = tx.store.dialect.classify(err)
	if err == nil && org != "" && o.Org != org {
		err = ErrNotFound
	}
	if err != nil {
		return Operation{}, fmt.Errorf("operation %s: %w", id, err)
	}
	return o, nil
}

// Pending lists the operations that have not ended, the oldest first: all, or
// those on one resource if its kind is not empty.
func (tx *Tx) Pending(on Ref) ([]Operation, error) {
	text, args := operationColumns+`WHERE state = $1`, []any{cloud.OperationPending}
	if on.Kind != "" {
		text, args = text+` AND kind = $2 AND subject = $3`, append(args, on.Kind, on.ID)
	}
	all, err := query(tx, scanOperation, text+` ORDER BY created, revision, id`, args...)
	if err != nil {
		return nil, fmt.Errorf("pending operations: %w", err)
	}
	return all, nil
}

// Overdue lists pending operations whose deadline has passed.
func (tx *Tx) Overdue() ([]Operation, error) {
	all, err := query(tx, scanOperation, operationColumns+`WHERE state = $1 AND deadline > 0 AND deadline <= $2
		ORDER BY deadline, id`, cloud.OperationPending, nanos(tx.Now()))
	if err != nil {
		return nil, fmt.Errorf("overdue operations: %w", err)
	}
	return all, nil
}

// Audit appends an event, JSON without secrets, to the chain of an
// organisation: its hash covers the hash before it, so that an event taken out
// or changed later is found.
func (tx *Tx) Audit(org cloud.ID, event string) error {
	var seq int64
	var prev string
	err := tx.queryRow([]any{&seq, &prev}, `SELECT seq, hash FROM audit WHERE org = $1 ORDER BY seq DESC LIMIT 1`, org)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("audit: %w", err)
	}
	_, err = tx.exec(`INSERT INTO audit (org, seq, at, event, prev, hash) VALUES ($1, $2, $3, $4, $5, $6)`,
		org, seq+1, nanos(tx.Now()), event, prev, chain(prev, event))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

func chain(prev, event string) string {
	sum := sha256.Sum256([]byte(prev + "\n" + event))
	return hex.EncodeToString(sum[:])
}

// AuditEvent is one entry of a chain.
type AuditEvent struct {
	Seq   int64
	At    time.Time
	Event string
}

// Audited reads an organisation's chain between two moments and checks that it
// is whole.
func (tx *Tx) Audited(org cloud.ID, from, to time.Time) ([]AuditEvent, error) {
	type link struct {
		AuditEvent
		prev, hash string
	}
	links, err := query(tx, func(scan func(...any) error) (l link, err error) {
		var at int64
		err = scan(&l.Seq, &at, &l.Event, &l.prev, &l.hash)
		l.At = moment(at)
		return l, err
	}, `SELECT seq, at, event, prev, hash FROM audit WHERE org = $1 AND at >= $2 AND at <= $3 ORDER BY seq`,
		org, nanos(from), nanos(to))
	if err != nil {
		return nil, fmt.Errorf("audit of %s: %w", org, err)
	}
	events := make([]AuditEvent, len(links))
	for i, l := range links {
		if l.hash != chain(l.prev, l.Event) || i > 0 && (l.prev != links[i-1].hash || l.Seq != links[i-1].Seq+1) {
			return nil, fmt.Errorf("audit of %s: the chain is broken at %d", org, l.Seq)
		}
		events[i] = l.AuditEvent
	}
	return events, nil
}

// Answer is what a mutation was answered with, kept until its signature
// expires.
type Answer struct {
	Signature string
	Arrived   time.Time // of the first request with the signature
	Expires   time.Time
	Status    int
	Body      []byte
}

// AddAnswer keeps the first answer to a signature. A second request that was
// meant and executed does not replace it.
func (tx *Tx) AddAnswer(a Answer) error {
	_, err := tx.exec(`INSERT INTO answer (signature, arrived, expires, status, body) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (signature) DO NOTHING`, a.Signature, nanos(a.Arrived), nanos(a.Expires), a.Status, a.Body)
	if err != nil {
		return fmt.Errorf("keep the answer: %w", err)
	}
	return nil
}

// Answer reads the first answer to a signature; ErrNotFound if there is none,
// or it has expired.
func (tx *Tx) Answer(signature string) (Answer, error) {
	a := Answer{Signature: signature}
	var arrived, expires int64
	err := tx.queryRow([]any{&arrived, &expires, &a.Status, &a.Body},
		`SELECT arrived, expires, status, body FROM answer WHERE signature = $1`, signature)
	a.Arrived, a.Expires = moment(arrived), moment(expires)
	if err == nil && a.Expires.Before(tx.Now()) {
		err = ErrNotFound
	}
	return a, err
}
