// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"fmt"
	"net"
)

// Tunnel is what a load-balanced packet wears between hosts.
type Tunnel struct {
	SrcMAC, DstMAC string
	Src, Dst       string // tunnel endpoints
	Port           uint16 // UDP source
	VNI            uint32
	Backend        string // inner destination MAC
	Tag            Tag
}

// Tag is what the inner source MAC says.
type Tag struct {
	Generation uint8 // the lower 6 bits of the slot table's
	Hop        uint8
	Other      uint32 // backend id of the slot's other owner
}

// MAC is the tag as an Ethernet address.
func (t Tag) MAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 2, 6)
	mac[0], mac[1] = 0x0a, t.Generation<<2|t.Hop&3
	return binary.BigEndian.AppendUint32(mac, t.Other)
}

// Wrap encapsulates a packet; its own Ethernet header is replaced by the inner
// one.
func (t Tunnel) Wrap(p Packet) []byte {
	return t.wrap(append(Ethernet(MAC(t.Backend), t.Tag.MAC(), p.etherType), p.IP()...))
}

// TypeReach is the Ethernet type of the question whether a host is reached.
const TypeReach = 0x88b5

// WrapReach encapsulates a question (op 1) or an answer (op 2), filled up to
// size bytes.
func (t Tunnel) WrapReach(op uint8, sent uint64, size int) []byte {
	return t.wrap(Reach(op, sent, size))
}

// Reach is the inner frame of a question or an answer.
func Reach(op uint8, sent uint64, size int) []byte {
	b := Ethernet(make(net.HardwareAddr, 6), make(net.HardwareAddr, 6), TypeReach)
	b = append(b, op, 0, 0, 0, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint64(b, sent)
	return append(b, make([]byte, max(0, size-len(b)))...)
}

// VXLAN is a header.
func VXLAN(vni uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, vni<<8)
}

func (t Tunnel) wrap(inner []byte) []byte {
	outer := UDP(fmt.Sprintf("%s:%d", t.Src, t.Port), t.Dst+":4789").
		MACs(t.SrcMAC, t.DstMAC).NoChecksum().Payload(append(VXLAN(t.VNI), inner...))
	outer.fragment = 0x4000
	return outer.Bytes()
}
