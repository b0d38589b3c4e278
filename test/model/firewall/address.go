// SPDX-License-Identifier: Apache-2.0

package firewall

import "net/netip"

func in(addr netip.Addr, prefixes ...string) bool {
	for _, p := range prefixes {
		if netip.MustParsePrefix(p).Contains(addr) {
			return true
		}
	}
	return false
}

// isHosts tells whether an address is one that only the host's own services
// have: whoever else uses it as a source is lying.
func isHosts(addr netip.Addr) bool {
	return in(addr, "169.254.0.0/16", "198.18.0.0/15", "fe80::/10")
}

// isSpecial tells whether no packet of a port may go there: this network,
// loopback, the host's services, multicast, reserved; and the same of IPv6.
func isSpecial(addr netip.Addr) bool {
	return isHosts(addr) || in(addr, "0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/96", "ff00::/8")
}
