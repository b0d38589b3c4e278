// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"bytes"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/dataplane/host"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const port5, backend12, service7 = uint32(5), uint32(12), uint32(7)

func hw(s string) (m [6]uint8) { copy(m[:], packet.MAC(s)); return m }

func ip16(s string) bpf.Ip16 { return bpf.IP16(netip.MustParseAddr(s)) }

// programMaps does what the agent does: one port, one service on it. The group
// admits 192.0.2.0/24 to port 8080 if admitted.
func programMaps(t *testing.T, h *host.Host, cp5 int, admitted bool) {
	t.Helper()
	put := func(m *ebpf.Map, key, value any) {
		t.Helper()
		must(t, m.Put(key, value))
	}
	m := h.Maps
	put(m.PortCfg, port5, &bpf.PortCfg{Ifindex: uint32(cp5), Flags: bpf.PortEgressOpen, Mac: hw(vmMAC),
		GatewayMac: hw(gwMAC), PolicyIn: 1, Generation: 1, Mtu: 1500})
	put(m.AddrOk, bpf.AddrKey{Port: port5, Ip: ip16(vmAddr)}, uint32(0))
	put(m.AddrPort, ip16(vmAddr), port5)
	put(m.Fdb, bpf.FdbKey{Vni: bpf.LBVNI, Mac: hw(vmMAC)}, bpf.Station{Port: port5})
	put(m.Backends, backend12, &bpf.Backend{Flags: bpf.BackendValid, Mac: hw(vmMAC)})
	put(m.Local, bpf.LocalKey{Service: service7, Port: port5},
		&bpf.Local{Backend: backend12, Ip: ip16(vmAddr), TargetPort: bpf.BE16(8080), Flags: bpf.LocalReady})
	for i := range uint32(256) {
		put(m.Slots, i, bpf.Slot(backend12, 0))
	}
	v := netip.MustParseAddrPort(vip)
	put(m.Svc, uint32(1), &bpf.Svc{Vip: bpf.IP16(v.Addr()), Port: bpf.BE16(v.Port()), Proto: packet.ProtoTCP,
		Id: service7, SlotMask: 255, Mtu: 1500, Seed: 1})
	put(m.Vip4, bpf.Vip4Key{Ip: bpf.BE32(v.Addr()), Port: bpf.BE16(v.Port()), Proto: packet.ProtoTCP}, uint32(1))
	put(m.Vipaddr4, bpf.BE32(v.Addr()), uint32(1))
	word, bit := bpf.VIPBit(v.Addr())
	put(m.VipBits, word, bit)
	if !admitted {
		return
	}
	p := netip.MustParsePrefix("192.0.2.0/24")
	put(m.Cidr, bpf.CidrKey{Bits: bpf.PrefixBits(p, 32), Policy: 1, Ip: bpf.IP16(p.Addr())}, uint32(1))
	put(m.CidrBm, bpf.BmKey{Policy: 1, Direction: bpf.DirectionIn, Class: 1}, &bpf.Bitmap{Word: [16]uint64{1}})
	put(m.PortBounds, bpf.BoundsKey{Policy: 1, Direction: bpf.DirectionIn, Proto: packet.ProtoTCP},
		only(8080))
	put(m.PortBm, bpf.BmKey{Policy: 1, Direction: bpf.DirectionIn, Class: 1}, &bpf.Bitmap{Word: [16]uint64{1}})
	put(m.RuleIds, bpf.RulesKey{Policy: 1, Direction: bpf.DirectionIn}, &bpf.Rules{Id: [64]uint32{1}})
}

// only one port, in class 1.
func only(port uint16) *bpf.Bounds {
	b := bpf.Bounds{Cut: [bpf.CutsMax]bpf.Cut{{}, {From: port, Class: 1}, {From: port + 1}}}
	for i := 3; i < bpf.CutsMax; i++ {
		b.Cut[i] = bpf.Cut{From: 65535}
	}
	return &b
}

func reasons(t *testing.T, h *host.Host) map[bpf.Reason]uint64 {
	t.Helper()
	r, err := h.Reasons()
	must(t, err)
	return r
}

// ids lists the ids of all pinned maps and programs.
func ids(t *testing.T, pins string) map[string]uint32 {
	t.Helper()
	out := map[string]uint32{}
	entries, err := os.ReadDir(filepath.Join(pins, "v1"))
	must(t, err)
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(pins, "v1", e.Name()), nil)
		must(t, err)
		info, err := m.Info()
		must(t, err)
		id, _ := info.ID()
		out["map "+e.Name()] = uint32(id)
		m.Close()
	}
	entries, err = os.ReadDir(filepath.Join(pins, "v1", "progs"))
	must(t, err)
	for _, e := range entries {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(pins, "v1", "progs", e.Name()), nil)
		must(t, err)
		info, err := p.Info()
		must(t, err)
		id, _ := info.ID()
		out["program "+e.Name()] = uint32(id)
		p.Close()
	}
	return out
}

// A connection through the VIP over real devices: XDP leaves its note, tcx
// judges and redirects, the VM sees the client's own address, the reply goes
// straight back as the VIP's.
func TestConnectionThroughTheVIP(t *testing.T) {
	b := newBench(t)
	h := b.open()
	b.in("cbpf-hv", func() { must(t, h.AttachPort(b.cp5, port5)) })
	programMaps(t, h, b.cp5, true)
	clients := b.serve(vmAddr + ":8080")

	conn, err := b.dial("cbpf-rtr", "tcp", vip)
	if err != nil {
		t.Fatalf("%v; reasons %v", err, reasons(t, h))
	}
	b.mustEcho(conn, "hello")
	b.mustEcho(conn, strings.Repeat("0123456789abcdef", 16<<10)) // many segments, both ways
	if got := <-clients; got != conn.LocalAddr().String() {
		t.Errorf("the VM sees %s, the client is %s", got, conn.LocalAddr())
	}
	counts := reasons(t, h)
	if counts[bpf.ReasonDelivered] == 0 || counts[bpf.ReasonToUplink] == 0 || counts[bpf.ReasonDelivered] > counts[bpf.ReasonToPort] {
		t.Errorf("reasons %v", counts)
	}
	for r, n := range counts {
		if r.IsDrop() && r != bpf.ReasonGuard { // the host's own IPv6 before the port was attached
			t.Errorf("%d packets dropped: %s", n, r)
		}
	}
	b.survivesRestart(conn)
	b.healthCheck(h, clients, vmAddr+":8080", host.ProbeAddr)
	b.selfTest()
	b.detach(h)
}

// survivesRestart opens the dataplane again, first with the same programs, then
// as if they were others: the connection goes on.
func (b *bench) survivesRestart(conn net.Conn) {
	b.Helper()
	before := ids(b.T, b.cfg.Pins)
	again := b.open()
	b.mustEcho(conn, "after a restart")
	if now := ids(b.T, b.cfg.Pins); !maps.Equal(now, before) {
		b.Errorf("a restart changed ids: %v, before %v", now, before)
	}
	var meta bpf.Meta
	must(b, again.Maps.Meta.Lookup(uint32(0), &meta))
	meta.UplinkDigest, meta.PortDigest, meta.OverlayDigest, meta.Revision = 1, 1, 1, 99
	must(b, again.Maps.Meta.Put(uint32(0), &meta))
	b.open()
	b.mustEcho(conn, "after an upgrade")
	now := ids(b.T, b.cfg.Pins)
	for name, id := range before {
		if isProgram := strings.HasPrefix(name, "program "); isProgram == (now[name] == id) {
			b.Errorf("after an upgrade %s has id %d, before %d", name, now[name], id)
		}
	}
	must(b, again.Maps.Meta.Lookup(uint32(0), &meta))
	if meta.Revision != 99 || meta.UplinkProg != now["program uplink"] || meta.VmInProg != now["program vm_in"] {
		b.Errorf("meta %+v", meta)
	}
	var err error
	b.in("cbpf-hv", func() { err = again.SelfTestLink() })
	must(b, err)
}

// healthCheck reaches the VM through the door, whatever its group says.
func (b *bench) healthCheck(h *host.Host, clients <-chan string, addr string, from netip.Addr) {
	b.Helper()
	b.edit(h, func(pc *bpf.PortCfg) { pc.PolicyIn = 99; pc.Generation++ })
	conn, err := b.dial(doorNetns, "tcp", addr)
	if err != nil {
		b.Fatalf("health check: %v; reasons %v", err, reasons(b.T, h))
	}
	b.mustEcho(conn, "are you there?")
	if got := <-clients; netip.MustParseAddrPort(got).Addr().WithZone("") != from {
		b.Errorf("the health check comes from %s", got)
	}
	// The control: without a rule nobody else comes in.
	denied := reasons(b.T, h)[bpf.ReasonPolicyIn]
	if _, err := b.dial("cbpf-rtr", "tcp", addr); err == nil {
		b.Error("a connection came in without a rule")
	}
	if reasons(b.T, h)[bpf.ReasonPolicyIn] == denied {
		b.Error("the denied connection is not counted")
	}
	b.edit(h, func(pc *bpf.PortCfg) { pc.PolicyIn = 1; pc.Generation++ })
}

func (b *bench) edit(h *host.Host, change func(*bpf.PortCfg)) {
	b.Helper()
	var pc bpf.PortCfg
	must(b, h.Maps.PortCfg.Lookup(port5, &pc))
	change(&pc)
	must(b, h.Maps.PortCfg.Put(port5, &pc))
}

// selfTest finds the dataplane whole, and then what is missing.
func (b *bench) selfTest() {
	b.Helper()
	p := host.NewProber(b.cfg.Pins, b.cfg.Uplink)
	service := netip.MustParseAddrPort(vip)
	b.in("cbpf-hv", func() {
		must(b, p.Link())
		must(b, p.Port(port5))
		must(b, p.VIP(service, packet.ProtoTCP, 1))
		if err := p.VIP(netip.MustParseAddrPort("203.0.113.1:81"), packet.ProtoTCP, 1); err == nil {
			b.Error("the self-test finds an unserved port well")
		}
		if err := p.VIP(service, packet.ProtoUDP, 1); err == nil {
			b.Error("the self-test finds an unserved protocol well")
		}
		if err := p.Port(6); err == nil {
			b.Error("the self-test finds a port well that is not there")
		}
		if err := host.NewProber(b.cfg.Pins, "lo").Link(); err == nil {
			b.Error("the self-test finds the links on another device")
		}
	})
}

// detach ends the port, then the whole dataplane.
func (b *bench) detach(h *host.Host) {
	b.Helper()
	const other = port5 + 1
	for _, port := range []uint32{port5, other} {
		must(b, h.Maps.Pace.Put(port, &bpf.Pace{Bum: 1, Sent: 2}))
		must(b, h.Maps.Listeners.Put(bpf.ListenerKey{Vni: 7, Port: port, Group: bpf.Ip16{B: [16]uint8{15: 9}}}, uint64(1)))
	}
	must(b, h.DetachPort(port5))
	must(b, h.DetachPort(port5)) // again: no error
	for port, keeps := range map[uint32]bool{port5: false, other: true} {
		var pace bpf.Pace
		var at uint64
		must(b, h.Maps.Pace.Lookup(port, &pace))
		err := h.Maps.Listeners.Lookup(bpf.ListenerKey{Vni: 7, Port: port, Group: bpf.Ip16{B: [16]uint8{15: 9}}}, &at)
		if (pace != bpf.Pace{}) != keeps || (err == nil) != keeps {
			b.Errorf("port %d has pace %+v and listens: %v", port, pace, err)
		}
	}
	if _, err := h.Flows(port5); err == nil {
		b.Error("the port's flows outlive it")
	}
	if ports, err := h.Attached(); err != nil || len(ports) != 0 {
		b.Errorf("still attached: %v, %v", ports, err)
	}
	b.in("cbpf-hv", func() {
		must(b, host.Remove(b.cfg))
		if err := host.NewProber(b.cfg.Pins, b.cfg.Uplink).Link(); err == nil {
			b.Error("the self-test finds the links after they were removed")
		}
		if _, err := netlink.LinkByName("cairn-svc"); err == nil {
			b.Error("the door is still there")
		}
	})
	if _, err := os.Stat(filepath.Join(b.cfg.Pins, "v1")); !errors.Is(err, os.ErrNotExist) {
		b.Errorf("pins are left: %v", err)
	}
}

// The LB node has no instance: it encapsulates towards the VM's hypervisor, by
// way of the router, and keeps nothing of the flow.
func TestConnectionThroughAnotherNode(t *testing.T) {
	b := newBench(t)
	hv := b.open()
	b.in("cbpf-hv", func() { must(t, hv.AttachPort(b.cp5, port5)) })
	programMaps(t, hv, b.cp5, true)
	lb := b.openLB()
	programMaps(t, lb, 0, false)
	must(t, lb.Maps.Backends.Put(backend12, &bpf.Backend{Endpoint: bpf.BE32(netip.MustParseAddr(endpoint)), Nexthop: 1,
		Flags: bpf.BackendValid, Mac: hw(vmMAC)}))
	must(t, lb.Maps.Nexthops.Put(uint32(1), &bpf.Nexthop{Mac: hw(b.r1MAC), Flags: bpf.NexthopValid}))
	b.all("cbpf-rtr", ip("route", "replace", "203.0.113.0/24", "via", lbEndpoint, "src", clientAddr))
	clients := b.serve(vmAddr + ":8080")

	// The control: a sender nobody knows of is not let in.
	if _, err := b.dial("cbpf-rtr", "tcp", vip); err == nil {
		t.Error("a stranger's tunnel packet was taken")
	}
	if reasons(t, hv)[bpf.ReasonUnknownEndpoint] == 0 {
		t.Errorf("reasons %v", reasons(t, hv))
	}
	must(t, hv.Maps.Vteps.Put(bpf.BE32(netip.MustParseAddr(lbEndpoint)), &bpf.Vtep{Host: 2, Pmtu: 1600}))
	conn, err := b.dial("cbpf-rtr", "tcp", vip)
	if err != nil {
		t.Fatalf("%v; LB node %v, hypervisor %v", err, reasons(t, lb), reasons(t, hv))
	}
	b.mustEcho(conn, strings.Repeat("0123456789abcdef", 16<<10))
	if got := <-clients; got != conn.LocalAddr().String() {
		t.Errorf("the VM sees %s, the client is %s", got, conn.LocalAddr())
	}
	sent, delivered := reasons(t, lb)[bpf.ReasonSent], reasons(t, hv)[bpf.ReasonDelivered]
	if delivered == 0 || sent < delivered {
		t.Errorf("%d packets sent, %d delivered", sent, delivered)
	}
	b.asksForReach(lb, hv)
}

// asksForReach has the LB node ask the hypervisor, with all there is in between,
// and then with the hypervisor's program gone.
func (b *bench) asksForReach(lb, hv *host.Host) {
	b.Helper()
	must(b, lb.Maps.Vteps.Put(bpf.BE32(b.cfg.Endpoint), &bpf.Vtep{Host: 9, Pmtu: 1600}))
	var r *host.Reacher
	var err error
	b.in("cbpf-lb", func() { r, err = lb.Reacher() })
	must(b, err)
	defer r.Close()
	if _, _, ok, err := r.Seen(9); ok || err != nil {
		b.Fatalf("seen before it was asked: %v", err)
	}
	ask := func() bool {
		start := time.Now()
		must(b, r.Ask(b.cfg.Endpoint, 1600))
		for time.Since(start) < 500*time.Millisecond {
			ago, took, ok, err := r.Seen(9)
			must(b, err)
			if ok && ago < time.Since(start) {
				if took <= 0 || took > time.Second {
					b.Errorf("the answer took %v", took)
				}
				return true
			}
			<-time.After(time.Millisecond)
		}
		return false
	}
	if !ask() {
		b.Errorf("no answer: LB node %v, hypervisor %v", reasons(b.T, lb), reasons(b.T, hv))
	}
	b.all("cbpf-hv", ip("link", "set", "up0", "down"))
	if ask() {
		b.Error("a hypervisor whose uplink is down answers")
	}
}

func TestOpenRefusesAMapOfAnotherLayout(t *testing.T) {
	b := newBench(t)
	b.open().Close()
	path := filepath.Join(b.cfg.Pins, "v1", "fdb")
	must(t, os.Remove(path))
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 4, MaxEntries: 1})
	must(t, err)
	defer other.Close()
	must(t, other.Pin(path))
	b.in("cbpf-hv", func() { _, err = host.Open(b.cfg) })
	if err == nil || !strings.Contains(err.Error(), "fdb") {
		t.Errorf("opened: %v", err)
	}
}

func TestPingOfTheVIP(t *testing.T) {
	b := newBench(t)
	h := b.open()
	programMaps(t, h, b.cp5, true)
	var conn net.Conn
	var err error
	b.in("cbpf-rtr", func() { conn, err = net.Dial("ip4:icmp", "203.0.113.1") })
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(2*time.Second)))
	ping := packet.Ping(clientAddr, "203.0.113.1", 7).Payload([]byte("are you there?"))
	buf := make([]byte, 1500)
	for range 2 {
		if _, err := conn.Write(ping.IP()[20:]); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		must(t, err)
		if want := ping.Reply().IP()[20:]; !bytes.Equal(buf[20:n], want) {
			t.Errorf("answer %x, want %x", buf[20:n], want)
		}
	}
	if got := reasons(t, h)[bpf.ReasonEchoed]; got != 2 {
		t.Errorf("%d pings answered, want 2", got)
	}
}

func TestEnsureBPFFS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	must(t, host.EnsureBPFFS(dir))
	defer unix.Unmount(dir, 0)
	must(t, host.EnsureBPFFS(dir)) // again: no second mount
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if st.Type != unix.BPF_FS_MAGIC {
		t.Errorf("%s is of type %#x", dir, st.Type)
	}
	must(t, unix.Unmount(dir, 0))
	if err := unix.Unmount(dir, 0); err == nil {
		t.Error("it was mounted twice")
	}
	// A folder of pins that is on no bpffs is refused.
	_, err := host.Open(host.Config{Pins: t.TempDir(), Uplink: "lo", Endpoint: netip.MustParseAddr(endpoint)})
	if err == nil || !strings.Contains(err.Error(), "bpffs") {
		t.Errorf("opened: %v", err)
	}
}
