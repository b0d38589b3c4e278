// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"math"
	"net/netip"

	agentv1 "cairn/proto/agent/v1"
)

// decoding collects the first fault of a body, so that a decoder reads as the
// list of its fields.
type decoding struct{ err error }

func (d *decoding) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

func (d *decoding) id(field string, v uint32) uint32 {
	if v == 0 {
		d.fail("%s: 0 is no number", field)
	}
	return v
}

func (d *decoding) addr(field string, b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	if !ok || a.IsUnspecified() {
		d.fail("%s: %d bytes are no address", field, len(b))
	}
	return a
}

func (d *decoding) prefix(field string, b []byte, bits uint32) netip.Prefix {
	a, ok := netip.AddrFromSlice(b)
	if !ok || bits > uint32(a.BitLen()) {
		d.fail("%s: %d bytes / %d is no prefix", field, len(b), bits)
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, int(bits)) // host bits are the control plane's concern: it sends what the API was given
}

func (d *decoding) addrs(field string, list [][]byte) (addrs []netip.Addr) {
	for _, b := range list {
		addrs = append(addrs, d.addr(field, b))
	}
	return addrs
}

func (d *decoding) prefixes(field string, list []*agentv1.Prefix) (prefixes []netip.Prefix) {
	for _, p := range list {
		prefixes = append(prefixes, d.prefix(field, p.GetAddress(), p.GetBits()))
	}
	return prefixes
}

func (d *decoding) vni(field string, v uint32) uint32 {
	if v == 0 || v > MaxVNI {
		d.fail("%s: %d is no network", field, v)
	}
	return v
}

func (d *decoding) mac(field string, b []byte) (mac [6]byte) {
	if len(b) != len(mac) {
		d.fail("%s: %d bytes are no MAC", field, len(b))
		return mac
	}
	return [6]byte(b)
}

func (d *decoding) port(field string, v uint32, zero bool) uint16 {
	if v > math.MaxUint16 || (v == 0 && !zero) {
		d.fail("%s: %d is no port", field, v)
	}
	return uint16(v)
}

func (d *decoding) protocol(v uint32) uint8 {
	if v > math.MaxUint8 {
		d.fail("protocol: %d is no protocol", v)
	}
	return uint8(v)
}
