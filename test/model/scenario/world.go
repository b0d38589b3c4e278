// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"net/netip"
	"time"

	"cairn/test/model/firewall"
	"cairn/test/model/frame"
)

// The world: this host has ports 5 and 6, each with an address of either
// family. Services 7 (TCP) and 8 (UDP) lead from 203.0.113.1:80 to port 8080 of
// the instances.
var (
	UplinkMAC  = frame.MAC{0x02, 0xaa, 0, 0, 0, 1}
	RouterMAC  = frame.MAC{0x02, 0xbb, 0, 0, 0, 1}
	GatewayMAC = frame.MAC{0x02, 0xcb, 0, 0, 0, 1}
	DoorMAC    = frame.MAC{0x02, 0xdd, 0, 0, 0, 1}

	Metadata = netip.MustParseAddr("169.254.169.254")
	Probe    = netip.MustParseAddr("169.254.169.253")
	Endpoint = netip.MustParseAddr("10.64.0.1")
	VIP      = netip.MustParseAddrPort("203.0.113.1:80")
)

// Ports of the world.
var Ports = []firewall.PortID{5, 6}

// Services of the world.
const (
	TCPService firewall.ServiceID = 7
	UDPService firewall.ServiceID = 8

	TargetPort = 8080
)

// MTU of a port.
const MTU = 1500

// Idle is how long an established TCP flow of port 6 may be silent.
const Idle = 2 * time.Minute

// PortMAC is the address of an instance's device.
func PortMAC(id firewall.PortID) frame.MAC {
	return frame.MAC{0x02, 0xca, 0, 0, 0, byte(id)}
}

// Addresses of a port: 198.51.100.ID and 2001:db8:5::ID.
func Addresses(id firewall.PortID) []netip.Addr {
	v6 := netip.MustParseAddr("2001:db8:5::").As16()
	v6[15] = byte(id)
	return []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, byte(id)}), netip.AddrFrom16(v6)}
}

// Identity is the address that a port asks the metadata service from.
func Identity(id firewall.PortID) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, 0, byte(id)})
}

// Ranges of a port. Port 6 has a part of port 5's.
func Ranges(id firewall.PortID) []netip.Prefix {
	if id == Ports[0] {
		return []netip.Prefix{netip.MustParsePrefix("198.51.101.16/28"), netip.MustParsePrefix("2001:db8:6:5::/96")}
	}
	return []netip.Prefix{netip.MustParsePrefix("198.51.101.24/30"), netip.MustParsePrefix("2001:db8:6:5::8000:0/97")}
}

// Facts of the world.
func Facts() firewall.Facts {
	return firewall.Facts{
		Own:    []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16"), netip.MustParsePrefix("2001:db8:64::/48")},
		Served: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/23"), netip.MustParsePrefix("2001:db8:5::/64"), netip.MustParsePrefix("2001:db8:6::/48")},
		Probe:  Probe, Metadata: Metadata, Uplink: UplinkMAC, Gateway: GatewayMAC, Door: DoorMAC,
		Services: map[firewall.ServiceID]firewall.Service{
			TCPService: {Proto: frame.TCP, VIP: VIP},
			UDPService: {Proto: frame.UDP, VIP: VIP},
		},
	}
}

// NewModel is the host of the world: its ports are in no group yet.
func NewModel() *firewall.Host {
	h := firewall.NewHost(Facts())
	for _, id := range Ports {
		h.Ports[id] = &firewall.Port{Addresses: Addresses(id), Ranges: Ranges(id), MAC: PortMAC(id), MTU: MTU, Generation: 1}
	}
	h.Ports[Ports[1]].Idle = Idle
	return h
}

// Apply a change to the model.
func Apply(h *firewall.Host, c Change) {
	var group firewall.GroupID
	if len(c.Groups) > 0 {
		group = c.Groups[0]
	}
	switch c.Verb {
	case Groups:
		h.SetGroups(c.Port, c.Groups...)
	case Add:
		h.AddRule(group, c.Rule)
	case Remove:
		h.RemoveRule(c.Rule.ID)
	case Join, Leave:
		h.SetMember(group, c.Addr, c.Verb == Join)
	case Source, Forget:
		h.SetSource(group, c.Prefix, c.Verb == Source)
	case Strict:
		h.Ports[c.Port].Strict = true
	case Mail, NoMail:
		h.SetMail(c.Port, c.Verb == Mail)
	}
}

// Judge puts a frame to the model.
func Judge(h *firewall.Host, s Send, choose firewall.Chooser) Outcome {
	var v firewall.Verdict
	switch b := s.Frame(); s.Hook {
	case VM:
		v = h.FromVM(s.Port, b, choose)
	case Uplink:
		v = h.FromUplink(b, s.Service, choose)
	case Door:
		v = h.FromDoor(b, choose)
	}
	return Outcome{v.Reason, v.Rule, v.Out}
}
