// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The door: a veth pair by which the host's own services reach ports. Its far
// end lies in a namespace of its own, so that a probe is an ordinary socket
// there while no address or route of it exists on the host.
const (
	doorName    = "cairn-svc"
	doorFarName = "cairn-svc0"
	// The far end's gateway is nobody: a permanent neighbour gives it the near
	// end's MAC, svc_in does the rest.
	doorGateway = "169.254.0.1"
)

type door struct {
	ifindex int // of the near end; 0: no door
	farMAC  [6]uint8
}

// openDoor makes the pair and the namespace, or mends what is there.
func openDoor(namespace string) (door, error) {
	if namespace == "" {
		return door{}, nil
	}
	ns, err := ensureNamespace(namespace)
	if err != nil {
		return door{}, err
	}
	defer ns.Close()
	far, err := netlink.NewHandleAt(ns)
	if err != nil {
		return door{}, fmt.Errorf("enter namespace %s: %w", namespace, err)
	}
	defer far.Close()
	near, err := ensurePair(ns, far)
	if err != nil {
		return door{}, err
	}
	if err := quiet(ns, near.Attrs().Name); err != nil {
		return door{}, err
	}
	farLink, err := setUpFar(far, near)
	if err != nil {
		return door{}, fmt.Errorf("set up %s: %w", doorFarName, err)
	}
	if err := netlink.LinkSetUp(near); err != nil {
		return door{}, fmt.Errorf("set up %s: %w", doorName, err)
	}
	d := door{ifindex: near.Attrs().Index}
	copy(d.farMAC[:], farLink.Attrs().HardwareAddr)
	return d, nil
}

// ensureNamespace opens a named namespace, or makes it. The thread comes back
// to the namespace it was in.
func ensureNamespace(name string) (netns.NsHandle, error) {
	if ns, err := netns.GetFromName(name); err == nil {
		return ns, nil
	}
	runtime.LockOSThread()
	here, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return -1, fmt.Errorf("find the own namespace: %w", err)
	}
	defer here.Close()
	ns, err := netns.NewNamed(name)
	if back := netns.Set(here); back != nil {
		// The thread is left locked: it ends with its goroutine.
		return -1, fmt.Errorf("return from namespace %s: %w", name, back)
	}
	runtime.UnlockOSThread()
	if err != nil {
		return -1, fmt.Errorf("make namespace %s: %w", name, err)
	}
	return ns, nil
}

// ensurePair makes the veth pair unless both ends are where they belong.
func ensurePair(ns netns.NsHandle, far *netlink.Handle) (netlink.Link, error) {
	near, err := netlink.LinkByName(doorName)
	if err == nil {
		if _, err := far.LinkByName(doorFarName); err == nil {
			return near, nil
		}
		if err := netlink.LinkDel(near); err != nil {
			return nil, fmt.Errorf("remove the stray %s: %w", doorName, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = doorName
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: doorFarName, PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("make the pair %s: %w", doorName, err)
	}
	if near, err = netlink.LinkByName(doorName); err != nil {
		return nil, fmt.Errorf("find %s: %w", doorName, err)
	}
	return near, nil
}

func setUpFar(far *netlink.Handle, near netlink.Link) (netlink.Link, error) {
	l, err := far.LinkByName(doorFarName)
	if err != nil {
		return nil, err
	}
	own := []netip.Addr{ProbeAddr, MetadataAddr}
	if speaksIPv6() {
		own = append(own, ProbeAddr6)
	}
	for _, a := range own {
		ip := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
		if a.Is6() {
			ip.Flags = unix.IFA_F_NODAD
		}
		if err := far.AddrReplace(l, ip); err != nil {
			return nil, fmt.Errorf("give it %s: %w", a, err)
		}
	}
	// It asks nobody for a MAC, and joins no group of IPv6's.
	if err := far.LinkSetARPOff(l); err != nil {
		return nil, err
	}
	if err := far.LinkSetUp(l); err != nil {
		return nil, err
	}
	if lo, err := far.LinkByName("lo"); err == nil {
		if err := far.LinkSetUp(lo); err != nil {
			return nil, err
		}
	}
	gateway := net.ParseIP(doorGateway)
	neigh := &netlink.Neigh{
		LinkIndex: l.Attrs().Index, IP: gateway,
		HardwareAddr: near.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT,
	}
	if err := far.NeighSet(neigh); err != nil {
		return nil, fmt.Errorf("set its gateway's MAC: %w", err)
	}
	route := &netlink.Route{
		LinkIndex: l.Attrs().Index, Gw: gateway, Flags: int(netlink.FLAG_ONLINK), Src: ProbeAddr.AsSlice(),
	}
	if err := far.RouteReplace(route); err != nil {
		return nil, fmt.Errorf("set its route: %w", err)
	}
	if !speaksIPv6() {
		return l, nil
	}
	route = &netlink.Route{
		LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, Src: ProbeAddr6.AsSlice(),
	}
	if err := far.RouteReplace(route); err != nil {
		return nil, fmt.Errorf("set its route of IPv6: %w", err)
	}
	return l, nil
}

// speaksIPv6 tells whether the kernel does.
func speaksIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// quiet keeps both ends from speaking IPv6 by themselves: the near one has none,
// the far one makes no address of its own and listens to no router.
func quiet(ns netns.NsHandle, near string) error {
	if err := disableIPv6(near); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread is in the wrong namespace and ends here.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter the door's namespace: %w", err)
			return
		}
		done <- errors.Join(tune6(doorFarName, "addr_gen_mode", "1"), tune6(doorFarName, "accept_ra", "0"),
			tune6(doorFarName, "disable_ipv6", "0"))
	}()
	return <-done
}

// disableIPv6 stops the host's own IPv6 (neighbour discovery, MLD) on a device;
// a kernel without IPv6 has nothing to stop.
func disableIPv6(dev string) error {
	return tune6(dev, "disable_ipv6", "1")
}

func tune6(dev, what, value string) error {
	path := filepath.Join("/proc/sys/net/ipv6/conf", dev, what)
	err := os.WriteFile(path, []byte(value+"\n"), 0o644)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("keep %s from speaking IPv6: %w", dev, err)
	}
	return nil
}

// removeDoor ends what openDoor made.
func removeDoor(namespace string) error {
	if namespace == "" {
		return nil
	}
	var errs []error
	if near, err := netlink.LinkByName(doorName); err == nil {
		if err := netlink.LinkDel(near); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", doorName, err))
		}
	}
	if err := netns.DeleteNamed(namespace); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove namespace %s: %w", namespace, err))
	}
	return errors.Join(errs...)
}
