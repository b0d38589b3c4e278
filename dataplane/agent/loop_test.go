// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/announce"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
)

func TestOneServiceFromNothing(t *testing.T) {
	w := newWorld(t)
	w.facts.Ports.Devices[1] = 7
	out := w.mustApply(small())
	expect(t, lines(out.Steps),
		"put prefixes 10.64.0.1/32 = 1 for host/1",
		"put prefixes 10.64.0.2/32 = 1 for host/2",
		"put prefixes 10.65.0.11/32 = 1 for prefixes",
		"put prefixes 198.51.100.1/32 = 2 for announcement/198.51.100.1/32",
		"put vteps 10.64.0.1 = host 1 pmtu 1600 for host/1",
		"put vteps 10.64.0.2 = host 2 pmtu 1600 for host/2",
		"put nexthops 1 = 02:00:00:00:00:fe for nexthop/10.64.0.254",
		"put rule_ids 1/in = rules [1 2] for policy/3",
		"put rule_ids 1/out = rules [] for policy/3",
		"put port_bounds 1/in/proto 6 = classes [0:0 22:1 23:0 80:2 81:0] for policy/3",
		"put port_bm 1/in/class 1 = bits [1] for policy/3",
		"put port_bm 1/in/class 2 = bits [0] for policy/3",
		"put cidr_bm 1/in/class 1 = bits [0] for policy/3",
		"put cidr 1/0.0.0.0/0 = 1 for policy/3",
		"put peer_bm 1/in/class 4 = bits [1] for policy/3",
		"put members 0/198.51.100.1 = 3 for member/0/198.51.100.1",
		"put members 0/198.51.100.2 = 4 for member/0/198.51.100.2",
		"put attach 1 = 7 for port/1",
		"put addr_ok 1/198.51.100.1 = 0 for port/1",
		"put fdb 16777214/02:ca:00:00:00:01 = port 1 for port/1",
		"put port_cfg 1 = device 7 mac 02:ca:00:00:00:01 policy 1/1 generation 1 mtu 1500 flags 1 for port/1",
		"put addr_port 198.51.100.1 = 1 for port/1",
		"put quota 1 = 8192 for port/1",
		"put backends 1 = endpoint 0.0.0.0 nexthop 0 mac 02:ca:00:00:00:01 for backend/1",
		"put backends 2 = endpoint 10.64.0.2 nexthop 1 mac 02:ca:00:00:00:02 for backend/2",
		"put local service 1 port 1 = backend 1 198.51.100.1:8080 flags 1 for backend/1",
		"put slots 0 = 128×1 128×2 for service/1",
		"put svc 1 = service 1 203.0.113.1:81/6 slots 0+256 generation 1 flags 0 mtu 1550 seed 0x4d for service/1",
		"put vip_nodes 203.0.113.1 = host 2 endpoint 10.64.0.2 nexthop 1, host 1 for nodes/203.0.113.1/32",
		fmt.Sprintf("put vip_bits %d = %#x for vipbits", first(bpf.VIPBit(netip.MustParseAddr("203.0.113.1"))), second(bpf.VIPBit(netip.MustParseAddr("203.0.113.1")))),
		"put vipaddr4 203.0.113.1 = 1 for vip/203.0.113.1",
		"put vip4 203.0.113.1:81/6 = 1 for service/1",
	)
	w.settled()
	set := wanted(w.table.View(), w.loop.Image(), 1, true)
	want := []announce.Wanted{
		{Prefix: netip.MustParsePrefix("198.51.100.1/32"), Origin: announce.Instance, Port: 1},
		{Prefix: netip.MustParsePrefix("203.0.113.1/32"), Origin: announce.VIP, Rank: 1, Services: []announce.Service{{Port: 81, Protocol: 6}}},
	}
	if fmt.Sprint(set.Wanted) != fmt.Sprint(want) {
		t.Errorf("announcements\n got %+v\nwant %+v", set.Wanted, want)
	}
	if set := wanted(w.table.View(), w.loop.Image(), 1, false); len(set.Wanted) != 1 {
		t.Errorf("a host that is no LB node announces %+v", set.Wanted)
	}
}

func first[A, B any](a A, _ B) A  { return a }
func second[A, B any](_ A, b B) B { return b }

func TestChangesOfOneService(t *testing.T) {
	for _, c := range []struct {
		name  string
		items []wire.Item
		gone  []wire.Item
		want  []string
	}{
		{"a slot moves in place", []wire.Item{aTable(1, 2, 256, [2]uint32{1, 2}, [2]uint32{2, 0})}, nil, []string{
			"put slots 0 = 128×1(2) 128×2 for service/1",
			"put svc 1 = service 1 203.0.113.1:81/6 slots 0+256 generation 2 flags 0 mtu 1550 seed 0x4d for service/1",
		}},
		{"a larger table is written, then one number flips", []wire.Item{aTable(1, 2, 512, [2]uint32{1, 0}, [2]uint32{2, 0})}, nil, []string{
			"put slots 512 = 256×1 256×2 for service/1",
			"put svc 2 = service 1 203.0.113.1:81/6 slots 512+512 generation 2 flags 0 mtu 1550 seed 0x4d for service/1",
			"put vip4 203.0.113.1:81/6 = 2 for service/1",
			"free svc 1 for service/1",
			"free slots 0 for service/1",
		}},
		{"panic takes a new record", []wire.Item{func() wire.Service { s := aService(1); s.Panic = true; return s }()}, nil, []string{
			"put svc 2 = service 1 203.0.113.1:81/6 slots 0+256 generation 1 flags 2 mtu 1550 seed 0x4d for service/1",
			"put vip4 203.0.113.1:81/6 = 2 for service/1",
			"free svc 1 for service/1",
		}},
		{"a backend goes after its slots", []wire.Item{aTable(1, 2, 256, [2]uint32{1, 0})}, []wire.Item{aBackend(2, 1, 2, 2)}, []string{
			"put slots 0 = 256×1 for service/1",
			"put svc 1 = service 1 203.0.113.1:81/6 slots 0+256 generation 2 flags 0 mtu 1550 seed 0x4d for service/1",
			"free backends 2 for backend/2",
		}},
		{"a drain is one word of local", []wire.Item{func() wire.Backend { b := aBackend(1, 1, 1, 1); b.Draining = true; return b }()}, nil, []string{
			"put local service 1 port 1 = backend 1 198.51.100.1:8080 flags 2 for backend/1",
		}},
		{"a service goes downwards", nil, []wire.Item{aService(1), aTable(1, 1, 256), aBackend(1, 1, 1, 1), aBackend(2, 1, 2, 2)}, []string{
			"delete vip4 203.0.113.1:81/6 for service/1",
			"delete vipaddr4 203.0.113.1 for vip/203.0.113.1",
			fmt.Sprintf("delete vip_bits %d for vipbits", first(bpf.VIPBit(netip.MustParseAddr("203.0.113.1")))),
			"free svc 1 for service/1",
			"free slots 0 for service/1",
			"delete local service 1 port 1 for backend/1",
			"free backends 1 for backend/1",
			"free backends 2 for backend/2",
		}},
		{"a rule more takes a new policy id", []wire.Item{wire.Policy{ID: 3, Rules: []wire.Rule{web}}}, nil, []string{
			"put rule_ids 2/in = rules [1] for policy/3",
			"put rule_ids 2/out = rules [] for policy/3",
			"put port_bounds 2/in/proto 6 = classes [0:0 80:1 81:0] for policy/3",
			"put port_bm 2/in/class 1 = bits [0] for policy/3",
			"put cidr_bm 2/in/class 1 = bits [0] for policy/3",
			"put cidr 2/0.0.0.0/0 = 1 for policy/3",
			"put port_cfg 1 = device 0 mac 02:ca:00:00:00:01 policy 2/2 generation 2 mtu 1500 flags 1 for port/1",
			"free peer_bm 1/in/class 4 for policy/3",
			"free cidr 1/0.0.0.0/0 for policy/3",
			"free cidr_bm 1/in/class 1 for policy/3",
			"free port_bm 1/in/class 1 for policy/3",
			"free port_bm 1/in/class 2 for policy/3",
			"free port_bounds 1/in/proto 6 for policy/3",
			"free rule_ids 1/in for policy/3",
			"free rule_ids 1/out for policy/3",
		}},
		{"a member that leaves a named group is gone before flows are judged again", nil, []wire.Item{aMember(2, 4)}, []string{
			"delete members 0/198.51.100.2 for member/0/198.51.100.2",
			"put port_cfg 1 = device 0 mac 02:ca:00:00:00:01 policy 1/1 generation 2 mtu 1500 flags 1 for port/1",
		}},
		{"a member that leaves another group raises nothing", nil, []wire.Item{aMember(1, 3)}, []string{
			"delete members 0/198.51.100.1 for member/0/198.51.100.1",
		}},
		{"a class is known to policies before its member", []wire.Item{wire.Class{ID: 9, Groups: []uint32{6, 8}}, aMember(7, 9)}, nil, []string{
			"put peer_bm 1/in/class 9 = bits [1] for policy/3",
			"put members 0/198.51.100.7 = 9 for member/0/198.51.100.7",
		}},
		{"a port goes", nil, []wire.Item{aPort(1, 3)}, []string{
			"delete addr_port 198.51.100.1 for port/1",
			"delete port_cfg 1 for port/1",
			"delete fdb 16777214/02:ca:00:00:00:01 for port/1",
			"delete addr_ok 1/198.51.100.1 for port/1",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.mustApply(small())
			expect(t, lines(w.mustApply(c.items, c.gone...).Steps), c.want...)
			w.release()
			w.settled()
		})
	}
}

func TestNothingIsLeft(t *testing.T) {
	w := newWorld(t)
	w.facts.Ports.Devices[1] = 7
	w.mustApply(small())
	w.mustApply(nil, small()...)
	w.release()
	for _, m := range maps.All() {
		if n := w.loop.Image().Len(m); n != 0 && m != maps.Prefixes && m != maps.Nexthops { // this host's own
			t.Errorf("%d entries left in %s", n, m)
		}
	}
}

func TestAFullSlotsMapRefusesOneService(t *testing.T) {
	w := newWorld(t)
	w.mustApply(small())
	others := func(id uint32) []wire.Item {
		return []wire.Item{aBackend(10+id, id, 2, 20+id), aTable(id, 1, 2048, [2]uint32{10 + id, 0}), aService(id)}
	}
	w.mustApply(others(2))
	out := w.apply(append(others(3), wire.Host{ID: 4, Endpoint: endpoint(4), MTU: 1600}))
	var keys []string
	for _, f := range out.Faults {
		keys = append(keys, f.Key.String())
		if !strings.Contains(f.Reason, "place 2048 slots, 2304 of 4096 are in use") {
			t.Errorf("reason %q", f.Reason)
		}
	}
	slices.Sort(keys)
	if want := []string{"backend/13", "service/3", "slots/3"}; !slices.Equal(keys, want) {
		t.Errorf("refused %v, want %v", keys, want)
	}
	if err := reachable(w.store); err != nil {
		t.Error(err)
	}
	if n := w.loop.Image().Len(maps.VIP4); n != 2 {
		t.Errorf("%d services in the maps, want 2", n)
	}
	if n := w.loop.Image().Len(maps.Vteps); n != 3 {
		t.Errorf("%d hosts in the maps, want 3: the others go on", n)
	}
	if out := w.round(); len(out.Faults) > 0 {
		t.Errorf("named again without a change: %v", out.Faults)
	}
	// Once there is room it is programmed without being sent again.
	w.mustApply(nil, aService(2), aTable(2, 1, 2048))
	w.release()
	w.round()
	if n := w.loop.Image().Len(maps.VIP4); n != 2 {
		t.Errorf("%d services in the maps, want 2", n)
	}
	w.settled()
}

func TestAFailedWriteHoldsBackWhatDependsOnIt(t *testing.T) {
	w := newWorld(t)
	w.store.Refuse = func(op maps.Op, e maps.Entry) error {
		if e.Map == maps.Vteps && op == maps.Put && strings.Contains(e.String(), "host 2") {
			return errors.New("no space left")
		}
		return nil
	}
	out := w.apply(small())
	reasons := map[string]string{}
	for _, f := range out.Faults {
		reasons[f.Key.String()] = f.Reason
	}
	for key, want := range map[string]string{
		"host/2":    "host/2: put vteps 10.64.0.2: no space left",
		"backend/2": "backend/2: waits for host/2: put vteps 10.64.0.2: no space left",
		"service/1": "service/1: waits for backend/2: waits for host/2: put vteps 10.64.0.2: no space left",
	} {
		if reasons[key] != want {
			t.Errorf("%s: %q, want %q", key, reasons[key], want)
		}
	}
	for _, key := range []string{"host/1", "policy/3", "port/1", "member/0/198.51.100.1"} {
		if reasons[key] != "" {
			t.Errorf("%s: %s", key, reasons[key])
		}
	}
	if w.loop.Image().Len(maps.VIP4) != 0 || w.loop.Image().Len(maps.PortCfg) != 1 {
		t.Error("the VIP is there, or the port is not")
	}
	w.store.Refuse = nil
	if out := w.round(); len(out.Faults) > 0 {
		t.Fatal(out.Faults)
	}
	w.settled()
}

func TestSlotsThatNameAnAbsentBackendChangeNothing(t *testing.T) {
	w := newWorld(t)
	w.mustApply(small())
	out := w.apply([]wire.Item{aTable(1, 2, 256, [2]uint32{1, 0}, [2]uint32{99, 0})}, aBackend(2, 1, 2, 2))
	var keys []string
	for _, f := range out.Faults {
		keys = append(keys, f.Key.String())
	}
	slices.Sort(keys)
	if want := []string{"backend/2", "slots/1"}; !slices.Equal(keys, want) {
		t.Errorf("refused %v, want %v", out.Faults, want)
	}
	if err := reachable(w.store); err != nil {
		t.Error(err)
	}
	w.mustApply([]wire.Item{aBackend(99, 1, 2, 9)})
	w.release()
	w.settled()
}

func TestAnOlderViewIsNotProgrammed(t *testing.T) {
	w := newWorld(t)
	w.tell(small())
	loop, err := NewLoop(w.store, table.Mark{Epoch: 1, Revision: 2}, caps)
	if err != nil {
		t.Fatal(err)
	}
	w.loop = loop
	if out := w.round(); !out.Held || w.store.Writes != 0 {
		t.Errorf("held %t, %d writes", out.Held, w.store.Writes)
	}
	if out := w.apply([]wire.Item{aHost(3)}); out.Held || len(out.Faults) > 0 {
		t.Errorf("%+v", out)
	}
	w.settled()
}

func TestAnAuditPutsRightWhatSomebodyElseChanged(t *testing.T) {
	w := newWorld(t)
	w.mustApply(small())
	if err := w.store.Delete(maps.Make(maps.Members, bpf.MemberKey{Ip: bpf.IP16(address(2))}, uint32(4))); err != nil {
		t.Fatal(err)
	}
	foreign := maps.Make(maps.Vteps, bpf.BE32(endpoint(99)), bpf.Vtep{Host: 99})
	if err := w.store.Put(foreign, ""); err != nil {
		t.Fatal(err)
	}
	lines, err := w.loop.Audit()
	if err != nil {
		t.Fatal(err)
	}
	expect(t, lines, "foreign vteps 10.64.0.99 = host 99 pmtu 0", "missing members 0/198.51.100.2 = 4")
	w.round()
	w.settled()
	if lines, err := w.loop.Audit(); err != nil || len(lines) > 0 {
		t.Errorf("after the repair: %v %v", lines, err)
	}
}

func TestNextHopFollowsItsMAC(t *testing.T) {
	w := newWorld(t)
	w.mustApply(small())
	w.facts.Balancer.MAC = map[netip.Addr][6]byte{router: {2, 0, 0, 0, 0, 77}}
	expect(t, lines(w.round().Steps), "put nexthops 1 = 02:00:00:00:00:4d for nexthop/10.64.0.254")
	expect(t, lines(w.round().Steps))
}

func TestADeviceComesAndGoes(t *testing.T) {
	w := newWorld(t)
	w.mustApply(small())
	w.facts.Ports.Devices = map[uint32]uint32{1: 7}
	expect(t, lines(w.round().Steps), "put attach 1 = 7 for port/1",
		"put port_cfg 1 = device 7 mac 02:ca:00:00:00:01 policy 1/1 generation 1 mtu 1500 flags 1 for port/1",
		"put quota 1 = 8192 for port/1")
	w.facts.Ports.Devices = map[uint32]uint32{}
	expect(t, lines(w.round().Steps),
		"put port_cfg 1 = device 0 mac 02:ca:00:00:00:01 policy 1/1 generation 1 mtu 1500 flags 1 for port/1",
		"delete quota 1 for port/1",
		"delete attach 1 for port/1")
}

// A quota is a step of its own: it leaves alone what the port may do, and a
// table that cannot be made holds no rule back.
func TestAQuotaChanges(t *testing.T) {
	w := newWorld(t)
	w.facts.Ports.Devices[1] = 7
	w.mustApply(small())
	p := aPort(1, 3)
	p.Flows = 65536
	w.store.Refuse = func(_ maps.Op, e maps.Entry) error {
		if e.Map == maps.Quota {
			return errors.New("no memory")
		}
		return nil
	}
	p.Flags, p.Established = wire.PortSMTP, 90*time.Second
	out := w.apply([]wire.Item{p})
	expect(t, lines(out.Steps), "put port_cfg 1 = device 7 mac 02:ca:00:00:00:01 policy 1/1 generation 2 mtu 1500 flags 3 established 90 s for port/1",
		"put quota 1 = 65536 for port/1")
	if len(out.Faults) != 1 {
		t.Errorf("faults %v", out.Faults)
	}
	if value, _ := w.loop.Image().Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(uint32(1))}); maps.As[bpf.PortCfg](value).Generation != 2 {
		t.Error("a quota holds back what the port may do")
	}
	w.store.Refuse = nil
	expect(t, lines(w.round().Steps), "put quota 1 = 65536 for port/1")
	w.settled()
}

// Whatever changes, and whichever write fails: at no moment does a VIP lead to
// something that is not there, and once writes succeed the maps are as wanted
// and a restart changes nothing.
func TestNoMomentWithoutABackend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		defer w.table.Close()
		var broken error
		w.store.Watch = func() {
			if err := reachable(w.store); err != nil && broken == nil {
				broken = err
			}
		}
		d := drawing{t: t, services: map[uint32]wire.Slots{}}
		w.apply([]wire.Item{aHost(1), aHost(2), aHost(3), wire.Policy{ID: 3, Rules: []wire.Rule{web}}})
		for range rapid.IntRange(1, 12).Draw(t, "deltas") {
			if rapid.Bool().Draw(t, "some writes fail") {
				every := rapid.IntRange(2, 9).Draw(t, "every")
				n := 0
				w.store.Refuse = func(maps.Op, maps.Entry) error {
					if n++; n%every == 0 {
						return errors.New("no")
					}
					return nil
				}
			}
			items, gone := d.delta()
			w.apply(items, gone...)
			w.store.Refuse = nil
			if rapid.Bool().Draw(t, "grace ends") {
				w.release()
			}
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				w.restart()
				w.round()
			}
			if broken != nil {
				t.Fatal(broken)
			}
		}
		w.round()
		w.release()
		w.round()
		w.settled()
		if broken != nil {
			t.Fatal(broken)
		}
	})
}

// drawing makes deltas that a control plane could send: slots name only
// backends that are there.
type drawing struct {
	t        *rapid.T
	backends []wire.Backend
	services map[uint32]wire.Slots
	next     uint32
}

func (d *drawing) delta() (items, gone []wire.Item) {
	for range rapid.IntRange(1, 3).Draw(d.t, "new backends") {
		d.next++
		b := aBackend(d.next, rapid.Uint32Range(1, 3).Draw(d.t, "service"), rapid.Uint32Range(1, 3).Draw(d.t, "host"), d.next)
		d.backends = append(d.backends, b)
		items = append(items, b)
		if b.Host == 1 && rapid.Bool().Draw(d.t, "port") {
			items = append(items, aPort(b.Port, 3))
		}
	}
	leaving := map[uint32]bool{}
	for _, b := range d.backends {
		if rapid.IntRange(0, 3).Draw(d.t, "leaves") == 0 {
			leaving[b.ID] = true
			gone = append(gone, b)
		}
	}
	d.backends = slices.DeleteFunc(d.backends, func(b wire.Backend) bool { return leaving[b.ID] })
	for id := uint32(1); id <= 3; id++ {
		var owners [][2]uint32
		for _, b := range d.backends {
			if b.Service == id {
				owners = append(owners, [2]uint32{b.ID, 0})
			}
		}
		old := d.services[id]
		size := max(len(old.Table)/8, 1<<rapid.IntRange(3, 6).Draw(d.t, "size"))
		s := aTable(id, old.Generation+1, size, owners...)
		if _, there := d.services[id]; there && rapid.IntRange(0, 5).Draw(d.t, "service goes") == 0 {
			delete(d.services, id)
			gone = append(gone, aService(id), s)
			continue
		}
		d.services[id] = s
		service := aService(id)
		service.Panic = rapid.Bool().Draw(d.t, "panic")
		items = append(items, s, service)
	}
	return items, gone
}
