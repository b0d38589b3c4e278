// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// initial is the constant that the kernel's jhash starts from.
const initial = 0xdeadbeef

// Hash is the hash of a flow, as the program in the packet's way computes it:
// the kernel's jhash (Bob Jenkins' lookup3) over the words of source, destination
// and ports as they stand on the wire, each read as a little-endian u32, seeded
// with seed ^ proto. With sourceOnly (the strategy source-hash) the ports are
// taken for 0. The seed is secret and the service's own: who knows it can aim
// all flows at one backend.
func Hash(seed uint32, src, dst netip.Addr, sport, dport uint16, proto uint8, sourceOnly bool) uint32 {
	ports := word(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport))
	if sourceOnly {
		ports = 0
	}
	seed ^= uint32(proto)
	src, dst = src.Unmap(), dst.Unmap()
	if src.Is4() && dst.Is4() {
		s, d := src.As4(), dst.As4()
		return jhash([]uint32{word(s[:]), word(d[:]), ports}, seed)
	}
	var words []uint32
	for _, a := range []netip.Addr{src, dst} {
		b := a.As16()
		for i := 0; i < 16; i += 4 {
			words = append(words, word(b[i:]))
		}
	}
	return jhash(append(words, ports), seed)
}

func word(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

// jhash is jhash2 of the kernel; of three words it is jhash_3words.
func jhash(words []uint32, seed uint32) uint32 {
	a := initial + uint32(len(words))<<2 + seed
	b, c := a, a
	for ; len(words) > 3; words = words[3:] {
		a, b, c = mix(a+words[0], b+words[1], c+words[2])
	}
	var last [3]uint32
	if copy(last[:], words) == 0 {
		return c
	}
	return final(a+last[0], b+last[1], c+last[2])
}

func mix(a, b, c uint32) (uint32, uint32, uint32) {
	a = (a - c) ^ bits.RotateLeft32(c, 4)
	c += b
	b = (b - a) ^ bits.RotateLeft32(a, 6)
	a += c
	c = (c - b) ^ bits.RotateLeft32(b, 8)
	b += a
	a = (a - c) ^ bits.RotateLeft32(c, 16)
	c += b
	b = (b - a) ^ bits.RotateLeft32(a, 19)
	a += c
	c = (c - b) ^ bits.RotateLeft32(b, 4)
	b += a
	return a, b, c
}

func final(a, b, c uint32) uint32 {
	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	return (c ^ b) - bits.RotateLeft32(b, 24)
}
