// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"

	"cairn/test/model/frame"
)

// What neighbours on one link say to one another. A public port has none but its
// gateway, which answers itself, and the agent, which is the DHCP server.

// Types of ICMPv6 that are of the link (RFC 4861).
const (
	routerSolicitation  = 133
	routerAdvertisement = 134
	redirect            = 137
)

func (x Headers) isND() bool {
	return x.Proto == frame.ICMPv6 && x.isV6() && !x.later() && x.Type >= routerSolicitation && x.Type <= redirect
}

const (
	dhcpServer, dhcpClient = 67, 68
	dhcp6Server            = 547
)

func (x Headers) isDHCP() bool {
	switch {
	case x.Proto != frame.UDP || x.later():
		return false
	case x.isV6():
		return x.SrcPort == dhcp6Server || x.DstPort == dhcp6Server
	}
	return x.SrcPort == dhcpServer || x.SrcPort == dhcpClient && x.DstPort == dhcpServer
}

// speaksAs: on its link a port has any link-local address that it likes.
func speaksAs(p *Port, a netip.Addr) bool {
	return a.IsUnspecified() || a.Is6() && a.IsLinkLocalUnicast() || owns(p, a)
}

func (h *Host) fromDHCP(p *Port, x Headers) Reason {
	switch {
	case x.SrcPort == dhcpServer && !x.isV6():
		return RogueDHCP
	case x.SrcPort == dhcp6Server && x.isV6():
		return RogueDHCP6
	case x.isV6() && !speaksAs(p, x.Src), !x.isV6() && !x.Src.IsUnspecified() && !owns(p, x.Src):
		return SpoofedIP
	case x.Piece != nil:
		return NotAllowed
	}
	return Punted
}

// fromND leaves what a solicitation is answered with to others.
func (h *Host) fromND(p *Port, x Headers) Reason {
	switch {
	case x.Type == routerAdvertisement:
		return RogueRA
	case x.Type == redirect, x.TTL != 255, x.Code != 0, x.Piece != nil, x.L4 != x.L3+40, !speaksAs(p, x.Src):
		return SpoofedND
	case x.Type == routerSolicitation:
		return Punted
	}
	return NDIgnored
}
