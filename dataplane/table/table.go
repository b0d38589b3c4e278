// SPDX-License-Identifier: Apache-2.0

// Package table owns the desired state of this hypervisor: one table a kind of
// compiled noun, written by one delta or snapshot at a time and read as
// snapshots of one revision. It refuses what would take away too much without
// an intent, and what is older than what it has. It never touches a kernel, a
// disk or a network. Start at Table.Apply; guard.go is the judgement.
package table

import (
	"iter"
	"sync"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"

	"cairn/cloud/wire"
)

// Row is an item as it came. Item is nil while the agent never held a body of
// this key that it could decode; with Fault set, Body is the refused body and
// Item the last good one, which stays in force.
type Row struct {
	Key        wire.Key
	Generation uint64
	Body       []byte
	Item       wire.Item
	Fault      string
}

// Mark is a place in the history of a store: revisions count within an epoch.
type Mark struct {
	Epoch    uint64 `json:"epoch"`
	Revision uint64 `json:"revision"`
}

// Before reports whether m is older than o.
func (m Mark) Before(o Mark) bool {
	return m.Epoch < o.Epoch || (m.Epoch == o.Epoch && m.Revision < o.Revision)
}

// Digests of all kinds; index them by kind.
type Digests [wire.KindLast + 1]wire.Digest

// position is the one row of the table that carries the revision, so that a
// snapshot of the database knows which revision it is of.
type position struct {
	mark    Mark
	digests Digests
}

// Table is the desired state. One goroutine at a time writes; any may read.
type Table struct {
	db       *statedb.DB
	kinds    [len(Digests{})]statedb.RWTable[*Row]
	position statedb.RWTable[position]
	all      []statedb.TableMeta

	mu       sync.Mutex // of writers, and of what follows
	high     Mark       // what the maps were programmed to; nothing older is taken
	intents  intents
	refusals uint64
	alarm    string
	expected map[wire.Kind]int // objects in the maps, until a first snapshot
	watchers []*Watcher
}

var rowKey = statedb.Index[*Row, string]{
	Name:       "key",
	FromObject: func(r *Row) index.KeySet { return index.NewKeySet(index.String(r.Key.ID)) },
	FromKey:    index.String,
	Unique:     true,
}

var positionKey = statedb.Index[position, string]{
	Name:       "key",
	FromObject: func(position) index.KeySet { return index.NewKeySet(index.String("position")) },
	FromKey:    index.String,
	Unique:     true,
}

// New makes an empty table. Nothing older than high is ever taken: it is the
// mark of the maps that this table's contents will be programmed into.
func New(high Mark) (*Table, error) {
	t := &Table{db: statedb.New(), high: high}
	for _, kind := range wire.Kinds() {
		table, err := statedb.NewTableAny(t.db, kind.String(),
			func() []string { return []string{"Key", "Generation", "Fault"} },
			func(r *Row) []string { return []string{r.Key.ID, "", r.Fault} },
			rowKey)
		if err != nil {
			return nil, err
		}
		t.kinds[kind] = table
		t.all = append(t.all, table)
	}
	var err error
	t.position, err = statedb.NewTableAny(t.db, "position",
		func() []string { return []string{"Revision"} },
		func(position) []string { return []string{""} },
		positionKey)
	if err != nil {
		return nil, err
	}
	t.all = append(t.all, t.position)
	return t, t.db.Start()
}

// Close ends the collector of removed rows.
func (t *Table) Close() { _ = t.db.Stop() }

// View is the table as it was at one revision. It never changes.
type View struct {
	t   *Table
	txn statedb.ReadTxn
	position
}

// View of what the table holds now.
func (t *Table) View() View {
	txn := t.db.ReadTxn()
	at, _, _ := t.position.Get(txn, positionKey.Query("position"))
	return View{t: t, txn: txn, position: at}
}

// Mark is the view's revision.
func (v View) Mark() Mark { return v.mark }

// Digests of the view's contents.
func (v View) Digests() Digests { return v.digests }

// Rows of a kind, in the order of their keys.
func (v View) Rows(kind wire.Kind) iter.Seq[*Row] {
	return func(yield func(*Row) bool) {
		for row := range v.t.kinds[kind].All(v.txn) {
			if !yield(row) {
				return
			}
		}
	}
}

// Row of a key.
func (v View) Row(key wire.Key) (*Row, bool) {
	row, _, ok := v.t.kinds[key.Kind].Get(v.txn, rowKey.Query(key.ID))
	return row, ok
}

// Count of a kind's rows.
func (v View) Count(kind wire.Kind) int { return v.t.kinds[kind].NumObjects(v.txn) }

// All items of a kind that are in force.
func All[T wire.Item](v View) iter.Seq[T] {
	var zero T
	return func(yield func(T) bool) {
		for row := range v.Rows(zero.Key().Kind) {
			if item, ok := row.Item.(T); ok && !yield(item) {
				return
			}
		}
	}
}

// Get the item of a key that is in force.
func Get[T wire.Item](v View, id string) (T, bool) {
	var zero T
	row, ok := v.Row(wire.Key{Kind: zero.Key().Kind, ID: id})
	if !ok {
		return zero, false
	}
	item, ok := row.Item.(T)
	return item, ok
}

// Watcher tells which keys changed.
type Watcher struct {
	t       *Table
	changes [len(Digests{})]statedb.ChangeIterator[*Row]
	wake    chan struct{}
}

// Watch starts to collect changes; all that the table holds counts as changed.
func (t *Table) Watch() (*Watcher, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := &Watcher{t: t, wake: make(chan struct{}, 1)}
	txn := t.db.WriteTxn(t.all...)
	defer txn.Abort()
	for _, kind := range wire.Kinds() {
		changes, err := t.kinds[kind].Changes(txn)
		if err != nil {
			return nil, err
		}
		w.changes[kind] = changes
	}
	txn.Commit()
	t.watchers = append(t.watchers, w)
	w.wake <- struct{}{}
	return w, nil
}

// Wake has a value whenever the table changed since the last receive.
func (w *Watcher) Wake() <-chan struct{} { return w.wake }

// Changed gives the keys that changed since the last call, up to the view's
// revision.
func (w *Watcher) Changed(v View) []wire.Key {
	var keys []wire.Key
	for _, kind := range wire.Kinds() {
		changes, _ := w.changes[kind].Next(v.txn)
		for change := range changes {
			keys = append(keys, change.Object.Key)
		}
	}
	return keys
}

func (t *Table) wakeAll() {
	for _, w := range t.watchers {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}
