// SPDX-License-Identifier: Apache-2.0

// Package guest is what a workload of the driver netns does in place of an
// operating system: it asks for the addresses of those of its links that carry
// the alias "lease", and keeps them. It runs inside the machine and knows nothing
// but what it is told there. Start at Run; client.go is the talk with the server.
package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// leaseAlias marks a link whose address is leased.
const leaseAlias = "lease"

// look is how often it looks for links, should the kernel's word get lost, and
// whether one is gone.
const look = 5 * time.Second

// Run keeps the leases of all links until ctx ends.
func Run(ctx context.Context, log *slog.Logger) {
	changes, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(changes, done); err != nil {
		log.Warn("links are looked for by the clock", "error", err)
		changes = nil
	}
	k := keeper{log: log, busy: map[int]bool{}}
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for {
		k.look(ctx)
		select {
		case <-ctx.Done():
			return
		case _, open := <-changes:
			if !open {
				changes = nil
			}
		case <-ticker.C:
		}
	}
}

// keeper knows the links that are taken care of.
type keeper struct {
	log *slog.Logger

	mu   sync.Mutex
	busy map[int]bool // by index
}

func (k *keeper) look(ctx context.Context) {
	links, err := netlink.LinkList()
	if err != nil {
		k.log.Warn("look for links", "error", err)
	}
	for _, l := range links {
		a := l.Attrs()
		if a.Alias != leaseAlias || a.Flags&net.FlagUp == 0 || !k.take(a.Index) {
			continue
		}
		go func() {
			defer k.leave(a.Index)
			if err := keep(ctx, a.Index, a.HardwareAddr, k.log.With("link", a.Name)); err != nil {
				k.log.Info("lease ends", "link", a.Name, "error", err)
			}
		}()
	}
}

func (k *keeper) take(ifindex int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy[ifindex] {
		return false
	}
	k.busy[ifindex] = true
	return true
}

func (k *keeper) leave(ifindex int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.busy, ifindex)
}

// keep leases an address for a link and renews it, until the link is gone or ctx
// ends.
func keep(ctx context.Context, ifindex int, mac net.HardwareAddr, log *slog.Logger) error {
	c, err := dial(ifindex, mac)
	if err != nil {
		return err
	}
	defer c.close()
	var have *dhcpv4.DHCPv4
	for ctx.Err() == nil {
		ack, err := c.lease(ctx, have)
		switch {
		case gone(err):
			return err
		case errors.Is(err, errRefused):
			log.Warn("lease refused", "error", err)
			unset(ifindex, have)
			have = nil
			continue
		case err != nil:
			log.Warn("no lease", "error", err)
			continue
		}
		if have != nil && !have.YourIPAddr.Equal(ack.YourIPAddr) {
			unset(ifindex, have)
		}
		if err := set(ifindex, ack); err != nil {
			return err
		}
		log.Info("leased", "address", ack.YourIPAddr, "server", ack.ServerIdentifier())
		have = ack
		if err := c.wait(ctx, ack.IPAddressRenewalTime(time.Hour)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENETDOWN) ||
		errors.Is(err, context.Canceled)
}

// set gives the link what was leased. A default route that is there stays.
func set(ifindex int, ack *dhcpv4.DHCPv4) error {
	link, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: ack.YourIPAddr, Mask: ack.SubnetMask()}}
	if err := netlink.AddrReplace(link, address); err != nil {
		return fmt.Errorf("set address %s: %w", address.IPNet, err)
	}
	routes := ack.ClasslessStaticRoute()
	if routes == nil && len(ack.Router()) > 0 {
		routes = []*dhcpv4.Route{{Dest: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Router: ack.Router()[0]}}
	}
	for _, r := range routes {
		if bits, _ := r.Dest.Mask.Size(); bits == 0 && hasDefault() {
			continue
		}
		route := &netlink.Route{LinkIndex: ifindex, Dst: r.Dest, Flags: int(netlink.FLAG_ONLINK)}
		if !r.Router.IsUnspecified() {
			route.Gw = r.Router
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("set the route to %s: %w", r.Dest, err)
		}
	}
	return nil
}

func hasDefault() bool {
	routes, err := netlink.RouteGet(net.IPv4(192, 0, 2, 1)) // of no network: only a default route leads there
	return err == nil && len(routes) > 0
}

func unset(ifindex int, ack *dhcpv4.DHCPv4) {
	link, err := netlink.LinkByIndex(ifindex)
	if err != nil || ack == nil {
		return
	}
	// A link that has gone meanwhile has no address either.
	_ = netlink.AddrDel(link, &netlink.Addr{IPNet: &net.IPNet{IP: ack.YourIPAddr, Mask: ack.SubnetMask()}})
}
