// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/lb/slots"
)

// The fabric: 203.0.113.1:80 in TCP (service 7) and UDP (8), on port 8080 of
// ports 5 to 8; two ports a host, from the second host on.
const (
	uplinkMAC  = "02:aa:00:00:00:01" // of every host, since the router is not here
	routerMAC  = "02:bb:00:00:00:01"
	gatewayMAC = "02:cb:00:00:00:01"

	targetPort = 8080
	seed       = 0x5eed
	policy     = 500
	loopback   = 1 // the device of a test run
)

var vip = netip.MustParseAddrPort("203.0.113.1:80")

// services by protocol; the record's index is the number, the slots are in turn.
var services = map[uint8]uint32{TCP: 7, UDP: 8}

// HashOf a flow to the fabric's services.
func HashOf(f Flow) uint32 {
	return slots.Hash(seed, f.Client.Addr(), vip.Addr(), f.Client.Port(), vip.Port(), f.Proto, false)
}

func endpoint(h Host) netip.Addr { return netip.AddrFrom4([4]byte{10, 64, 0, byte(h + 1)}) }

func portMAC(port uint32) net.HardwareAddr { return net.HardwareAddr{2, 0xca, 0, 0, 0, byte(port)} }

func address(port uint32) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(port)}) }

// node is the programs of one host with their maps.
type node struct {
	progs map[string]*ebpf.Program
	maps  map[string]*ebpf.Map
	inner []*ebpf.Map
}

// Fabric is all hosts.
type Fabric struct {
	nodes [Hosts]*node
	ports map[uint32]Backend // who is at a port
}

var sizes = map[string]uint32{
	"slots": 2 * tableSize, "backends": 256, "backend_stat": 4, "backend_conn": 256, "svc": 16, "svc_stat": 16, "nexthops": 16,
	"port_cfg": 16, "ct_est": 16, "ct_new": 16, "ct_swept": 16, "rule_stats": 256, "vtep_seen": 16, "vtep_errors": 16, "pace": 16, "told": 16,
}

// NewFabric loads the objects once for each host.
func NewFabric() (*Fabric, error) {
	f := &Fabric{ports: map[uint32]Backend{}}
	var group errgroup.Group // each load is seconds of the verifier's
	for h := range f.nodes {
		group.Go(func() (err error) {
			if f.nodes[h], err = load(); err == nil {
				err = f.nodes[h].populate(Host(h))
			}
			if err != nil {
				err = fmt.Errorf("host %d: %w", h, err)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close frees all of it.
func (f *Fabric) Close() {
	for _, n := range f.nodes {
		if n == nil {
			continue
		}
		for _, p := range n.progs {
			_ = p.Close()
		}
		for _, m := range n.maps {
			_ = m.Close()
		}
		for _, m := range n.inner {
			_ = m.Close()
		}
	}
}

// used are the programs on the way; a load of the others is seconds.
var used = map[string]bool{"uplink": true, "uplink_in": true, "vm_in": true}

func load() (*node, error) {
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		return nil, err
	}
	if err := specs.Uplink.Variables["note_in_cb"].Set(true); err != nil {
		return nil, fmt.Errorf("set note_in_cb: %w", err)
	}
	for _, spec := range []*ebpf.CollectionSpec{specs.Uplink, specs.Port} {
		maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return !used[name] })
		for name, m := range spec.Maps {
			if size, ok := sizes[name]; ok {
				m.MaxEntries = size
			}
		}
	}
	uplink, err := ebpf.NewCollection(specs.Uplink)
	if err != nil {
		return nil, fmt.Errorf("load the uplink object: %w", err)
	}
	shared := maps.Clone(uplink.Maps)
	maps.DeleteFunc(shared, func(name string, _ *ebpf.Map) bool { return name[0] == '.' || specs.Port.Maps[name] == nil })
	ports, err := ebpf.NewCollectionWithOptions(specs.Port, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		uplink.Close()
		return nil, fmt.Errorf("load the port object: %w", err)
	}
	n := &node{progs: uplink.Programs, maps: uplink.Maps}
	maps.Copy(n.progs, ports.Programs)
	for name, m := range ports.Maps {
		if n.maps[name] == nil {
			n.maps[name] = m
		} else if n.maps[name] != m {
			_ = m.Close()
		}
	}
	for _, name := range []string{"ct_est", "ct_new"} {
		for port := range uint32(4) {
			m, err := ebpf.NewMap(specs.Uplink.Maps[name].InnerMap)
			if err != nil {
				return n, err
			}
			n.inner = append(n.inner, m)
			if err := n.maps[name].Put(5+port, m); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func hw(s string) (mac [6]byte) { copy(mac[:], packet.MAC(s)); return mac }

// populate what no story changes.
func (n *node) populate(h Host) error {
	var errs []error
	put := func(name string, key, value any) { errs = append(errs, n.maps[name].Put(key, value)) }
	put("cfg", uint32(0), &bpf.Cfg{Endpoint: bpf.BE32(endpoint(h)), LbVni: bpf.LBVNI, Uplink: 1000, Door: 1001, UplinkMac: hw(uplinkMAC)})
	put("nexthops", uint32(1), &bpf.Nexthop{Mac: hw(routerMAC), Flags: bpf.NexthopValid})
	for other := range Host(Hosts) {
		if other != h {
			put("vteps", bpf.BE32(endpoint(other)), &bpf.Vtep{Host: uint32(other + 1), Pmtu: 1600})
		}
	}
	word, bit := bpf.VIPBit(vip.Addr())
	put("vip_bits", word, bit)
	put("vipaddr4", bpf.BE32(vip.Addr()), uint32(len(services)))
	for proto, id := range services {
		put("svc", id, &bpf.Svc{
			Vip: bpf.IP16(vip.Addr()), Port: bpf.BE16(vip.Port()), Proto: proto, Id: id,
			SlotBase: base(proto), SlotMask: tableSize - 1, Mtu: 1500, Generation: 1, Seed: seed,
		})
		put("vip4", bpf.Vip4Key{Ip: bpf.BE32(vip.Addr()), Port: bpf.BE16(vip.Port()), Proto: proto}, id)
	}
	n.admitAll(put)
	return errors.Join(errs...)
}

func base(proto uint8) uint32 {
	if proto == TCP {
		return 0
	}
	return tableSize
}

// admitAll writes a policy of one rule a protocol: anybody may.
func (n *node) admitAll(put func(name string, key, value any)) {
	const anybody = 77
	all := netip.MustParsePrefix("0.0.0.0/0")
	var rule bpf.Bitmap
	rule.Word[0] = 1
	put("cidr", bpf.CidrKey{Bits: bpf.PrefixBits(all, 32), Policy: policy, Ip: bpf.IP16(all.Addr())}, uint32(anybody))
	put("cidr_bm", bpf.BmKey{Policy: policy, Direction: bpf.DirectionIn, Class: anybody}, &rule)
	for _, proto := range []uint32{TCP, UDP} {
		bounds := bpf.Bounds{Cut: [bpf.CutsMax]bpf.Cut{{}, {From: targetPort, Class: uint16(proto)}}}
		for i := 2; i < bpf.CutsMax; i++ {
			bounds.Cut[i] = bpf.Cut{From: targetPort + 1}
		}
		put("port_bounds", bpf.BoundsKey{Policy: policy, Direction: bpf.DirectionIn, Proto: proto}, &bounds)
		put("port_bm", bpf.BmKey{Policy: policy, Direction: bpf.DirectionIn, Class: proto}, &rule)
	}
	var ids bpf.Rules
	ids.Id[0] = 9
	put("rule_ids", bpf.RulesKey{Policy: policy, Direction: bpf.DirectionIn}, &ids)
}

// Slot of a service at a host.
func (f *Fabric) Slot(h Host, proto uint8, i int, to slots.Slot) error {
	return f.nodes[h].maps["slots"].Put(base(proto)+uint32(i), uint64(to))
}

// Member is as its host has it; the others know the way to it.
func (f *Fabric) Member(b Backend, m Member) error {
	var errs []error
	for h, n := range f.nodes {
		record := bpf.Backend{Flags: bpf.BackendValid, Mac: [6]byte(portMAC(m.Port))}
		if Host(h) != m.Host {
			record.Endpoint, record.Nexthop = bpf.BE32(endpoint(m.Host)), 1
		}
		errs = append(errs, n.maps["backends"].Put(uint32(b), &record))
	}
	n := f.nodes[m.Host]
	if m.State == Dead {
		errs = append(errs, n.detach(m.Port))
		delete(f.ports, m.Port)
		return errors.Join(errs...)
	}
	if f.ports[m.Port] != b {
		errs = append(errs, n.attach(m.Port))
		f.ports[m.Port] = b
	}
	local := bpf.Local{Backend: uint32(b), Ip: bpf.IP16(address(m.Port)), TargetPort: bpf.BE16(targetPort)}
	switch m.State {
	case Ready:
		local.Flags = bpf.LocalReady
	case Draining:
		local.Flags = bpf.LocalDraining
	}
	for _, id := range services {
		errs = append(errs, n.maps["local"].Put(bpf.LocalKey{Service: id, Port: m.Port}, &local))
	}
	return errors.Join(errs...)
}

func (n *node) attach(port uint32) error {
	mac := [6]byte(portMAC(port))
	var errs []error
	put := func(name string, key, value any) { errs = append(errs, n.maps[name].Put(key, value)) }
	put("port_stat", port, make([]bpf.PortStat, ebpf.MustPossibleCPU()))
	put("port_cfg", port, &bpf.PortCfg{
		Ifindex: 100 + port, Flags: bpf.PortEgressOpen, Mac: mac, GatewayMac: hw(gatewayMAC), PolicyIn: policy, Generation: 1, Mtu: 1500,
	})
	put("fdb", bpf.FdbKey{Vni: bpf.LBVNI, Mac: mac}, bpf.Station{Port: port})
	put("addr_ok", bpf.AddrKey{Port: port, Ip: bpf.IP16(address(port))}, uint32(0))
	put("addr_port", bpf.IP16(address(port)), port)
	return errors.Join(errs...)
}

// detach a port; what it knew of flows goes with it.
func (n *node) detach(port uint32) error {
	errs := []error{
		n.maps["fdb"].Delete(bpf.FdbKey{Vni: bpf.LBVNI, Mac: [6]byte(portMAC(port))}),
		n.maps["addr_ok"].Delete(bpf.AddrKey{Port: port, Ip: bpf.IP16(address(port))}),
		n.maps["addr_port"].Delete(bpf.IP16(address(port))),
		n.maps["port_cfg"].Put(port, &bpf.PortCfg{}),
	}
	for _, id := range services {
		errs = append(errs, n.maps["local"].Delete(bpf.LocalKey{Service: id, Port: port}))
	}
	for at := range n.inner {
		if uint32(5+at%4) == port {
			errs = append(errs, clearMap(n.inner[at]))
		}
	}
	return errors.Join(errs...)
}

func clearMap(m *ebpf.Map) error {
	for {
		key := make([]byte, m.KeySize())
		if err := m.NextKey(nil, &key); err != nil {
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				return nil
			}
			return err
		}
		if err := m.Delete(key); err != nil {
			return err
		}
	}
}

// Clear the flows of all ports, and what was refused this second: another story
// begins, of fewer packets than a host may refuse.
func (f *Fabric) Clear() error {
	var errs []error
	for _, n := range f.nodes {
		errs = append(errs, n.maps["refusals"].Put(uint32(0), make([]bpf.Refusals, ebpf.MustPossibleCPU())))
	}
	for port := range f.ports {
		errs = append(errs, f.nodes[1+(port-5)/2].detach(port))
	}
	f.ports = map[uint32]Backend{}
	return errors.Join(errs...)
}
