// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"cairn/cloud/wire"
)

// Guest is a machine behind a port: a namespace with a device.
type Guest struct {
	Space   *Space
	Port    uint32
	MAC     net.HardwareAddr
	Address netip.Addr
}

// GuestDevice is what every guest calls its own.
const GuestDevice = "eth0"

// PortDevice is a port's on its hypervisor.
func PortDevice(port uint32) string { return fmt.Sprintf("cp%d", port) }

// PortMAC is what a port's machine has.
func PortMAC(port uint32) net.HardwareAddr {
	return net.HardwareAddr{2, 0xca, byte(port >> 24), byte(port >> 16), byte(port >> 8), byte(port)}
}

// Guest makes a machine and its device for a port that the items will name. With
// one address of a /32 it speaks by the gateway, as on the public network; else
// its prefix is on the link.
func (h *Hypervisor) Guest(port uint32, address netip.Prefix) (*Guest, error) {
	g := &Guest{Port: port, MAC: PortMAC(port), Address: address.Addr()}
	var err error
	if g.Space, err = h.rig.Space(); err != nil {
		return nil, err
	}
	err = Pair(End{Space: h.Space, Name: PortDevice(port)}, End{g.Space, GuestDevice, g.MAC, address}, 1500, 1)
	if err != nil || !address.IsSingleIP() {
		return g, err
	}
	return g, g.Space.Do(func() error {
		l, err := netlink.LinkByName(GuestDevice)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(169, 254, 0, 1), Flags: int(netlink.FLAG_ONLINK)})
	})
}

// Public is the guest's port on the public network.
func (g *Guest) Public(policy uint32) wire.Port {
	return wire.Port{ID: g.Port, Instance: fmt.Sprint(g.Port), MAC: [6]byte(g.MAC), Addresses: []netip.Addr{g.Address}, Policy: policy, MTU: 1500}
}

// Private is the guest's port in a private network.
func (g *Guest) Private(vni uint32, addresses ...netip.Addr) wire.Port {
	return wire.Port{ID: g.Port, Instance: fmt.Sprint(g.Port), MAC: [6]byte(g.MAC), Addresses: addresses, Network: vni, MTU: 1500}
}

// Neighbour is that port as all hosts of the network see it.
func (g *Guest) Neighbour(vni, host uint32, addresses ...netip.Addr) wire.Neighbour {
	return wire.Neighbour{VNI: vni, Port: g.Port, Host: host, MAC: [6]byte(g.MAC), Addresses: addresses, Name: fmt.Sprint(g.Port)}
}

// Any is a rule that admits a protocol from or to everybody; ports are those of
// TCP and UDP, both inclusive.
func Any(id uint32, direction wire.Direction, protocol uint8, from, to uint16) wire.Rule {
	return wire.Rule{
		ID: id, Direction: direction, Protocol: protocol, PortMin: from, PortMax: to, ICMPType: -1, ICMPCode: -1,
		Peer: netip.MustParsePrefix("0.0.0.0/0"),
	}
}
