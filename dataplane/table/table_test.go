// SPDX-License-Identifier: Apache-2.0

package table

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/cloud/wire"
)

type fataler interface {
	Helper()
	Fatal(...any)
}

func body(t fataler, item wire.Item) Upsert {
	t.Helper()
	b, err := wire.Encode(item)
	if err != nil {
		t.Fatal(err)
	}
	return Upsert{Key: item.Key(), Generation: 1, Body: b}
}

func host(n int) wire.Host {
	return wire.Host{ID: uint32(n), Name: fmt.Sprintf("hv%d", n), Endpoint: netip.AddrFrom4([4]byte{10, 64, byte(n >> 8), byte(n)}), MTU: 1600}
}

func class(n int, groups ...uint32) wire.Class { return wire.Class{ID: uint32(n), Groups: groups} }

// snapshot of hosts 1 to n and one class.
func snapshot(t fataler, revision uint64, n int) Snapshot {
	t.Helper()
	s := Snapshot{At: Mark{Epoch: 1, Revision: revision}}
	for i := 1; i <= n; i++ {
		s.Upserts = append(s.Upserts, body(t, host(i)))
	}
	s.Upserts = append(s.Upserts, body(t, class(1, 7)))
	return seal(s)
}

func seal(s Snapshot) Snapshot {
	s.Digests = Digests{}
	for _, up := range s.Upserts {
		s.Digests[up.Key.Kind].Add(up.Key, up.Body)
	}
	return s
}

func newTable(t *testing.T, high Mark) *Table {
	t.Helper()
	table, err := New(high)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	return table
}

func filled(t *testing.T, n int) *Table {
	t.Helper()
	table := newTable(t, Mark{})
	if faults, err := table.Replace(snapshot(t, 10, n)); err != nil || len(faults) > 0 {
		t.Fatal(faults, err)
	}
	return table
}

func contents(v View) string {
	var b strings.Builder
	for _, kind := range wire.Kinds() {
		for row := range v.Rows(kind) {
			fmt.Fprintf(&b, "%s %d %x %q\n", row.Key, row.Generation, row.Body, row.Fault)
		}
	}
	fmt.Fprint(&b, v.Mark(), v.Digests())
	return b.String()
}

func TestSnapshotsThatAreRefusedChangeNothing(t *testing.T) {
	cases := []struct {
		name string
		n    int
		make func(Snapshot) Snapshot
		want error
	}{
		{"empty", 40, func(s Snapshot) Snapshot { s.Upserts = nil; return seal(s) }, ErrRefused},
		{"the last of a kind missing", 40, func(s Snapshot) Snapshot { s.Upserts = s.Upserts[:40]; return seal(s) }, ErrRefused},
		{"halved", 40, func(s Snapshot) Snapshot {
			s.Upserts = append(s.Upserts[:20:20], s.Upserts[40])
			return seal(s)
		}, ErrRefused},
		{"truncated on the way", 40, func(s Snapshot) Snapshot { s.Upserts = s.Upserts[1:]; return s }, ErrRefused},
		{"duplicated", 40, func(s Snapshot) Snapshot { s.Upserts = append(s.Upserts, s.Upserts...); return seal(s) }, ErrRefused},
		{"older", 40, func(s Snapshot) Snapshot { s.At.Revision = 9; return s }, ErrOlder},
		{"of an older epoch", 40, func(s Snapshot) Snapshot { s.At.Epoch = 0; return s }, ErrOlder},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			table := filled(t, c.n)
			watcher, err := table.Watch()
			if err != nil {
				t.Fatal(err)
			}
			watcher.Changed(table.View())
			<-watcher.Wake()
			before := contents(table.View())
			s := snapshot(t, 11, c.n)
			s.Upserts[0].Generation = 2 // a change that must not show
			if _, err := table.Replace(c.make(s)); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if got := contents(table.View()); got != before {
				t.Errorf("contents changed:\n%s\n%s", before, got)
			}
			if alarm, n := table.Alarm(); n != 1 || alarm == "" {
				t.Errorf("alarm %q, %d refusals", alarm, n)
			}
			select {
			case <-watcher.Wake():
				t.Error("watchers were woken")
			default:
			}
			// The negative control: the same change as a good snapshot is taken.
			if _, err := table.Replace(snapshot(t, 11, c.n)); err != nil {
				t.Fatal(err)
			}
			if alarm, _ := table.Alarm(); alarm != "" {
				t.Errorf("the alarm %q outlives a good snapshot", alarm)
			}
		})
	}
}

func TestSnapshotSweepsWithinTheAllowance(t *testing.T) {
	table := filled(t, 40)
	if _, err := table.Replace(snapshot(t, 11, 30)); err != nil {
		t.Fatal(err)
	}
	if got := table.View().Count(wire.KindHost); got != 30 {
		t.Errorf("%d hosts", got)
	}
}

func TestFirstSnapshotIsJudgedByTheMaps(t *testing.T) {
	table := newTable(t, Mark{Epoch: 1, Revision: 5})
	table.Expect(map[wire.Kind]int{wire.KindHost: 40})
	if _, err := table.Replace(snapshot(t, 4, 40)); !errors.Is(err, ErrOlder) {
		t.Fatalf("older than the maps: %v", err)
	}
	if _, err := table.Replace(snapshot(t, 11, 20)); !errors.Is(err, ErrRefused) {
		t.Fatalf("half of what the maps hold: %v", err)
	}
	if _, err := table.Replace(snapshot(t, 11, 40)); err != nil {
		t.Fatal(err)
	}
}

func remove(operation string, from, to int) []Tombstone {
	var out []Tombstone
	for i := from; i <= to; i++ {
		out = append(out, Tombstone{Key: host(i).Key(), Operation: operation})
	}
	return out
}

func TestTombstonesNeedAnIntent(t *testing.T) {
	for _, c := range []struct {
		name    string
		have    int
		intents []Intent
		remove  int
		refused int
	}{
		{"within the allowance", 40, nil, 10, 0},
		{"a fifth of many", 100, nil, 20, 0},
		{"one more than a fifth", 100, nil, 21, 21},
		{"all without an intent", 40, nil, 40, 40},
		{"all with an intent", 40, []Intent{{"op", wire.KindHost, 40}}, 40, 0},
		{"intent of another operation", 40, []Intent{{"other", wire.KindHost, 40}}, 40, 40},
		{"intent with too small a count", 40, []Intent{{"op", wire.KindHost, 29}}, 40, 11},
		{"intent for what they hang on", 40, []Intent{{"op", wire.KindPort, 40}}, 40, 0},
		{"intent for another kind besides its own", 40, []Intent{{"op", wire.KindPort, 40}, {"op", wire.KindHost, 5}}, 40, 35},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := filled(t, c.have)
			for _, i := range c.intents {
				table.Intend(i)
				table.Intend(i) // sent again at a reconnect: counts once
			}
			faults, err := table.Apply(Delta{From: 10, To: Mark{1, 11}, Tombstones: remove("op", 1, c.remove), Upserts: []Upsert{body(t, class(2, 9))}})
			if err != nil {
				t.Fatal(err)
			}
			if len(faults) != c.refused {
				t.Errorf("%d refused, want %d: %v", len(faults), c.refused, faults)
			}
			v := table.View()
			if got, want := v.Count(wire.KindHost), c.have-c.remove+c.refused; got != want {
				t.Errorf("%d hosts left, want %d", got, want)
			}
			if _, ok := Get[wire.Class](v, "2"); !ok || v.Mark().Revision != 11 {
				t.Error("the rest of the delta was not taken")
			}
			if alarm, _ := table.Alarm(); (alarm != "") != (c.refused > 0) {
				t.Errorf("alarm %q", alarm)
			}
		})
	}
}

func TestPoisonIsKeptApart(t *testing.T) {
	table := filled(t, 3)
	bad := body(t, host(2))
	bad.Body, bad.Generation = []byte{0xff, 0xff}, 2
	alien := body(t, host(1))
	alien.Key.ID = "77"
	unknown := Upsert{Key: wire.Key{Kind: 99, ID: "1"}}
	faults, err := table.Apply(Delta{From: 10, To: Mark{1, 11}, Upserts: []Upsert{bad, alien, unknown, body(t, host(4))}})
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, f := range faults {
		keys = append(keys, f.Key.String())
	}
	if want := []string{"host/2", "host/77", "kind 99/1"}; !slices.Equal(keys, want) {
		t.Errorf("faults %v, want %v", faults, want)
	}
	v := table.View()
	if h, ok := Get[wire.Host](v, "2"); !ok || h != host(2) {
		t.Errorf("the last good one is gone: %+v", h)
	}
	if _, ok := Get[wire.Host](v, "77"); ok {
		t.Error("an item that was never good is in force")
	}
	if _, ok := Get[wire.Host](v, "4"); !ok {
		t.Error("the good one beside them was not taken")
	}
	var sum wire.Digest
	for _, up := range []Upsert{body(t, host(1)), bad, body(t, host(3)), alien, body(t, host(4))} {
		sum.Add(up.Key, up.Body)
	}
	if got := v.Digests()[wire.KindHost]; got != sum {
		t.Errorf("digest %+v is not of what was sent, %+v", got, sum)
	}
}

func TestDeltasInOrder(t *testing.T) {
	table := filled(t, 3)
	for _, c := range []struct {
		from, to, epoch uint64
		want            error
	}{
		{11, 12, 1, ErrGap},
		{8, 9, 1, ErrOlder},
		{10, 11, 2, ErrGap},
		{10, 11, 0, ErrOlder},
		{9, 11, 1, nil},  // overlaps: what it says of 9 to 10 is held already
		{10, 11, 1, nil}, // a second frame of the same revision
		{11, 13, 1, nil},
	} {
		if _, err := table.Apply(Delta{From: c.from, To: Mark{c.epoch, c.to}}); !errors.Is(err, c.want) {
			t.Errorf("delta %d to %d of epoch %d: %v, want %v", c.from, c.to, c.epoch, err, c.want)
		}
	}
}

func TestWatcherSeesEachChangeOnce(t *testing.T) {
	table := filled(t, 2)
	w, err := table.Watch()
	if err != nil {
		t.Fatal(err)
	}
	if got := w.Changed(table.View()); len(got) != 3 {
		t.Errorf("at first: %v", got)
	}
	old := table.View()
	if _, err := table.Apply(Delta{From: 10, To: Mark{1, 11}, Upserts: []Upsert{body(t, host(3)), body(t, host(1))}, Tombstones: remove("", 2, 2)}); err != nil {
		t.Fatal(err)
	}
	if got := w.Changed(old); len(got) != 0 {
		t.Errorf("an older view shows %v", got)
	}
	got := w.Changed(table.View())
	slices.SortFunc(got, func(a, b wire.Key) int { return strings.Compare(a.ID, b.ID) })
	if want := []wire.Key{host(2).Key(), host(3).Key()}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v (an equal body is no change)", got, want)
	}
	if got := w.Changed(table.View()); len(got) != 0 {
		t.Errorf("seen twice: %v", got)
	}
}

// Whatever arrives, the incremental digests are those of the contents, and no
// change takes away more than a fifth (or ten) without an intent.
func TestDigestsAndGuardHoldForAnySequence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, err := New(Mark{})
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		if _, err := table.Replace(snapshot(t, 1, rapid.IntRange(1, 60).Draw(t, "hosts"))); err != nil {
			t.Fatal(err)
		}
		for revision := uint64(2); revision < 8; revision++ {
			before := table.View().Count(wire.KindHost)
			at := Mark{1, revision}
			if rapid.Bool().Draw(t, "snapshot") {
				s := snapshot(t, revision, rapid.IntRange(0, 60).Draw(t, "hosts"))
				_, _ = table.Replace(s)
			} else {
				d := Delta{To: at, Tombstones: remove("", 1, rapid.IntRange(0, 60).Draw(t, "removed"))}
				for range rapid.IntRange(0, 5).Draw(t, "upserts") {
					d.Upserts = append(d.Upserts, body(t, host(rapid.IntRange(1, 60).Draw(t, "host"))))
				}
				_, _ = table.Apply(d)
			}
			v := table.View()
			if after := v.Count(wire.KindHost); before-after > allowance(before) || (after == 0 && before > 10) {
				t.Fatalf("%d of %d hosts left", after, before)
			}
			var sum wire.Digest
			for row := range v.Rows(wire.KindHost) {
				sum.Add(row.Key, row.Body)
			}
			if got := v.Digests()[wire.KindHost]; got != sum {
				t.Fatalf("digest %+v, contents %+v", got, sum)
			}
		}
	})
}
