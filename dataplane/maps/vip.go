// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"iter"
	"net/netip"

	"cairn/bpf"
)

// Each family of VIPs has two maps of its own.

// ServiceID names the entry that leads from a VIP, port and protocol to the
// service's record.
func ServiceID(vip netip.AddrPort, proto uint8) ID {
	if a := vip.Addr(); a.Is6() {
		return ID{VIP6, Bytes(bpf.Vip6Key{Ip: bpf.IP16(a), Port: bpf.BE16(vip.Port()), Proto: proto})}
	}
	return ID{VIP4, Bytes(bpf.Vip4Key{Ip: bpf.BE32(vip.Addr()), Port: bpf.BE16(vip.Port()), Proto: proto})}
}

// ServedAt is the inverse of ServiceID.
func ServedAt(id ID) (vip netip.AddrPort, proto uint8) {
	if id.Map == VIP6 {
		k := As[bpf.Vip6Key](id.Key)
		return netip.AddrPortFrom(k.Ip.Addr(), bpf.BE16(k.Port)), k.Proto
	}
	k := As[bpf.Vip4Key](id.Key)
	return netip.AddrPortFrom(bpf.AddrBE32(k.Ip), bpf.BE16(k.Port)), k.Proto
}

// VIPID names the entry that says of an address that it is a VIP.
func VIPID(vip netip.Addr) ID {
	if vip.Is6() {
		return ID{VIPAddr6, Bytes(bpf.IP16(vip))}
	}
	return ID{VIPAddr4, Bytes(bpf.BE32(vip))}
}

// VIPOf is the inverse of VIPID.
func VIPOf(id ID) netip.Addr {
	if id.Map == VIPAddr6 {
		return As[bpf.Ip16](id.Key).Addr()
	}
	return bpf.AddrBE32(u32(id.Key))
}

// Served are the entries that ServiceID names, of both families.
func (im *Image) Served() iter.Seq[Entry] { return im.both(VIP4, VIP6) }

// VIPs are the entries that VIPID names, of both families.
func (im *Image) VIPs() iter.Seq[Entry] { return im.both(VIPAddr4, VIPAddr6) }

func (im *Image) both(a, b Map) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for _, m := range []Map{a, b} {
			for e := range im.Entries(m) {
				if !yield(e) {
					return
				}
			}
		}
	}
}
