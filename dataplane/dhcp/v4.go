// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

var (
	broadcast    = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	broadcastMAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

func answer4(l Link, m message) ([]byte, error) {
	if !l.Address.IsValid() || !l.Server.Is4() {
		return nil, fmt.Errorf("%w: the port has no IPv4 address", ErrSilent)
	}
	question, err := dhcpv4.FromBytes(m.payload)
	if err != nil {
		return nil, fmt.Errorf("read DHCP: %w", err)
	}
	if !bytes.Equal(question.ClientHWAddr, l.MAC[:]) {
		return nil, fmt.Errorf("DHCP for MAC %s, not the port's", question.ClientHWAddr)
	}
	if question.OpCode != dhcpv4.OpcodeBootRequest || !question.GatewayIPAddr.IsUnspecified() {
		return nil, errors.New("DHCP by way of a relay, or an answer")
	}
	kind, err := verdict4(l, question)
	if err != nil {
		return nil, err
	}
	answer, err := dhcpv4.NewReplyFromRequest(question,
		dhcpv4.WithMessageType(kind), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(l.Server.AsSlice())))
	if err != nil {
		return nil, fmt.Errorf("make DHCP answer: %w", err)
	}
	if kind != dhcpv4.MessageTypeNak {
		lease4(l, question, answer)
	}
	return send4(l, question, answer), nil
}

// verdict4 is what the answer to a question is. There is one address to lease,
// so all that a client may get wrong is which one (RFC 2131, 4.3.2).
func verdict4(l Link, q *dhcpv4.DHCPv4) (dhcpv4.MessageType, error) {
	switch kind := q.MessageType(); kind {
	case dhcpv4.MessageTypeDiscover:
		return dhcpv4.MessageTypeOffer, nil
	case dhcpv4.MessageTypeInform:
		return dhcpv4.MessageTypeAck, nil
	case dhcpv4.MessageTypeRequest:
		if id := q.ServerIdentifier(); id != nil && !id.Equal(l.Server.AsSlice()) {
			return 0, fmt.Errorf("%w: it takes the offer of %s", ErrSilent, id)
		}
		wanted := q.RequestedIPAddress()
		if wanted == nil {
			wanted = q.ClientIPAddr
		}
		if !wanted.Equal(l.Address.Addr().AsSlice()) {
			return dhcpv4.MessageTypeNak, nil
		}
		return dhcpv4.MessageTypeAck, nil
	case dhcpv4.MessageTypeRelease:
		return 0, ErrSilent
	case dhcpv4.MessageTypeDecline:
		return 0, fmt.Errorf("the guest finds %s in use", q.RequestedIPAddress())
	default:
		return 0, fmt.Errorf("DHCP message of kind %s", kind)
	}
}

// lease4 fills an OFFER or an ACK.
func lease4(l Link, q, a *dhcpv4.DHCPv4) {
	informed := q.MessageType() == dhcpv4.MessageTypeInform
	a.ServerIPAddr = l.Server.AsSlice()
	if informed {
		a.YourIPAddr = net.IPv4zero
	} else {
		a.YourIPAddr = l.Address.Addr().AsSlice()
		a.UpdateOption(dhcpv4.OptIPAddressLeaseTime(LeaseTime))
		a.UpdateOption(dhcpv4.OptRenewTimeValue(LeaseTime / 2))
		a.UpdateOption(dhcpv4.OptRebindingTimeValue(LeaseTime * 7 / 8))
	}
	a.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(l.Address.Bits(), 32)))
	for _, o := range options4(l) {
		if q.ParameterRequestList() == nil || q.IsOptionRequested(o.Code) {
			a.UpdateOption(o)
		}
	}
}

// A customer may call an instance anything; a host only so (RFC 1123, 2.1).
var hostName = regexp.MustCompile(`^[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?$`)

func options4(l Link) []dhcpv4.Option {
	var options []dhcpv4.Option
	if len(l.Routers) > 0 {
		options = append(options, dhcpv4.OptRouter(ips(l.Routers)...))
	}
	if len(l.Routes) > 0 {
		options = append(options, dhcpv4.OptClasslessStaticRoute(routes4(l.Routes)...))
	}
	if dns := only(netip.Addr.Is4, l.DNS); len(dns) > 0 {
		options = append(options, dhcpv4.OptDNS(ips(dns)...))
	}
	if ntp := only(netip.Addr.Is4, l.NTP); len(ntp) > 0 {
		options = append(options, dhcpv4.OptNTPServers(ips(ntp)...))
	}
	if len(l.Search) > 0 {
		options = append(options, dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: l.Search}))
	}
	if hostName.MatchString(l.Name) {
		options = append(options, dhcpv4.OptHostName(l.Name))
	}
	if l.MTU >= 68 { // RFC 2132, 5.1
		options = append(options, dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(l.MTU >> 8), byte(l.MTU)}))
	}
	return options
}

func ips(addrs []netip.Addr) []net.IP {
	var out []net.IP
	for _, a := range addrs {
		out = append(out, a.AsSlice())
	}
	return out
}

func routes4(routes []Route) []*dhcpv4.Route {
	var out []*dhcpv4.Route
	for _, r := range routes {
		via := net.IPv4zero
		if r.Via.IsValid() {
			via = r.Via.AsSlice()
		}
		to := &net.IPNet{IP: r.To.Addr().AsSlice(), Mask: net.CIDRMask(r.To.Bits(), 32)}
		out = append(out, &dhcpv4.Route{Dest: to, Router: via})
	}
	return out
}

// send4 addresses an answer (RFC 2131, 4.1).
func send4(l Link, q, a *dhcpv4.DHCPv4) []byte {
	r := reply{
		srcMAC: l.Gateway, dstMAC: l.MAC, src: l.Server, dst: l.Address.Addr(),
		proto: protoUDP, srcPort: 67, dstPort: 68, hops: 64, payload: a.ToBytes(),
	}
	switch from, _ := netip.AddrFromSlice(q.ClientIPAddr.To4()); {
	case a.MessageType() == dhcpv4.MessageTypeNak, from.IsUnspecified() && q.IsBroadcast():
		r.dst, r.dstMAC = broadcast, broadcastMAC
	case from.IsValid() && !from.IsUnspecified():
		r.dst = from
	}
	return r.bytes()
}
