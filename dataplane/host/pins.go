// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"cairn/bpf"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// pins is the folder of one schema: maps by name, progs/NAME, links/NAME.
type pins string

func (p pins) mapPath(name string) string  { return filepath.Join(string(p), name) }
func (p pins) progPath(name string) string { return filepath.Join(string(p), "progs", name) }
func (p pins) linkPath(name string) string { return filepath.Join(string(p), "links", name) }

func (p pins) make() error {
	for _, dir := range []string{"progs", "links"} {
		if err := os.MkdirAll(filepath.Join(string(p), dir), 0o700); err != nil {
			return fmt.Errorf("make the folder of pins: %w", err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(string(p), &st); err != nil {
		return fmt.Errorf("look at %s: %w", p, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is not on a bpffs", p)
	}
	return nil
}

// standardBPFFS is where systems mount theirs. It lies in sysfs, where nobody
// can make folders until it is mounted.
const standardBPFFS = "/sys/fs/bpf"

// EnsureBPFFS makes path a folder on a bpffs: under /sys/fs/bpf on the one that
// belongs there, elsewhere on one of its own. What is missing is mounted.
func EnsureBPFFS(path string) error {
	mount := path
	if within, err := filepath.Rel(standardBPFFS, path); err == nil && filepath.IsLocal(within) {
		mount = standardBPFFS
	}
	if err := os.MkdirAll(mount, 0o700); err != nil {
		return fmt.Errorf("make the mount point: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(mount, &st); err != nil {
		return fmt.Errorf("look at %s: %w", mount, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		if err := unix.Mount("bpf", mount, "bpf", 0, "mode=0700"); err != nil {
			return fmt.Errorf("mount a bpffs on %s: %w", mount, err)
		}
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	return nil
}

// openMaps creates the shared maps or opens them where they are pinned, and
// fits the objects' specs to them.
func (h *Host) openMaps(specs *bpf.Specs) error {
	for name, field := range h.Maps.byName() {
		spec := specs.Uplink.Maps[name]
		if spec == nil {
			return fmt.Errorf("open map %s: the object does not declare it", name)
		}
		m, err := openMap(h.pins.mapPath(name), spec, h.cfg.Sizes[name])
		if err != nil {
			return fmt.Errorf("open map %s: %w", name, err)
		}
		*field = m
		for _, other := range []*ebpf.CollectionSpec{specs.Port, specs.Overlay} {
			if declared := other.Maps[name]; declared != nil {
				declared.MaxEntries = m.MaxEntries()
			}
		}
	}
	h.ctNew = specs.Uplink.Maps["ct_new"].InnerMap
	h.ctEst = specs.Uplink.Maps["ct_est"].InnerMap
	return nil
}

// openMap opens a pinned map, whatever its size, or makes it with size entries
// (0: as the object says). spec takes the size of what it got.
func openMap(path string, spec *ebpf.MapSpec, size uint32) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		spec.MaxEntries = m.MaxEntries()
		if err := spec.Compatible(m); err != nil {
			return nil, errors.Join(fmt.Errorf("the pinned one is of another layout: %w", err), m.Close())
		}
		return m, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if size != 0 {
		spec.MaxEntries = size
	}
	if m, err = ebpf.NewMap(spec); err != nil {
		return nil, err
	}
	if err := m.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pin: %w", err), m.Close())
	}
	return m, nil
}

// Remove ends the host's dataplane: links first, then all other pins, then the
// door and the overlay. A host that is half there or not at all is no error.
func Remove(cfg Config) error {
	p := pins(filepath.Join(cfg.Pins, "v1"))
	var errs []error
	for _, dir := range []string{p.linkPath(""), p.progPath(""), string(p)} {
		if err := os.RemoveAll(dir); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", dir, err))
		}
	}
	return errors.Join(append(errs, removeDoor(cfg.Door), removeOverlay())...)
}

// portLinks lists the port ids that have a pinned link.
func (p pins) portLinks() (map[uint32]bool, error) {
	entries, err := os.ReadDir(p.linkPath(""))
	if err != nil {
		return nil, fmt.Errorf("list pinned links: %w", err)
	}
	ports := map[uint32]bool{}
	for _, e := range entries {
		var port uint32
		if !strings.HasPrefix(e.Name(), "port-") {
			continue
		}
		if _, err := fmt.Sscanf(e.Name(), "port-%d-", &port); err == nil {
			ports[port] = true
		}
	}
	return ports, nil
}
