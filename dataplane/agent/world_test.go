// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/nlb"
	"cairn/dataplane/table"
)

type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// world is an agent's tables and loop over maps in memory. This host is 1.
type world struct {
	t        tester
	table    *table.Table
	watcher  *table.Watcher
	store    *maps.Memory
	loop     *Loop
	facts    Facts
	revision uint64
	now      time.Time
}

var caps = nlb.Capacities{Slots: 4096, Services: 64, Nexthops: 16}

var router = netip.MustParseAddr("10.64.0.254")

func newWorld(t tester) *world {
	w := &world{t: t, store: maps.NewMemory(), now: time.Unix(1000, 0)}
	var err error
	if w.table, err = table.New(table.Mark{}); err != nil {
		t.Fatal(err)
	}
	if w.watcher, err = w.table.Watch(); err != nil {
		t.Fatal(err)
	}
	w.facts.Balancer = nlb.Facts{
		Self: 1, MTU: 1600, Via: map[netip.Addr]netip.Addr{}, MAC: map[netip.Addr][6]byte{router: {2, 0, 0, 0, 0, 254}},
	}
	for id := range uint32(10) {
		if id != 1 {
			w.facts.Balancer.Via[endpoint(id)] = router
		}
	}
	w.facts.Ports.Devices = map[uint32]uint32{}
	w.facts.Ports.Own = []netip.Prefix{netip.MustParsePrefix("10.65.0.11/32")}
	w.restart()
	return w
}

// restart makes a new loop over the maps as they are.
func (w *world) restart() {
	w.t.Helper()
	loop, err := NewLoop(w.store, table.Mark{}, caps)
	if err != nil {
		w.t.Fatal(err)
	}
	w.loop = loop
}

// apply brings items and removes others, in one delta and one round.
func (w *world) apply(items []wire.Item, gone ...wire.Item) Outcome {
	w.t.Helper()
	w.tell(items, gone...)
	return w.round()
}

func (w *world) tell(items []wire.Item, gone ...wire.Item) {
	w.t.Helper()
	var ups []table.Upsert
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			w.t.Fatal(err)
		}
		ups = append(ups, table.Upsert{Key: item.Key(), Body: body})
	}
	w.revision++
	at := table.Mark{Epoch: 1, Revision: w.revision}
	if w.revision == 1 {
		s := table.Snapshot{At: at, Upserts: ups}
		for _, up := range ups {
			s.Digests[up.Key.Kind].Add(up.Key, up.Body)
		}
		if _, err := w.table.Replace(s); err != nil {
			w.t.Fatal(err)
		}
		return
	}
	d := table.Delta{From: w.revision - 1, To: at, Upserts: ups}
	for _, item := range gone {
		d.Tombstones = append(d.Tombstones, table.Tombstone{Key: item.Key()})
	}
	if _, err := w.table.Apply(d); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) round() Outcome {
	view := w.table.View()
	return w.loop.Round(view, w.watcher.Changed(view), w.facts, w.now)
}

// release lets the grace period of all that was freed end.
func (w *world) release() {
	w.now = w.now.Add(2 * grace)
	w.loop.Release(w.now)
}

func (w *world) mustApply(items []wire.Item, gone ...wire.Item) Outcome {
	w.t.Helper()
	out := w.apply(items, gone...)
	if len(out.Faults) > 0 {
		w.t.Fatal(out.Faults)
	}
	return out
}

// settled: desired and programmed agree, and a restart changes nothing.
func (w *world) settled() {
	w.t.Helper()
	found, err := maps.Load(w.store)
	if err != nil {
		w.t.Fatal(err)
	}
	if diff := w.loop.Compare(w.table.View(), found, w.facts); !diff.Empty() {
		w.t.Fatalf("desired and programmed differ: %+v", diff)
	}
	writes := w.store.Writes
	w.restart()
	view := w.table.View()
	if out := w.loop.Round(view, nil, w.facts, w.now); len(out.Faults) > 0 {
		w.t.Fatal(out.Faults)
	}
	if w.store.Writes != writes {
		w.t.Fatalf("a restart made %d writes", w.store.Writes-writes)
	}
}

func endpoint(host uint32) netip.Addr { return netip.AddrFrom4([4]byte{10, 64, 0, byte(host)}) }
func address(port uint32) netip.Addr  { return netip.AddrFrom4([4]byte{198, 51, 100, byte(port)}) }
func mac(port uint32) [6]byte         { return [6]byte{2, 0xca, 0, 0, 0, byte(port)} }

func aHost(id uint32) wire.Host {
	return wire.Host{ID: id, Name: fmt.Sprintf("hv%d", id), Endpoint: endpoint(id), MTU: 1600}
}

func aPort(id, policy uint32) wire.Port {
	return wire.Port{ID: id, Instance: fmt.Sprint(id), MAC: mac(id), Addresses: []netip.Addr{address(id)}, Policy: policy, MTU: 1500}
}

func aMember(port, class uint32) wire.Member {
	return wire.Member{Address: address(port), Class: class}
}

func aBackend(id, service, host, port uint32) wire.Backend {
	return wire.Backend{ID: id, Service: service, Host: host, Port: port, MAC: mac(port), Address: address(port), TargetPort: 8080}
}

func aService(id uint32) wire.Service {
	return wire.Service{ID: id, VIP: netip.AddrFrom4([4]byte{203, 0, 113, byte(id/2 + 1)}), Port: uint16(80 + id%2), Protocol: 6, Seed: id * 77}
}

// aTable of size slots, shared by the owners in turn.
func aTable(service uint32, generation uint64, size int, owners ...[2]uint32) wire.Slots {
	var table []byte
	for i := range size {
		o := [2]uint32{}
		if len(owners) > 0 {
			o = owners[i%len(owners)]
		}
		table = binary.LittleEndian.AppendUint32(table, o[0])
		table = binary.LittleEndian.AppendUint32(table, o[1])
	}
	return wire.Slots{Service: service, Generation: generation, Table: table}
}

var (
	any4 = netip.MustParsePrefix("0.0.0.0/0")
	web  = wire.Rule{ID: 1, Protocol: 6, PortMin: 80, PortMax: 80, ICMPType: -1, ICMPCode: -1, Peer: any4}
)

func fromGroup(id, group uint32) wire.Rule {
	return wire.Rule{ID: id, Protocol: 6, PortMin: 22, PortMax: 22, ICMPType: -1, ICMPCode: -1, PeerGroup: group}
}

// small is one service with a backend here and one on host 2.
func small() []wire.Item {
	return []wire.Item{
		aHost(1), aHost(2),
		wire.Class{ID: 3, Groups: []uint32{5}}, wire.Class{ID: 4, Groups: []uint32{6}},
		aMember(1, 3), aMember(2, 4),
		wire.Policy{ID: 3, Rules: []wire.Rule{web, fromGroup(2, 6)}},
		aPort(1, 3),
		aBackend(1, 1, 1, 1), aBackend(2, 1, 2, 2),
		aTable(1, 1, 256, [2]uint32{1, 0}, [2]uint32{2, 0}),
		aService(1),
		wire.Announcement{Prefix: netip.MustParsePrefix("203.0.113.1/32"), Service: true, Announcers: []uint32{2, 1}},
		wire.Announcement{Prefix: netip.MustParsePrefix("198.51.100.1/32")},
	}
}

// reachable checks, in the middle of a change too, that no VIP leads to
// anything that is not there.
func reachable(store *maps.Memory) error {
	im, err := maps.Load(store)
	if err != nil {
		return err
	}
	for vip := range im.Served() {
		record, ok := im.Get(maps.ID{Map: maps.Svc, Key: vip.Value})
		if !ok {
			return fmt.Errorf("%s: no record", vip)
		}
		svc := maps.As[bpf.Svc](record)
		at, proto := maps.ServedAt(vip.ID)
		if svc.Vip != bpf.IP16(at.Addr()) || svc.Port != bpf.BE16(at.Port()) || svc.Proto != proto {
			return fmt.Errorf("%s: record of another service, %d", vip, svc.Id)
		}
		slots, ok := im.Get(maps.ID{Map: maps.Slots, Key: maps.Bytes(svc.SlotBase)})
		if !ok || len(slots) != 8*(int(svc.SlotMask)+1) {
			return fmt.Errorf("%s: %d slots of %d at %d", vip, len(slots)/8, svc.SlotMask+1, svc.SlotBase)
		}
		for i := 0; i < len(slots); i += 4 {
			id := binary.LittleEndian.Uint32([]byte(slots[i:]))
			if id == 0 {
				continue
			}
			if err := backendThere(im, svc.Id, id); err != nil {
				return fmt.Errorf("%s: slot %d: %w", vip, i/8, err)
			}
		}
		if _, ok := im.Get(maps.VIPID(at.Addr())); !ok {
			return fmt.Errorf("%s: its address is no VIP", vip)
		}
		word, bit := bpf.VIPBit(at.Addr())
		if bits, ok := im.Get(maps.ID{Map: maps.VIPBits, Key: maps.Bytes(word)}); !ok || maps.As[uint64](bits)&bit == 0 {
			return fmt.Errorf("%s: not in vip_bits", vip)
		}
	}
	return nil
}

func backendThere(im *maps.Image, service, id uint32) error {
	value, ok := im.Get(maps.ID{Map: maps.Backends, Key: maps.Bytes(id)})
	if !ok {
		return fmt.Errorf("backend %d is not there", id)
	}
	b := maps.As[bpf.Backend](value)
	if b.Endpoint != 0 {
		if _, ok := im.Get(maps.ID{Map: maps.Vteps, Key: maps.Bytes(b.Endpoint)}); !ok {
			return fmt.Errorf("backend %d at an unknown endpoint", id)
		}
		return nil
	}
	for e := range im.Entries(maps.Local) {
		if maps.As[bpf.Local](e.Value).Backend == id && maps.As[bpf.LocalKey](e.Key).Service == service {
			return nil
		}
	}
	return fmt.Errorf("backend %d is here and not in local", id)
}

func lines(steps []maps.Step) []string {
	var out []string
	for _, s := range steps {
		if s.Old != s.Value || s.Op != maps.Put {
			out = append(out, s.String())
		}
	}
	return out
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("steps:\n got %q\nwant %q", got, want)
	}
}
