// SPDX-License-Identifier: Apache-2.0

package compute

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespaceFolder is where iproute2 looks for names, so `ip netns exec` works
// on an instance too.
const namespaceFolder = "/run/netns"

func namespacePath(name string) string { return filepath.Join(namespaceFolder, name) }

// namespaceExists tells whether the name stands for a network namespace. A
// plain file of that name is what a crash between create and mount leaves.
func namespaceExists(name string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(namespacePath(name), &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// createNamespace makes a named network namespace and does nothing when it is
// there.
func createNamespace(name string) error {
	if namespaceExists(name) {
		return nil
	}
	if err := os.MkdirAll(namespaceFolder, 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(namespacePath(name), os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	file.Close()
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		own := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(own, namespacePath(name), "bind", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		return nil
	})
}

// deleteNamespace takes the name away; the namespace itself goes with its last
// process.
func deleteNamespace(name string) error {
	path := namespacePath(name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// inNamespace runs do on a thread inside the named namespace. Sockets and
// processes that do makes belong to that namespace.
func inNamespace(name string, do func() error) error {
	file, err := os.Open(namespacePath(name))
	if err != nil {
		return err
	}
	defer file.Close()
	return onOwnThread(func() error {
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", name, err)
		}
		return do()
	})
}

// onOwnThread runs do on a thread that ends with it, so that no other goroutine
// ever runs in a namespace that do has entered. The process's main thread is
// never given away: it cannot end, and its namespace is what /proc shows for
// the whole process.
func onOwnThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onOwnThread(do)
			runtime.UnlockOSThread()
			return
		}
		done <- do()
	}()
	return <-done
}

// namespaceInode tells namespaces apart.
func namespaceInode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}
