// SPDX-License-Identifier: Apache-2.0

package compute

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const guestLink = "eth0"

const defaultMTU = 1500

// wire makes the port's two ends and sets all that the Spec says of them. It
// changes nothing that is already right.
func wire(namespace string, spec Spec) error {
	guest, err := handleIn(namespace)
	if err != nil {
		return err
	}
	defer guest.Close()
	if err := inNamespace(namespace, func() error {
		return errors.Join(withoutIPv6("all"), withoutIPv6("default"))
	}); err != nil {
		return fmt.Errorf("turn IPv6 off in %s: %w", namespace, err)
	}
	if err := ensureVeth(namespace, guest, spec); err != nil {
		return err
	}
	if err := setHostEnd(spec); err != nil {
		return fmt.Errorf("set up %s: %w", PortLink(spec.Port), err)
	}
	if err := setGuestEnd(namespace, guest, spec); err != nil {
		return fmt.Errorf("set up %s in %s: %w", guestLink, namespace, err)
	}
	return nil
}

// ensureVeth makes the pair in one message, each end where it belongs. A host
// end without its guest end, or the reverse, is of an older namespace.
func ensureVeth(namespace string, guest *netlink.Handle, spec Spec) error {
	name := PortLink(spec.Port)
	host, hostErr := netlink.LinkByName(name)
	eth0, guestErr := guest.LinkByName(guestLink)
	if hostErr == nil && guestErr == nil && eth0.Attrs().ParentIndex == host.Attrs().Index {
		return nil
	}
	if hostErr == nil {
		if err := netlink.LinkDel(host); err != nil {
			return fmt.Errorf("delete stray %s: %w", name, err)
		}
	}
	if eth0, err := guest.LinkByName(guestLink); err == nil {
		if err := guest.LinkDel(eth0); err != nil {
			return fmt.Errorf("delete stray %s in %s: %w", guestLink, namespace, err)
		}
	}
	file, err := os.Open(namespacePath(namespace))
	if err != nil {
		return err
	}
	defer file.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = mtu(spec)
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: guestLink, PeerHardwareAddr: spec.MAC, PeerMTU: uint32(mtu(spec)),
		PeerNamespace: netlink.NsFd(int(file.Fd())),
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	return nil
}

// setHostEnd leaves the end without any address: it is the port's program that
// talks to the guest, never the hypervisor's own stack.
func setHostEnd(spec Spec) error {
	name := PortLink(spec.Port)
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := withoutIPv6(name); err != nil {
		return err
	}
	if err := withoutTxChecksum(name); err != nil {
		return err
	}
	if link.Attrs().MTU != mtu(spec) {
		if err := netlink.LinkSetMTU(link, mtu(spec)); err != nil {
			return fmt.Errorf("mtu: %w", err)
		}
	}
	return netlink.LinkSetUp(link)
}

func setGuestEnd(namespace string, guest *netlink.Handle, spec Spec) error {
	link, err := guest.LinkByName(guestLink)
	if err != nil {
		return err
	}
	if len(spec.MAC) != 0 && !bytes.Equal(link.Attrs().HardwareAddr, spec.MAC) {
		if err := guest.LinkSetHardwareAddr(link, spec.MAC); err != nil {
			return fmt.Errorf("mac: %w", err)
		}
	}
	if link.Attrs().MTU != mtu(spec) {
		if err := guest.LinkSetMTU(link, mtu(spec)); err != nil {
			return fmt.Errorf("mtu: %w", err)
		}
	}
	if err := inNamespace(namespace, func() error { return withoutTxChecksum(guestLink) }); err != nil {
		return err
	}
	if err := setAddress(guest, link, spec.Address); err != nil {
		return err
	}
	if lo, err := guest.LinkByName("lo"); err != nil {
		return err
	} else if err := guest.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	if !spec.Running {
		return guest.LinkSetDown(link)
	}
	if err := guest.LinkSetUp(link); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	return setDefaultRoute(guest, link, spec)
}

// setAddress makes the /32 the only IPv4 address of the link.
func setAddress(guest *netlink.Handle, link netlink.Link, address netip.Addr) error {
	have, err := guest.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	found := false
	for _, a := range have {
		if got, ok := netip.AddrFromSlice(a.IP); ok && got.Unmap() == address {
			found = true
			continue
		}
		if err := guest.AddrDel(link, &a); err != nil {
			return fmt.Errorf("delete address %s: %w", a.IPNet, err)
		}
	}
	if found || !address.IsValid() {
		return nil
	}
	want := &netlink.Addr{IPNet: hostNet(address)}
	if err := guest.AddrAdd(link, want); err != nil {
		return fmt.Errorf("add address %s: %w", address, err)
	}
	return nil
}

// setDefaultRoute sends everything to the gateway, which is on no prefix of the
// guest's: hence onlink.
func setDefaultRoute(guest *netlink.Handle, link netlink.Link, spec Spec) error {
	if !spec.Gateway.IsValid() || !spec.Address.IsValid() {
		return nil
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		Gw:        spec.Gateway.AsSlice(),
		Src:       spec.Address.AsSlice(),
		Flags:     int(netlink.FLAG_ONLINK),
	}
	if err := guest.RouteReplace(route); err != nil {
		return fmt.Errorf("default route by %s: %w", spec.Gateway, err)
	}
	return nil
}

// unwire deletes the pair; both ends go with either.
func unwire(port uint32) error {
	link, err := netlink.LinkByName(PortLink(port))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", PortLink(port), err)
	}
	return nil
}

func handleIn(namespace string) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := inNamespace(namespace, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}

func mtu(spec Spec) int {
	if spec.MTU == 0 {
		return defaultMTU
	}
	return spec.MTU
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// withoutIPv6 is answered by the namespace of the calling thread.
func withoutIPv6(link string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", link, "disable_ipv6"), []byte("1"), 0o644)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without IPv6
	}
	return err
}

// withoutTxChecksum makes the link hand over packets with finished checksums:
// veth otherwise leaves them partial for the peer's stack, which a packet
// program on the way cannot know. Linux takes segmentation offload away with it.
func withoutTxChecksum(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	request := struct {
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		_     [16]byte // struct ifreq is 40 bytes
	}{value: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], link)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("switch tx checksum offload of %s off: %w", link, errno)
	}
	return nil
}
