// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"cairn/bpf"
	"cairn/dataplane/host"
)

// Upgrade replaces every program, as an agent does that finds other objects in
// itself than those in force.
func (h *Hypervisor) Upgrade() error {
	var before, after bpf.Meta
	if err := h.Host.Maps.Meta.Lookup(uint32(0), &before); err != nil {
		return err
	}
	other := before
	other.UplinkDigest, other.PortDigest, other.OverlayDigest = ^before.UplinkDigest, ^before.PortDigest, ^before.OverlayDigest
	if err := h.Host.Maps.Meta.Put(uint32(0), &other); err != nil {
		return err
	}
	var now *host.Host
	if err := h.Space.Do(func() (err error) {
		now, err = host.Open(h.Config)
		return err
	}); err != nil {
		return fmt.Errorf("upgrade %s: %w", Name(h.Number), err)
	}
	old := h.Host
	h.Host = now
	err := errors.Join(h.kernel.Close(), old.Close(), h.begin(), now.Maps.Meta.Lookup(uint32(0), &after))
	if err != nil {
		return err
	}
	for name, ids := range map[string][2]uint32{
		"uplink": {before.UplinkProg, after.UplinkProg}, "uplink_in": {before.UplinkInProg, after.UplinkInProg},
		"vm_in": {before.VmInProg, after.VmInProg}, "vm_guard": {before.VmGuardProg, after.VmGuardProg},
		"overlay_in": {before.OverlayInProg, after.OverlayInProg},
	} {
		if ids[0] == ids[1] {
			return fmt.Errorf("upgrade %s: %s is still program %d", Name(h.Number), name, ids[0])
		}
	}
	return nil
}

// Let go of the dataplane, which stays in force: nothing holds it but its pins.
func (h *Hypervisor) Let() error {
	if h.Host == nil {
		return nil
	}
	err := errors.Join(h.kernel.Close(), h.Host.Close())
	h.Host = nil
	return err
}

// CutXDP takes the program from the uplink, which nobody may hold.
func (h *Hypervisor) CutXDP() error {
	return os.Remove(filepath.Join(h.Config.Pins, "v1", "links", "uplink"))
}

// HasXDP tells whether the uplink has a program.
func (h *Hypervisor) HasXDP() (has bool, err error) {
	err = h.Space.Do(func() error {
		l, err := netlink.LinkByName(Uplink)
		if err == nil {
			has = l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached
		}
		return err
	})
	return has, err
}

// Reasons of all exits, read where they are pinned.
func (h *Hypervisor) Reasons() (map[bpf.Reason]uint64, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(h.Config.Pins, "v1", "reasons"), nil)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	counts := map[bpf.Reason]uint64{}
	var perCPU []uint64
	for _, r := range bpf.Reasons() {
		if err := m.Lookup(uint32(r), &perCPU); err != nil {
			return nil, err
		}
		for _, n := range perCPU {
			counts[r] += n
		}
	}
	return counts, nil
}
