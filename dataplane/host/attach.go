// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hook is one place to attach at.
type hook struct {
	pin     string // of the link
	program string
	ifindex int
	attach  ebpf.AttachType
}

func inHook(port uint32, ifindex int) hook {
	return hook{fmt.Sprintf("port-%d-in", port), "vm_in", ifindex, ebpf.AttachTCXIngress}
}

func guardHook(port uint32, ifindex int) hook {
	return hook{fmt.Sprintf("port-%d-guard", port), "vm_guard", ifindex, ebpf.AttachTCXEgress}
}

// attachAll attaches the uplink and the door, then brings the programs of the
// ports up to date. XDP comes last: what it delivers needs uplink_in.
func (h *Host) attachAll() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	uplink := h.uplink.Attrs().Index
	hooks := []hook{{"uplink_in", "uplink_in", uplink, ebpf.AttachTCXIngress}}
	if h.overlay != 0 {
		hooks = append(hooks, overlayHook(h.overlay))
	}
	if h.door.ifindex != 0 {
		hooks = append(hooks, hook{"svc_in", "svc_in", h.door.ifindex, ebpf.AttachTCXIngress})
	}
	hooks = append(hooks, hook{"uplink", "uplink", uplink, ebpf.AttachXDP})
	for _, k := range hooks {
		if err := h.attach(k); err != nil {
			return err
		}
	}
	ports, err := h.pins.portLinks()
	if err != nil {
		return err
	}
	for port := range ports {
		if err := h.renewPort(port); err != nil {
			return err
		}
	}
	return nil
}

// attach makes the hook run its program: by updating the pinned link where
// there is one on that device, else by a new link, which is pinned.
func (h *Host) attach(k hook) error {
	l, err := h.attached(k)
	if err == nil && l == nil {
		l, err = h.attachNew(k)
	}
	if err != nil {
		return fmt.Errorf("attach %s to device %d: %w", k.program, k.ifindex, err)
	}
	if old := h.links[k.pin]; old != nil {
		old.Close()
	}
	h.links[k.pin] = l
	return nil
}

// attached opens the pinned link and updates its program. A link whose device
// is gone or is another one is let go: then there is none.
func (h *Host) attached(k hook) (link.Link, error) {
	path := h.pins.linkPath(k.pin)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if linkIfindex(info) != k.ifindex {
		return nil, errors.Join(os.Remove(path), l.Close())
	}
	want, err := programID(h.progs[k.program])
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if info.Program == want {
		return l, nil
	}
	if err := l.Update(h.progs[k.program]); err != nil {
		return nil, errors.Join(fmt.Errorf("update the link: %w", err), l.Close())
	}
	return l, nil
}

// A link of the kernel's is released some time after its last reference went.
const releaseTime = 2 * time.Second

func (h *Host) attachNew(k hook) (link.Link, error) {
	deadline := time.Now().Add(releaseTime)
	for {
		l, err := h.attachOnce(k)
		if err == nil {
			if err := l.Pin(h.pins.linkPath(k.pin)); err != nil {
				return nil, errors.Join(fmt.Errorf("pin the link: %w", err), l.Close())
			}
			return l, nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return nil, h.attachRefusal(k, err)
		}
		pause(10 * time.Millisecond)
	}
}

func pause(d time.Duration) { <-time.After(d) }

func (h *Host) attachOnce(k hook) (link.Link, error) {
	if k.attach == ebpf.AttachXDP {
		return link.AttachXDP(link.XDPOptions{
			Program: h.progs[k.program], Interface: k.ifindex, Flags: link.XDPDriverMode,
		})
	}
	return link.AttachTCX(link.TCXOptions{
		Program: h.progs[k.program], Interface: k.ifindex, Attach: k.attach,
	})
}

// attachRefusal says what the errno of a refused XDP link means.
func (h *Host) attachRefusal(k hook, err error) error {
	if k.attach != ebpf.AttachXDP {
		return err
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("another XDP program holds the device: %w", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("the driver %s has no native XDP: %w", h.uplink.Type(), err)
	case errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the driver refuses XDP at MTU %d (its own or its peer's): %w", h.uplink.Attrs().MTU, err)
	}
	return err
}

func linkIfindex(info *link.Info) int {
	if x := info.XDP(); x != nil {
		return int(x.Ifindex)
	}
	if t := info.TCX(); t != nil {
		return int(t.Ifindex)
	}
	return 0
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("look at the program: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// renewPort brings the pinned links of a port up to date. Links of a device
// that is gone stay until the port is attached anew or detached.
func (h *Host) renewPort(port uint32) error {
	for _, k := range []hook{guardHook(port, 0), inHook(port, 0)} {
		l, err := link.LoadPinnedLink(h.pins.linkPath(k.pin), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("renew port %d: %w", port, err)
		}
		info, err := l.Info()
		if err != nil || linkIfindex(info) == 0 {
			l.Close()
			continue
		}
		l.Close()
		k.ifindex = linkIfindex(info)
		if err := errors.Join(h.ensureStat(port), h.attach(k)); err != nil {
			return fmt.Errorf("renew port %d: %w", port, err)
		}
	}
	return nil
}

// AttachPort makes a device a port: its flow table, the guard, the program on
// what the VM sends, and the entry that finds the port by the device. Attaching
// again, or after the device was made anew, keeps the flows. What the port may
// do is in port_cfg, which others write; until then it drops.
func (h *Host) AttachPort(ifindex int, port uint32) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.attachPort(ifindex, port); err != nil {
		return fmt.Errorf("attach port %d: %w", port, err)
	}
	return nil
}

func (h *Host) attachPort(ifindex int, port uint32) error {
	dev, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("find device %d: %w", ifindex, err)
	}
	if err := disableIPv6(dev.Attrs().Name); err != nil {
		return err
	}
	// Both wait for the kernel's readers, and neither needs the other.
	flows := make(chan error, 1)
	go func() { flows <- h.ensureFlows(port) }()
	guarded := h.attach(guardHook(port, ifindex))
	if err := errors.Join(<-flows, guarded, h.ensureStat(port)); err != nil {
		return err
	}
	if err := h.forgetIfindex(port, uint32(ifindex)); err != nil {
		return err
	}
	if err := h.Maps.IfindexPort.Put(uint32(ifindex), port); err != nil {
		return fmt.Errorf("write ifindex_port: %w", err)
	}
	return h.attach(inHook(port, ifindex))
}

// forgetIfindex removes the devices by which the port was found, but keep.
func (h *Host) forgetIfindex(port, keep uint32) error {
	var ifindex, at uint32
	var stale []uint32
	entries := h.Maps.IfindexPort.Iterate()
	for entries.Next(&ifindex, &at) {
		if at == port && ifindex != keep {
			stale = append(stale, ifindex)
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read ifindex_port: %w", err)
	}
	for _, ifindex := range stale {
		if err := h.Maps.IfindexPort.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("write ifindex_port: %w", err)
		}
	}
	return nil
}

// DetachPort undoes AttachPort. The port's flows and counters are gone with it: a
// port made later under the same number inherits nothing. A port that is not attached is
// no error.
func (h *Host) DetachPort(port uint32) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	errs := []error{h.forgetIfindex(port, 0)}
	for _, k := range []hook{inHook(port, 0), guardHook(port, 0)} {
		if l := h.links[k.pin]; l != nil {
			l.Close()
			delete(h.links, k.pin)
		}
		if err := os.Remove(h.pins.linkPath(k.pin)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, h.forgetFlows(port))
	if last, err := h.PortStats(port); err == nil && h.detached != nil {
		h.detached(port, last)
	}
	errs = append(errs, h.forgetStat(port), h.forgetNotes(port))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach port %d: %w", port, err)
	}
	return nil
}

// Attached lists the ports by the device that each is attached to.
func (h *Host) Attached() (map[uint32]int, error) {
	ports := map[uint32]int{}
	var ifindex, port uint32
	entries := h.Maps.IfindexPort.Iterate()
	for entries.Next(&ifindex, &port) {
		ports[port] = int(ifindex)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read ifindex_port: %w", err)
	}
	return ports, nil
}
