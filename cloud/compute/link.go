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

// leaseAlias is the alias of a guest's link whose address the guest is to ask
// for by DHCP.
const leaseAlias = "lease"

// nic is one interface of a machine: two ends of a veth pair.
type nic struct {
	port    uint32
	name    string // of the guest's end
	mac     net.HardwareAddr
	mtu     int
	up      bool
	alias   string
	address netip.Addr // none in a private network: the guest's matter
	gateway netip.Addr

	address6, gateway6 netip.Addr // none: the link speaks no IPv6
}

// nics are the interfaces that a Spec asks for; names are the guest's names of
// those in private networks.
func nics(spec Spec, names map[uint32]string) []nic {
	var out []nic
	if spec.Port != 0 {
		out = append(out, nic{
			port: spec.Port, name: guestLink, mac: spec.MAC, mtu: orDefault(spec.MTU), up: spec.Running,
			address: spec.Address, gateway: spec.Gateway, address6: spec.Address6, gateway6: spec.Gateway6,
		})
	}
	for _, i := range spec.Networks {
		n := nic{port: i.Port, name: names[i.Port], mac: i.MAC, mtu: orDefault(i.MTU), up: spec.Running}
		if i.Leased {
			n.alias = leaseAlias
		}
		out = append(out, n)
	}
	return out
}

// assign names the guest's ends of private interfaces: eth1 and on, each as long
// as it is there.
func assign(spec Spec, have map[uint32]string) map[uint32]string {
	names, taken := map[uint32]string{}, map[string]bool{}
	for _, i := range spec.Networks {
		if name := have[i.Port]; name != "" {
			names[i.Port], taken[name] = name, true
		}
	}
	next := 1
	for _, i := range spec.Networks {
		if names[i.Port] != "" {
			continue
		}
		for taken[fmt.Sprintf("eth%d", next)] {
			next++
		}
		names[i.Port] = fmt.Sprintf("eth%d", next)
		taken[names[i.Port]] = true
	}
	return names
}

// wire makes the two ends of each interface and sets all that the Spec says of
// them. It changes nothing that is already right.
func wire(namespace string, spec Spec, names map[uint32]string) error {
	guest, err := handleIn(namespace)
	if err != nil {
		return err
	}
	defer guest.Close()
	if err := inNamespace(namespace, func() error {
		if spec.Address6.IsValid() {
			return withoutIPv6("default") // "all" would take the addresses of the link that has some
		}
		return errors.Join(withoutIPv6("all"), withoutIPv6("default"))
	}); err != nil {
		return fmt.Errorf("turn IPv6 off in %s: %w", namespace, err)
	}
	if lo, err := guest.LinkByName("lo"); err != nil {
		return err
	} else if err := guest.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	for _, n := range nics(spec, names) {
		if err := ensureVeth(namespace, guest, n); err != nil {
			return err
		}
		if err := setHostEnd(n); err != nil {
			return fmt.Errorf("set up %s: %w", PortLink(n.port), err)
		}
		if err := setGuestEnd(namespace, guest, n); err != nil {
			return fmt.Errorf("set up %s in %s: %w", n.name, namespace, err)
		}
	}
	return nil
}

// ensureVeth makes the pair in one message, each end where it belongs. A host
// end without its guest end, or the reverse, is of an older namespace.
func ensureVeth(namespace string, guest *netlink.Handle, n nic) error {
	name := PortLink(n.port)
	host, hostErr := netlink.LinkByName(name)
	end, guestErr := guest.LinkByName(n.name)
	if hostErr == nil && guestErr == nil && end.Attrs().ParentIndex == host.Attrs().Index {
		return nil
	}
	if hostErr == nil {
		if err := netlink.LinkDel(host); err != nil {
			return fmt.Errorf("delete stray %s: %w", name, err)
		}
	}
	if end, err := guest.LinkByName(n.name); err == nil {
		if err := guest.LinkDel(end); err != nil {
			return fmt.Errorf("delete stray %s in %s: %w", n.name, namespace, err)
		}
	}
	file, err := os.Open(namespacePath(namespace))
	if err != nil {
		return err
	}
	defer file.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = n.mtu
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: n.name, PeerHardwareAddr: n.mac, PeerMTU: uint32(n.mtu),
		PeerNamespace: netlink.NsFd(int(file.Fd())),
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	return nil
}

// setHostEnd leaves the end without any address: it is the port's program that
// talks to the guest, never the hypervisor's own stack.
func setHostEnd(n nic) error {
	name := PortLink(n.port)
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
	if link.Attrs().MTU != n.mtu {
		if err := netlink.LinkSetMTU(link, n.mtu); err != nil {
			return fmt.Errorf("mtu: %w", err)
		}
	}
	return netlink.LinkSetUp(link)
}

func setGuestEnd(namespace string, guest *netlink.Handle, n nic) error {
	link, err := guest.LinkByName(n.name)
	if err != nil {
		return err
	}
	if len(n.mac) != 0 && !bytes.Equal(link.Attrs().HardwareAddr, n.mac) {
		if err := guest.LinkSetHardwareAddr(link, n.mac); err != nil {
			return fmt.Errorf("mac: %w", err)
		}
	}
	if link.Attrs().MTU != n.mtu {
		if err := guest.LinkSetMTU(link, n.mtu); err != nil {
			return fmt.Errorf("mtu: %w", err)
		}
	}
	if link.Attrs().Alias != n.alias {
		if err := guest.LinkSetAlias(link, n.alias); err != nil {
			return fmt.Errorf("alias: %w", err)
		}
	}
	if err := inNamespace(namespace, func() error { return withoutTxChecksum(n.name) }); err != nil {
		return err
	}
	if n.name == guestLink {
		if err := setAddress(guest, link, netlink.FAMILY_V4, n.address); err != nil {
			return err
		}
	}
	if !n.up {
		return guest.LinkSetDown(link)
	}
	if err := guest.LinkSetUp(link); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	if n.address6.IsValid() { // it goes when the link does, so it comes after it
		if err := inNamespace(namespace, func() error { return withIPv6(n.name) }); err != nil {
			return fmt.Errorf("turn IPv6 on: %w", err)
		}
		if err := setAddress(guest, link, netlink.FAMILY_V6, n.address6); err != nil {
			return err
		}
	}
	return errors.Join(setDefaultRoute(guest, link, n.address, n.gateway), setDefaultRoute(guest, link, n.address6, n.gateway6))
}

// setAddress makes the /32 or /128 the only address of its family on the link.
func setAddress(guest *netlink.Handle, link netlink.Link, family int, address netip.Addr) error {
	have, err := guest.AddrList(link, family)
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
	if family == netlink.FAMILY_V6 {
		want.Flags = unix.IFA_F_NODAD // the port lets nobody else have it
	}
	if err := guest.AddrAdd(link, want); err != nil {
		return fmt.Errorf("add address %s: %w", address, err)
	}
	return nil
}

// setDefaultRoute sends everything of a family to the gateway, which is on no
// prefix of the guest's: hence onlink.
func setDefaultRoute(guest *netlink.Handle, link netlink.Link, address, gateway netip.Addr) error {
	if !gateway.IsValid() || !address.IsValid() {
		return nil
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if address.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, all.Addr().BitLen())},
		Gw:        gateway.AsSlice(),
		Src:       address.AsSlice(),
		Flags:     int(netlink.FLAG_ONLINK),
	}
	if err := guest.RouteReplace(route); err != nil {
		return fmt.Errorf("default route by %s: %w", gateway, err)
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

func orDefault(mtu int) int {
	if mtu == 0 {
		return defaultMTU
	}
	return mtu
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

// withIPv6 turns IPv6 on, in the calling thread's namespace, for a link that is
// given its one address: it makes none of its own and listens to no router.
func withIPv6(link string) error {
	for _, setting := range [][2]string{{"addr_gen_mode", "1"}, {"accept_ra", "0"}, {"dad_transmits", "0"}, {"disable_ipv6", "0"}} {
		path := filepath.Join("/proc/sys/net/ipv6/conf", link, setting[0])
		if err := os.WriteFile(path, []byte(setting[1]), 0o644); err != nil {
			return err
		}
	}
	return nil
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
