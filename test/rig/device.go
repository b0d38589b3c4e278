// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Offload switches a feature of a device (unix.ETHTOOL_S...) of the thread's
// namespace.
func Offload(device string, feature uint32, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{cmd: feature}
	if on {
		value.data = 1
	}
	request := struct {
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		_     [16]byte // struct ifreq is 40 bytes
	}{value: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("switch offload %#x of %s: %w", feature, device, errno)
	}
	return nil
}

// PassXDP gives a device of the thread's namespace a native program that passes
// everything: what an XDP program at the other end transmits arrives only then.
func PassXDP(device string) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "rig_pass", Type: ebpf.XDP, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("load the XDP program that passes: %w", err)
	}
	defer pass.Close() // the device holds it
	if err := netlink.LinkSetXdpFdWithFlags(l, pass.FD(), nl.XDP_FLAGS_DRV_MODE); err != nil {
		return fmt.Errorf("attach XDP to %s: %w", device, err)
	}
	return nil
}
