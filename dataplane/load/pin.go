// SPDX-License-Identifier: Apache-2.0

package load

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"cairn/bpf"
	"cairn/dataplane/host"
)

// The folder of pins is laid out as an agent's, and has one more, empty folder,
// by which it is known as one of these.
const (
	schema = "v1"
	mark   = "loaded-by-hand"
)

// Pin leaves maps and programs below folder, which is made on a bpffs if there
// is none. When it fails nothing of it stays.
func (n *Node) Pin(folder string) error {
	at := filepath.Join(folder, schema)
	if err := host.EnsureBPFFS(folder); err != nil {
		return err
	}
	if err := os.Mkdir(at, 0o700); errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already: unload it, or take another folder", at)
	} else if err != nil {
		return err
	}
	if err := n.pin(at); err != nil {
		return errors.Join(fmt.Errorf("pin below %s: %w", at, err), os.RemoveAll(at))
	}
	return nil
}

func (n *Node) pin(at string) error {
	for _, dir := range []string{mark, "progs", "links"} {
		if err := os.Mkdir(filepath.Join(at, dir), 0o700); err != nil {
			return err
		}
	}
	for name, m := range n.Objects.Maps {
		if name == ".rodata" || name == ".bss" || name == ".data" {
			continue
		}
		if err := m.Pin(filepath.Join(at, name)); err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
	}
	for name, p := range n.Objects.Programs {
		if err := p.Pin(filepath.Join(at, "progs", name)); err != nil {
			return fmt.Errorf("program %s: %w", name, err)
		}
	}
	return nil
}

// Attach puts uplink on a device, whose MAC the services then have, and pins the
// link below the folder that Pin has made.
func (n *Node) Attach(folder, device string) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find device %s: %w", device, err)
	}
	if len(l.Attrs().HardwareAddr) != 6 {
		return fmt.Errorf("device %s has no Ethernet address", device)
	}
	if err := n.configure(uint32(l.Attrs().Index), [6]byte(l.Attrs().HardwareAddr)); err != nil {
		return err
	}
	x, err := link.AttachXDP(link.XDPOptions{Program: n.Program(), Interface: l.Attrs().Index})
	if err != nil {
		return fmt.Errorf("attach uplink to %s: %w", device, err)
	}
	return errors.Join(x.Pin(filepath.Join(folder, schema, "links", "uplink")), x.Close())
}

// Unload removes what Pin and Attach have left below folder; an agent's pins it
// leaves alone.
func Unload(folder string) error {
	at := filepath.Join(folder, schema)
	if _, err := os.Stat(filepath.Join(at, mark)); err != nil {
		return fmt.Errorf("%s holds nothing that was loaded by hand: %w", at, err)
	}
	for _, dir := range []string{filepath.Join(at, "links"), at} { // packets first
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// String says what there is and how packets hit it.
func (n *Node) String() string {
	last := FirstVIP
	for range n.want.VIPs - 1 {
		last = last.Next()
	}
	return fmt.Sprintf(`%d services, %d targets
packets that hit: Ethernet to %s, IPv4 to %s … %s, TCP or UDP port %d
they leave as VXLAN (UDP 4789, VNI 0x%x) from %s to %s, Ethernet to %s
`, n.want.services(), n.want.services()*n.want.Targets, net.HardwareAddr(n.mac[:]), FirstVIP, last, Port, bpf.LBVNI, Endpoint, Other, net.HardwareAddr(RouterMAC[:]))
}
