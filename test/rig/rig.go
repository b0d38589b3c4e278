// SPDX-License-Identifier: Apache-2.0

// Package rig owns the machines that benchmarks and lab tests of the dataplane
// use: hypervisors with the shipped programs, guests and an underlay, in network
// namespaces without names, that end with the process however it ends. It says
// what the tables hold and has the agent's own loop program that. It judges
// nothing. Start at Alone, New and Hypervisor.
package rig

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cairn/dataplane/host"
)

// Rig is what is built for one measurement.
type Rig struct {
	pins        string // a bpffs
	wire        *Space
	hypervisors []*Hypervisor
	closers     []func() error
}

// UnderlayMTU has room for full packets of private networks.
const UnderlayMTU = 1600

// New makes a bpffs in a folder, and the underlay: a namespace that routes
// between hypervisors. What it routes for clients it drops, unless told.
func New(folder string) (*Rig, error) {
	r := &Rig{pins: filepath.Join(folder, "bpf")}
	if err := host.EnsureBPFFS(r.pins); err != nil {
		return nil, err
	}
	r.closers = append(r.closers, func() error { return unix.Unmount(r.pins, 0) })
	var err error
	if r.wire, err = r.Space(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	err = r.wire.Do(func() error {
		return errors.Join(Sysctl("ipv4/ip_forward", "1"), Sysctl("ipv4/conf/all/rp_filter", "0"), Sysctl("ipv4/conf/default/rp_filter", "0"))
	})
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Wire is the namespace of the underlay; hypervisor N's uplink ends there in rN.
func (r *Rig) Wire() *Space { return r.wire }

// Close takes all down, the last first.
func (r *Rig) Close() error {
	var errs []error
	for i := len(r.closers) - 1; i >= 0; i-- {
		errs = append(errs, r.closers[i]())
	}
	r.closers = nil
	return errors.Join(errs...)
}

// Defer has something done before what is there by now is taken down.
func (r *Rig) Defer(do func() error) { r.closers = append(r.closers, do) }

// Space is a network namespace without a name.
type Space struct{ file *os.File }

// Space makes one, in which nobody speaks IPv6 by himself.
func (r *Rig) Space() (*Space, error) {
	s := &Space{}
	err := onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if s.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetUp(lo), Sysctl("ipv6/conf/default/disable_ipv6", "1"), Sysctl("ipv6/conf/all/disable_ipv6", "1"))
	})
	if err != nil {
		return nil, err
	}
	r.Defer(s.file.Close)
	return s, nil
}

// Do runs a function on a thread in the namespace: sockets that it opens and
// programs that it starts belong there, goroutines that it starts do not.
func (s *Space) Do(do func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return do()
	})
}

// onOwnThread runs do on a thread that ends with it.
func onOwnThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread cannot end
			done <- onOwnThread(do)
			runtime.UnlockOSThread()
			return
		}
		err := errors.New("the function gave up its goroutine")
		defer func() { done <- err }()
		err = do()
	}()
	return <-done
}

// Sysctl sets net.NAME in the namespace of the thread. A kernel without IPv6 has
// nothing to set of it.
func Sysctl(name, value string) error {
	err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644)
	if errors.Is(err, os.ErrNotExist) && len(name) > 4 && name[:4] == "ipv6" {
		return nil
	}
	return err
}

// End is one end of a pair of devices.
type End struct {
	Space   *Space
	Name    string
	MAC     net.HardwareAddr // nil: the kernel's choice
	Address netip.Prefix     // none if invalid
}

// Pair of veths. Packets leave both with finished checksums, as XDP needs them,
// and arrive as they were sent, unmerged.
func Pair(a, b End, mtu, queues int) error {
	err := a.Space.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = a.Name, mtu, a.MAC
		attrs.NumTxQueues, attrs.NumRxQueues = queues, queues
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: b.Name, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(int(b.Space.file.Fd())),
			PeerHardwareAddr: b.MAC, PeerNumTxQueues: uint32(queues), PeerNumRxQueues: uint32(queues),
		})
	})
	if err != nil {
		return fmt.Errorf("add the pair %s, %s: %w", a.Name, b.Name, err)
	}
	for _, e := range []End{a, b} {
		if err := e.Space.Do(e.setUp); err != nil {
			return fmt.Errorf("set up %s: %w", e.Name, err)
		}
	}
	return nil
}

func (e End) setUp() error {
	l, err := netlink.LinkByName(e.Name)
	if err != nil {
		return err
	}
	if e.Address.IsValid() {
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: IPNet(e.Address)}); err != nil {
			return fmt.Errorf("add %s: %w", e.Address, err)
		}
	}
	return errors.Join(Offload(e.Name, unix.ETHTOOL_STXCSUM, false), Offload(e.Name, unix.ETHTOOL_SGRO, false), netlink.LinkSetUp(l))
}

// IPNet is a prefix as package netlink wants it.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
