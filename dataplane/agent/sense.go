// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cairn/dataplane/port"
)

// Senses watch the kernel for what no control plane says: devices of ports, the
// uplink, the way to other hosts and their MACs. Started once, in the agent's
// own network namespace.
type Senses struct {
	uplink int // its index
	log    *slog.Logger

	mu      sync.Mutex
	devices map[uint32]uint32 // port → interface index
	names   map[int]uint32    // interface index → port
	own     []netip.Prefix
	mtu     uint32
	down    bool
	via     map[netip.Addr]netip.Addr
	macs    map[netip.Addr][6]byte
	stale   bool // routes changed since via was asked

	kick chan struct{}
}

// NewSenses looks at everything once.
func NewSenses(uplink string, log *slog.Logger) (*Senses, error) {
	dev, err := netlink.LinkByName(uplink)
	if err != nil {
		return nil, fmt.Errorf("find uplink %s: %w", uplink, err)
	}
	s := &Senses{
		uplink: dev.Attrs().Index, log: log, kick: make(chan struct{}, 1),
		via: map[netip.Addr]netip.Addr{}, macs: map[netip.Addr][6]byte{},
	}
	return s, s.look()
}

// Wake has a value whenever something changed.
func (s *Senses) Wake() <-chan struct{} { return s.kick }

func (s *Senses) changed() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// look at all links, addresses and neighbours.
func (s *Senses) look() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	own, err := ownPrefixes()
	if err != nil {
		return err
	}
	neighbours, err := netlink.NeighList(s.uplink, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.devices, s.names, s.own, s.stale = map[uint32]uint32{}, map[int]uint32{}, own, true
	for _, l := range links {
		s.link(l.Attrs(), false)
	}
	for _, n := range neighbours {
		s.neighbour(n, false)
	}
	return nil
}

// Run follows the kernel's messages until ctx ends. When it lost some, it looks
// at everything again.
func (s *Senses) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := s.follow(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("netlink messages lost, looking again", "error", err)
			if err := s.look(); err != nil {
				s.log.Error("look at the host", "error", err)
			}
			s.changed()
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

func (s *Senses) follow(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	failed := make(chan error, 8)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	links, neighs := make(chan netlink.LinkUpdate, 256), make(chan netlink.NeighUpdate, 256)
	routes, addrs := make(chan netlink.RouteUpdate, 256), make(chan netlink.AddrUpdate, 256)
	if err := errors.Join(
		netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: fail}),
		netlink.NeighSubscribeWithOptions(neighs, done, netlink.NeighSubscribeOptions{ErrorCallback: fail}),
		netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: fail}),
		netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: fail}),
	); err != nil {
		return err
	}
	if err := s.look(); err != nil { // what happened before the subscription
		return err
	}
	s.changed()
	for {
		var ok bool
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case u, open := <-links:
			if ok = open; ok {
				s.mu.Lock()
				s.link(u.Attrs(), u.Header.Type == unix.RTM_DELLINK)
				s.mu.Unlock()
			}
		case u, open := <-neighs:
			if ok = open; ok {
				s.mu.Lock()
				s.neighbour(u.Neigh, u.Type == unix.RTM_DELNEIGH)
				s.mu.Unlock()
			}
		case _, ok = <-routes:
			s.mu.Lock()
			s.stale = true
			s.mu.Unlock()
		case _, ok = <-addrs:
			if err := s.addresses(); err != nil {
				return err
			}
		}
		if !ok {
			return errors.New("the kernel closed a subscription")
		}
		s.changed()
	}
}

// link notes a device. Called with the lock held.
func (s *Senses) link(a *netlink.LinkAttrs, gone bool) {
	if a.Index == s.uplink {
		s.mtu = uint32(a.MTU)
		s.down = gone || a.Flags&net.FlagUp == 0 || a.RawFlags&unix.IFF_LOWER_UP == 0
		return
	}
	if old, ok := s.names[a.Index]; ok {
		delete(s.names, a.Index)
		if s.devices[old] == uint32(a.Index) {
			delete(s.devices, old)
		}
	}
	if id, ok := port.Device(a.Name); ok && !gone {
		s.devices[id], s.names[a.Index] = uint32(a.Index), id
	}
}

// neighbour notes the MAC of a neighbour on the uplink. A MAC that is being
// asked for again holds until another is known. Called with the lock held.
func (s *Senses) neighbour(n netlink.Neigh, gone bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	if n.LinkIndex != s.uplink || !ok || !a.Unmap().Is4() || gone || len(n.HardwareAddr) != 6 ||
		n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE|netlink.NUD_NOARP) != 0 {
		return
	}
	s.macs[a.Unmap()] = [6]byte(n.HardwareAddr)
}

func (s *Senses) addresses() error {
	own, err := ownPrefixes()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own = own
	return nil
}

// ownPrefixes are the networks of this host's own addresses: no port may reach
// them.
func ownPrefixes() ([]netip.Prefix, error) {
	addrs, err := netlink.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var own []netip.Prefix
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		if bits, _ := a.Mask.Size(); ok && !ip.IsLoopback() && !(ip.Is6() && ip.IsLinkLocalUnicast()) {
			own = append(own, netip.PrefixFrom(ip, bits).Masked())
		}
	}
	slices.SortFunc(own, netip.Prefix.Compare)
	return slices.Compact(own), nil
}

// Uplink tells its MTU and whether its carrier is gone.
func (s *Senses) Uplink() (mtu uint32, down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mtu, s.down
}

// Facts as they are now, with the ways to the endpoints. While the uplink is
// down its routes are gone too: the last ways known are kept.
func (s *Senses) Facts(endpoints []netip.Addr) Facts {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range endpoints {
		if _, known := s.via[e]; known && (!s.stale || s.down) {
			continue
		}
		if via, ok := s.route(e); ok {
			s.via[e] = via
			s.keep(via)
		}
	}
	if !s.down {
		s.stale = false
	}
	f := Facts{}
	f.Balancer.MTU = s.mtu
	f.Balancer.Via = map[netip.Addr]netip.Addr{}
	for _, e := range endpoints {
		if via, ok := s.via[e]; ok {
			f.Balancer.Via[e] = via
		}
	}
	f.Balancer.MAC = maps.Clone(s.macs)
	f.Ports.Devices = maps.Clone(s.devices)
	f.Ports.Own = s.own
	f.Ports.Underlay = s.mtu
	return f
}

// route asks the kernel for the next hop towards an endpoint.
func (s *Senses) route(endpoint netip.Addr) (netip.Addr, bool) {
	routes, err := netlink.RouteGet(endpoint.AsSlice())
	if err != nil || len(routes) == 0 || routes[0].LinkIndex != s.uplink {
		return netip.Addr{}, false
	}
	if via, ok := netip.AddrFromSlice(routes[0].Gw.To4()); ok {
		return via, true
	}
	return endpoint, true
}

// keep has the kernel keep a next hop's MAC fresh: what XDP sends never does.
// On a kernel before 5.16 it is asked for once.
func (s *Senses) keep(via netip.Addr) {
	n := &netlink.Neigh{
		LinkIndex: s.uplink, Family: unix.AF_INET, IP: via.AsSlice(),
		State: netlink.NUD_NONE, Flags: netlink.NTF_USE, FlagsExt: netlink.NTF_EXT_MANAGED,
	}
	err := netlink.NeighSet(n)
	if err != nil {
		n.FlagsExt = 0
		err = netlink.NeighSet(n)
	}
	if err != nil {
		s.log.Warn("keep the next hop's MAC", "via", via, "error", err)
	}
}
