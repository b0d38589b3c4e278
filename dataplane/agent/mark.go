// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"cairn/bpf"
	"cairn/dataplane/table"
)

// mark is the revision that the maps were programmed to. It is pinned beside
// them, so that it lives and dies with what it describes.
type mark struct{ m *ebpf.Map }

func openMark(pins string) (*mark, error) {
	path := filepath.Join(pins, fmt.Sprintf("v%d", bpf.Schema), "mark")
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		m, err = ebpf.NewMap(&ebpf.MapSpec{Name: "mark", Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1})
		if err == nil {
			err = m.Pin(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the mark of the maps: %w", err)
	}
	return &mark{m}, nil
}

func (m *mark) read() (table.Mark, error) {
	var v [2]uint64
	if err := m.m.Lookup(uint32(0), &v); err != nil {
		return table.Mark{}, fmt.Errorf("read the mark of the maps: %w", err)
	}
	return table.Mark{Epoch: v[0], Revision: v[1]}, nil
}

// raise writes a mark unless it is the last one that was written.
func (m *mark) raise(last, at table.Mark) error {
	if last == at {
		return nil
	}
	return m.write(at)
}

func (m *mark) write(at table.Mark) error {
	if err := m.m.Put(uint32(0), [2]uint64{at.Epoch, at.Revision}); err != nil {
		return fmt.Errorf("write the mark of the maps: %w", err)
	}
	return nil
}

func (m *mark) close() { _ = m.m.Close() } // it is pinned

// patience with the lock of an agent that has just been killed: a child of it that
// was being started then holds the file a moment longer.
const patience = 2 * time.Second

// lock keeps a second agent from working with the same state: the two would
// undo each other's machines. It ends with the process.
func lock(state string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(state, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for begin := time.Now(); errors.Is(err, unix.EWOULDBLOCK) && time.Since(begin) < patience; {
		time.Sleep(20 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: another agent works with this state: %w", state, err), f.Close())
	}
	return f, nil
}

// countStart says how often an agent was started with this state before.
func countStart(state string) (uint64, error) {
	path := filepath.Join(state, "starts")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64) // a damaged count begins anew
	return n, os.WriteFile(path, []byte(strconv.FormatUint(n+1, 10)+"\n"), 0o600)
}

func cpus() int { return runtime.NumCPU() }
