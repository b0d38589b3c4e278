// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"cairn/bpf"
	"cairn/dataplane/announce"
)

// Where the agent's loader pins things, below the schema's folder. Program and
// link lie beside each other because the id of an attached program is of no use
// without CAP_SYS_ADMIN; with the pins CAP_BPF is enough.
const (
	schemaFolder  = "v1"
	uplinkLink    = "links/uplink"
	uplinkProgram = "progs/uplink"
	metaMap       = "meta"
	portLink      = "links/vm_in-" // and the port's id
)

// Pins tests the dataplane through its pins. It opens them anew each time and
// holds none, so that it can neither keep alive what the agent has removed nor
// miss what it has replaced.
type Pins struct {
	folder string // with the schema
	uplink string // device
	source netip.Addr
	port   uint16 // of the last probe
}

// NewPins looks below pins at the dataplane of a device. Source is the address
// that the program counts apart.
func NewPins(pins, uplink string, source netip.Addr) *Pins {
	return &Pins{folder: filepath.Join(pins, schemaFolder), uplink: uplink, source: source}
}

func (p *Pins) path(name string) string { return filepath.Join(p.folder, filepath.FromSlash(name)) }

// Link passes if the program that the loader recorded is attached to the uplink.
func (p *Pins) Link() error {
	device, err := net.InterfaceByName(p.uplink)
	if err != nil {
		return fmt.Errorf("uplink %s: %w", p.uplink, err)
	}
	l, err := link.LoadPinnedLink(p.path(uplinkLink), nil)
	if err != nil {
		return fmt.Errorf("open link: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	xdp := info.XDP()
	switch {
	case xdp == nil:
		return errors.New("link is not XDP")
	case xdp.Ifindex == 0:
		return errors.New("program is detached")
	case int(xdp.Ifindex) != device.Index:
		return fmt.Errorf("program is attached to device %d, uplink %s is %d", xdp.Ifindex, p.uplink, device.Index)
	}
	id, err := p.recorded()
	if err != nil {
		return err
	}
	if id != info.Program {
		return fmt.Errorf("program %d is attached, %d was loaded", info.Program, id)
	}
	return nil
}

// recorded reads the id of the uplink's program that the loader wrote down.
func (p *Pins) recorded() (ebpf.ProgramID, error) {
	m, err := ebpf.LoadPinnedMap(p.path(metaMap), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, fmt.Errorf("open meta: %w", err)
	}
	defer m.Close()
	var meta bpf.Meta
	if err := m.Lookup(uint32(0), &meta); err != nil {
		return 0, fmt.Errorf("read meta: %w", err)
	}
	if meta.Schema != bpf.Schema {
		return 0, fmt.Errorf("read meta: schema %d, want %d", meta.Schema, bpf.Schema)
	}
	return ebpf.ProgramID(meta.UplinkProg), nil
}

// Probe sends one packet through the pinned program. Each probe has another
// source port, so that in time all slots are met.
func (p *Pins) Probe(vip netip.Addr, s announce.Service) error {
	device, err := net.InterfaceByName(p.uplink)
	if err != nil {
		return fmt.Errorf("uplink %s: %w", p.uplink, err)
	}
	program, err := ebpf.LoadPinnedProgram(p.path(uplinkProgram), nil)
	if err != nil {
		return fmt.Errorf("open program: %w", err)
	}
	defer program.Close()
	p.port = p.port%60000 + 1
	frame, err := probe([6]byte(device.HardwareAddr), netip.AddrPortFrom(p.source, 1024+p.port), vip, s)
	if err != nil {
		return err
	}
	run := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Repeat: 1}
	verdict, err := program.Run(&run)
	if err != nil {
		return fmt.Errorf("run program: %w", err)
	}
	return outcome(verdict, run.DataOut, vip)
}

// Port passes if the port's program is attached to a device that exists.
func (p *Pins) Port(id uint32) error {
	l, err := link.LoadPinnedLink(p.path(portLink+strconv.FormatUint(uint64(id), 10)), nil)
	if err != nil {
		return fmt.Errorf("open link: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	tcx := info.TCX()
	switch {
	case tcx == nil:
		return errors.New("link is not tcx")
	case tcx.Ifindex == 0:
		return errors.New("device is gone")
	}
	return nil
}
