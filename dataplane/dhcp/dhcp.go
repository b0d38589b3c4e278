// SPDX-License-Identifier: Apache-2.0

// Package dhcp answers what guests ask on their link: DHCP, DHCPv6 and router
// solicitations. What a port may be told stands in the tables, so an answer is a
// function of a Link and a frame; a lease has no state here and is always the
// port's own address. It never decides who has which address. Start at Answer;
// the thin loop that reads the programs' ring and sends is Server.
package dhcp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"cairn/cloud/wire"
	"cairn/dataplane/port"
	"cairn/dataplane/table"
	"cairn/dataplane/vnet"
)

// LeaseTime is how long an address is leased. A guest asks again after half of
// it: that is how soon it learns of other options.
const LeaseTime = time.Hour

var (
	// Gateway is every public port's, answered by its program.
	Gateway = netip.MustParseAddr("169.254.0.1")

	defaultRoute = netip.MustParsePrefix("0.0.0.0/0")
)

// Link is what a guest is told of one of its interfaces.
type Link struct {
	Port    uint32
	MAC     [6]byte // the guest's
	Gateway [6]byte // ours
	MTU     uint32
	Name    string // of the instance

	Address netip.Prefix // the IPv4 lease; invalid: none
	Server  netip.Addr   // who leases it
	Routers []netip.Addr
	Routes  []Route // more than Routers say (RFC 3442)
	DNS     []netip.Addr
	NTP     []netip.Addr
	Search  []string

	Addresses6 []netip.Addr
	Router6    bool // we are the default router of IPv6
}

// Route to a prefix; Via is invalid for one that is on the link.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// LinkOf a port, as the tables want it; false for a port that nothing is leased
// to.
func LinkOf(view table.View, id uint32, dns []netip.Addr) (Link, bool) {
	p, ok := table.Get[wire.Port](view, fmt.Sprint(id))
	if !ok {
		return Link{}, false
	}
	l := Link{Port: p.ID, MAC: p.MAC, Gateway: port.GatewayMAC, MTU: p.MTU, DNS: dns}
	if i, ok := table.Get[wire.Instance](view, p.Instance); ok {
		l.Name = i.Name
	}
	var v4 netip.Addr
	for _, a := range p.Addresses {
		switch {
		case a.Is4() && !v4.IsValid():
			v4 = a
		case a.Is6():
			l.Addresses6 = append(l.Addresses6, a)
		}
	}
	if p.Network == 0 {
		l.public(v4)
		return l, true
	}
	n, ok := table.Get[wire.Network](view, fmt.Sprint(p.Network))
	if !ok || n.Lease == nil {
		return Link{}, false
	}
	l.private(v4, n.Lease)
	return l, true
}

// public: the address stands alone, all else is behind the gateway, which lies
// on no prefix of the guest's.
func (l *Link) public(v4 netip.Addr) {
	l.Server, l.Router6 = Gateway, true
	if v4.IsValid() {
		l.Address = netip.PrefixFrom(v4, 32)
		l.Routers = []netip.Addr{Gateway}
		l.Routes = []Route{{To: netip.PrefixFrom(Gateway, 32)}, {defaultRoute, Gateway}}
	}
}

func (l *Link) private(v4 netip.Addr, lease *wire.Lease) {
	l.Server, l.Routers, l.NTP, l.Search = lease.Server, lease.Routers, lease.NTPServers, lease.DomainSearch
	l.DNS = lease.DNSServers
	if !v4.IsValid() || !lease.Server.Is4() {
		return
	}
	l.Address = netip.PrefixFrom(v4, int(lease.Bits))
	// A client that takes these routes ignores the routers (RFC 3442).
	l.Routes = []Route{{netip.PrefixFrom(vnet.Metadata, 32), lease.Server}}
	for _, r := range lease.Routers {
		l.Routes = append(l.Routes, Route{defaultRoute, r})
	}
}

// linkLocal is our own IPv6 address on every link.
func (l Link) linkLocal() netip.Addr { return vnet.LinkLocal(l.Gateway) }

func only(family func(netip.Addr) bool, addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !family(a) })
}

// ErrSilent is for a message that gets no answer and is all right so.
var ErrSilent = errors.New("no answer is due")

// Answer gives the frame that answers a guest's, or why there is none.
func Answer(l Link, frame []byte) ([]byte, error) {
	m, err := parse(frame)
	if err != nil {
		return nil, err
	}
	if m.srcMAC != l.MAC {
		return nil, fmt.Errorf("from MAC %x, not the port's", m.srcMAC)
	}
	switch {
	case m.proto == protoUDP && m.dstPort == 67:
		return answer4(l, m)
	case m.proto == protoUDP && m.dstPort == 547:
		return answer6(l, m)
	case m.proto == protoICMPv6:
		return answerSolicitation(l, m)
	}
	return nil, fmt.Errorf("protocol %d to port %d is nothing for this server", m.proto, m.dstPort)
}
