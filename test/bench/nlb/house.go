// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	stdmaps "maps"
	"net/netip"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/nlb"
	"cairn/dataplane/port"
	"cairn/dataplane/table"
	"cairn/lb/slots"
)

// The one backend is on the loopback device, because that is where a test run's
// packets come from.
const (
	thePort    = uint32(1)
	theDevice  = uint32(1)
	thePolicy  = uint32(1)
	targetPort = uint16(8080)
	quota      = 65536
)

var (
	portMAC    = [6]byte{0x02, 0xca, 0, 0, 0, 1}
	ownAddress = netip.MustParseAddr("198.51.100.5")
	self       = netip.MustParseAddr("10.64.0.3") // the host's endpoint
	balancer   = netip.MustParseAddr("10.64.0.1") // the LB node's
)

// house is a backend's host: the shipped programs with maps of their own, as an
// agent would fill them.
type house struct {
	maps        map[string]*ebpf.Map
	progs       map[string]*ebpf.Program
	image       *maps.Image
	established *ebpf.Map           // flows of the port
	notes       map[uint8][4]uint32 // that uplink leaves, by protocol
}

func newHouse() (_ *house, err error) {
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		return nil, err
	}
	if err := specs.Uplink.Variables["note_in_cb"].Set(true); err != nil { // a test run has no metadata
		return nil, err
	}
	uplink, err := ebpf.NewCollection(specs.Uplink)
	if err != nil {
		return nil, fmt.Errorf("load the uplink object: %+v", err)
	}
	h := &house{maps: uplink.Maps, progs: uplink.Programs, image: maps.NewImage()}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	delete(uplink.Maps, ".rodata")
	ports, err := ebpf.NewCollectionWithOptions(specs.Port, ebpf.CollectionOptions{MapReplacements: uplink.Maps})
	if err != nil {
		return nil, fmt.Errorf("load the port object: %+v", err)
	}
	stdmaps.Copy(h.progs, ports.Programs)
	cfg := bpf.Cfg{Endpoint: bpf.BE32(self), LbVni: bpf.LBVNI, Uplink: 1000, Door: 1001, UplinkMac: [6]byte{0x02, 0xaa, 0, 0, 0, 1}}
	err = errors.Join(
		h.maps["cfg"].Put(uint32(0), &cfg), h.maps["ifindex_port"].Put(theDevice, thePort), h.flows(specs), h.hold(houseItems()))
	if err != nil {
		return nil, err
	}
	return h, h.findNotes()
}

// findNotes are what packets of the services get: the index of the record.
func (h *house) findNotes() error {
	h.notes = map[uint8][4]uint32{}
	for i, protocol := range protocols {
		var index uint32
		vip4 := bpf.Vip4Key{Ip: bpf.BE32(netip.MustParseAddr(vip)), Port: bpf.BE16(80), Proto: protocol}
		if err := h.maps["vip4"].Lookup(vip4, &index); err != nil {
			return fmt.Errorf("find the service: %w", err)
		}
		h.notes[protocol] = [4]uint32{uint32(bpf.NotePresent), index, uint32(i + 1), 0x12345678}
	}
	return nil
}

// protocols of the services; that of each is numbered, as its backend is, from 1.
var protocols = []uint8{packet.ProtoTCP, packet.ProtoUDP}

// flows gives the port its tables, established ones of the largest quota.
func (h *house) flows(specs *bpf.Specs) error {
	for name, entries := range map[string]uint32{"ct_est": quota, "ct_new": 0} {
		spec := specs.Uplink.Maps[name].InnerMap.Copy()
		if entries != 0 {
			spec.MaxEntries = entries
		}
		inner, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("flow table %s: %w", name, err)
		}
		if err := h.maps[name].Put(thePort, inner); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if name == "ct_est" {
			h.established = inner
		} else {
			inner.Close() // the outer map holds it
		}
	}
	return nil
}

// houseItems: both protocols of one VIP, whose one backend is the port.
func houseItems() []wire.Item {
	const here, there = 1, 2
	out := []wire.Item{
		wire.Host{ID: here, Name: "hv", Endpoint: self, MTU: 9000}, wire.Host{ID: there, Name: "lb", Endpoint: balancer, MTU: 9000},
		wire.Class{ID: thePolicy, Groups: []uint32{1}},
		wire.Policy{ID: thePolicy, Rules: []wire.Rule{
			{ID: 1, Direction: wire.Ingress, Protocol: 6, PortMin: targetPort, PortMax: targetPort, ICMPType: -1, ICMPCode: -1, Peer: netip.MustParsePrefix("0.0.0.0/0")},
			{ID: 2, Direction: wire.Ingress, Protocol: 17, PortMin: targetPort, PortMax: targetPort, ICMPType: -1, ICMPCode: -1, Peer: netip.MustParsePrefix("0.0.0.0/0")},
		}},
		wire.Port{ID: thePort, MAC: portMAC, Addresses: []netip.Addr{ownAddress}, Policy: thePolicy},
	}
	for i, protocol := range protocols {
		id := uint32(i + 1)
		backend := wire.Backend{ID: id, Service: id, Host: here, Port: thePort, MAC: portMAC, Address: ownAddress, TargetPort: targetPort}
		table := slots.Assign(nil, slots.Want{Backends: []uint32{id}})
		out = append(out, backend,
			wire.Service{ID: id, VIP: netip.MustParseAddr(vip), Port: 80, Protocol: protocol, Seed: 0x5eed, SlotsGeneration: 1},
			wire.Slots{Service: id, Generation: 1, Table: table.Encode()})
	}
	return out
}

// hold makes the maps what an agent that holds these items would make them.
func (h *house) hold(items []wire.Item) error {
	desired, err := table.New(table.Mark{})
	if err != nil {
		return err
	}
	defer desired.Close()
	var ups []table.Upsert
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			return err
		}
		ups = append(ups, table.Upsert{Key: item.Key(), Body: body})
	}
	if faults, err := desired.Restore(table.Mark{Epoch: 1, Revision: 1}, ups); err != nil || len(faults) > 0 {
		return fmt.Errorf("hold the items: %v %w", faults, err)
	}
	units, err := h.units(desired.View(), items)
	if err != nil {
		return err
	}
	steps, faults := maps.Plan(h.image, units)
	if len(faults) > 0 {
		return fmt.Errorf("plan: %v", faults)
	}
	for _, s := range steps {
		if err := h.put(s.Entry); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

func (h *house) units(view table.View, items []wire.Item) (units []maps.Unit, err error) {
	router := netip.MustParseAddr("10.64.0.2")
	facts := nlb.Facts{Self: 1, MTU: 9000, Via: map[netip.Addr]netip.Addr{balancer: router}, MAC: map[netip.Addr][6]byte{router: {0x02, 0xbb, 0, 0, 0, 1}}}
	size := func(name string) uint32 { return h.maps[name].MaxEntries() }
	balance := nlb.NewBuilder(view, facts, h.image, nlb.Capacities{Slots: size("slots"), Services: size("svc"), Nexthops: size("nexthops")})
	ports := port.NewBuilder(view, port.Facts{Devices: map[uint32]uint32{thePort: theDevice}, Underlay: 9000}, h.image, nil)
	add := func(u maps.Unit, e error) { units, err = append(units, u), errors.Join(err, e) }
	add(balance.Unit(nlb.Bits))
	add(balance.Unit(nlb.VIP(netip.MustParseAddr(vip))))
	add(balance.Unit(nlb.Nexthop(router)))
	for _, item := range items {
		switch item.(type) {
		case wire.Host, wire.Backend, wire.Service:
			add(balance.Unit(item.Key().String()))
		case wire.Policy, wire.Port:
			add(ports.Unit(item.Key().String()))
		}
	}
	return units, err
}

func (h *house) put(e maps.Entry) error {
	m, ok := h.maps[e.Map.String()]
	switch {
	case e.Map == maps.Attach, e.Map == maps.Quota, e.Map == maps.Shaper: // the device is the loopback's, its flow table the bench's
		return nil
	case !ok:
		return errors.New("no map of that name")
	case e.Map != maps.Slots:
		return m.Put([]byte(e.Key), []byte(e.Value))
	}
	for i := 0; i+8 <= len(e.Value); i += 8 {
		if err := m.Put(maps.As[uint32](e.Key)+uint32(i/8), maps.As[uint64](e.Value[i:i+8])); err != nil {
			return err
		}
	}
	return nil
}

func (h *house) close() {
	for _, m := range h.maps {
		_ = m.Close()
	}
	for _, p := range h.progs {
		_ = p.Close()
	}
	if h.established != nil {
		_ = h.established.Close()
	}
}
