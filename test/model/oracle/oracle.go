// SPDX-License-Identifier: Apache-2.0

// Package oracle asks somebody else: the rules of a port as a table of nftables,
// which the kernel's own connection tracking and filter judge by, in namespaces
// of the test's. What nftables can say, it has to say as the model does. Start
// at Table.
package oracle

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"cairn/test/model/firewall"
	"cairn/test/model/frame"
)

// Names of the filter's devices: towards the network, and towards the instance.
const (
	Network  = "network"
	Instance = "instance"
)

// MarkPort is the UDP port that the filter lets pass in any case.
const MarkPort = 65001

// Table is the port's rules in nftables' words, to be given to nft -f.
func Table(h *firewall.Host, p *firewall.Port) string {
	var b strings.Builder
	b.WriteString("flush ruleset\ntable inet oracle {\n chain forward {\n  type filter hook forward priority 0; policy drop;\n")
	fmt.Fprintf(&b, "  udp dport %d accept\n  ct state established accept\n", MarkPort)
	rules := h.Rules(p)
	if !slices.ContainsFunc(rules, func(r firewall.Rule) bool { return r.Egress }) {
		fmt.Fprintf(&b, "  iifname %s accept\n", Instance)
	}
	for _, r := range rules {
		for _, peer := range peers(h, r) {
			for _, line := range lines(r, peer) {
				b.WriteString("  " + line + " accept\n")
			}
		}
	}
	b.WriteString(" }\n}\n")
	return b.String()
}

func peers(h *firewall.Host, r firewall.Rule) []netip.Prefix {
	if r.PeerGroup == 0 {
		return []netip.Prefix{r.Peer}
	}
	var out []netip.Prefix
	g := h.Group(r.PeerGroup)
	for a := range g.Members {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	for s := range g.Sources {
		out = append(out, s)
	}
	return out
}

func lines(r firewall.Rule, peer netip.Prefix) []string {
	family, icmp := "ip", "icmp"
	if peer.Addr().Is6() {
		family, icmp = "ip6", "icmpv6"
	}
	match := fmt.Sprintf("iifname %s %s saddr %s", Network, family, peer.Masked())
	if r.Egress {
		match = fmt.Sprintf("iifname %s %s daddr %s", Instance, family, peer.Masked())
	}
	switch r.Protocol {
	case 0:
		return []string{match}
	case frame.TCP:
		return []string{fmt.Sprintf("%s tcp dport %d-%d", match, r.From, r.To)}
	case frame.UDP:
		return []string{fmt.Sprintf("%s udp dport %d-%d", match, r.From, r.To)}
	case frame.ICMP, frame.ICMPv6:
		if (r.Protocol == frame.ICMPv6) != peer.Addr().Is6() {
			return nil
		}
		match += fmt.Sprintf(" meta l4proto %d", r.Protocol)
		if r.Type >= 0 {
			match += fmt.Sprintf(" %s type %d", icmp, r.Type)
			if r.Code >= 0 {
				match += fmt.Sprintf(" %s code %d", icmp, r.Code)
			}
		}
		return []string{match}
	}
	return []string{fmt.Sprintf("%s meta l4proto %d", match, r.Protocol)}
}
