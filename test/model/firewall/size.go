// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"encoding/binary"
	"net/netip"

	"cairn/test/model/frame"
)

// A packet that is larger than a port takes is not delivered, and not sent. Who
// sends what must not be cut in two is told how large it may be (RFC 1191, RFC
// 8201), as from the one that it was for.

func (x Headers) exceeds(p *Port) bool { return p.MTU > 0 && x.Length > p.MTU }

// mayBeTold: nobody is told about an error, nor about a later fragment, of which
// he would not know what it belongs to, nor about what went to many.
func (x Headers) mayBeTold() bool {
	switch {
	case x.later():
		return false
	case x.isV6():
		return !x.Dst.IsMulticast() && !(x.Proto == frame.ICMPv6 && x.Type < 128)
	}
	return x.DF && !in(x.Dst, "224.0.0.0/3") && !(x.Proto == frame.ICMP && x.Type != 8 && x.Type != 0)
}

// How much of a packet an answer quotes.
const quoted4, quoted6 = 68, 128

func (x Headers) tooBig(p *Port, b []byte) Verdict {
	if !x.mayBeTold() {
		return because(Oversize)
	}
	out := append(append([]byte{}, b[6:12]...), b[0:6]...)
	out = binary.BigEndian.AppendUint16(out, x.EtherType)
	if x.isV6() {
		m := message(tooBig6, 0, p.MTU, b[x.L3:x.L3+quoted6])
		h := append([]byte{0x60, 0, 0, 0, 0, byte(len(m)), frame.ICMPv6, 64}, addresses(x.Dst, x.Src)...)
		sum := frame.Sum(uint32(len(m))+frame.ICMPv6, h[8:])
		binary.BigEndian.PutUint16(m[2:], ^frame.Sum(uint32(sum), m))
		return Verdict{Reason: TooBigAnswered, Out: append(append(out, h...), m...)}
	}
	m := message(unreachable, fragmentationNeeded, p.MTU, b[x.L3:x.L3+quoted4])
	binary.BigEndian.PutUint16(m[2:], ^frame.Sum(0, m))
	h := append([]byte{0x45, 0, 0, byte(20 + len(m)), 0, 0, 0, 0, 64, frame.ICMP, 0, 0}, addresses(x.Dst, x.Src)...)
	binary.BigEndian.PutUint16(h[10:], ^frame.Sum(0, h))
	return Verdict{Reason: TooBigAnswered, Out: append(append(out, h...), m...)}
}

func message(kind, code byte, mtu int, quote []byte) []byte {
	return append([]byte{kind, code, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, quote...)
}

func addresses(from, to netip.Addr) []byte { return append(from.AsSlice(), to.AsSlice()...) }
