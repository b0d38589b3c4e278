// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
)

// MapMemory is what the kernel says that a map holds, in bytes (memlock in the
// descriptor's fdinfo).
func MapMemory(m *ebpf.Map) (uint64, error) {
	return field(fmt.Sprintf("/proc/self/fdinfo/%d", m.FD()), "memlock:", 1)
}

// Resident is the memory of a process, in bytes.
func Resident(pid int) (uint64, error) {
	return field(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:", 1024)
}

// Peak is the most that a process ever had, in bytes.
func Peak(pid int) (uint64, error) {
	return field(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:", 1024)
}

// field reads a number behind a name at the begin of a line.
func field(path, name string, unit uint64) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
			n, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			return n * unit, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}
