// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"slices"
	"testing"
	"time"

	"cairn/cloud/wire"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

// A seed rotates until no host has a flow that began by the one before. Meanwhile a
// backend that joins waits, and only the slots of who dies move.
func TestSeedRotates(t *testing.T) {
	b := newBench(t)
	b.runs(3)
	id, _ := b.add(b.create("nlb"), web(b.pool, "web", 80))
	for n := uint32(1); n <= 3; n++ {
		b.says(id, n, store.VerdictSuccess)
	}
	b.pass(time.Second)
	before, table := b.service(id).Body, b.table(id)
	rotate := func(wantRotated, wantBusy int) {
		t.Helper()
		rotated, busy, err := Rotate(t.Context(), b.store)
		if err != nil || len(rotated) != wantRotated || len(busy) != wantBusy {
			t.Fatalf("rotated %v, busy %v, %v", rotated, busy, err)
		}
	}
	rotate(1, 0)
	s := b.service(id).Body
	if !s.Rotating || s.PrevSeed != before.Seed || s.Seed == before.Seed || s.SlotsGeneration != before.SlotsGeneration+1 || !slices.Equal(b.table(id), table) {
		t.Fatalf("rotating: %+v", s)
	}
	rotate(0, 1) // once at a time

	b.runs(1)
	b.says(id, 4, store.VerdictSuccess)
	b.pass(10 * time.Minute)
	if !slices.Equal(b.table(id), table) {
		t.Error("a backend that joins has moved slots")
	}
	b.turns(b.members[0], "stopped")
	after := b.table(id)
	if shares := after.Shares(); shares[1] != 0 || shares[4] != 0 || len(after.Draining()) > 0 {
		t.Errorf("somebody died: shares %v, draining %v", shares, after.Draining())
	}
	for i, was := range table {
		if was.Cur() != 1 && after[i] != was {
			t.Fatalf("slot %d moved from %v to %v", i, was, after[i])
		}
	}

	tell := func(backend uint32, generation uint64) {
		t.Helper()
		s := b.service(id).Body
		i := slices.IndexFunc(s.Backends, func(one store.BackendDoc) bool { return one.Number == backend })
		b.report(s.Backends[i].Host, wire.KindSlots, s.Number, backend, generation, drained)
		b.pass(2 * time.Second)
	}
	generation := b.service(id).Body.SlotsGeneration
	for _, n := range []uint32{2, 3, 4} {
		tell(n, generation-1) // of the table before: it says nothing
	}
	for _, n := range []uint32{2, 4} {
		tell(n, generation)
	}
	if !b.service(id).Body.Rotating {
		t.Fatal("it has ended, and a backend has flows from before")
	}
	b.reopen() // what was said is not lost with the process
	tell(3, generation)
	if s := b.service(id).Body; s.Rotating || s.PrevSeed != 0 {
		t.Errorf("it has not ended: %+v", s)
	}
	if shares := b.table(id).Shares(); shares[4] == 0 {
		t.Errorf("who waited has no slots: %v", shares)
	}
	rotate(0, 1) // now its slots remember owners
}

// A service whose slots remember former owners is busy: a packet can name but one.
func TestRotationWaitsForDrains(t *testing.T) {
	b := newBench(t)
	b.runs(2)
	id, _ := b.add(b.create("nlb"), web(b.pool, "web", 80))
	b.runs(1)
	b.says(id, 3, store.VerdictSuccess)
	b.pass(time.Second)
	if len(b.table(id).Draining()) == 0 {
		t.Fatal("nothing drains")
	}
	if _, busy, err := Rotate(t.Context(), b.store, id); len(busy) != 1 || err != nil {
		t.Errorf("busy %v, %v", busy, err)
	}
	settled := b.table(id)
	for n := range settled.Draining() {
		settled = slots.Settle(settled, n)
	}
	b.write(func(tx *store.Tx) error {
		return tx.PutSlots(store.Slots{Service: id, Generation: b.service(id).Body.SlotsGeneration, Cells: settled.Encode()})
	})
	if rotated, _, err := Rotate(t.Context(), b.store, id); len(rotated) != 1 || err != nil {
		t.Errorf("rotated %v, %v", rotated, err)
	}
	if _, _, err := Rotate(t.Context(), b.store, "no such service"); err == nil {
		t.Error("rotated what is not there")
	}
}
