// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is one namespace of a lab, and what can be done as that machine.
type Host struct {
	Namespace string
	Address   netip.Addr // its own; of the router the one that clients know
}

// Client is a machine behind the router, counted from 1.
func (l *Lab) Client(i int) Host {
	_, address := clientAddresses(i)
	return Host{Namespace: clientNamespace(l.state.Name, i), Address: address}
}

// Client6 is the same by its IPv6 address.
func (l *Lab) Client6(i int) Host {
	_, address := clientAddresses6(i)
	return Host{clientNamespace(l.state.Name, i), address}
}

// Router is the machine between clients and hypervisors.
func (l *Lab) Router() Host {
	address, _ := clientAddresses(1)
	return Host{Namespace: routerNamespace(l.state.Name), Address: address}
}

// Hypervisor is counted from 1; its address is its tunnel endpoint.
func (l *Lab) Hypervisor(i int) Host {
	return Host{Namespace: hypervisorNamespace(l.state.Name, i), Address: l.Endpoint(i)}
}

// Instance is the namespace that the driver netns makes for a port.
func (l *Lab) Instance(hv int, port uint32, address netip.Addr) Host {
	return Host{Namespace: fmt.Sprintf("%s-i%d", hypervisorNamespace(l.state.Name, hv), port), Address: address}
}

// Do runs a function on a thread of that machine: sockets it opens and programs
// it starts belong there, goroutines it starts do not.
func (h Host) Do(do func() error) error { return inNamespace(h.Namespace, do) }

// DialContext dials as that machine; the address is an IP address, since looking
// up a name would leave the thread.
func (h Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return h.dial(ctx, net.Dialer{}, network, address)
}

// DialFrom dials from a given source port.
func (h Host) DialFrom(ctx context.Context, network string, port int, address string) (net.Conn, error) {
	local := netip.AddrPortFrom(h.Address, uint16(port))
	if network == "udp" {
		return h.dial(ctx, net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(local)}, network, address)
	}
	return h.dial(ctx, net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local)}, network, address)
}

func (h Host) dial(ctx context.Context, d net.Dialer, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, err
	}
	err = h.Do(func() (err error) {
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// HTTP is a client on that machine that opens a connection for each request.
func (h Host) HTTP(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}}
}

// Listen listens on that machine.
func (h Host) Listen(network, address string) (l net.Listener, err error) {
	err = h.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// Run runs a program on that machine and returns what it printed.
func (h Host) Run(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Do(cmd.Start); err != nil {
		return "", fmt.Errorf("run %s: %w", argv[0], err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("run %s: %w: %s", strings.Join(argv, " "), err, out.String())
	}
	return out.String(), nil
}

// netlink gives do a handle on that machine.
func (h Host) netlink(do func(*netlink.Handle) error) error {
	return h.Do(func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer handle.Close()
		return do(handle)
	})
}

// RouterRoutes returns the next hops of the router's kernel route to exactly
// this prefix, in order; none when there is no such route.
func (l *Lab) RouterRoutes(to netip.Prefix) ([]netip.Addr, error) {
	var hops []netip.Addr
	err := l.Router().netlink(func(h *netlink.Handle) error {
		routes, err := h.RouteListFiltered(family(to), &netlink.Route{Dst: ipNet(to)}, netlink.RT_FILTER_DST)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Gw != nil {
				hops = appendHop(hops, r.Gw, r.Flags)
			}
			for _, hop := range r.MultiPath {
				hops = appendHop(hops, hop.Gw, hop.Flags)
			}
		}
		return nil
	})
	slices.SortFunc(hops, netip.Addr.Compare)
	return hops, err
}

func family(p netip.Prefix) int {
	if p.Addr().Is6() {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// RoutesWithin lists the router's kernel routes to prefixes inside the given one.
func (l *Lab) RoutesWithin(pool netip.Prefix) ([]netip.Prefix, error) {
	var within []netip.Prefix
	err := l.Router().netlink(func(h *netlink.Handle) error {
		routes, err := h.RouteList(nil, family(pool))
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			a, ok := netip.AddrFromSlice(r.Dst.IP)
			if ok && pool.Contains(a.Unmap()) {
				bits, _ := r.Dst.Mask.Size()
				within = append(within, netip.PrefixFrom(a.Unmap(), bits))
			}
		}
		return nil
	})
	return within, err
}

// appendHop leaves out what the kernel does not use: a hop whose link is down.
func appendHop(hops []netip.Addr, gateway net.IP, flags int) []netip.Addr {
	a, ok := netip.AddrFromSlice(gateway)
	if !ok || flags&(unix.RTNH_F_DEAD|unix.RTNH_F_LINKDOWN) != 0 {
		return hops
	}
	return append(hops, a.Unmap())
}

// Uplink pulls the cable of a hypervisor at the router's end, or plugs it in
// again: the hypervisor loses its carrier.
func (l *Lab) Uplink(hv int, up bool) error {
	err := l.Router().netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(fmt.Sprintf("hv%d", hv))
		if err != nil {
			return err
		}
		if up {
			return h.LinkSetUp(link)
		}
		return h.LinkSetDown(link)
	})
	if err != nil {
		return fmt.Errorf("set uplink of hv%d up=%t: %w", hv, up, err)
	}
	return nil
}

// CloseDoor cuts the way of a hypervisor's own services, its health checks
// among them, to its instances.
func (l *Lab) CloseDoor(hv int) error {
	return Host{Namespace: hypervisorNamespace(l.state.Name, hv) + "-svc"}.netlink(func(h *netlink.Handle) error {
		links, err := h.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			if link.Type() == "veth" {
				return h.LinkSetDown(link)
			}
		}
		return fmt.Errorf("hv%d has no door", hv)
	})
}

// KillHypervisor ends everything on a hypervisor at once, as a power cut does:
// daemons, uplink and workloads, the agent first, so that it tells nobody. Its
// kernel state stays, since it has no other kernel than ours.
func (l *Lab) KillHypervisor(hv int) error {
	for _, d := range []*Daemon{l.Agent(hv), l.Speaker(hv)} {
		if d.Alive() {
			if err := d.Kill(); err != nil {
				return err
			}
		}
	}
	if err := l.Uplink(hv, false); err != nil {
		return err
	}
	prefix := hypervisorNamespace(l.state.Name, hv) + "-i"
	inside := map[uint64]bool{}
	for _, ns := range ownNamespaces(l.state.Name) {
		if n, err := inode(namespacePath(ns)); err == nil && strings.HasPrefix(ns, prefix) {
			inside[n] = true
		}
	}
	var workloads []process
	for _, p := range belonging(l.state.Name) {
		if n, err := inode(fmt.Sprintf("/proc/%d/ns/net", p.PID)); err == nil && inside[n] {
			workloads = append(workloads, p)
		}
	}
	return endAll(workloads, 0)
}
