// SPDX-License-Identifier: Apache-2.0

package compute

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process names one process for good: pids come round again, a pid with its
// start time in one boot does not.
type process struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // clock ticks since boot
	Boot  string `json:"boot,omitempty"`
}

// grace is how long a workload may take to end by itself when it is stopped.
const grace = 2 * time.Second

// alive tells whether the process runs; a zombie does not.
func (p process) alive() bool {
	if p.PID == 0 || p.Boot != bootID() {
		return false
	}
	start, state, err := procStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// launch starts argv inside a namespace, as pid 1 of a pid namespace and leader
// of a session of its own: whatever it starts ends with it, and nothing that
// happens to us reaches it. What it prints goes to the file log.
func launch(namespace string, argv, env []string, log string) (process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return process{}, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID}
	if err := inNamespace(namespace, cmd.Start); err != nil {
		return process{}, fmt.Errorf("start %s: %w", argv[0], err)
	}
	p := process{PID: cmd.Process.Pid, Boot: bootID()}
	// It cannot be reaped before the Wait below, so the entry is there, even
	// when the program has already ended.
	p.Start, _, err = procStat(p.PID)
	go func() { _ = cmd.Wait() }()
	if err != nil {
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
		return process{}, fmt.Errorf("look at process %d: %w", p.PID, err)
	}
	return p, nil
}

// end asks the process to end, then makes it, and waits until it is gone. Its
// pid namespace takes all its children along.
func (p process) end() error {
	if !p.alive() {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.alive() {
		return nil // ended, and the pid was reused, before we held it
	}
	// Pid 1 of a namespace ignores what it has no handler for, and a program that
	// has just started has none yet: hence again and again.
	for deadline := time.Now().Add(grace); time.Now().Before(deadline); {
		if err := signal(fd, unix.SIGTERM); err != nil {
			return fmt.Errorf("signal process %d: %w", p.PID, err)
		}
		if waitPidfd(fd, grace/20) {
			return nil
		}
	}
	if err := signal(fd, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	if waitPidfd(fd, 5*time.Second) {
		return nil
	}
	return fmt.Errorf("end process %d: still there after kill", p.PID)
}

func signal(pidfd int, s unix.Signal) error {
	if err := unix.PidfdSendSignal(pidfd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func waitPidfd(fd int, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
		if n > 0 {
			return true
		}
	}
}

// inits finds the processes that are pid 1 of a pid namespace below ours and
// live in the named network namespace: workloads, also those whose start was
// not written down before a crash. Whoever merely visits the namespace (a
// debugger, a test) is none of them.
func inits(namespace string) []process {
	inode, err := namespaceInode(namespacePath(namespace))
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if net, err := namespaceInode(filepath.Join("/proc", e.Name(), "ns/net")); err != nil || net != inode {
			continue
		}
		start, state, err := procStat(pid)
		if err != nil || state == 'Z' || state == 'X' || !isInit(pid) {
			continue
		}
		found = append(found, process{PID: pid, Start: start, Boot: bootID()})
	}
	return found
}

// isInit reads the pids of a process, outermost namespace first.
func isInit(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if pids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(pids)
			return len(fields) > 1 && fields[len(fields)-1] == "1"
		}
	}
	return false
}

// procStat reads the start time and the state letter of a process (proc(5)).
// The name in parentheses may hold anything, so fields count from its end.
func procStat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("stat of process %d is cut short", pid)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0][0], err
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
