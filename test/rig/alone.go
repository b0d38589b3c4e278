// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

const inside = "CAIRN_RIG"

// Alone runs the program again in namespaces of its own for mounts, processes
// and network, so that nothing of it is left whatever happens to it, and ends
// with its status. In there it returns the folder for what is temporary.
func Alone() (folder string, err error) {
	if os.Getenv(inside) == "" {
		os.Exit(again())
	}
	_ = rlimit.RemoveMemlock()
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return "", fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	folder = "/run/bench"
	return folder, os.Mkdir(folder, 0o755)
}

// TestAlone is Alone for the tests of a package, whose TestMain hands them over:
// one that is killed, for being late or by hand, leaves no mount and no process.
func TestAlone(run func() int) {
	if _, err := Alone(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(run())
}

func again() int {
	runtime.LockOSThread() // the child is killed when this thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	case err != nil:
		fmt.Fprintln(os.Stderr, err, "(this needs root)")
		return 1
	}
	return 0
}
