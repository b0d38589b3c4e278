// SPDX-License-Identifier: Apache-2.0

//go:build lab

package leak

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"

	"cairn/bpf/packet"
	"cairn/cloud/wire"
	"cairn/dataplane/port"
	"cairn/dataplane/vnet"
	"cairn/test/rig"
)

// station is a machine with a tap. It has no stack, so that nobody says anything
// but what the test sends.
type station struct {
	name       string
	vni        uint32 // of its network; 0: the public one
	hypervisor int
	guest      *rig.Guest
	mac        string
	ip, ip6    string
	tap        *rig.Tap

	mu     sync.Mutex
	frames [][]byte
	sync   map[string]bool // barriers that came
}

// segment is one private network of a tenant: machines 1 and 3 on hypervisor 1, 2
// on hypervisor 2.
type segment struct {
	tenant   string
	vni      uint32
	managed  bool
	stations []*station
}

// world has two tenants on the same two hypervisors. Their machines have the same
// addresses and the same MACs; beside that, one machine of each tenant has a MAC
// that the other has not.
type world struct {
	*testing.T
	rig         *rig.Rig
	hypervisors []*rig.Hypervisor
	segments    []*segment
	public      map[string]*station
	all         []*station
	barriers    int
}

const (
	admitsAll, admitsNone = 1, 2 // policies
	server                = "10.0.0.254"
)

var gatewayMAC = net.HardwareAddr(port.GatewayMAC[:]).String()

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func newWorld(t *testing.T) *world {
	_ = rlimit.RemoveMemlock()
	w := &world{T: t, public: map[string]*station{}}
	var err error
	w.rig, err = rig.New(t.TempDir())
	must(t, "rig", err)
	t.Cleanup(func() { must(t, "take the rig down", w.rig.Close()) })
	for range 2 {
		h, err := w.rig.Hypervisor(1)
		must(t, "hypervisor", err)
		w.hypervisors = append(w.hypervisors, h)
	}
	items := append(w.rig.Hosts(),
		wire.Class{ID: admitsAll, Groups: []uint32{1}}, wire.Class{ID: admitsNone, Groups: []uint32{2}},
		wire.Policy{ID: admitsAll, Rules: []wire.Rule{rig.Any(1, wire.Ingress, 0, 0, 0)}}, wire.Policy{ID: admitsNone})
	ports := [2][]wire.Item{}
	id := uint32(1)
	for _, s := range []*segment{
		{tenant: "red", vni: 100, managed: true}, {tenant: "blue", vni: 200, managed: true},
		{tenant: "red", vni: 101}, {tenant: "blue", vni: 201},
	} {
		items = append(items, s.network())
		for n := 1; n <= 3; n++ {
			st := w.station(fmt.Sprintf("%s %d.%d", s.tenant, s.vni, n), 2-n%2, id)
			st.mac, st.ip = fmt.Sprintf("02:ca:00:00:01:%02x", n), fmt.Sprintf("10.0.0.%d", 10+n)
			if n == 3 {
				st.mac = ownMAC(s.vni)
			}
			w.join(s, st)
			address := netip.MustParseAddr(st.ip)
			ports[st.hypervisor-1] = append(ports[st.hypervisor-1], st.guest.Private(s.vni, address))
			items = append(items, st.guest.Neighbour(s.vni, uint32(st.hypervisor), address))
			id++
		}
		w.segments = append(w.segments, s)
	}
	for n, p := range []struct {
		name       string
		hypervisor int
		policy     uint32
	}{{"red", 1, admitsAll}, {"red here", 1, admitsAll}, {"red there", 2, admitsAll}, {"blue here", 1, admitsNone}, {"blue there", 2, admitsNone}} {
		st := w.station("public "+p.name, p.hypervisor, id)
		st.mac, st.ip = rig.PortMAC(id).String(), fmt.Sprintf("198.51.100.%d", n+1)
		st.guest.Address = netip.MustParseAddr(st.ip)
		w.public[p.name] = st
		ports[p.hypervisor-1] = append(ports[p.hypervisor-1], st.guest.Public(p.policy))
		w.route(st)
		id++
	}
	for i, h := range w.hypervisors {
		must(t, "open", h.Open())
		must(t, "hold", h.Hold(append(ports[i], items...)...))
	}
	for _, st := range w.all {
		st.tap.Watch(st.see)
	}
	return w
}

func (s *segment) network() wire.Network {
	n := wire.Network{VNI: s.vni, ID: fmt.Sprint(s.vni), MTU: 1500, Hosts: []uint32{1, 2}}
	if s.managed {
		n.Lease = &wire.Lease{Server: netip.MustParseAddr(server), Bits: 24, Start: netip.MustParseAddr("10.0.0.10"), End: netip.MustParseAddr("10.0.0.99")}
	}
	return n
}

func (w *world) station(name string, hypervisor int, id uint32) *station {
	w.Helper()
	g, err := w.hypervisors[hypervisor-1].Guest(id, netip.Prefix{})
	must(w, "machine", err)
	tap, err := g.Space.Tap(rig.GuestDevice)
	must(w, "tap", err)
	w.rig.Defer(tap.Close)
	st := &station{name: name, hypervisor: hypervisor, guest: g, tap: tap, sync: map[string]bool{}}
	w.all = append(w.all, st)
	return st
}

func (w *world) join(s *segment, st *station) {
	st.guest.MAC, st.vni = packet.MAC(st.mac), s.vni
	st.ip6 = vnet.LinkLocal([6]byte(st.guest.MAC)).String()
	s.stations = append(s.stations, st)
}

// route has the underlay bring a public address to its hypervisor.
func (w *world) route(st *station) {
	w.Helper()
	h := w.hypervisors[st.hypervisor-1]
	must(w, "route", w.rig.Wire().Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: rig.IPNet(netip.PrefixFrom(st.guest.Address, 32)), Gw: h.Config.Endpoint.AsSlice()})
	}))
}

const barrier = "barrier "

// see keeps every frame, and barriers apart.
func (st *station) see(frame []byte) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if at := bytes.Index(frame, []byte(barrier)); at >= 0 {
		st.sync[string(frame[at:])] = true
		return
	}
	st.frames = append(st.frames, slices.Clone(frame))
}

// take what came since the last call.
func (st *station) take() [][]byte {
	st.mu.Lock()
	defer st.mu.Unlock()
	f := st.frames
	st.frames = nil
	return f
}

func (st *station) passed(word string) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.sync[word]
}

// drain waits until what a station has sent is where it goes, and what it was
// answered with is seen: frames keep their order, and one more to each of its
// friends has come, and one of a friend's to itself.
func (w *world) drain(from *station, frame func(from, to *station) packet.Packet, friends ...*station) {
	w.Helper()
	w.barriers++
	word := fmt.Sprintf("%s%06d", barrier, w.barriers)
	send := func(from, to *station) {
		must(w, "send a barrier", from.tap.Send(frame(from, to).Payload([]byte(word)).Bytes()))
	}
	for _, to := range friends {
		send(from, to)
	}
	deadline := time.Now().Add(5 * time.Second)
	await := func(from, to *station) {
		for !to.passed(word) {
			if time.Now().After(deadline) {
				w.Fatalf("no barrier from %s came to %s", from.name, to.name)
			}
			<-time.After(100 * time.Microsecond)
		}
	}
	for _, to := range friends {
		await(from, to)
	}
	send(friends[0], from)
	await(friends[0], from)
}
