// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cairn/test/rig"
)

// machine is what a virtual machine is to its host: a TAP, behind which frames
// with virtio-net headers are read and written, segments of 64 kB among them. Its
// own stack is a namespace with another TAP, and a relay carries frames between
// the two, as a hypervisor's process does.
type machine struct {
	space   *rig.Space
	address netip.Addr
	fds     [2]int // the port's, the stack's
	ended   atomic.Bool
	largest atomic.Int64 // frame that the relay has carried towards the stack
}

const (
	headerLen = 10 // struct virtio_net_hdr
	frameMax  = 1<<16 + 64 + headerLen
)

// newMachine makes the device of a port on a hypervisor, and the machine.
func newMachine(r *rig.Rig, h *rig.Hypervisor, port uint32, address netip.Prefix) (*machine, error) {
	m := &machine{address: address.Addr(), fds: [2]int{-1, -1}}
	r.Defer(m.close)
	var err error
	if m.space, err = r.Space(); err != nil {
		return nil, err
	}
	err = h.Space.Do(func() (err error) {
		m.fds[0], err = openTAP(rig.PortDevice(port), nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = m.space.Do(func() (err error) {
		if m.fds[1], err = openTAP(rig.GuestDevice, rig.PortMAC(port)); err != nil {
			return err
		}
		l, err := netlink.LinkByName(rig.GuestDevice)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: rig.IPNet(address)})
	})
	if err != nil {
		return nil, err
	}
	go m.relay(m.fds[0], m.fds[1], &m.largest)
	go m.relay(m.fds[1], m.fds[0], nil)
	return m, nil
}

// openTAP makes a TAP of the thread's namespace, whose other end is the
// descriptor: it takes and gives segments that are not cut yet.
func openTAP(name string, mac net.HardwareAddr) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fd, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fd, fmt.Errorf("make TAP %s: %w", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
		return fd, fmt.Errorf("offloads of TAP %s: %w", name, err)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fd, err
	}
	if mac != nil {
		err = netlink.LinkSetHardwareAddr(l, mac)
	}
	return fd, errors.Join(err, netlink.LinkSetUp(l))
}

func (m *machine) relay(from, to int, largest *atomic.Int64) {
	buf := make([]byte, frameMax)
	for !m.ended.Load() {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(from), Events: unix.POLLIN}}, 100); n <= 0 || err != nil {
			continue
		}
		n, err := unix.Read(from, buf)
		if err != nil || n <= headerLen {
			continue
		}
		if largest != nil && int64(n-headerLen) > largest.Load() {
			largest.Store(int64(n - headerLen))
		}
		_, _ = unix.Write(to, buf[:n]) // what finds no room is lost, as on any link
	}
}

func (m *machine) close() error {
	m.ended.Store(true)
	var errs []error
	for _, fd := range m.fds {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
