// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/controlplane/store"
)

type bench struct {
	*testing.T
	store    *store.Store
	follower *Follower
}

func newBench(t *testing.T) *bench {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "zone.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.Init(t.Context(), "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	f := &Follower{Store: s, Replica: r, Log: slog.New(slog.DiscardHandler)}
	t.Cleanup(f.Close)
	return &bench{t, s, f}
}

func (b *bench) write(fn func(tx *store.Tx) error) store.Revision {
	b.Helper()
	rev, err := b.store.Write(b.Context(), fn)
	if err != nil {
		b.Fatal(err)
	}
	return rev
}

func (b *bench) next() Batch {
	b.Helper()
	batch, err := b.follower.Next(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return batch
}

func (b *bench) load(since store.Revision) Batch {
	b.Helper()
	batch, err := b.follower.Load(b.Context(), since)
	if err != nil {
		b.Fatal(err)
	}
	return batch
}

func put(n int, op cloud.ID, change func(*store.InstanceDoc)) func(tx *store.Tx) error {
	return func(tx *store.Tx) error {
		id := cloud.ID(fmt.Sprint("i", n))
		doc, err := store.Get[store.InstanceDoc](tx, "", id)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		doc.ID, doc.Org, doc.Body.ID, doc.Body.State = id, "org", id, cloud.InstanceRunning
		doc.Body.HostNumber, doc.Body.Port, doc.Body.Class = 1, uint32(n), 7
		doc.Body.Address = netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})
		doc.Body.SecurityGroups = []cloud.Ref{{ID: "g"}}
		change(&doc.Body)
		return store.Put(tx, op, doc)
	}
}

func as(*store.InstanceDoc) {}

func TestFollowsCommits(t *testing.T) {
	b := newBench(t)
	b.write(put(1, "", as))
	first := b.load(0)
	if !first.Full || len(first.Changes) != 1 || first.After.Revision != 1 {
		t.Errorf("loaded %+v", first)
	}
	b.write(put(2, "op", as))
	b.write(put(2, "op", func(d *store.InstanceDoc) { d.HostNumber = 2 }))
	b.write(func(tx *store.Tx) error {
		return errors.Join(
			tx.AddOperation(store.Operation{ID: "gone", State: cloud.OperationPending, Tightens: true}),
			tx.AddIntent(store.Intent{Operation: "gone", Class: "port", Count: 1}),
			tx.Delete("gone", store.Ref{Kind: store.KindInstance, ID: "i1"}),
		)
	})
	batch := b.next()
	if batch.Full || len(batch.Changes) != 3 || batch.Before.Revision != 1 || batch.After.Revision != 4 {
		t.Fatalf("followed %+v", batch)
	}
	if op := batch.Operations["gone"]; !op.Tightens || len(batch.Operations) != 1 {
		t.Errorf("operations %+v", batch.Operations)
	}
	if in := batch.Intents["gone"]; len(in) != 1 || in[0].Count != 1 {
		t.Errorf("intents %+v", in)
	}
	if _, ok := batch.After.Instance("i1"); ok {
		t.Error("what was deleted is there")
	}
	if _, ok := batch.Before.Instance("i1"); !ok {
		t.Error("the snapshot before has changed")
	}
	class, ok := batch.After.Class(7)
	if !ok || len(class.Hosts) != 1 || class.Hosts[2] != 1 {
		t.Errorf("class %+v", class)
	}
	if old, _ := batch.Before.Class(7); len(old.Hosts) != 1 || old.Hosts[1] != 1 {
		t.Errorf("class before %+v", old)
	}
}

func TestServiceComesWithItsSlots(t *testing.T) {
	b := newBench(t)
	b.load(0)
	b.write(func(tx *store.Tx) error {
		doc := store.Doc[store.ServiceDoc]{ID: "s", Org: "org"}
		doc.Body.LoadBalancer, doc.Body.SlotsGeneration = "l", 1
		doc.Body.Backends = []store.BackendDoc{{Number: 1, Instance: "i1"}}
		return errors.Join(store.Put(tx, "", doc), tx.PutSlots(store.Slots{Service: "s", Generation: 1, Cells: []byte{1}}))
	})
	after := b.next().After
	for name, found := range map[string][]*Service{
		"balancer": slices.Collect(after.ServicesOf("l")), "instance": slices.Collect(after.ServicesWith("i1")),
	} {
		if len(found) != 1 || string(found[0].Slots) != "\x01" {
			t.Errorf("by %s: %+v", name, found)
		}
	}
}

func TestCompactedLogMeansTheWholeState(t *testing.T) {
	b := newBench(t)
	b.write(put(1, "", as))
	b.load(0)
	b.write(put(2, "", as))
	b.write(func(tx *store.Tx) error { return tx.Delete("", store.Ref{Kind: store.KindInstance, ID: "i1"}) })
	b.write(func(tx *store.Tx) error { return tx.Compact(3) })
	b.write(put(3, "", as))
	batch := b.next()
	if !batch.Full || batch.After.Revision != 4 {
		t.Fatalf("got %+v", batch)
	}
	var ids []cloud.ID
	for i := range batch.After.Instances() {
		ids = append(ids, i.ID)
	}
	if !slices.Equal(ids, []cloud.ID{"i2", "i3"}) {
		t.Errorf("instances %v", ids)
	}
}

// misshapen is no document of an instance.
type misshapen struct {
	Port string `json:"port"`
}

func (misshapen) Kind() store.Kind   { return store.KindInstance }
func (misshapen) Index() store.Index { return store.Index{} }

func TestRowThatCannotBeReadIsSetAside(t *testing.T) {
	b := newBench(t)
	b.write(put(1, "", as))
	b.load(0)
	var rev store.Revision
	b.write(func(tx *store.Tx) error {
		row, err := tx.Row(store.KindInstance, "i1")
		rev = row.Revision
		return errors.Join(err, store.Put(tx, "", store.Doc[misshapen]{ID: "i1", Org: "org", Revision: rev, Body: misshapen{"x"}}), put(2, "", as)(tx))
	})
	batch := b.next()
	if want := []store.Ref{{Kind: store.KindInstance, ID: "i1"}}; !slices.Equal(batch.Bad, want) {
		t.Errorf("bad %v", batch.Bad)
	}
	if i, ok := batch.After.Instance("i1"); !ok || i.Body.Port != 1 {
		t.Error("the row from before is gone")
	}
	if _, ok := batch.After.Instance("i2"); !ok {
		t.Error("the other row did not arrive")
	}
}

func TestLostHintCostsAQuarterOfASecond(t *testing.T) {
	b := newBench(t)
	b.load(0)
	b.follower.hint = nil // nobody tells
	b.write(put(1, "", as))
	b.next()
	began := time.Now()
	go b.store.Write(b.Context(), put(2, "", as))
	if batch := b.next(); batch.After.Revision != 2 || time.Since(began) > 10*pollInterval {
		t.Errorf("revision %d after %s", batch.After.Revision, time.Since(began))
	}
}

// Numbers are found as long as what they stand for is there.
func TestNumbers(t *testing.T) {
	b := newBench(t)
	b.write(put(1, "", func(d *store.InstanceDoc) { d.Networks = []store.Attachment{{Network: "n", Port: 21}} }))
	b.write(func(tx *store.Tx) error {
		g := store.Doc[store.SecurityGroupDoc]{ID: "g", Org: "org"}
		g.Body.Name, g.Body.RuleNumbers = "g", map[cloud.ID]uint32{"r7": 7, "r8": 8}
		s := store.Doc[store.ServiceDoc]{ID: "s", Org: "org"}
		s.Body.Name, s.Body.Number = "s", 5
		return errors.Join(store.Put(tx, "", g), store.Put(tx, "", s))
	})
	snap := b.load(0).After
	for _, port := range []uint32{1, 21} {
		if i, ok := snap.InstanceAt(port); !ok || i.ID != "i1" {
			t.Errorf("port %d: %v", port, i)
		}
	}
	for _, rule := range []uint32{7, 8} {
		if g, ok := snap.GroupOfRule(rule); !ok || g.ID != "g" {
			t.Errorf("rule %d: %v", rule, g)
		}
	}
	if s, ok := snap.ServiceByNumber(5); !ok || s.ID != "s" {
		t.Errorf("service %v", s)
	}
	b.write(put(1, "", func(d *store.InstanceDoc) { d.Networks, d.State = nil, cloud.InstanceDestroying }))
	after := b.next().After
	for _, port := range []uint32{1, 21, 3} {
		if i, ok := after.InstanceAt(port); ok {
			t.Errorf("port %d: %v", port, i)
		}
	}
	if _, ok := after.GroupOfRule(9); ok {
		t.Error("a rule that is not there")
	}
}
