// SPDX-License-Identifier: Apache-2.0

// Package load puts the program of an LB node into the kernel with services that
// nobody has asked for: for a harness that measures or feeds packets, with no
// agent and no control plane. Its maps hold what an agent would write for the
// same items. It never touches what an agent has pinned. Start at Open; pin.go
// is what outlives the process.
package load

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/lb/slots"
)

// What every such node has in common: itself, one other host that has all the
// targets, and the router between them.
var (
	Endpoint  = netip.MustParseAddr("10.64.0.1")
	Other     = netip.MustParseAddr("10.64.0.3")
	Router    = netip.MustParseAddr("10.64.0.0")
	FirstVIP  = netip.MustParseAddr("203.0.0.0")
	FirstVIP6 = netip.MustParseAddr("2001:db8:ee::1")
	UplinkMAC = [6]byte{0x02, 0xaa, 0, 0, 0, 1} // unless the device has another
	RouterMAC = [6]byte{0x02, 0xbb, 0, 0, 0, 1}
)

// Port is that of every service; TargetPort that of its targets.
const (
	Port       = uint16(80)
	TargetPort = uint16(8080)

	self, other = uint32(1), uint32(2) // hosts
	mtu         = uint32(9000)
)

// Protocols of a service.
const (
	TCP = uint8(6)
	UDP = uint8(17)
)

// Want says how much is served: port 80 of so many VIPs, from FirstVIP on, over
// the protocols, each service by so many targets of its own. With IPv6 the VIPs are
// those from FirstVIP6 on.
type Want struct {
	VIPs, Targets int
	Protocols     []uint8
	IPv6          bool
}

// Most that is made: what the agent's numbers have room for, and 4 GB of slots.
const (
	maxServices = 1 << 15
	maxBackends = 1 << 22
	maxTargets  = 4096
)

func (w Want) services() int { return w.VIPs * len(w.Protocols) }

func (w Want) check() error {
	switch {
	case w.VIPs < 1 || w.Targets < 1 || len(w.Protocols) == 0:
		return fmt.Errorf("%d VIPs of %d targets over %d protocols: at least one of each", w.VIPs, w.Targets, len(w.Protocols))
	case w.Targets > maxTargets:
		return fmt.Errorf("%d targets a VIP: at most %d", w.Targets, maxTargets)
	case w.services() > maxServices || w.services()*w.Targets > maxBackends:
		return fmt.Errorf("%d services of %d targets: at most %d services and %d targets", w.services(), w.Targets, maxServices, maxBackends)
	}
	return nil
}

// sizes are the entries of maps whose own size is too small for it.
func (w Want) sizes() map[string]uint32 {
	services, backends := uint32(w.services()), uint32(w.services()*w.Targets)
	return map[string]uint32{
		"slots": services * uint32(slots.Size(w.Targets)), "svc": 2 * (services + 1), "svc_stat": services + 1,
		"vip4": services, "vipaddr4": services, "backends": backends + 1, "backend_stat": backends/bpf.StatsPerPage + 1,
		"backend_conn": backends + 1,
	}
}

// Node is an LB node without backends of its own: the shipped object, its maps
// filled.
type Node struct {
	Objects *ebpf.Collection

	want Want
	mac  [6]byte
}

// Open loads the object and fills its maps. Nothing is pinned or attached yet;
// Close is its end.
func Open(w Want) (*Node, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit of locked memory: %w", err)
	}
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		return nil, err
	}
	for name, entries := range w.sizes() {
		spec := specs.Uplink.Maps[name]
		spec.MaxEntries = max(spec.MaxEntries, roundUp(entries))
	}
	objects, err := ebpf.NewCollection(specs.Uplink)
	if err != nil {
		return nil, fmt.Errorf("load the uplink object: %+v", err)
	}
	n := &Node{Objects: objects, want: w, mac: UplinkMAC}
	if err := errors.Join(n.configure(0, UplinkMAC), n.fill(w.items())); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func roundUp(n uint32) uint32 { return uint32(1) << bits.Len32(n-1) }

// Close lets go of the object. What is pinned stays.
func (n *Node) Close() { n.Objects.Close() }

// Program under test: `uplink`.
func (n *Node) Program() *ebpf.Program { return n.Objects.Programs["uplink"] }

// configure says which device and MAC the uplink has. A packet of a test run
// comes from no device that is one.
func (n *Node) configure(device uint32, mac [6]byte) error {
	n.mac = mac
	cfg := bpf.Cfg{Endpoint: bpf.BE32(Endpoint), LbVni: bpf.LBVNI, Uplink: device, UplinkMac: mac}
	if err := n.Objects.Maps["cfg"].Put(uint32(0), &cfg); err != nil {
		return fmt.Errorf("write cfg: %w", err)
	}
	return nil
}

// target i's address, of the VIP's family.
func target(vip netip.Addr, i uint32) netip.Addr {
	if vip.Is6() {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(i >> 8), 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
}

// items that a control plane would send.
func (w Want) items() []wire.Item {
	out := []wire.Item{
		wire.Host{ID: self, Name: "lb", Endpoint: Endpoint, MTU: mtu}, wire.Host{ID: other, Name: "hv", Endpoint: Other, MTU: mtu},
	}
	number, id, vip := uint32(0), uint32(0), FirstVIP
	if w.IPv6 {
		vip = FirstVIP6
	}
	for range w.VIPs {
		for _, protocol := range w.Protocols {
			number++
			var all []uint32
			for i := range uint32(w.Targets) {
				id++
				all = append(all, id)
				out = append(out, wire.Backend{
					ID: id, Service: number, Host: other, Port: 1 + i, MAC: [6]byte{2, 0xca, 0, 0, byte(i >> 8), byte(i)},
					Address: target(vip, i), TargetPort: TargetPort,
				})
			}
			table := slots.Assign(nil, slots.Want{Backends: all})
			out = append(out,
				wire.Service{ID: number, VIP: vip, Port: Port, Protocol: protocol, Seed: 0x5eed, SlotsGeneration: 1},
				wire.Slots{Service: number, Generation: 1, Table: table.Encode()})
		}
		vip = vip.Next()
	}
	return out
}

func (n *Node) put(e maps.Entry) error {
	m, ok := n.Objects.Maps[e.Map.String()]
	if !ok {
		return errors.New("no map of that name")
	}
	if e.Map != maps.Slots {
		return m.Put([]byte(e.Key), []byte(e.Value))
	}
	base := maps.As[uint32](e.Key)
	keys, values := make([]uint32, 0, len(e.Value)/8), make([]uint64, 0, len(e.Value)/8)
	for i := 0; i+8 <= len(e.Value); i += 8 {
		keys, values = append(keys, base+uint32(i/8)), append(values, maps.As[uint64](e.Value[i:i+8]))
	}
	_, err := m.BatchUpdate(keys, values, nil)
	return err
}
