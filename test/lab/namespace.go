// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespaceFolder is where iproute2 looks for names: `ip netns exec NAME-cli1`
// works (but hides /sys/fs/bpf, since it mounts a /sys of its own).
const namespaceFolder = "/run/netns"

func namespacePath(name string) string { return filepath.Join(namespaceFolder, name) }

// createNamespace makes a named network namespace; one of that name is an error.
func createNamespace(name string) error {
	if err := os.MkdirAll(namespaceFolder, 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(namespacePath(name), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
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

// deleteNamespace takes the name away, also from what a crash left half made.
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

// ownNamespaces lists the namespaces of a lab as they are, not as they were
// written down.
func ownNamespaces(lab string) []string {
	entries, err := os.ReadDir(namespaceFolder)
	if err != nil {
		return nil // no folder, no namespaces
	}
	own := ownNamespace(lab)
	var names []string
	for _, e := range entries {
		if own.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

// inNamespace runs do on a thread inside the named namespace. Sockets and
// processes that do makes belong to it; goroutines that do starts do not.
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
		finished := false
		defer func() {
			if !finished { // runtime.Goexit, as t.FailNow does
				done <- errors.New("the function gave up its goroutine")
			}
		}()
		err := do()
		finished = true
		done <- err
	}()
	return <-done
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}
