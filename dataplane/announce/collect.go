// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"encoding/binary"
	"net/netip"

	"cairn/cloud/wire"
)

// Desired is what Collect reads: an agent's desired items, less those that it
// could not program. Slots are by service.
type Desired struct {
	Revision      uint64
	Host          uint32 // this host's number
	Draining      bool   // this host is being emptied
	Announcements []wire.Announcement
	Services      []wire.Service
	Slots         map[uint32]wire.Slots
	Ports         []wire.Port
}

// Collect makes the set from an agent's items. A service without a backend in
// its slots is left out of the probes: that it drops is right, and no reason to
// withdraw. An address of an instance, an active elastic IP among them, is
// wanted once its port has a policy; a VIP whose announcers do not name this
// host is not wanted here.
func Collect(d Desired) Set {
	services := map[netip.Addr][]Service{}
	for _, s := range d.Services {
		if forwards(d.Slots[s.ID]) {
			services[s.VIP] = append(services[s.VIP], Service{Port: s.Port, Protocol: s.Protocol})
		}
	}
	ports := map[netip.Prefix]wire.Port{}
	for _, p := range d.Ports {
		for _, a := range p.Addresses {
			ports[netip.PrefixFrom(a, a.BitLen())] = p
		}
		for _, elastic := range p.Active {
			ports[elastic.Masked()] = p
		}
	}
	set := Set{Revision: d.Revision}
	for _, a := range d.Announcements {
		w := Wanted{Prefix: a.Prefix.Masked(), Origin: VIP, Communities: a.Communities, Drain: d.Draining}
		if a.Service {
			rank, ok := rankOf(d.Host, a.Announcers)
			if !ok {
				continue
			}
			w.Rank, w.Services = rank, services[a.Prefix.Addr()]
		} else {
			port, ok := ports[a.Prefix.Masked()]
			if !ok || port.Policy == 0 {
				continue
			}
			w.Origin, w.Port = Instance, port.ID
		}
		set.Wanted = append(set.Wanted, w)
	}
	set.sort()
	return set
}

func rankOf(host uint32, announcers []uint32) (int, bool) {
	for i, a := range announcers {
		if a == host {
			return i, true
		}
	}
	return 0, false
}

// forwards reports whether any slot has an owner: {cur, prev}, u32 each.
func forwards(s wire.Slots) bool {
	for i := 0; i+8 <= len(s.Table); i += 8 {
		if binary.LittleEndian.Uint32(s.Table[i:]) != 0 {
			return true
		}
	}
	return false
}
