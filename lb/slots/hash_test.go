// SPDX-License-Identifier: Apache-2.0

package slots_test

import (
	"math"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"cairn/lb/slots"
)

// Another transcription of the same hash, written as the recipe is: a state of
// three words and a table of rotations, over bytes as they are on the wire.
func reference(seed uint32, src, dst []byte, sport, dport uint16, proto uint8, sourceOnly bool) uint32 {
	wire := append(append([]byte(nil), src...), dst...)
	if sourceOnly {
		wire = append(wire, 0, 0, 0, 0)
	} else {
		wire = append(wire, byte(sport>>8), byte(sport), byte(dport>>8), byte(dport))
	}
	var s [3]uint32
	for i := range s {
		s[i] = 0xdeadbeef + uint32(len(wire)) + (seed ^ uint32(proto))
	}
	rot := func(x uint32, k int) uint32 { return x<<k | x>>(32-k) }
	add := func() {
		for i := range s {
			s[i] += uint32(wire[0]) | uint32(wire[1])<<8 | uint32(wire[2])<<16 | uint32(wire[3])<<24
			wire = wire[4:]
		}
	}
	for len(wire) > 12 {
		add()
		for i, k := range []int{4, 6, 8, 16, 19, 4} { // x -= z; x ^= rot(z, k); z += y
			x, y, z := &s[i%3], &s[(i+1)%3], &s[(i+2)%3]
			*x -= *z
			*x ^= rot(*z, k)
			*z += *y
		}
	}
	add()
	for i, k := range []int{14, 11, 25, 16, 4, 14, 24} { // x ^= y; x -= rot(y, k)
		x, y := &s[(i+2)%3], &s[(i+1)%3]
		*x ^= *y
		*x -= rot(*y, k)
	}
	return s[2]
}

func TestHashVectors(t *testing.T) {
	v4 := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	cases := []struct {
		seed         uint32
		src, dst     netip.Addr
		sport, dport uint16
		proto        uint8
		sourceOnly   bool
		want         uint32
	}{
		{0, v4("192.0.2.1"), v4("203.0.113.1"), 40000, 80, 6, false, 0x118ccbe3},
		{0, v4("192.0.2.1"), v4("203.0.113.1"), 40000, 80, 6, true, 0x23030b04},
		{0x12345678, v4("192.0.2.1"), v4("203.0.113.1"), 40001, 80, 6, false, 0x40631eb5},
		{0x12345678, v4("192.0.2.1"), v4("203.0.113.1"), 40001, 80, 17, false, 0xd3675ade},
		{0xffffffff, v4("192.0.2.254"), v4("203.0.113.9"), 1, 65535, 17, false, 0x579aaa37},
		{0x12345678, v4("2001:db8::1"), v4("2001:db8:ffff::2"), 40000, 443, 6, false, 0xf70e8fca},
		{0x12345678, v4("2001:db8::1"), v4("2001:db8:ffff::2"), 40000, 443, 6, true, 0x331672a1},
	}
	for i, c := range cases {
		got := slots.Hash(c.seed, c.src, c.dst, c.sport, c.dport, c.proto, c.sourceOnly)
		if got != c.want {
			t.Errorf("vector %d: %#08x, want %#08x", i, got, c.want)
		}
		if ref := reference(c.seed, c.src.AsSlice(), c.dst.AsSlice(), c.sport, c.dport, c.proto, c.sourceOnly); ref != c.want {
			t.Errorf("vector %d by the other transcription: %#08x, want %#08x", i, ref, c.want)
		}
	}
}

func TestHashAgreesWithTheOtherTranscription(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{4, 16}).Draw(t, "address length")
		src := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "src")
		dst := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "dst")
		seed, sport, dport := rapid.Uint32().Draw(t, "seed"), rapid.Uint16().Draw(t, "sport"), rapid.Uint16().Draw(t, "dport")
		proto, sourceOnly := rapid.Uint8().Draw(t, "proto"), rapid.Bool().Draw(t, "source only")
		s, _ := netip.AddrFromSlice(src)
		d, _ := netip.AddrFromSlice(dst)
		if s.Is4In6() || d.Is4In6() {
			return
		}
		got := slots.Hash(seed, s, d, sport, dport, proto, sourceOnly)
		if want := reference(seed, src, dst, sport, dport, proto, sourceOnly); got != want {
			t.Fatalf("%#x, want %#x", got, want)
		}
		if n == 4 {
			mapped := netip.AddrFrom16(s.As16())
			if slots.Hash(seed, mapped, d, sport, dport, proto, sourceOnly) != got {
				t.Fatal("an IPv4 address is another one when it is written as IPv6")
			}
		}
	})
}

// 65,536 flows of one client over 256 slots: chi-square of the counts stays
// within six standard deviations of its mean.
func TestHashSpreads(t *testing.T) {
	src, dst := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("203.0.113.1")
	var counts [256]int
	for port := range 65536 {
		counts[slots.Hash(7, src, dst, uint16(port), 80, 6, false)&255]++
	}
	chi := 0.0
	for _, c := range counts {
		chi += math.Pow(float64(c)-256, 2) / 256
	}
	if limit := 255 + 6*math.Sqrt(2*255); chi > limit {
		t.Errorf("chi-square %.0f, want at most %.0f", chi, limit)
	}
	if slots.Hash(7, src, dst, 1, 80, 6, true) != slots.Hash(7, src, dst, 2, 81, 6, true) {
		t.Error("source-hash looks at ports")
	}
}
