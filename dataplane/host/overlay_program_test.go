// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"testing"

	"cairn/bpf"

	"github.com/vishvananda/netlink"
)

// What somebody takes away or replaces is made anew, with its program, and named
// in cfg; a host that is removed leaves nothing of it.
func TestOverlayIsRepaired(t *testing.T) {
	b := newBench(t)
	h := b.open()
	defer h.Close()
	var c bpf.Cfg
	overlay := func() (index uint32) {
		t.Helper()
		b.in("cbpf-hv", func() {
			dev, err := netlink.LinkByName("cvx0")
			must(t, err)
			v, ok := dev.(*netlink.Vxlan)
			if !ok || !v.FlowBased || v.Learning || v.Port != 4789 {
				t.Errorf("cvx0 is %+v", dev)
			}
			if addrs, err := netlink.AddrList(dev, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
				t.Errorf("cvx0 has addresses %v, %v", addrs, err)
			}
			index = uint32(dev.Attrs().Index)
		})
		must(t, h.Maps.Cfg.Lookup(uint32(0), &c))
		if c.Overlay != index {
			t.Errorf("cfg names device %d, cvx0 is %d", c.Overlay, index)
		}
		return index
	}
	first := overlay()
	repair := func(want bool) {
		t.Helper()
		b.in("cbpf-hv", func() {
			if again, err := h.RepairOverlay(); again != want || err != nil {
				t.Errorf("repaired %v, %v, want %v", again, err, want)
			}
		})
	}
	repair(false)
	b.in("cbpf-hv", func() {
		dev, err := netlink.LinkByName("cvx0")
		must(t, err)
		must(t, netlink.LinkDel(dev))
	})
	repair(true)
	if second := overlay(); second == first {
		t.Error("the device was not made anew")
	}
	b.in("cbpf-hv", func() { // one that learns, and is of one network
		dev, err := netlink.LinkByName("cvx0")
		must(t, err)
		must(t, netlink.LinkDel(dev))
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "cvx0"
		must(t, netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 7, Port: 4789, Learning: true}))
	})
	repair(true)
	overlay()
}
