// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"cairn/test/model/frame"
)

// edit is a copy of a frame under change. Checksums follow what is written by
// the difference (RFC 1624), so that a wrong one stays wrong by as much.
type edit struct {
	x Headers
	b []byte
}

func (x Headers) edit(b []byte) edit { return edit{x, slices.Clone(b)} }

func (e edit) macs(from, to frame.MAC) edit {
	copy(e.b, to[:])
	copy(e.b[6:], from[:])
	return e
}

// hop takes one from the hops left.
func (e edit) hop() edit {
	if e.x.isV6() {
		e.b[e.x.L3+7]--
		return e
	}
	word := []byte{e.b[e.x.L3+8] - 1, e.b[e.x.L3+9]}
	e.mend(e.x.L3+10, e.b[e.x.L3+8:], word, false)
	copy(e.b[e.x.L3+8:], word)
	return e
}

// source and destination address, and ports.
func (e edit) source(a netip.Addr) edit {
	if e.x.isV6() {
		return e.address(e.x.L3+8, a)
	}
	return e.address(e.x.L3+12, a)
}

func (e edit) destination(a netip.Addr) edit {
	if e.x.isV6() {
		return e.address(e.x.L3+24, a)
	}
	return e.address(e.x.L3+16, a)
}

func (e edit) sourcePort(port uint16) edit { return e.port(e.x.L4, port) }

func (e edit) destinationPort(port uint16) edit { return e.port(e.x.L4+2, port) }

func (e edit) address(at int, a netip.Addr) edit {
	is := a.AsSlice()
	was := slices.Clone(e.b[at : at+len(is)])
	copy(e.b[at:], is)
	if !e.x.isV6() {
		e.mend(e.x.L3+10, was, is, false)
	}
	e.mendL4(was, is)
	return e
}

func (e edit) port(at int, port uint16) edit {
	is := binary.BigEndian.AppendUint16(nil, port)
	was := slices.Clone(e.b[at : at+2])
	copy(e.b[at:], is)
	e.mendL4(was, is)
	return e
}

func (e edit) mendL4(was, is []byte) {
	if e.x.later() {
		return // the checksum was in the first one
	}
	switch e.x.Proto {
	case frame.TCP:
		e.mend(e.x.L4+16, was, is, false)
	case frame.UDP:
		e.mend(e.x.L4+6, was, is, true)
	}
}

// mend the checksum at a place for bytes that change. Optional is UDP's, where 0
// means that there is none (RFC 768).
func (e edit) mend(at int, was, is []byte, optional bool) {
	check := binary.BigEndian.Uint16(e.b[at:])
	if optional && check == 0 {
		return
	}
	sum := uint32(^check)
	for i := 0; i < len(is); i += 2 {
		sum += uint32(^binary.BigEndian.Uint16(was[i:])) + uint32(binary.BigEndian.Uint16(is[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	check = ^uint16(sum)
	if optional && check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(e.b[at:], check)
}
