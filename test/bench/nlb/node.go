// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/nlb"
	"cairn/dataplane/table"
	"cairn/lb/slots"
)

const (
	self, other = uint32(1), uint32(2) // hosts
	uplinkMAC   = "02:aa:00:00:00:01"
	routerMAC   = "02:bb:00:00:00:01"
	firstVIP    = "203.0.0.0"
	tcp, udp    = uint8(6), uint8(17)
)

// room for 1,000 services of 4,096 slots and 100 backends, which is more than an
// agent makes unless it is told.
var room = map[string]uint32{"slots": 4 << 20, "backends": 1 << 17, "backend_stat": 1 << 11, "backend_conn": 1 << 17}

var (
	endpoint  = netip.MustParseAddr("10.64.0.1")
	endpoint2 = netip.MustParseAddr("10.64.0.3")
	router    = netip.MustParseAddr("10.64.0.0")
)

// node is an LB node without backends of its own: the shipped program with maps
// as an agent would fill them.
type node struct {
	objects *ebpf.Collection
	image   *maps.Image
}

// newNode serves port 80 of so many VIPs over the protocols, each by so many
// backends on another host.
func newNode(vips, backends int, protocols ...uint8) (*node, error) {
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		return nil, err
	}
	for name, entries := range room {
		specs.Uplink.Maps[name].MaxEntries = entries
	}
	objects, err := ebpf.NewCollection(specs.Uplink)
	if err != nil {
		return nil, fmt.Errorf("load the uplink object: %+v", err)
	}
	n := &node{objects, maps.NewImage()}
	cfg := bpf.Cfg{Endpoint: bpf.BE32(endpoint), LbVni: bpf.LBVNI, Uplink: 1000, UplinkMac: mac(uplinkMAC)}
	if err := n.objects.Maps["cfg"].Put(uint32(0), &cfg); err != nil {
		return nil, errors.Join(err, n.close())
	}
	if err := n.hold(items(vips, backends, protocols)); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *node) close() error { n.objects.Close(); return nil }

func (n *node) program() *ebpf.Program { return n.objects.Programs["uplink"] }

func items(vips, backends int, protocols []uint8) []wire.Item {
	out := []wire.Item{
		wire.Host{ID: self, Name: "lb", Endpoint: endpoint, MTU: 9000},
		wire.Host{ID: other, Name: "hv", Endpoint: endpoint2, MTU: 9000},
	}
	number, id, vip := uint32(0), uint32(0), netip.MustParseAddr(firstVIP)
	for range vips {
		for _, protocol := range protocols {
			number++
			service := wire.Service{ID: number, VIP: vip, Port: 80, Protocol: protocol, Seed: 0x5eed, SlotsGeneration: 1}
			var all []uint32
			for i := range uint32(backends) {
				id++
				b := wire.Backend{
					ID: id, Service: number, Host: other, Port: 1 + i, MAC: [6]byte{2, 0xca, 0, 0, byte(i >> 8), byte(i)},
					Address: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), TargetPort: 8080,
				}
				all = append(all, b.ID)
				out = append(out, b)
			}
			table := slots.Assign(nil, slots.Want{Backends: all})
			out = append(out, service, wire.Slots{Service: number, Generation: 1, Table: table.Encode()})
		}
		vip = vip.Next()
	}
	return out
}

// hold makes the maps what an agent that holds these items would make them.
func (n *node) hold(items []wire.Item) error {
	desired, err := table.New(table.Mark{})
	if err != nil {
		return err
	}
	defer desired.Close()
	var ups []table.Upsert
	names := []string{nlb.Nexthop(router), nlb.Bits}
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			return err
		}
		ups = append(ups, table.Upsert{Key: item.Key(), Body: body})
		switch item := item.(type) {
		case wire.Slots:
		case wire.Service:
			names = append(names, item.Key().String(), nlb.VIP(item.VIP))
		default:
			names = append(names, item.Key().String())
		}
	}
	if faults, err := desired.Restore(table.Mark{Epoch: 1, Revision: 1}, ups); err != nil || len(faults) > 0 {
		return fmt.Errorf("hold the items: %v %w", faults, err)
	}
	facts := nlb.Facts{
		Self: self, MTU: 9000, Via: map[netip.Addr]netip.Addr{endpoint2: router}, MAC: map[netip.Addr][6]byte{router: mac(routerMAC)},
	}
	size := func(name string) uint32 { return n.objects.Maps[name].MaxEntries() }
	builder := nlb.NewBuilder(desired.View(), facts, n.image, nlb.Capacities{Slots: size("slots"), Services: size("svc"), Nexthops: size("nexthops")})
	var units []maps.Unit
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		u, err := builder.Unit(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		units = append(units, u)
	}
	steps, faults := maps.Plan(n.image, units)
	if len(faults) > 0 {
		return fmt.Errorf("plan: %v", faults)
	}
	for _, s := range steps {
		if err := n.put(s.Entry); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

func (n *node) put(e maps.Entry) error {
	m, ok := n.objects.Maps[e.Map.String()]
	if !ok {
		return errors.New("no map of that name")
	}
	if e.Map != maps.Slots {
		return m.Put([]byte(e.Key), []byte(e.Value))
	}
	base := binary.NativeEndian.Uint32([]byte(e.Key))
	var keys []uint32
	var values []uint64
	for i := 0; i+8 <= len(e.Value); i += 8 {
		keys, values = append(keys, base+uint32(i/8)), append(values, binary.NativeEndian.Uint64([]byte(e.Value[i:])))
	}
	_, err := m.BatchUpdate(keys, values, nil)
	return err
}

// memory is what the kernel has reserved for a map, in bytes.
func (n *node) memory(name string) (uint64, error) {
	info, err := n.objects.Maps[name].Info()
	if err != nil {
		return 0, err
	}
	bytes, ok := info.Memlock()
	if !ok {
		return 0, fmt.Errorf("the kernel does not say how large %s is", name)
	}
	return bytes, nil
}
