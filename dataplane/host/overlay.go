// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// The overlay: one vxlan device for all private networks. The programs say for
// each frame which network it is of and where it goes; the device learns and
// floods nothing.
const (
	overlayName = "cvx0"
	overlayPort = 4789
	// What the outer headers take of the uplink's MTU: IPv4, UDP, VXLAN, Ethernet.
	overlayOverhead = 50
)

// ensureOverlay makes the device, or takes the one that is there if it is as it
// should be. It gets no address: the host's stack has nothing to say there.
func (h *Host) ensureOverlay() (changed bool, err error) {
	dev, err := netlink.LinkByName(overlayName)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		if dev, err = makeOverlay(); err != nil {
			return false, err
		}
	case err != nil:
		return false, fmt.Errorf("find %s: %w", overlayName, err)
	case !isOverlay(dev):
		if err := netlink.LinkDel(dev); err != nil {
			return false, fmt.Errorf("remove the stray %s: %w", overlayName, err)
		}
		if dev, err = makeOverlay(); err != nil {
			return false, err
		}
	}
	if err := disableIPv6(overlayName); err != nil {
		return false, err
	}
	// The kernel checks what it sends itself against this; the programs check
	// each frame against its network's own MTU.
	if mtu := h.uplink.Attrs().MTU - overlayOverhead; mtu > 0 && dev.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(dev, mtu); err != nil {
			return false, fmt.Errorf("set the MTU of %s to %d: %w", overlayName, mtu, err)
		}
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return false, fmt.Errorf("set up %s: %w", overlayName, err)
	}
	changed = h.overlay != dev.Attrs().Index
	h.overlay = dev.Attrs().Index
	return changed, nil
}

func makeOverlay() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = overlayName
	dev := &netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: overlayPort, Learning: false}
	if err := netlink.LinkAdd(dev); err != nil {
		return nil, fmt.Errorf("make %s: %w", overlayName, err)
	}
	made, err := netlink.LinkByName(overlayName)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", overlayName, err)
	}
	return made, nil
}

func isOverlay(dev netlink.Link) bool {
	v, ok := dev.(*netlink.Vxlan)
	return ok && v.FlowBased && v.Port == overlayPort && !v.Learning
}

func overlayHook(ifindex int) hook {
	return hook{"overlay_in", "overlay_in", ifindex, ebpf.AttachTCXIngress}
}

// RepairOverlay makes the device of the private networks anew when somebody has
// taken it away, and tells whether that was so.
func (h *Host) RepairOverlay() (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed, err := h.ensureOverlay()
	if err == nil && changed {
		if err = h.attach(overlayHook(h.overlay)); err == nil {
			err = h.writeCfg() // now frames may leave by it
		}
	}
	if err != nil {
		return false, fmt.Errorf("repair the overlay: %w", err)
	}
	return changed, nil
}

// removeOverlay ends what ensureOverlay made.
func removeOverlay() error {
	dev, err := netlink.LinkByName(overlayName)
	if err != nil || !isOverlay(dev) {
		return nil
	}
	if err := netlink.LinkDel(dev); err != nil {
		return fmt.Errorf("remove %s: %w", overlayName, err)
	}
	return nil
}
