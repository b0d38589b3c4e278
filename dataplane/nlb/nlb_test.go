// SPDX-License-Identifier: Apache-2.0

package nlb

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

type fataler interface {
	Helper()
	Fatal(...any)
}

var (
	here, there = netip.MustParseAddr("10.64.0.1"), netip.MustParseAddr("10.64.0.3")
	facts       = Facts{
		Self: 1, MTU: 1600,
		Via: map[netip.Addr]netip.Addr{there: netip.MustParseAddr("10.64.0.0")},
		MAC: map[netip.Addr][6]byte{netip.MustParseAddr("10.64.0.0"): {2, 0, 0, 0, 0, 9}},
	}
)

// program makes an image hold what the units of items want.
func program(t fataler, have *maps.Image, caps Capacities, items ...wire.Item) (failed map[string]string) {
	t.Helper()
	desired, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	defer desired.Close()
	var ups []table.Upsert
	names := []string{Bits, Nexthop(netip.MustParseAddr("10.64.0.0"))}
	seen := map[string]bool{}
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			t.Fatal(err)
		}
		ups = append(ups, table.Upsert{Key: item.Key(), Body: body})
		switch v := item.(type) {
		case wire.Service:
			if vip := VIP(v.VIP); !seen[vip] {
				seen[vip] = true
				names = append(names, vip)
			}
			names = append(names, v.Key().String())
		case wire.Announcement:
			names = append(names, Nodes(v.Key().ID))
		case wire.Host, wire.Backend:
			names = append(names, v.Key().String())
		}
	}
	if _, err := desired.Restore(table.Mark{Revision: 1}, ups); err != nil {
		t.Fatal(err)
	}
	b := NewBuilder(desired.View(), facts, have, caps)
	var units []maps.Unit
	failed = map[string]string{}
	for _, name := range names {
		u, err := b.Unit(name)
		if err != nil {
			failed[name] = err.Error()
			continue
		}
		units = append(units, u)
	}
	steps, faults := maps.Plan(have, units)
	_, refused := maps.Apply(maps.NewMemory(), have, units, steps, faults)
	for _, f := range refused {
		failed[f.Unit] = f.Reason
	}
	return failed
}

func hosts() []wire.Item {
	return []wire.Item{wire.Host{ID: 1, Endpoint: here, MTU: 1600}, wire.Host{ID: 2, Endpoint: there, MTU: 1500}}
}

func service(id uint32, size int, generation uint64) []wire.Item {
	body := strings.Repeat(string([]byte{byte(id), 0, 0, 0, 0, 0, 0, 0}), size)
	return []wire.Item{
		wire.Backend{ID: id, Service: id, Host: 2, Port: id, Address: netip.AddrFrom4([4]byte{198, 51, 100, byte(id)}), TargetPort: 80},
		wire.Slots{Service: id, Generation: generation, Table: []byte(body)},
		wire.Service{ID: id, VIP: netip.AddrFrom4([4]byte{203, 0, 113, byte(id)}), Port: 80, Protocol: 6},
	}
}

func TestWhatIsFullIsRefusedAlone(t *testing.T) {
	items := hosts()
	for id := uint32(1); id <= 4; id++ {
		items = append(items, service(id, 256, 1)...)
	}
	for _, c := range []struct {
		name string
		caps Capacities
		want string
	}{
		{"room for all", Capacities{1024, 8, 8}, "map[]"},
		{"slots", Capacities{512, 8, 8}, "map[service/3:place 256 slots, 512 of 512 are in use: no free range of slots service/4:place 256 slots, 512 of 512 are in use: no free range of slots]"},
		{"records, the first of which is never used", Capacities{1024, 4, 8}, "map[service/4:no free record among 4 services: the map is full]"},
		{"next hops", Capacities{1024, 8, 1}, "map[backend/1:no free index among 1 next hops: the map is full"},
	} {
		if got := fmt.Sprint(program(t, maps.NewImage(), c.caps, items...)); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// Whatever tables come, ranges and records of services never overlap, and a
// table that does not grow stays where it is.
func TestNumbersAreNeverGivenTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, caps := maps.NewImage(), Capacities{1 << 14, 64, 8}
		sizes := map[uint32]int{}
		bases := map[uint32]uint32{}
		for generation := range uint64(5) {
			items, grown := hosts(), map[uint32]bool{}
			for id := uint32(1); id <= 6; id++ {
				if size := max(sizes[id], 1<<rapid.IntRange(4, 9).Draw(t, "size")); size != sizes[id] {
					sizes[id], grown[id] = size, true
				}
				items = append(items, service(id, sizes[id], generation+1)...)
			}
			if failed := program(t, have, caps, items...); len(failed) > 0 {
				t.Fatal(failed)
			}
			taken := map[uint32]uint32{} // slot → service
			for e := range have.Entries(maps.VIP4) {
				value, ok := have.Get(maps.ID{Map: maps.Svc, Key: e.Value})
				if !ok {
					t.Fatalf("%s leads to no record", e)
				}
				r := maps.As[bpf.Svc](value)
				for i := range r.SlotMask + 1 {
					if other := taken[r.SlotBase+i]; other != 0 {
						t.Fatalf("slot %d is of services %d and %d", r.SlotBase+i, other, r.Id)
					}
					taken[r.SlotBase+i] = r.Id
				}
				if base, was := bases[r.Id]; was && base != r.SlotBase && !grown[r.Id] {
					t.Fatalf("service %d moved from %d to %d", r.Id, base, r.SlotBase)
				}
				bases[r.Id] = r.SlotBase
				if r.Generation != uint32(generation+1) {
					t.Fatalf("service %d is of generation %d", r.Id, r.Generation)
				}
			}
			if len(have.Of("service/1")) != 3 {
				t.Fatalf("service 1 holds %v", have.Of("service/1"))
			}
		}
	})
}

func TestOnlyThisHostsBackendsAreLocal(t *testing.T) {
	have := maps.NewImage()
	b := wire.Backend{ID: 7, Service: 1, Host: 1, Port: 5, MAC: [6]byte{2}, Address: netip.MustParseAddr("198.51.100.5"), TargetPort: 8080}
	away := b
	away.ID, away.Host, away.Port = 8, 2, 6
	if failed := program(t, have, Capacities{1024, 8, 8}, append(hosts(), b, away)...); len(failed) > 0 {
		t.Fatal(failed)
	}
	if n := have.Len(maps.Local); n != 1 {
		t.Errorf("%d local backends", n)
	}
	for id, want := range map[uint32]bpf.Backend{
		7: {Flags: bpf.BackendValid, Mac: b.MAC},
		8: {Flags: bpf.BackendValid, Mac: b.MAC, Endpoint: bpf.BE32(there), Nexthop: 1},
	} {
		value, _ := have.Get(maps.ID{Map: maps.Backends, Key: maps.Bytes(id)})
		if got := maps.As[bpf.Backend](value); got != want {
			t.Errorf("backend %d: %+v, want %+v", id, got, want)
		}
	}
	for flags, change := range map[uint16]func(*wire.Backend){
		bpf.LocalReady:    func(*wire.Backend) {},
		bpf.LocalDraining: func(b *wire.Backend) { b.Draining = true },
		0:                 func(b *wire.Backend) { b.Unhealthy = true },
	} {
		changed := b
		change(&changed)
		program(t, have, Capacities{1024, 8, 8}, append(hosts(), changed)...)
		for e := range have.Entries(maps.Local) {
			if got := maps.As[bpf.Local](e.Value).Flags; got != flags {
				t.Errorf("flags %d, want %d", got, flags)
			}
		}
	}
	value, _ := have.Get(maps.ID{Map: maps.Vteps, Key: maps.Bytes(bpf.BE32(there))})
	if got := maps.As[bpf.Vtep](value); got.Pmtu != 1500 {
		t.Errorf("path MTU %d, want the smaller of the two", got.Pmtu)
	}
}

// The limit of connections is in the service's record; a change of it takes a new one,
// and no slot.
func TestConnectionLimitIsInTheRecord(t *testing.T) {
	have := maps.NewImage()
	var records []uint32
	for _, limit := range []uint32{0, 200, 0} {
		items := append(hosts(), service(1, 256, 1)...)
		s := items[len(items)-1].(wire.Service)
		s.ConnectionLimit = limit
		items[len(items)-1] = s
		if failed := program(t, have, Capacities{1024, 8, 8}, items...); len(failed) > 0 {
			t.Fatal(failed)
		}
		index, _ := have.Get(maps.ServiceID(netip.AddrPortFrom(s.VIP, s.Port), s.Protocol))
		record, _ := have.Get(maps.ID{Map: maps.Svc, Key: index})
		if r := maps.As[bpf.Svc](record); r.Limit != limit || r.SlotBase != 0 {
			t.Errorf("limit %d: %+v", limit, r)
		}
		records = append(records, maps.As[uint32](index))
	}
	if records[0] == records[1] {
		t.Errorf("records %v: one was changed under its readers", records)
	}
}

// What a service has beyond its slots is in its record, with the flag that has the
// program look at it; the backends that connection IDs name have an entry each.
func TestOptionsAreInTheRecord(t *testing.T) {
	have := maps.NewImage()
	for name, c := range map[string]struct {
		edit func(*wire.Service)
		want bpf.Svc
		quic int
	}{
		"none":     {func(*wire.Service) {}, bpf.Svc{}, 0},
		"rate":     {func(s *wire.Service) { s.SourceRate = 50 }, bpf.Svc{Flags: bpf.SvcPaced, Rate: 50}, 0},
		"quic":     {func(s *wire.Service) { s.QUIC = true }, bpf.Svc{Flags: bpf.SvcQuic}, 1},
		"rotating": {func(s *wire.Service) { s.Rotating, s.PrevSeed = true, 9 }, bpf.Svc{Flags: bpf.SvcRotating, PrevSeed: 9}, 0},
		"rotated":  {func(s *wire.Service) { s.PrevSeed = 9 }, bpf.Svc{}, 0},
	} {
		items := append(hosts(), service(1, 256, 1)...)
		s := items[len(items)-1].(wire.Service)
		c.edit(&s)
		items[len(items)-1] = s
		if failed := program(t, have, Capacities{1024, 8, 8}, items...); len(failed) > 0 {
			t.Fatal(failed)
		}
		index, _ := have.Get(maps.ServiceID(netip.AddrPortFrom(s.VIP, s.Port), s.Protocol))
		record, _ := have.Get(maps.ID{Map: maps.Svc, Key: index})
		r := maps.As[bpf.Svc](record)
		if got := (bpf.Svc{Flags: r.Flags, Rate: r.Rate, PrevSeed: r.PrevSeed, Sample: r.Sample}); got != c.want || have.Len(maps.Quic) != c.quic {
			t.Errorf("%s: %+v and %d servers", name, got, have.Len(maps.Quic))
		}
	}
}
