// SPDX-License-Identifier: Apache-2.0

package firewall

import "net/netip"

// An instance that calls its own VIP and is chosen itself sees the client, which
// it is, at an address that nobody has, by family: no stack takes a packet from
// its own address.
var (
	hairpin4 = netip.MustParseAddr("169.254.169.252")
	hairpin6 = netip.MustParseAddr("fe80::a9fe:a9fc")
)

func hairpinOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return hairpin4
	}
	return hairpin6
}

func isHairpin(a netip.Addr) bool { return a == hairpin4 || a == hairpin6 }

// asked is the peer that rules are asked about.
func (t Tuple) asked() netip.Addr {
	if isHairpin(t.Peer) {
		return t.Own
	}
	return t.Peer
}
