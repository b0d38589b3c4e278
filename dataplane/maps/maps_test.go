// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/bpf"
)

// vtep and vip are entries of a map early and one late in the order.
func vtep(n byte, host uint32) Entry {
	return Make(Vteps, bpf.BE32(netip.AddrFrom4([4]byte{10, 64, 0, n})), bpf.Vtep{Host: host, Pmtu: 1600})
}

func vip(n byte, index uint32) Entry {
	return Make(VIP4, bpf.Vip4Key{Ip: bpf.BE32(netip.AddrFrom4([4]byte{203, 0, 113, n})), Port: bpf.BE16(80), Proto: 6}, index)
}

func member(n byte, class uint32) Entry {
	return Make(Members, bpf.MemberKey{Ip: bpf.IP16(netip.AddrFrom4([4]byte{198, 51, 100, n}))}, class)
}

func svc(index uint32) Entry { return Make(Svc, index, bpf.Svc{Id: index}) }

func unit(name string, want ...Entry) Unit { return Unit{Name: name, Want: want} }

// world is a store and its image.
type world struct {
	store *Memory
	have  *Image
}

func newWorld() *world { return &world{NewMemory(), NewImage()} }

func (w *world) apply(units ...Unit) (steps []string, failed []Fault) {
	plan, faults := Plan(w.have, units)
	for _, s := range plan {
		steps = append(steps, s.String())
	}
	later, failed := Apply(w.store, w.have, units, plan, faults)
	Release(w.store, w.have, later)
	return steps, failed
}

func TestPlanOrdersByMap(t *testing.T) {
	w := newWorld()
	w.apply(unit("a", vip(1, 1), svc(1), vtep(1, 1), member(1, 5)), unit("b", vip(2, 2), vtep(2, 2)))
	got, failed := w.apply(unit("a"), unit("b", vip(2, 3), vtep(3, 2)))
	want := []string{
		"put vteps 10.64.0.3 = host 2 pmtu 1600 for b",
		"delete members 0/198.51.100.1 for a",
		"put vip4 203.0.113.2:80/6 = 3 for b",
		"delete vip4 203.0.113.1:80/6 for a",
		"free svc 1 for a",
		"delete vteps 10.64.0.1 for a",
		"delete vteps 10.64.0.2 for b",
	}
	if !slices.Equal(got, want) || len(failed) > 0 {
		t.Errorf("got %q %v\nwant %q", got, failed, want)
	}
}

// A backend that takes no new flows any more is told so once the slots say who
// does; one that takes some, or some again, before they name it.
func TestABackendClosesBehindItsSlots(t *testing.T) {
	backend := func(flags uint16) Unit {
		return unit("backend/1", Make(Local, bpf.LocalKey{Service: 1, Port: 5}, bpf.Local{Backend: 1, Flags: flags}))
	}
	service := func(owner uint64) Unit {
		return unit("service/1", Make(Slots, uint32(0), owner), Make(VIP4, bpf.Vip4Key{Proto: 6}, uint32(owner)))
	}
	w := newWorld()
	for n, c := range []struct {
		flags uint16
		want  []Map
	}{
		{bpf.LocalReady, []Map{Local, Slots, VIP4}},
		{bpf.LocalDraining, []Map{Slots, VIP4, Local}},
		{bpf.LocalReady, []Map{Local, Slots, VIP4}},
		{0, []Map{Local, Slots, VIP4}}, // not well: it takes flows that nobody else does
		{bpf.LocalDraining, []Map{Slots, VIP4, Local}},
	} {
		units := []Unit{backend(c.flags), service(uint64(n))}
		plan, faults := Plan(w.have, units)
		var got []Map
		for _, s := range plan {
			got = append(got, s.Map)
		}
		if !slices.Equal(got, c.want) || len(faults) > 0 {
			t.Errorf("change %d: %v, want %v; %v", n, got, c.want, faults)
		}
		w.apply(units...)
	}
}

func TestOneEntryHasOneUnit(t *testing.T) {
	for _, c := range []struct {
		name  string
		units []Unit
		fails []string
		steps int
	}{
		{"the holder is not named", []Unit{unit("b", vtep(1, 2))}, []string{"b: vteps 10.64.0.1 belongs to a"}, 0},
		{"the holder still wants it", []Unit{unit("b", vtep(1, 2)), unit("a", vtep(1, 1))}, []string{"b: vteps 10.64.0.1 belongs to a"}, 0},
		{"the holder lets it go", []Unit{unit("b", vtep(1, 2)), unit("a")}, nil, 1},
		{"the holder lets it go, named first", []Unit{unit("a"), unit("b", vtep(1, 2))}, nil, 1},
		{"two new ones", []Unit{unit("b", vtep(9, 2)), unit("c", vtep(9, 3))}, []string{"c: vteps 10.64.0.9 belongs to b"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			w.apply(unit("a", vtep(1, 1)))
			steps, failed := w.apply(c.units...)
			var fails []string
			for _, f := range failed {
				fails = append(fails, f.Unit+": "+f.Reason)
			}
			if !slices.Equal(fails, c.fails) || len(steps) != c.steps {
				t.Errorf("failed %q, steps %q", fails, steps)
			}
		})
	}
}

func TestAFailureHoldsBackWhatNeedsIt(t *testing.T) {
	w := newWorld()
	w.store.Refuse = func(_ Op, e Entry) error {
		if e.Map == Vteps {
			return errors.New("no space left")
		}
		return nil
	}
	chain := []Unit{
		{Name: "host", Group: "hosts", Want: []Entry{vtep(1, 1)}},
		{Name: "service", Needs: []string{"host"}, Want: []Entry{vip(1, 1)}},
		{Name: "member", Needs: []string{"hosts"}, Want: []Entry{member(1, 1)}},
		{Name: "other", Want: []Entry{member(2, 1)}},
	}
	_, failed := w.apply(chain...)
	var names []string
	for _, f := range failed {
		names = append(names, f.Unit)
	}
	if want := []string{"host", "service", "member"}; !slices.Equal(names, want) {
		t.Errorf("failed %v, want %v", failed, want)
	}
	if !w.have.Free(vip(1, 1).ID) || !w.have.Free(member(1, 1).ID) || w.have.Free(member(2, 1).ID) {
		t.Error("what needs it was written, or what does not was held back")
	}
	w.store.Refuse = nil
	if _, failed := w.apply(chain...); len(failed) > 0 {
		t.Error(failed)
	}
	// What a failed unit names stays.
	w.store.Refuse = func(_ Op, e Entry) error {
		if e.Map == VIP4 {
			return errors.New("no")
		}
		return nil
	}
	if _, failed := w.apply(Unit{Name: "service"}, Unit{Name: "host"}); len(failed) != 2 {
		t.Errorf("failed %v", failed)
	}
	if w.have.Free(vtep(1, 1).ID) {
		t.Error("the host went, though the service that names it could not")
	}
}

func TestAFreedNumberIsNotFreeBeforeItsGracePeriod(t *testing.T) {
	w := newWorld()
	w.apply(unit("a", svc(1)))
	units := []Unit{unit("a")}
	steps, _ := Plan(w.have, units)
	later, _ := Apply(w.store, w.have, units, steps, nil)
	if w.have.Free(svc(1).ID) || len(w.have.Orphans()) > 0 || len(w.have.Units()) > 0 || !w.have.Freeing(svc(1).ID) {
		t.Error("the number is free at once")
	}
	w.apply(unit("b", svc(1))) // claimed again meanwhile
	Release(w.store, w.have, later)
	if _, ok, _ := w.store.Get(svc(1)); !ok {
		t.Error("an entry that was claimed again was deleted")
	}
	steps, _ = Plan(w.have, []Unit{unit("b")})
	later, _ = Apply(w.store, w.have, []Unit{unit("b")}, steps, nil)
	if again := Release(w.store, w.have, later); len(again) > 0 || !w.have.Free(svc(1).ID) {
		t.Error("the number is not free after its grace period")
	}
}

func TestAnImpostorIsReadBack(t *testing.T) {
	w := newWorld()
	units := []Unit{unit("a", vtep(1, 1))}
	steps, _ := Plan(w.have, units)
	_, failed := Apply(forgetful{w.store}, w.have, units, steps, nil)
	if len(failed) != 1 || !strings.Contains(failed[0].Reason, "read back vteps 10.64.0.1: it holds something else") {
		t.Errorf("failed %v", failed)
	}
}

// forgetful says yes and writes nothing.
type forgetful struct{ Store }

func (forgetful) Put(Entry, string) error { return nil }

// Any sequence of wishes ends in a store that holds exactly what was wished
// last, and a plan for the same wishes is empty.
func TestPlanReachesWhatIsWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		wanted := map[string]Unit{}
		for range rapid.IntRange(1, 8).Draw(t, "rounds") {
			var units []Unit
			for i := range rapid.IntRange(1, 4).Draw(t, "units") {
				u := Unit{Name: fmt.Sprint("u", i)}
				for n := range byte(4) {
					if rapid.Bool().Draw(t, "has") {
						u.Want = append(u.Want, vtep(byte(i)*8+n, rapid.Uint32Range(1, 2).Draw(t, "host")), svc(uint32(i)*8+uint32(n)+1))
					}
				}
				units = append(units, u)
				wanted[u.Name] = u
			}
			if _, failed := w.apply(units...); len(failed) > 0 {
				t.Fatal(failed)
			}
		}
		found, err := Load(w.store)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		var units []Unit
		for _, u := range wanted {
			units = append(units, u)
			n += len(u.Want)
			for _, e := range u.Want {
				if got, ok := found.Get(e.ID); !ok || got != e.Value {
					t.Fatalf("%s is not there", e)
				}
			}
		}
		if got := found.Len(Vteps) + found.Len(Svc); got != n {
			t.Fatalf("%d entries, want %d", got, n)
		}
		if steps, faults := Plan(w.have, units); len(steps)+len(faults) > 0 {
			t.Fatalf("again: %v %v", steps, faults)
		}
		if lines := w.have.Correct(found); len(lines) > 0 {
			t.Fatal(lines)
		}
	})
}

func TestStructsHaveNoHiddenPadding(t *testing.T) {
	k := bpf.AddrKey{Port: 7, Ip: bpf.IP16(netip.MustParseAddr("198.51.100.7"))}
	if got := As[bpf.AddrKey](Bytes(k)); got != k {
		t.Errorf("%+v", got)
	}
	if n := len(Bytes(bpf.Svc{})); n != 64 {
		t.Errorf("a service record has %d bytes", n)
	}
	defer func() {
		if recover() == nil {
			t.Error("bytes of another size were taken")
		}
	}()
	As[bpf.Svc]("short")
}
