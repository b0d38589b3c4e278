// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process names one process for good: a pid with its start time.
type process struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // clock ticks since boot
}

// mark is in the environment of every process that a lab starts, and of their
// children, so that they are found also when they were never written down.
const mark = "CAIRN_LAB"

func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	start, state, err := procStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// state is the letter that ps prints: R, S, T for one under SIGSTOP; 0 when it
// is gone.
func (p process) state() byte {
	start, state, err := procStat(p.PID)
	if err != nil || start != p.Start || state == 'X' || state == 'Z' {
		return 0
	}
	return state
}

func identify(pid int) (process, error) {
	start, _, err := procStat(pid)
	return process{PID: pid, Start: start}, err
}

// signal goes to that process or to none: a pidfd cannot be reused.
func (p process) signal(s unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.alive() {
		return fmt.Errorf("process %d: %w", p.PID, unix.ESRCH)
	}
	return unix.PidfdSendSignal(fd, s, nil, 0)
}

// wait returns whether the process was gone within the time.
func (p process) wait(timeout time.Duration) bool {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return !p.alive()
	}
	defer unix.Close(fd)
	if !p.alive() {
		return true
	}
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return !p.alive()
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return !p.alive()
		}
		if n > 0 {
			return true
		}
	}
}

// endAll asks all to end, gives them one grace time together, then kills.
func endAll(all []process, grace time.Duration) error {
	for _, p := range all {
		_ = p.signal(unix.SIGTERM)
		if p.state() == 'T' {
			_ = p.signal(unix.SIGCONT)
		}
	}
	deadline := time.Now().Add(grace)
	var errs []error
	for _, p := range all {
		if p.wait(time.Until(deadline)) {
			continue
		}
		_ = p.signal(unix.SIGKILL)
		if !p.wait(5 * time.Second) {
			errs = append(errs, fmt.Errorf("process %d is still there after kill", p.PID))
		}
	}
	return errors.Join(errs...)
}

// procStat reads the start time and state letter (proc(5)); the name in
// parentheses may hold anything, so fields count from its end.
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

// belonging finds the live processes of a lab: those that carry its mark, and
// the workloads of its instances, which are pid 1 of a pid namespace inside one
// of its network namespaces. Whoever merely visits (a shell, a test) is neither.
func belonging(lab string) []process {
	namespaces := map[uint64]bool{}
	for _, ns := range ownNamespaces(lab) {
		if n, err := inode(namespacePath(ns)); err == nil {
			namespaces[n] = true
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	marked := []byte("\x00" + mark + "=" + lab + "\x00")
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		environment, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil {
			continue // gone
		}
		own := bytes.Contains(append([]byte{0}, environment...), marked)
		if !own && len(namespaces) != 0 {
			n, err := inode(filepath.Join("/proc", e.Name(), "ns/net"))
			own = err == nil && namespaces[n] && isInit(pid)
		}
		if !own {
			continue
		}
		if p, err := identify(pid); err == nil && p.alive() {
			found = append(found, p)
		}
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
