// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cilium/ebpf"

	dsync "cairn/dataplane/sync"
	"cairn/dataplane/table"
)

// Agent is the built cairn-agent as a process on a hypervisor.
type Agent struct {
	// Control is where its control plane is, and Arguments are further ones, to
	// be set before Start. Without, the control plane is away for good: the agent
	// programs what it finds in its cache.
	Control   string
	Arguments []string

	hypervisor *Hypervisor
	program    string
	state      string
	cmd        *exec.Cmd
	log        bytes.Buffer
}

// Joining is an agent for a hypervisor that knows nothing yet.
func (h *Hypervisor) Joining(program, state string) (*Agent, error) {
	return &Agent{hypervisor: h, program: program, state: state, Control: "127.0.0.1:9"}, os.MkdirAll(state, 0o700)
}

// Agent for a hypervisor, with its tables in the cache.
func (h *Hypervisor) Agent(program, state string, tables table.View) (*Agent, error) {
	a, err := h.Joining(program, state)
	if err != nil {
		return nil, err
	}
	var failed error
	cache := dsync.NewCache(state)
	cache.Offer(tables)
	ended, end := context.WithCancel(context.Background())
	end()
	cache.Run(ended, 0, func(err error) { failed = err })
	return a, failed
}

// Start it.
func (a *Agent) Start() error {
	c := a.hypervisor.Config
	cmd := exec.Command(a.program, append([]string{
		"--name", Name(a.hypervisor.Number), "--state", a.state, "--pins", c.Pins, "--uplink", c.Uplink,
		"--endpoint", c.Endpoint.String(), "--control", a.Control, "--socket", a.Socket(),
	}, a.Arguments...)...)
	cmd.Stdout, cmd.Stderr = &a.log, &a.log
	_ = os.Remove(a.Socket()) // of one that was killed
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := a.hypervisor.Space.Do(cmd.Start); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	a.cmd = cmd
	return nil
}

// Runs waits until the agent that was started answers questions: by then it has
// taken the dataplane over.
func (a *Agent) Runs(patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		conn, err := net.Dial("unix", a.Socket())
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the agent does not answer: %w; it says: %s", err, a.Log())
		}
		<-time.After(5 * time.Millisecond)
	}
}

// Socket of its debug service.
func (a *Agent) Socket() string { return filepath.Join(a.state, "sock") }

// PID of the process.
func (a *Agent) PID() int { return a.cmd.Process.Pid }

// Kill it with a signal that it cannot see.
func (a *Agent) Kill() error {
	if a.cmd == nil {
		return nil
	}
	err := a.cmd.Process.Kill()
	_ = a.cmd.Wait() // it was killed, which is no news
	a.cmd = nil
	return err
}

// Log is what it has said last.
func (a *Agent) Log() string {
	text := a.log.Bytes()
	return string(text[max(0, len(text)-2000):])
}

// Programmed waits until the agent that runs has programmed its tables: it
// leaves their mark beside the maps, and its ports are attached.
func (a *Agent) Programmed(ports int, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		n, err := a.attached()
		if err == nil && n == ports {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%d of %d ports are attached after %s; the agent says: %s", n, ports, patience, a.Log()), err)
		}
		<-time.After(200 * time.Millisecond) // counting is work, too
	}
}

// attached counts the ports whose programs hang on their devices.
func (a *Agent) attached() (n int, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(a.hypervisor.Config.Pins, "v1", "ifindex_port"), nil)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer m.Close()
	var device, port uint32
	it := m.Iterate()
	for it.Next(&device, &port) {
		_, err := os.Stat(filepath.Join(a.hypervisor.Config.Pins, "v1", "links", fmt.Sprintf("port-%d-in", port)))
		if err == nil {
			n++
		}
	}
	return n, it.Err()
}
