// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Answers of XDP and tc programs.
const (
	xdpDrop = 1
	xdpPass = 2
	xdpTX   = 3

	tcNext     = 0xffffffff // TC_ACT_UNSPEC
	tcDrop     = 2
	tcRedirect = 7
)

// The world every test starts from: this host has ports 5 and 6, host 2 is
// known and has backend 11; service 7 is 203.0.113.1:80/tcp, service 8 the same
// in UDP, both on target port 8080.
const (
	endpoint   = "10.64.0.1"
	endpoint2  = "10.64.0.3"
	uplinkMAC  = "02:aa:00:00:00:01"
	routerMAC  = "02:bb:00:00:00:01"
	gatewayMAC = "02:cc:00:00:00:01"
	doorMAC    = "02:dd:00:00:00:01"

	client = "192.0.2.9:1234"
	vip    = "203.0.113.1:80"

	port5, mac5, addr5 = uint32(5), "02:ca:00:00:00:05", "198.51.100.5"
	port6, mac6, addr6 = uint32(6), "02:ca:00:00:00:06", "198.51.100.6"
	mac11              = "02:ca:00:00:00:0b" // of backend 11's port, on host 2

	vip6             = "[2001:db8:ee::1]:80"
	addr5v6, addr6v6 = "2001:db8:5::5", "2001:db8:5::6"
	client6          = "[2001:db8:9::9]:1234"

	backend11, backend12, backend13 = uint32(11), uint32(12), uint32(13)

	tcpService, udpService = uint32(7), uint32(8)
	tcpIndex, udpIndex     = uint32(3), uint32(4)

	// The same of IPv6, with the same slots.
	tcpService6, udpService6 = uint32(27), uint32(28)
	tcpIndex6, udpIndex6     = uint32(13), uint32(14)

	loopback  = 1 // the device of a test run's skb
	probe     = "169.254.169.253"
	selfTest  = "169.254.169.251"
	selfTest6 = "fe80::a9fe:a9fb"
)

type world struct {
	*testing.T
	maps  map[string]*ebpf.Map
	progs map[string]*ebpf.Program
	flows map[uint32]*ebpf.Map // confirmed ones, by port
	fresh map[uint32]*ebpf.Map // and the others
}

var sizes = map[string]uint32{
	"slots": 1024, "backends": 256, "backend_stat": 4, "svc": 64, "svc_stat": 64, "nexthops": 16,
	"port_cfg": 64, "ct_est": 64, "ct_new": 64, "rule_stats": 256, "vtep_seen": 16, "vtep_errors": 16, "ct_swept": 64, "pace": 64, "told": 64,
	"events": 4096, "backend_conn": 256,
}

// load puts both objects into the kernel, once: uplink_in with its note in
// skb->cb.
var load = sync.OnceValues(func() (*world, error) {
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(
		specs.Uplink.Variables["note_in_cb"].Set(true),
		specs.Overlay.Variables["tunnel_in_cb"].Set(true),
		specs.Uplink.Variables["probe_source"].Set(bpf.BE32(netip.MustParseAddr(selfTest))),
	); err != nil {
		return nil, err
	}
	for name, size := range sizes {
		specs.Uplink.Maps[name].MaxEntries = size
		specs.Port.Maps[name].MaxEntries = size
		specs.Overlay.Maps[name].MaxEntries = size
	}
	uplink, err := ebpf.NewCollection(specs.Uplink)
	if err != nil {
		return nil, err
	}
	delete(uplink.Maps, ".rodata")
	port, err := ebpf.NewCollectionWithOptions(specs.Port, ebpf.CollectionOptions{MapReplacements: uplink.Maps})
	if err != nil {
		return nil, err
	}
	overlay, err := ebpf.NewCollectionWithOptions(specs.Overlay, ebpf.CollectionOptions{MapReplacements: uplink.Maps})
	if err != nil {
		return nil, err
	}
	w := &world{maps: uplink.Maps, progs: uplink.Programs, flows: map[uint32]*ebpf.Map{}, fresh: map[uint32]*ebpf.Map{}}
	maps.Copy(w.progs, port.Programs)
	maps.Copy(w.progs, overlay.Programs)
	for _, port := range []uint32{port5, port6, port20, port30, port31} {
		if w.flows[port], err = ebpf.NewMap(specs.Uplink.Maps["ct_est"].InnerMap); err != nil {
			return nil, err
		}
		if w.fresh[port], err = ebpf.NewMap(specs.Uplink.Maps["ct_new"].InnerMap); err != nil {
			return nil, err
		}
	}
	return w, nil
})

// newWorld is the programs with their maps as populate leaves them, whatever
// the test before did.
func newWorld(t *testing.T) *world {
	t.Helper()
	base, err := load()
	must(t, err)
	w := &world{T: t, maps: base.maps, progs: base.progs, flows: base.flows, fresh: base.fresh}
	for name, m := range w.maps {
		w.empty(name, m)
	}
	for port, flows := range w.flows {
		w.empty("flows", flows)
		w.put("ct_est", port, flows)
		w.empty("new flows", w.fresh[port])
		w.put("ct_new", port, w.fresh[port])
	}
	w.populate()
	return w
}

// empty deletes a hash's entries and zeroes an array's.
func (w *world) empty(name string, m *ebpf.Map) {
	w.Helper()
	switch m.Type() {
	case ebpf.Hash, ebpf.LPMTrie, ebpf.LRUHash, ebpf.PerCPUHash:
		for {
			key := make([]byte, m.KeySize())
			if err := m.NextKey(nil, &key); err != nil {
				return
			}
			must(w.T, m.Delete(key))
		}
	case ebpf.Array:
		zero := make([]byte, m.ValueSize())
		for i := range m.MaxEntries() {
			must(w.T, m.Put(i, zero))
		}
	case ebpf.PerCPUArray:
		zero := make([][]byte, ebpf.MustPossibleCPU())
		for i := range zero {
			zero[i] = make([]byte, m.ValueSize())
		}
		for i := range m.MaxEntries() {
			must(w.T, m.Put(i, zero))
		}
	case ebpf.ArrayOfMaps, ebpf.RingBuf:
	default:
		w.Fatalf("map %s is a %s", name, m.Type())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%+v", err)
	}
}

func (w *world) put(name string, key, value any) {
	w.Helper()
	if err := w.maps[name].Put(key, value); err != nil {
		w.Fatalf("put in %s: %v", name, err)
	}
}

func (w *world) del(name string, key any) {
	w.Helper()
	if err := w.maps[name].Delete(key); err != nil {
		w.Fatalf("delete from %s: %v", name, err)
	}
}

func mac(s string) (m [6]uint8) { copy(m[:], packet.MAC(s)); return m }

func ip16(s string) bpf.Ip16 { return bpf.IP16(netip.MustParseAddr(s)) }

func be32(s string) uint32 { return bpf.BE32(netip.MustParseAddr(s)) }

func (w *world) populate() {
	w.put("cfg", uint32(0), &bpf.Cfg{
		Endpoint: be32(endpoint), LbVni: bpf.LBVNI, Uplink: 1000, Door: 1001, Probe: be32(probe),
		UplinkMac: mac(uplinkMAC), DoorMac: mac(doorMAC),
	})
	w.put("vteps", be32(endpoint2), &bpf.Vtep{Host: 2, Pmtu: 1600})
	w.put("nexthops", uint32(1), &bpf.Nexthop{Mac: mac(routerMAC), Flags: bpf.NexthopValid})
	w.put("backends", backend11, &bpf.Backend{Endpoint: be32(endpoint2), Nexthop: 1, Flags: bpf.BackendValid, Mac: mac(mac11)})
	w.put("backends", backend12, &bpf.Backend{Flags: bpf.BackendValid, Mac: mac(mac5)})
	w.put("backends", backend13, &bpf.Backend{Flags: bpf.BackendValid, Mac: mac(mac6)})

	for _, v := range []string{vip, vip6} {
		word, bit := bpf.VIPBit(netip.MustParseAddrPort(v).Addr())
		w.put("vip_bits", word, bit)
	}
	w.put("vipaddr4", bpf.BE32(netip.MustParseAddrPort(vip).Addr()), uint32(2))
	w.put("vipaddr6", bpf.IP16(netip.MustParseAddrPort(vip6).Addr()), uint32(2))
	for _, f := range families {
		w.service(f.vip, f.tcpIndex, f.tcpService, packet.ProtoTCP, 256)
		w.service(f.vip, f.udpIndex, f.udpService, packet.ProtoUDP, 512)
	}
	w.local(port5, backend12, bpf.LocalReady)
	w.local(port6, backend13, bpf.LocalReady)
	w.owners(backend11, 0)

	w.port(port5, mac5, addr5, 500)
	w.port(port6, mac6, addr6, 501)
	w.address(port5, addr5v6)
	w.address(port6, addr6v6)
	w.put("ifindex_port", uint32(loopback), port5)
	w.put("prefixes", prefix("198.51.100.0/24"), bpf.PrefixInstances)
	w.put("prefixes", prefix("2001:db8:5::/48"), bpf.PrefixInstances)
	w.put("prefixes", prefix("10.64.0.0/16"), bpf.PrefixHost)
	w.put("prefixes", prefix("2001:db8:64::/48"), bpf.PrefixHost)
}

func prefix(s string) bpf.PrefixKey {
	p := netip.MustParsePrefix(s)
	return bpf.PrefixKey{Bits: bpf.PrefixBits(p, 0), Ip: bpf.IP16(p.Addr())}
}

// A family has services, clients and instances of its own.
type family struct {
	name, client, vip      string
	target5, target6       string // of ports 5 and 6
	tcpIndex, udpIndex     uint32
	tcpService, udpService uint32
}

var families = []family{
	{"ipv4", client, vip, addr5 + ":8080", addr6 + ":8080", tcpIndex, udpIndex, tcpService, udpService},
	{"ipv6", client6, vip6, "[" + addr5v6 + "]:8080", "[" + addr6v6 + "]:8080", tcpIndex6, udpIndex6, tcpService6, udpService6},
}

func (w *world) service(vip string, index, id uint32, proto uint8, base uint32) {
	addr := netip.MustParseAddrPort(vip)
	w.put("svc", index, &bpf.Svc{
		Vip: bpf.IP16(addr.Addr()), Port: bpf.BE16(addr.Port()), Proto: proto, Id: id,
		SlotBase: base, SlotMask: 255, Mtu: 1500, Generation: 9, Seed: 0x5eed,
	})
	if addr.Addr().Is6() {
		w.put("vip6", bpf.Vip6Key{Ip: bpf.IP16(addr.Addr()), Port: bpf.BE16(addr.Port()), Proto: proto}, index)
		return
	}
	w.put("vip4", bpf.Vip4Key{Ip: bpf.BE32(addr.Addr()), Port: bpf.BE16(addr.Port()), Proto: proto}, index)
}

// local sets the state of a backend of all services at a port.
func (w *world) local(port, backend uint32, flags uint16) {
	for _, f := range families {
		target := netip.MustParseAddrPort(map[uint32]string{port5: f.target5, port6: f.target6}[port])
		for _, service := range []uint32{f.tcpService, f.udpService} {
			w.put("local", bpf.LocalKey{Service: service, Port: port}, &bpf.Local{
				Backend: backend, Ip: bpf.IP16(target.Addr()), TargetPort: bpf.BE16(target.Port()), Flags: flags,
			})
		}
	}
}

// owners sets all slots of both services.
func (w *world) owners(cur, prev uint32) {
	for i := range uint32(512) {
		w.put("slots", 256+i, bpf.Slot(cur, prev))
	}
}

// port sets a port up with everything open out, nothing open in.
func (w *world) port(id uint32, hw, addr string, policyIn uint32) {
	w.put("port_stat", id, make([]bpf.PortStat, ebpf.MustPossibleCPU()))
	w.put("port_cfg", id, &bpf.PortCfg{
		Ifindex: 100 + id, Flags: bpf.PortEgressOpen, Mac: mac(hw), GatewayMac: mac(gatewayMAC),
		PolicyIn: policyIn, Generation: 1, Mtu: 1500,
	})
	w.put("fdb", bpf.FdbKey{Vni: bpf.LBVNI, Mac: mac(hw)}, bpf.Station{Port: id})
	w.address(id, addr)
}

// address gives a port a public address.
func (w *world) address(port uint32, addr string) {
	w.put("addr_ok", bpf.AddrKey{Port: port, Ip: ip16(addr)}, uint32(0))
	w.put("addr_port", ip16(addr), port)
}

// edit changes a port's record.
func (w *world) edit(id uint32, change func(*bpf.PortCfg)) {
	var pc bpf.PortCfg
	if err := w.maps["port_cfg"].Lookup(id, &pc); err != nil {
		w.Fatal(err)
	}
	change(&pc)
	w.put("port_cfg", id, &pc)
}

// A rule admits proto from a CIDR to ports lo to hi. bit is its place, id its
// number in the zone.
type rule struct {
	policy, direction uint32
	proto             uint32
	cidr              string
	lo, hi            uint16
	bit, id           uint32
}

// admit writes a policy of one rule.
func (w *world) admit(r rule) {
	p := netip.MustParsePrefix(r.cidr)
	const class2 = 77
	w.put("cidr", bpf.CidrKey{Bits: bpf.PrefixBits(p, 32), Policy: r.policy, Ip: bpf.IP16(p.Addr())}, uint32(class2))
	w.put("cidr_bm", bpf.BmKey{Policy: r.policy, Direction: r.direction, Class: class2}, r.bitmap())
	w.ports(r)
}

// bitmap of the rule alone.
func (r rule) bitmap() *bpf.Bitmap {
	var b bpf.Bitmap
	b.Word[r.bit/64] = 1 << (r.bit % 64)
	return &b
}

// ports writes the port axis of one rule, and its id.
func (w *world) ports(r rule) {
	class := uint16(r.proto)
	b := bpf.Bounds{Cut: [bpf.CutsMax]bpf.Cut{{}, {From: r.lo, Class: class}}}
	for i := 2; i < bpf.CutsMax; i++ {
		b.Cut[i] = bpf.Cut{From: 65535, Class: class}
		if r.hi < 65535 {
			b.Cut[i] = bpf.Cut{From: r.hi + 1}
		}
	}
	if r.lo <= 1 && r.hi == 65535 {
		b.Whole = class
	}
	w.put("port_bounds", bpf.BoundsKey{Policy: r.policy, Direction: r.direction, Proto: r.proto}, &b)
	w.put("port_bm", bpf.BmKey{Policy: r.policy, Direction: r.direction, Class: uint32(class)}, r.bitmap())
	var ids bpf.Rules
	ids.Id[r.bit%64] = r.id
	w.put("rule_ids", bpf.RulesKey{Policy: r.policy, Direction: r.direction, Word: r.bit / 64}, &ids)
}

func now() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return uint64(ts.Nano())
}

// flowKey is the flow between a peer and a port's own address, as the VM sees
// it.
func flowKey(proto uint8, peer, own string) bpf.CtKey {
	p, o := netip.MustParseAddrPort(peer), netip.MustParseAddrPort(own)
	return bpf.CtKey{
		Peer: bpf.IP16(p.Addr()), Own: bpf.IP16(o.Addr()),
		PeerPort: bpf.BE16(p.Port()), OwnPort: bpf.BE16(o.Port()), Proto: proto,
	}
}

// balanced is a live flow that came in through a service.
func balanced(service uint32, state uint8) bpf.Ct { return families[0].balanced(service, state) }

func (f family) balanced(service uint32, state uint8) bpf.Ct {
	addr := netip.MustParseAddrPort(f.vip)
	return bpf.Ct{
		Seen: now(), Vip: bpf.IP16(addr.Addr()), VipPort: bpf.BE16(addr.Port()), Service: service,
		Backend: backend12, Generation: 1, Direction: uint8(bpf.DirectionIn), State: state,
	}
}

// flow of a port, confirmed or not.
func (w *world) flow(port uint32, key bpf.CtKey) (bpf.Ct, bool) {
	var f bpf.Ct
	if w.flows[port].Lookup(key, &f) == nil {
		return f, true
	}
	return f, w.fresh[port].Lookup(key, &f) == nil
}

// confirmed tells whether the flow is among the confirmed ones, and only there.
func (w *world) confirmed(port uint32, key bpf.CtKey) bool {
	w.Helper()
	var f bpf.Ct
	est, fresh := w.flows[port].Lookup(key, &f) == nil, w.fresh[port].Lookup(key, &f) == nil
	if est && fresh {
		w.Fatalf("flow %+v is in both tables", key)
	}
	return est
}

func (w *world) remember(port uint32, key bpf.CtKey, f bpf.Ct) {
	w.Helper()
	must(w.T, w.flows[port].Put(key, &f))
}

// moved names the counters that must move, and by how much; no other may.
type moved map[bpf.Reason]uint64

func (w *world) reasons() moved {
	w.Helper()
	counts := moved{}
	var perCPU []uint64
	for r := range uint32(w.maps["reasons"].MaxEntries()) {
		if err := w.maps["reasons"].Lookup(r, &perCPU); err != nil {
			w.Fatal(err)
		}
		for _, n := range perCPU {
			counts[bpf.Reason(r)] += n
		}
	}
	return counts
}

// expect runs what is given and compares the counters.
func (w *world) expect(want moved, run func()) {
	w.Helper()
	before := w.reasons()
	run()
	got := moved{}
	for r, n := range w.reasons() {
		if n != before[r] {
			got[r] = n - before[r]
		}
	}
	if !maps.Equal(got, want) {
		w.Fatalf("counters moved: %v, want %v", got, want)
	}
}

// xdp puts a frame through uplink.
func (w *world) xdp(in []byte) (action uint32, out []byte) {
	w.Helper()
	run := &ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256)}
	action, err := w.progs["uplink"].Run(run)
	must(w.T, err)
	return action, run.DataOut
}

// skb is struct __sk_buff.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TcIndex                                  uint32
	Cb                                                                          [5]uint32
	Hash, TcClassid, Data, DataEnd, NapiID, Family, RemoteIP4, LocalIP4         uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta                                             uint32
	FlowKeys, Tstamp                                                            uint64
	WireLen, GsoSegs                                                            uint32
	Sk                                                                          uint64
	GsoSize                                                                     uint32
	TstampType                                                                  uint8
	_                                                                           [3]uint8
	Hwtstamp                                                                    uint64
}

// tc puts a frame through a tcx program.
func (w *world) tc(prog string, in []byte, ctx skb) (action uint32, out []byte, after skb) {
	w.Helper()
	run := &ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: &ctx, ContextOut: &after}
	action, err := w.progs[prog].Run(run)
	must(w.T, err)
	return action, run.DataOut, after
}

func noted(index, backend, hash uint32) skb {
	return skb{Cb: [5]uint32{bpf.NotePresent, index, backend, hash}}
}

// note is what uplink leaves in front of a packet that it delivers.
func note(index, backend, hash uint32) []byte {
	var b []byte
	for _, v := range []uint32{bpf.NotePresent, index, backend, hash} {
		b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
	}
	return b
}

func (w *world) same(what string, got, want []byte) {
	w.Helper()
	if !bytes.Equal(got, want) {
		w.Fatalf("%s:\n got %x\nwant %x%s", what, got, want, firstDifference(got, want))
	}
}

func firstDifference(a, b []byte) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("\nfirst difference at byte %d", i)
		}
	}
	return fmt.Sprintf("\n%d bytes, want %d", len(a), len(b))
}

// sweep runs ct_sweep over a port.
func (w *world) sweep(port uint32) bpf.Sweep {
	w.Helper()
	s := bpf.Sweep{Port: port}
	code, err := w.progs["ct_sweep"].Run(&ebpf.RunOptions{Context: &s, ContextOut: &s})
	must(w.T, err)
	if code != 0 {
		w.Fatalf("ct_sweep answers %d", code)
	}
	return s
}

// pinned runs f on one CPU, for counters that each CPU has of its own.
func (w *world) pinned(f func()) {
	w.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	must(w.T, unix.SchedGetaffinity(0, &all))
	one.Set(0)
	must(w.T, unix.SchedSetaffinity(0, &one))
	f()
	must(w.T, unix.SchedSetaffinity(0, &all))
}
