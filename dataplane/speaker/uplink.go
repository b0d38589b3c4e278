// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"fmt"
	"net"
	"net/netip"
)

// Uplink is the device that faces a router, with the address that sessions
// start from and routes point to. Address6 is invalid if it has no global one.
type Uplink struct {
	Name     string
	Address  netip.Addr
	Address6 netip.Addr
}

// device is what choosing an uplink needs to know of one.
type device struct {
	name      string
	addresses []netip.Prefix
}

// FindUplink looks for the device with an address in the peer's subnet; name,
// if not empty, admits only that one.
func FindUplink(name string, peer netip.Addr) (Uplink, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return Uplink{}, fmt.Errorf("find the uplink: %w", err)
	}
	var devices []device
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			return Uplink{}, fmt.Errorf("find the uplink: read addresses of %s: %w", i.Name, err)
		}
		d := device{name: i.Name}
		for _, a := range addresses {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				d.addresses = append(d.addresses, p)
			}
		}
		devices = append(devices, d)
	}
	return facing(devices, name, peer)
}

func facing(devices []device, name string, peer netip.Addr) (Uplink, error) {
	for _, d := range devices {
		if name != "" && d.name != name {
			continue
		}
		u := Uplink{Name: d.name}
		for _, p := range d.addresses {
			switch {
			case p.Addr().Is4() && p.Masked().Contains(peer) && p.Addr() != peer:
				u.Address = p.Addr()
			case p.Addr().Is6() && !p.Addr().IsLinkLocalUnicast() && !u.Address6.IsValid():
				u.Address6 = p.Addr()
			}
		}
		if u.Address.IsValid() {
			return u, nil
		}
	}
	if name == "" {
		name = "any device"
	}
	return Uplink{}, fmt.Errorf("find the uplink: %s has no address in the subnet of peer %s", name, peer)
}
