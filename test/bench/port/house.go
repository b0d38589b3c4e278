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
	"cairn/dataplane/port"
	"cairn/dataplane/table"
)

// The port under test is on the loopback device, because that is where a test
// run's packets come from.
const (
	thePort   = uint32(1)
	theDevice = uint32(1)
	thePolicy = uint32(1)
	theGroup  = uint32(7)
	theClass  = uint32(9)
	quota     = 65536
)

var (
	portMAC = [6]byte{0x02, 0xca, 0, 0, 0, 1}
	own4    = netip.MustParseAddr("198.51.100.5")
	own6    = netip.MustParseAddr("2001:db8:1::5")
)

// house is the shipped programs with maps of their own, as an agent would fill
// them.
type house struct {
	maps  map[string]*ebpf.Map
	progs map[string]*ebpf.Program
	image *maps.Image

	established *ebpf.Map // the port's
}

func newHouse() (*house, error) {
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		return nil, err
	}
	uplink, err := ebpf.NewCollection(specs.Uplink)
	if err != nil {
		return nil, fmt.Errorf("load the uplink object: %+v", err)
	}
	delete(uplink.Maps, ".rodata")
	ports, err := ebpf.NewCollectionWithOptions(specs.Port, ebpf.CollectionOptions{MapReplacements: uplink.Maps})
	if err != nil {
		uplink.Close()
		return nil, fmt.Errorf("load the port object: %+v", err)
	}
	h := &house{maps: uplink.Maps, progs: uplink.Programs, image: maps.NewImage()}
	stdmaps.Copy(h.progs, ports.Programs)
	cfg := bpf.Cfg{Endpoint: bpf.BE32(netip.MustParseAddr("10.64.0.1")), LbVni: bpf.LBVNI, Uplink: 1000, Door: 1001,
		UplinkMac: [6]byte{0x02, 0xaa, 0, 0, 0, 1}}
	return h, errors.Join(
		h.maps["cfg"].Put(uint32(0), &cfg),
		h.maps["ifindex_port"].Put(theDevice, thePort),
		h.flows(specs))
}

// flows gives the port its tables, established ones of the largest quota.
func (h *house) flows(specs *bpf.Specs) error {
	for name, entries := range map[string]uint32{"ct_est": quota, "ct_new": 0} {
		outer, ok := specs.Uplink.Maps[name]
		if !ok {
			continue
		}
		spec := outer.InnerMap.Copy()
		if entries != 0 {
			spec.MaxEntries = entries
		}
		inner, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("flow table %s: %w", name, err)
		}
		err = h.maps[name].Put(thePort, inner)
		if name == "ct_est" {
			h.established = inner
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// hold makes the maps what an agent that holds these items would make them.
func (h *house) hold(items ...wire.Item) error {
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
	view := desired.View()
	builder := port.NewBuilder(view, port.Facts{Devices: map[uint32]uint32{thePort: theDevice}, Underlay: 9000}, h.image, nil)
	var units []maps.Unit
	for _, kind := range []wire.Kind{wire.KindPolicy, wire.KindMember, wire.KindPort} {
		for row := range view.Rows(kind) {
			u, err := builder.Unit(row.Key.String())
			if err != nil {
				return err
			}
			units = append(units, u)
		}
	}
	steps, faults := maps.Plan(h.image, units)
	if len(faults) > 0 {
		return fmt.Errorf("plan: %v", faults)
	}
	for _, s := range steps {
		if err := h.do(s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		if s.Op == maps.Put {
			h.image.Add(s.Entry)
		}
	}
	return nil
}

func (h *house) do(s maps.Step) error {
	m, ok := h.maps[s.Map.String()]
	switch {
	case s.Map == maps.Attach, s.Map == maps.Quota, s.Map == maps.Shaper: // the device is the loopback's, its flow table the bench's
		return nil
	case !ok:
		return fmt.Errorf("no map of that name")
	case s.Op == maps.Put:
		return m.Put([]byte(s.Key), []byte(s.Value))
	}
	return nil // what a policy before has left under another id is in nobody's way
}

// items of a port whose instance may open what the rules say.
func items(rules []wire.Rule, members []netip.Addr) []wire.Item {
	out := []wire.Item{
		wire.Class{ID: thePolicy, Groups: []uint32{1}},
		wire.Class{ID: theClass, Groups: []uint32{theGroup}},
		wire.Policy{ID: thePolicy, Rules: rules},
		wire.Port{ID: thePort, MAC: portMAC, Addresses: []netip.Addr{own4, own6}, Policy: thePolicy},
	}
	for _, a := range members {
		out = append(out, wire.Member{Address: a, Class: theClass})
	}
	return out
}

// family is what differs between IPv4 and IPv6: who speaks to whom, and where
// the peer's address lies in a frame.
type family struct {
	name   string
	own    netip.Addr
	peer   netip.Addr // the first of those that are varied
	any    netip.Prefix
	peerAt int // in a frame from the VM
	portAt int // destination port
}

var families = []family{
	{"v4", own4, netip.MustParseAddr("192.0.2.0"), netip.MustParsePrefix("0.0.0.0/0"), 30, 36},
	{"v6", own6, netip.MustParseAddr("2001:db8:2::"), netip.MustParsePrefix("::/0"), 50, 56},
}

// out is the shape of frames that the VM sends.
func (f family) frame(build func(src, dst string) packet.Packet, port uint16) []byte {
	src, dst := netip.AddrPortFrom(f.own, 40000), netip.AddrPortFrom(f.peer, port)
	frame := build(src.String(), dst.String()).MACs("02:ca:00:00:00:01", "02:cb:00:00:00:01").Payload(make([]byte, 64)).Bytes()
	return frame
}

// back is the frame of an answer, from the uplink.
func (f family) back(build func(src, dst string) packet.Packet, port uint16) []byte {
	src, dst := netip.AddrPortFrom(f.peer, port), netip.AddrPortFrom(f.own, 40000)
	return build(src.String(), dst.String()).MACs("02:bb:00:00:00:01", "02:aa:00:00:00:01").Payload(make([]byte, 64)).Bytes()
}

// peersOf is a prefix that holds all peers of a family, for what cannot say
// "any".
func peersOf(f family) netip.Prefix {
	p, _ := f.peer.Prefix(8)
	return p
}

func (h *house) close() {
	for _, m := range h.maps {
		_ = m.Close()
	}
	for _, p := range h.progs {
		_ = p.Close()
	}
	_ = h.established.Close()
}
