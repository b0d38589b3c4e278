// SPDX-License-Identifier: Apache-2.0

// Package bpf owns the programs in the packet's way, the layout of the maps
// they share and the list of reasons why a packet leaves them. It loads and
// attaches nothing (package dataplane/host does) and decides nothing.
//
// Start reading at include/maps.h, which says who writes each map and how it
// is keyed, then uplink.bpf.c and port.bpf.c from the bottom up. The formats
// that stay are listed in 0001-formats.md.
package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// Specs are the objects, not yet in any kernel. All declare all shared
// maps.
type Specs struct {
	Uplink  *ebpf.CollectionSpec // programs uplink (XDP), uplink_in
	Port    *ebpf.CollectionSpec // programs vm_in, vm_guard, svc_in, ct_sweep
	Overlay *ebpf.CollectionSpec // program overlay_in
}

// LoadCollectionSpecs parses the embedded objects.
func LoadCollectionSpecs() (*Specs, error) {
	uplink, err := loadUplink()
	if err != nil {
		return nil, fmt.Errorf("parse the uplink object: %w", err)
	}
	port, err := loadPort()
	if err != nil {
		return nil, fmt.Errorf("parse the port object: %w", err)
	}
	overlay, err := loadOverlay()
	if err != nil {
		return nil, fmt.Errorf("parse the overlay object: %w", err)
	}
	return &Specs{Uplink: uplink, Port: port, Overlay: overlay}, nil
}

// Objects returns the bytes of the objects: what a digest is taken over.
func Objects() (uplink, port, overlay []byte) { return _UplinkBytes, _PortBytes, _OverlayBytes }

// IP16 is the address as maps hold it: IPv4 as ::ffff:a.b.c.d.
func IP16(a netip.Addr) Ip16 { return Ip16{B: a.As16()} }

// Addr is the inverse of IP16.
func (i Ip16) Addr() netip.Addr { return netip.AddrFrom16(i.B).Unmap() }

// BE16 is a port number as a field in wire order holds it. It is its own
// inverse.
func BE16(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// BE32 is an IPv4 address as a field in wire order holds it. It panics on an
// IPv6 address.
func BE32(a netip.Addr) uint32 {
	b := a.Unmap().As4()
	return binary.NativeEndian.Uint32(b[:])
}

// AddrBE32 is the inverse of BE32.
func AddrBE32(v uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

// VIPBit says which bit of which word of the map vip_bits stands for a VIP
// address; the twin of vip_hash4, vip_hash6 and vip_bit in include/nlb.h.
func VIPBit(vip netip.Addr) (word uint32, mask uint64) {
	b := vip.As16()
	var h uint32
	for i, k := range []uint32{0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x9E3779B1} {
		if i == 3 || vip.Is6() {
			h += binary.NativeEndian.Uint32(b[4*i:]) * k
		}
	}
	h >>= 32 - 17
	return h >> 6, 1 << (h & 63)
}

// Slot packs a slot's two owners the way the map slots holds them.
func Slot(cur, prev uint32) uint64 { return uint64(prev)<<32 | uint64(cur) }

// PrefixBits is the prefix length of p in a key that holds an ip16, counting
// before bits that precede the address in the key (0 in PrefixKey, 32 in
// CidrKey).
func PrefixBits(p netip.Prefix, before uint32) uint32 {
	if p.Addr().Is4() {
		return before + 96 + uint32(p.Bits())
	}
	return before + uint32(p.Bits())
}
