// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endGrace is how long daemons may take to end by themselves.
const endGrace = time.Second

// Down ends the lab and removes all that belongs to it.
func (l *Lab) Down() error {
	l.closeSocket()
	return Down(l.state.Name)
}

// Down ends a lab that anybody brought up, also one that is half made or half
// gone: everything of it carries its name, so the name is enough, and what
// state.json says on top is used if it is there. It goes on after an error and
// keeps the folder then, for another try. It succeeds when there is no such lab.
func Down(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	var errs []error
	add := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	processes := belonging(name)
	s, err := load(name)
	if err == nil {
		for _, d := range s.Daemons {
			if d.Process.alive() {
				processes = append(processes, d.Process)
			}
		}
	}
	add("end processes", endAll(processes, endGrace))
	// An agent that ended late may have started one more workload.
	add("end processes", endAll(belonging(name), 0))
	// Pins first: a link that is still pinned keeps its program on a device.
	add("remove pins", os.RemoveAll(filepath.Join(pinFolder, name)))
	namespaces := ownNamespaces(name)
	// Each veth of the lab has an end at the router or at cairnd, an instance's
	// at its hypervisor.
	for _, ns := range namespaces {
		if namespaceIsThere(ns) {
			add("delete links of "+ns, unlink(ns))
		}
	}
	for _, ns := range namespaces {
		add("delete namespace "+ns, deleteNamespace(ns))
	}
	if len(errs) == 0 {
		add("remove folder", os.RemoveAll(labFolder(name)))
		// Both fail while another lab is there, as they should.
		_ = unmountBPF()
		_ = os.Remove(folder)
		_ = os.Remove(filepath.Dir(folder))
	}
	if len(errs) != 0 {
		return fmt.Errorf("lab %s down: %w", name, errors.Join(errs...))
	}
	return nil
}

// namespaceIsThere tells a namespace from the empty file that a crash leaves.
func namespaceIsThere(name string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(namespacePath(name), &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// DownStale ends the labs whose test was killed before it could.
func DownStale() error {
	names, err := Names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if s, err := load(name); err == nil && s.stale() {
			errs = append(errs, Down(name))
		}
	}
	return errors.Join(errs...)
}

// Left lists what still carries a lab's name; nothing after Down.
func Left(name string) []string {
	var left []string
	for _, ns := range ownNamespaces(name) {
		left = append(left, "namespace "+ns)
	}
	for _, p := range belonging(name) {
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
		left = append(left, fmt.Sprintf("process %d %s", p.PID, strings.ReplaceAll(string(command), "\x00", " ")))
	}
	for _, path := range []string{labFolder(name), filepath.Join(pinFolder, name)} {
		if _, err := os.Lstat(path); err == nil {
			left = append(left, "folder "+path)
		}
	}
	return left
}

// mountedMark says that a lab mounted bpffs, so that the last one unmounts it.
func mountedMark() string { return filepath.Join(folder, "mounted-bpffs") }

// mountBPF makes the lab's pin folder, mounting bpffs if the machine has none.
func mountBPF(name string) error {
	return locked(func() error {
		var fs unix.Statfs_t
		if err := unix.Statfs(pinFolder, &fs); err != nil {
			return err
		}
		if fs.Type != unix.BPF_FS_MAGIC {
			if err := os.WriteFile(mountedMark(), nil, 0o644); err != nil {
				return err
			}
			if err := unix.Mount("bpf", pinFolder, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
				return err
			}
		}
		return os.MkdirAll(filepath.Join(pinFolder, name), 0o700)
	})
}

// unmountBPF undoes mountBPF when no lab is left and nobody else has pinned
// anything meanwhile.
func unmountBPF() error {
	return locked(func() error {
		if _, err := os.Stat(mountedMark()); err != nil {
			return nil // not ours
		}
		if names, err := Names(); err != nil || len(names) != 0 {
			return err
		}
		pins, err := os.ReadDir(pinFolder)
		if err != nil {
			return err
		}
		for _, p := range pins {
			if name := p.Name(); name != "maps.debug" && name != "progs.debug" { // the kernel's own
				return nil
			}
		}
		if err := unix.Unmount(pinFolder, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
		return os.Remove(mountedMark())
	})
}

// locked keeps two labs that come and go from deciding about the mount at once.
func locked(do func() error) error {
	dir, err := os.Open(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	return do()
}
