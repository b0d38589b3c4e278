// SPDX-License-Identifier: Apache-2.0

package table

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cilium/statedb"

	"cairn/cloud/wire"
)

// Upsert is an item as it came off the wire.
type Upsert struct {
	Key        wire.Key
	Generation uint64
	Body       []byte
}

// Delta takes a table that is at or past From to To.
type Delta struct {
	From       uint64
	To         Mark
	Upserts    []Upsert
	Tombstones []Tombstone
}

// Snapshot is all that an agent holds at a revision, with the sender's digests
// of it.
type Snapshot struct {
	At      Mark
	Upserts []Upsert
	Digests Digests
}

// Fault settles one key: its last good item stays in force.
type Fault struct {
	Key    wire.Key
	Reason string
}

// What Apply and Replace return when they change nothing.
var (
	ErrGap     = errors.New("a revision is missing in between")
	ErrOlder   = errors.New("older than what is held")
	ErrRefused = errors.New("refused")
)

// Intend records an operation's intent.
func (t *Table) Intend(i Intent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.intents.add(i)
}

// Alarm is the reason of the last refusal, empty once a snapshot was accepted
// after it, and how many there were.
func (t *Table) Alarm() (reason string, refusals uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.alarm, t.refusals
}

func (t *Table) refuse(reason string) {
	t.refusals++
	t.alarm = reason
}

// Apply takes a delta as a whole, except for single items that cannot be
// decoded and tombstones beyond all intents: they come back as faults.
func (t *Table) Apply(d Delta) ([]Fault, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.View().mark
	switch {
	case d.To.Before(at):
		t.refuse(fmt.Sprintf("delta to revision %d of epoch %d: older than %d of %d", d.To.Revision, d.To.Epoch, at.Revision, at.Epoch))
		return nil, fmt.Errorf("apply delta to %d: %w", d.To.Revision, ErrOlder)
	case d.To.Epoch != at.Epoch || d.From > at.Revision:
		return nil, fmt.Errorf("apply delta %d to %d at revision %d: %w", d.From, d.To.Revision, at.Revision, ErrGap)
	}
	w := t.write()
	defer w.txn.Abort()
	var existing []Tombstone
	for _, tomb := range d.Tombstones {
		if w.has(tomb.Key) {
			existing = append(existing, tomb)
		}
	}
	obey, refused := judgeTombstones(existing, w.count, &t.intents)
	if len(refused) > 0 {
		t.refuse(refused[0].Reason)
	}
	for _, up := range d.Upserts {
		w.upsert(up)
	}
	for _, tomb := range obey {
		w.remove(tomb.Key)
	}
	w.commit(d.To)
	t.wakeAll()
	return append(w.faults, refused...), nil
}

// Expect tells a table that was never filled how many objects of a kind the
// maps hold, so that the first snapshot is judged by them.
func (t *Table) Expect(programmed map[wire.Kind]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.View().mark == (Mark{}) {
		t.expected = programmed
	}
}

// Replace takes a snapshot as a whole or not at all.
func (t *Table) Replace(s Snapshot) ([]Fault, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.View()
	if s.At.Before(before.mark) || s.At.Before(t.high) {
		newest := before.mark
		if newest.Before(t.high) {
			newest = t.high
		}
		t.refuse(fmt.Sprintf("snapshot of revision %d of epoch %d: older than %d of %d", s.At.Revision, s.At.Epoch, newest.Revision, newest.Epoch))
		return nil, fmt.Errorf("replace by snapshot of %d: %w", s.At.Revision, ErrOlder)
	}
	named, reason := s.check()
	if reason == "" {
		reason = t.judgeSnapshot(before, named)
	}
	if reason != "" {
		t.refuse("snapshot: " + reason)
		return nil, fmt.Errorf("replace by snapshot of %d: %w: %s", s.At.Revision, ErrRefused, reason)
	}
	w := t.write()
	defer w.txn.Abort()
	for _, up := range s.Upserts {
		w.upsert(up)
	}
	kinds := wire.Kinds()
	for i := range kinds {
		kind := kinds[len(kinds)-1-i]
		for row := range before.Rows(kind) {
			if !named[row.Key] {
				w.remove(row.Key)
			}
		}
	}
	w.commit(s.At)
	t.alarm, t.expected = "", nil
	t.wakeAll()
	return w.faults, nil
}

// check compares a snapshot with the digests that its sender computed: what
// was lost, cut or sent twice on the way is seen here.
func (s Snapshot) check() (named map[wire.Key]bool, reason string) {
	named = make(map[wire.Key]bool, len(s.Upserts))
	var sums Digests
	for _, up := range s.Upserts {
		if named[up.Key] {
			return nil, fmt.Sprintf("%s is in it twice", up.Key)
		}
		named[up.Key] = true
		if up.Key.Kind.Valid() {
			sums[up.Key.Kind].Add(up.Key, up.Body)
		}
	}
	for _, kind := range wire.Kinds() {
		if sums[kind] != s.Digests[kind] {
			return nil, fmt.Sprintf("%d items of kind %s do not match the digest of %d", sums[kind].Count, kind, s.Digests[kind].Count)
		}
	}
	return named, ""
}

func (t *Table) judgeSnapshot(before View, named map[wire.Key]bool) string {
	count := map[wire.Kind]int{}
	for key := range named {
		count[key.Kind]++
	}
	for _, kind := range wire.Kinds() {
		have, missing := before.Count(kind), 0
		for row := range before.Rows(kind) {
			if !named[row.Key] {
				missing++
			}
		}
		if expected := t.expected[kind]; have == 0 && expected > 0 {
			have, missing = expected, max(0, expected-count[kind])
		}
		if reason := judgeAbsence(kind, have, missing); reason != "" {
			return reason
		}
	}
	return ""
}

// Restore fills an empty table from what was kept of an earlier life.
func (t *Table) Restore(at Mark, ups []Upsert) ([]Fault, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.View().mark != (Mark{}) {
		return nil, errors.New("restore: the table is not empty")
	}
	w := t.write()
	defer w.txn.Abort()
	for _, up := range ups {
		w.upsert(up)
	}
	w.commit(at)
	t.wakeAll()
	return w.faults, nil
}

// writing is one change of the table: all of it is seen, or nothing.
type writing struct {
	t       *Table
	txn     statedb.WriteTxn
	digests Digests
	faults  []Fault
}

func (t *Table) write() *writing {
	txn := t.db.WriteTxn(t.all...)
	at, _, _ := t.position.Get(txn, positionKey.Query("position"))
	return &writing{t: t, txn: txn, digests: at.digests}
}

func (w *writing) count(kind wire.Kind) int { return w.t.kinds[kind].NumObjects(w.txn) }

func (w *writing) row(key wire.Key) (*Row, bool) {
	if !key.Kind.Valid() {
		return nil, false
	}
	row, _, ok := w.t.kinds[key.Kind].Get(w.txn, rowKey.Query(key.ID))
	return row, ok
}

func (w *writing) has(key wire.Key) bool {
	_, ok := w.row(key)
	return ok
}

// upsert keeps also what it cannot decode, so that digests agree with the
// sender's; the last good item stays.
func (w *writing) upsert(up Upsert) {
	if !up.Key.Kind.Valid() {
		w.faults = append(w.faults, Fault{up.Key, fmt.Sprintf("%s is not known here", up.Key.Kind)})
		return
	}
	old, had := w.row(up.Key)
	if had && old.Generation == up.Generation && bytes.Equal(old.Body, up.Body) {
		if old.Fault != "" {
			w.faults = append(w.faults, Fault{up.Key, old.Fault})
		}
		return
	}
	row := &Row{Key: up.Key, Generation: up.Generation, Body: up.Body}
	item, err := wire.Decode(up.Key.Kind, up.Body)
	if err == nil && item.Key() != up.Key {
		err = fmt.Errorf("decode %s: the body is of %s", up.Key, item.Key())
	}
	if err != nil {
		row.Fault = err.Error()
		if had {
			row.Item = old.Item
		}
		w.faults = append(w.faults, Fault{up.Key, row.Fault})
	} else {
		row.Item = item
	}
	if had {
		w.digests[up.Key.Kind].Remove(up.Key, old.Body)
	}
	w.digests[up.Key.Kind].Add(up.Key, up.Body)
	_, _, _ = w.t.kinds[up.Key.Kind].Insert(w.txn, row) // only a closed transaction or an unlocked table fail
}

func (w *writing) remove(key wire.Key) {
	old, had, _ := w.t.kinds[key.Kind].Delete(w.txn, &Row{Key: key})
	if had {
		w.digests[key.Kind].Remove(key, old.Body)
	}
}

func (w *writing) commit(to Mark) {
	_, _, _ = w.t.position.Insert(w.txn, position{mark: to, digests: w.digests})
	w.txn.Commit()
}
