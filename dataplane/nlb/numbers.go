// SPDX-License-Identifier: Apache-2.0

package nlb

import (
	"fmt"
	"net/netip"

	"cairn/bpf"
	"cairn/dataplane/maps"
	"cairn/lb/slots"
)

// numbers are what this host gives out itself: indexes of service records and
// of next hops, and ranges of slots. What is in use stands in the image, so a
// restarted agent finds the same.
type numbers struct {
	have  *maps.Image
	facts Facts
	caps  Capacities

	services map[uint32]uint32 // service → index of the record that vip4 names
	taken    map[uint32]bool   // records of this round
	ranges   *slots.Ranges     // of the image and of this round
	nexthops map[netip.Addr]uint32
}

func newNumbers(have *maps.Image, facts Facts, caps Capacities) *numbers {
	return &numbers{have: have, facts: facts, caps: caps, taken: map[uint32]bool{}}
}

// place of a service: its record with the slot base filled in, and the record's
// index.
type place struct {
	index  uint32
	record bpf.Svc
}

func (n *numbers) place(want bpf.Svc) (place, error) {
	n.load()
	index, ok := n.services[want.Id]
	if !ok {
		return n.fresh(want)
	}
	value, _ := n.have.Get(maps.ID{Map: maps.Svc, Key: maps.Bytes(index)})
	old := maps.As[bpf.Svc](value)
	if old.SlotMask != want.SlotMask {
		return n.fresh(want)
	}
	want.SlotBase = old.SlotBase
	same := want
	same.Generation = old.Generation
	if same == old { // only the generation may differ: one number, stored at once
		return place{index, want}, nil
	}
	index, err := n.record()
	return place{index, want}, err
}

// fresh gives a service a new range and a new record.
func (n *numbers) fresh(want bpf.Svc) (place, error) {
	base, err := n.slots(want.SlotMask + 1)
	if err != nil {
		return place{}, err
	}
	want.SlotBase = base
	index, err := n.record()
	return place{index, want}, err
}

func (n *numbers) load() {
	if n.services != nil {
		return
	}
	n.services = map[uint32]uint32{}
	for e := range n.have.Served() {
		if value, ok := n.have.Get(maps.ID{Map: maps.Svc, Key: e.Value}); ok {
			n.services[maps.As[bpf.Svc](value).Id] = maps.As[uint32](e.Value)
		}
	}
}

// record finds a free index: one that no record, not even one on its way out,
// holds. Index 0 is not used, so that a zeroed number names nothing.
func (n *numbers) record() (uint32, error) {
	for i := uint32(1); i < n.caps.Services; i++ {
		if !n.taken[i] && n.have.Free(maps.ID{Map: maps.Svc, Key: maps.Bytes(i)}) {
			n.taken[i] = true
			return i, nil
		}
	}
	return 0, fmt.Errorf("no free record among %d services: %w", n.caps.Services, errFull)
}

// nexthop gives the index of a next hop. Backends name the same one after a
// restart, even when its MAC is not known.
func (n *numbers) nexthop(via netip.Addr) (uint32, error) {
	if n.nexthops == nil {
		n.loadNexthops()
	}
	if i, ok := n.nexthops[via]; ok {
		return i, nil
	}
	used := map[uint32]bool{}
	for _, i := range n.nexthops {
		used[i] = true
	}
	for e := range n.have.Entries(maps.Nexthops) { // from before a restart, when no backend names it
		mac, known := n.facts.MAC[via]
		index := maps.As[uint32](e.Key)
		if known && maps.As[bpf.Nexthop](e.Value).Mac == mac && !used[index] && n.have.Orphan(e.ID) {
			n.nexthops[via] = index
			return index, nil
		}
	}
	for i := uint32(1); i < n.caps.Nexthops; i++ {
		if !used[i] && n.have.Free(maps.ID{Map: maps.Nexthops, Key: maps.Bytes(i)}) {
			n.nexthops[via] = i
			return i, nil
		}
	}
	return 0, fmt.Errorf("no free index among %d next hops: %w", n.caps.Nexthops, errFull)
}

func (n *numbers) loadNexthops() {
	n.nexthops = map[netip.Addr]uint32{}
	for e := range n.have.Entries(maps.Backends) {
		v := maps.As[bpf.Backend](e.Value)
		if via, ok := n.facts.Via[bpf.AddrBE32(v.Endpoint)]; ok && v.Endpoint != 0 && v.Nexthop != 0 {
			n.nexthops[via] = v.Nexthop
		}
	}
	for via := range n.facts.MAC {
		for _, e := range n.have.Of(Nexthop(via)) {
			n.nexthops[via] = maps.As[uint32](e.Key)
		}
	}
}

// slots finds a free range for a table of count slots.
func (n *numbers) slots(count uint32) (uint32, error) {
	if n.ranges == nil {
		ranges, err := slots.NewRanges(n.caps.Slots)
		if err != nil {
			return 0, err
		}
		n.ranges = ranges
		for e := range n.have.Entries(maps.Slots) {
			// What is no range of this map cannot be in the way of one.
			_ = n.ranges.Reserve(maps.As[uint32](e.Key), uint32(len(e.Value)/8))
		}
	}
	base, err := n.ranges.Alloc(count)
	if err != nil {
		return 0, fmt.Errorf("place %d slots, %d of %d are in use: %w", count, n.ranges.Used(), n.caps.Slots, err)
	}
	return base, nil
}
