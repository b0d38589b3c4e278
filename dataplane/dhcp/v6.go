// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// duid names this server: the same one on every host, for every link.
func (l Link) duid() dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: slices.Clone(l.Gateway[:])}
}

func answer6(l Link, m message) ([]byte, error) {
	if !m.src.Is6() || !m.src.IsLinkLocalUnicast() {
		return nil, fmt.Errorf("DHCPv6 from %s, not a link-local address", m.src)
	}
	if len(l.Addresses6) == 0 {
		return nil, fmt.Errorf("%w: the port has no IPv6 address", ErrSilent)
	}
	question, err := dhcpv6.MessageFromBytes(m.payload)
	if err != nil {
		return nil, fmt.Errorf("read DHCPv6: %w", err)
	}
	if id := question.Options.ServerID(); id != nil && !id.Equal(l.duid()) {
		return nil, fmt.Errorf("%w: it asks another server", ErrSilent)
	}
	answer, err := reply6(l, question)
	if err != nil {
		return nil, err
	}
	return reply{
		srcMAC: l.Gateway, dstMAC: l.MAC, src: l.linkLocal(), dst: m.src,
		proto: protoUDP, srcPort: 547, dstPort: 546, hops: 64, payload: answer.ToBytes(),
	}.bytes(), nil
}

// reply6 makes the answer (RFC 8415, 18.3).
func reply6(l Link, q *dhcpv6.Message) (*dhcpv6.Message, error) {
	if q.Options.ClientID() == nil && q.Type() != dhcpv6.MessageTypeInformationRequest {
		return nil, errors.New("DHCPv6 without a client's identifier")
	}
	a := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: q.TransactionID}
	if id := q.GetOneOption(dhcpv6.OptionClientID); id != nil {
		a.AddOption(id)
	}
	a.AddOption(dhcpv6.OptServerID(l.duid()))
	switch kind := q.Type(); kind {
	case dhcpv6.MessageTypeSolicit:
		if q.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
			dhcpv6.WithRapidCommit(a)
		} else {
			a.MessageType = dhcpv6.MessageTypeAdvertise
		}
		lease6(l, q, a)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		lease6(l, q, a)
	case dhcpv6.MessageTypeConfirm:
		confirm6(l, q, a)
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		status6(a, iana.StatusSuccess, "the address stays the port's")
	case dhcpv6.MessageTypeInformationRequest:
	default:
		return nil, fmt.Errorf("DHCPv6 message of kind %s", kind)
	}
	if dns := only(netip.Addr.Is6, l.DNS); len(dns) > 0 {
		a.UpdateOption(dhcpv6.OptDNS(ips(dns)...))
	}
	if len(l.Search) > 0 {
		dhcpv6.WithDomainSearchList(l.Search...)(a)
	}
	return a, nil
}

// lease6 gives the port's addresses to the first association that asks; others
// get none.
func lease6(l Link, q, a *dhcpv6.Message) {
	for i, ia := range q.Options.IANA() {
		out := &dhcpv6.OptIANA{IaId: ia.IaId, T1: LeaseTime / 2, T2: LeaseTime * 7 / 8}
		if i > 0 {
			out.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail, StatusMessage: "one association a port"})
			a.AddOption(out)
			continue
		}
		for _, addr := range l.Addresses6 {
			out.Options.Add(address6(addr.AsSlice(), true))
		}
		for _, had := range ia.Options.Addresses() {
			if old, ok := netip.AddrFromSlice(had.IPv6Addr); ok && !slices.Contains(l.Addresses6, old) && !old.IsUnspecified() {
				out.Options.Add(address6(had.IPv6Addr, false)) // it is not the port's any more
			}
		}
		a.AddOption(out)
	}
}

func address6(ip net.IP, valid bool) *dhcpv6.OptIAAddress {
	o := &dhcpv6.OptIAAddress{IPv6Addr: ip}
	if valid {
		o.PreferredLifetime, o.ValidLifetime = LeaseTime, 2*LeaseTime
	}
	return o
}

func confirm6(l Link, q, a *dhcpv6.Message) {
	for _, ia := range q.Options.IANA() {
		for _, had := range ia.Options.Addresses() {
			if old, ok := netip.AddrFromSlice(had.IPv6Addr); !ok || !slices.Contains(l.Addresses6, old) {
				status6(a, iana.StatusNotOnLink, "not an address of this port")
				return
			}
		}
	}
	status6(a, iana.StatusSuccess, "")
}

func status6(a *dhcpv6.Message, code iana.StatusCode, text string) {
	a.AddOption(&dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: text})
}
