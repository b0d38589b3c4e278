// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// build makes the topology. When it fails, what it made so far has the lab's
// name and is found by Down.
func (t topology) build(ctx context.Context) error {
	if err := each(t.namespaces, createNamespace); err != nil {
		return fmt.Errorf("create namespaces: %w", err)
	}
	if err := each(t.namespaces, t.applySysctls); err != nil {
		return fmt.Errorf("set kernel parameters: %w", err)
	}
	for _, l := range t.links {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.create(); err != nil {
			return fmt.Errorf("create link %s in %s: %w", l.a.name, l.a.namespace, err)
		}
	}
	p, err := loadPrograms()
	if err != nil {
		return err
	}
	defer p.close()
	if err := each(t.namespaces, func(ns string) error { return t.configure(ns, p) }); err != nil {
		return fmt.Errorf("configure links: %w", err)
	}
	for ns, text := range t.rules {
		if err := loadRules(ctx, ns, text); err != nil {
			return fmt.Errorf("load rules of %s: %w", ns, err)
		}
	}
	return nil
}

// each does the same for all namespaces at once and tells whose went wrong.
func each(namespaces []string, do func(string) error) error {
	errs := make([]error, len(namespaces))
	var all sync.WaitGroup
	for i, ns := range namespaces {
		all.Go(func() {
			if err := do(ns); err != nil {
				errs[i] = fmt.Errorf("%s: %w", ns, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (t topology) applySysctls(ns string) error {
	return inNamespace(ns, func() error {
		for _, s := range t.sysctls {
			if s.namespace != ns {
				continue
			}
			err := os.WriteFile(filepath.Join("/proc/sys/net", s.key), []byte(s.value), 0o644)
			if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(s.key, "ipv6/") {
				continue // a kernel without IPv6
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// create makes the pair in one message, each end at home at once.
func (l link) create() error {
	a, err := os.Open(namespacePath(l.a.namespace))
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(namespacePath(l.b.namespace))
	if err != nil {
		return err
	}
	defer b.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Namespace = l.a.name, l.mtu, netlink.NsFd(int(a.Fd()))
	return netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: l.b.name, PeerMTU: uint32(l.mtu), PeerNamespace: netlink.NsFd(int(b.Fd())),
	})
}

func (t topology) configure(ns string, p programs) error {
	return inNamespace(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		if address, ok := t.loopback[ns]; ok {
			if err := h.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
				return fmt.Errorf("add %s to lo: %w", address, err)
			}
		}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("lo up: %w", err)
		}
		for _, l := range t.links {
			for _, e := range []end{l.a, l.b} {
				if e.namespace != ns {
					continue
				}
				if err := e.configure(h, p); err != nil {
					return fmt.Errorf("%s: %w", e.name, err)
				}
			}
		}
		return t.addRoutes(h, ns)
	})
}

// configure runs on a thread in the end's namespace.
func (e end) configure(h *netlink.Handle, p programs) error {
	link, err := h.LinkByName(e.name)
	if err != nil {
		return err
	}
	if e.finishChecksums {
		if err := withoutTxChecksum(e.name); err != nil {
			return err
		}
	}
	if e.passXDP {
		if err := netlink.LinkSetXdpFdWithFlags(link, p.pass.FD(), nl.XDP_FLAGS_DRV_MODE); err != nil {
			return fmt.Errorf("attach XDP: %w", err)
		}
	}
	if e.forgetHash {
		if err := ebpflink.RawAttachProgram(ebpflink.RawAttachProgramOptions{
			Target: link.Attrs().Index, Program: p.forget, Attach: ebpf.AttachTCXIngress,
		}); err != nil {
			return fmt.Errorf("attach tcx: %w", err)
		}
	}
	if e.address.IsValid() {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(e.address)}); err != nil {
			return fmt.Errorf("add %s: %w", e.address, err)
		}
	}
	if e.address6.IsValid() {
		if err := e.speakIPv6(h, link); err != nil {
			return fmt.Errorf("add %s: %w", e.address6, err)
		}
	}
	return h.LinkSetUp(link)
}

// speakIPv6 leaves the end as it is on a kernel without IPv6.
func (e end) speakIPv6(h *netlink.Handle, link netlink.Link) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", e.name, "disable_ipv6"), []byte("0"), 0o644)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{netip.PrefixFrom(linkLocal(link.Attrs().HardwareAddr), 64), e.address6} {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
			return err
		}
	}
	return nil
}

// linkLocal is the address that a MAC makes (RFC 4291, appendix A). Without one
// the kernel asks no neighbour on behalf of a packet that it only forwards.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

func (t topology) addRoutes(h *netlink.Handle, ns string) error {
	for _, r := range t.routes {
		if r.namespace != ns || r.to.Addr().Is6() && !hasIPv6() {
			continue
		}
		link, err := h.LinkByName(r.link)
		if err != nil {
			return err
		}
		kernel := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.to)}
		if r.via.IsValid() {
			kernel.Gw = r.via.AsSlice()
		} else {
			kernel.Scope = netlink.SCOPE_LINK
		}
		if err := h.RouteAdd(kernel); err != nil {
			return fmt.Errorf("add route to %s by %s: %w", r.to, r.link, err)
		}
	}
	return nil
}

// programs are the lab's own, a few instructions each. What they are attached to
// keeps them.
type programs struct{ pass, forget *ebpf.Program }

func loadPrograms() (p programs, err error) {
	// A veth end delivers what an XDP program transmits at it only if it has one
	// too: this one lets everything through.
	p.pass, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_pass", Type: ebpf.XDP, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
	})
	if err != nil {
		return p, fmt.Errorf("load the XDP program that passes: %w", err)
	}
	p.forget, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_forget_hash", Type: ebpf.SchedCLS, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.FnSetHashInvalid.Call(), asm.Mov.Imm(asm.R0, -1 /* TCX_NEXT */), asm.Return()},
	})
	if err != nil {
		p.pass.Close()
		return p, fmt.Errorf("load the program that forgets hashes: %w", err)
	}
	return p, nil
}

func (p programs) close() {
	p.pass.Close()
	p.forget.Close()
}

func loadRules(ctx context.Context, ns, text string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := inNamespace(ns, cmd.Start); err != nil {
		return fmt.Errorf("start nft: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, strings.TrimSpace(out.String()))
	}
	return nil
}

// unlink deletes all veths of a namespace, so that they are gone when it
// returns: those of a namespace that merely loses its last user go later.
func unlink(ns string) error {
	return inNamespace(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		links, err := h.LinkList()
		if err != nil {
			return err
		}
		var errs []error
		for _, l := range links {
			if l.Type() != "veth" {
				continue
			}
			if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("delete %s: %w", l.Attrs().Name, err))
			}
		}
		return errors.Join(errs...)
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// withoutTxChecksum makes a link hand over packets with finished checksums:
// veth leaves them partial, which an XDP program at the other end cannot know.
func withoutTxChecksum(name string) error {
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
	copy(request.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("switch tx checksum offload off: %w", errno)
	}
	return nil
}
