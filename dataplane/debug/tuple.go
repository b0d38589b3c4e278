// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"cairn/cloud/firewall"
)

// Tuple is a packet as a port has it: what its protocol calls a port is in Src
// and Dst, ICMP's type and code stand for themselves.
type Tuple struct {
	Protocol uint8          `json:"protocol"`
	Src      netip.AddrPort `json:"src"`
	Dst      netip.AddrPort `json:"dst"`
	Type     uint8          `json:"icmp_type,omitempty"`
	Code     uint8          `json:"icmp_code,omitempty"`
}

// TupleUsage is how people write one.
const TupleUsage = "tcp|udp SRC:PORT DST:PORT, icmp|icmpv6 TYPE[/CODE] SRC DST, or PROTOCOL SRC DST"

// ParseTuple reads the words of TupleUsage.
func ParseTuple(words []string) (t Tuple, err error) {
	if len(words) == 0 {
		return t, errors.New("a packet is written as " + TupleUsage)
	}
	if t.Protocol, err = firewall.ParseProtocol(words[0]); err != nil {
		return t, err
	}
	rest := words[1:]
	if firewall.IsICMP(t.Protocol) && len(rest) == 3 {
		if t.Type, t.Code, err = parseICMP(rest[0]); err != nil {
			return t, err
		}
		rest = rest[1:]
	}
	if len(rest) != 2 {
		return t, errors.New("a packet is written as " + TupleUsage)
	}
	if t.Src, err = parseEnd("SRC", rest[0], firewall.HasPorts(t.Protocol)); err != nil {
		return t, err
	}
	if t.Dst, err = parseEnd("DST", rest[1], firewall.HasPorts(t.Protocol)); err != nil {
		return t, err
	}
	if t.Src.Addr().Is4() != t.Dst.Addr().Is4() {
		return t, fmt.Errorf("SRC %s and DST %s are not of one family", t.Src.Addr(), t.Dst.Addr())
	}
	if t.Protocol == 1 && t.Src.Addr().Is6() {
		t.Protocol = 58
	}
	if t.Protocol == 58 && t.Src.Addr().Is4() {
		return t, fmt.Errorf("icmpv6 does not go from %s", t.Src.Addr())
	}
	return t, nil
}

func parseICMP(s string) (kind, code uint8, err error) {
	k, c, _ := strings.Cut(s+"/0", "/")
	c, _, _ = strings.Cut(c, "/")
	a, err := strconv.ParseUint(k, 10, 8)
	if err == nil {
		var b uint64
		b, err = strconv.ParseUint(c, 10, 8)
		code = uint8(b)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("TYPE/CODE %q: two numbers up to 255", s)
	}
	return uint8(a), code, nil
}

func parseEnd(field, s string, port bool) (netip.AddrPort, error) {
	if !port {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("%s %q: %w", field, s, err)
		}
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s %q: %w", field, s, err)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

// Words are the tuple as ParseTuple reads it.
func (t Tuple) Words() []string {
	words := []string{firewall.ProtocolName(t.Protocol)}
	if firewall.IsICMP(t.Protocol) {
		words = append(words, fmt.Sprintf("%d/%d", t.Type, t.Code))
	}
	if firewall.HasPorts(t.Protocol) {
		return append(words, t.Src.String(), t.Dst.String())
	}
	return append(words, t.Src.Addr().String(), t.Dst.Addr().String())
}

func (t Tuple) String() string {
	words := t.Words()
	return strings.Join(words[:len(words)-1], " ") + " > " + words[len(words)-1]
}

// Match is what a policy judges the packet's port by.
func (t Tuple) Match() uint16 {
	if firewall.IsICMP(t.Protocol) {
		return uint16(t.Type)<<8 | uint16(t.Code)
	}
	return t.Dst.Port()
}

// query and its reverse carry what is asked over the socket.
func (t Tuple) query() url.Values { return url.Values{"packet": t.Words()} }

func tupleOf(v url.Values) (Tuple, error) { return ParseTuple(v["packet"]) }
