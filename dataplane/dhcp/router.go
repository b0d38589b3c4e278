// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/ndp"
)

// routerLifetime is how long a guest takes us for its router without hearing
// again; AdvertisePeriod is how often it hears.
const (
	routerLifetime  = 30 * time.Minute
	AdvertisePeriod = 5 * time.Minute
)

var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = [6]byte{0x33, 0x33, 0, 0, 0, 1}
)

func answerSolicitation(l Link, m message) ([]byte, error) {
	if len(m.payload) < 8 || m.payload[0] != 133 || m.payload[1] != 0 || m.hops != 255 {
		return nil, errors.New("not a router solicitation")
	}
	to := m.src
	if to.IsUnspecified() {
		to = allNodes
	}
	return advertise(l, to)
}

// Advertisement is what all nodes of a link hear from time to time, though there
// is but one.
func Advertisement(l Link) ([]byte, error) { return advertise(l, allNodes) }

// advertise says what the link is: addresses come by DHCPv6 and none are made by
// the guest itself; the prefix of a private network is on the link, that of a
// public port is not.
func advertise(l Link, to netip.Addr) ([]byte, error) {
	leased := len(l.Addresses6) > 0
	ra := &ndp.RouterAdvertisement{
		CurrentHopLimit: 64, ManagedConfiguration: leased, OtherConfiguration: leased,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: l.Gateway[:]}},
	}
	if l.Router6 && leased {
		ra.RouterLifetime = routerLifetime
	}
	if l.MTU >= 1280 {
		ra.Options = append(ra.Options, ndp.NewMTU(l.MTU))
	}
	if !l.Router6 && leased {
		prefix := netip.PrefixFrom(l.Addresses6[0], 64).Masked()
		ra.Options = append(ra.Options, &ndp.PrefixInformation{
			PrefixLength: 64, OnLink: true, ValidLifetime: 2 * LeaseTime, PreferredLifetime: LeaseTime, Prefix: prefix.Addr(),
		})
	}
	payload, err := ndp.MarshalMessageChecksum(ra, l.linkLocal(), to)
	if err != nil {
		return nil, fmt.Errorf("make a router advertisement: %w", err)
	}
	dst := l.MAC
	if to == allNodes {
		dst = allNodesMAC
	}
	return reply{
		srcMAC: l.Gateway, dstMAC: dst, src: l.linkLocal(), dst: to, proto: protoICMPv6, hops: 255, payload: payload,
	}.bytes(), nil
}
