// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"cairn/bpf"
	"cairn/bpf/packet"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Prober tests a dataplane from its pins: no agent need be alive, and CAP_BPF
// is enough. It changes nothing but the counter of probes.
type Prober struct {
	pins   pins
	uplink string
}

// NewProber tests the dataplane under a folder of pins, on a device.
func NewProber(pinned, uplink string) *Prober {
	return &Prober{pins: pins(filepath.Join(pinned, "v1")), uplink: uplink}
}

// SelfTestLink is Link for a dataplane that is open.
func (h *Host) SelfTestLink() error { return NewProber(h.cfg.Pins, h.cfg.Uplink).Link() }

// Link tells whether the uplink's programs are attached: both links there, on
// the device, running the programs that the meta map names.
func (p *Prober) Link() error {
	meta, err := p.meta()
	if err != nil {
		return fmt.Errorf("test the uplink's links: %w", err)
	}
	ifindex, err := deviceIndex(p.uplink)
	if err != nil {
		return fmt.Errorf("test the uplink's links: %w", err)
	}
	for name, want := range map[string]uint32{"uplink": meta.UplinkProg, "uplink_in": meta.UplinkInProg} {
		if err := p.linkRuns(name, ifindex, name, want); err != nil {
			return fmt.Errorf("test link %s: %w", name, err)
		}
	}
	return nil
}

// Port tells whether a port's programs are attached to a device that exists.
func (p *Prober) Port(port uint32) error {
	meta, err := p.meta()
	if err != nil {
		return fmt.Errorf("test port %d: %w", port, err)
	}
	for _, k := range []struct {
		hook hook
		prog uint32
	}{{inHook(port, 0), meta.VmInProg}, {guardHook(port, 0), meta.VmGuardProg}} {
		if err := p.linkRuns(k.hook.pin, 0, k.hook.program, k.prog); err != nil {
			return fmt.Errorf("test port %d: link %s: %w", port, k.hook.pin, err)
		}
	}
	return nil
}

// linkRuns checks a pinned link; ifindex 0 takes any device that exists. It must
// run the program recorded, or the one pinned under its name: while programs are
// replaced, or if the agent died doing it, the record is behind.
func (p *Prober) linkRuns(name string, ifindex int, program string, recorded uint32) error {
	l, err := link.LoadPinnedLink(p.pins.linkPath(name), nil)
	if err != nil {
		return fmt.Errorf("open it: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("look at it: %w", err)
	}
	at := linkIfindex(info)
	switch {
	case at == 0:
		return errors.New("it is detached")
	case ifindex != 0 && at != ifindex:
		return fmt.Errorf("it hangs on device %d, not %d", at, ifindex)
	case uint32(info.Program) == recorded:
		return nil
	}
	pinned, err := p.pinnedID(program)
	if err != nil {
		return err
	}
	if info.Program != pinned {
		return fmt.Errorf("it runs program %d, not %d", info.Program, recorded)
	}
	return nil
}

func (p *Prober) pinnedID(program string) (ebpf.ProgramID, error) {
	prog, err := ebpf.LoadPinnedProgram(p.pins.progPath(program), nil)
	if err != nil {
		return 0, fmt.Errorf("open the program: %w", err)
	}
	defer prog.Close()
	return programID(prog)
}

func (p *Prober) cfg() (c bpf.Cfg, err error) {
	m, err := ebpf.LoadPinnedMap(p.pins.mapPath("cfg"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return c, fmt.Errorf("open cfg: %w", err)
	}
	defer m.Close()
	if err := m.Lookup(uint32(0), &c); err != nil {
		return c, fmt.Errorf("read cfg: %w", err)
	}
	return c, nil
}

func (p *Prober) meta() (meta bpf.Meta, err error) {
	m, err := ebpf.LoadPinnedMap(p.pins.mapPath("meta"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return meta, fmt.Errorf("open meta: %w", err)
	}
	defer m.Close()
	if err := m.Lookup(uint32(0), &meta); err != nil {
		return meta, fmt.Errorf("read meta: %w", err)
	}
	if meta.Schema != bpf.Schema {
		return meta, fmt.Errorf("meta is of schema %d, not %d", meta.Schema, bpf.Schema)
	}
	return meta, nil
}

// VIP sends one made-up packet for a service through the pinned program, not
// through the wire: it must leave towards a backend, or be delivered to a local
// one. It counts as a probe and nowhere else. sport chooses the slot.
func (p *Prober) VIP(vip netip.AddrPort, proto uint8, sport uint16) error {
	if err := p.probeVIP(vip, proto, sport); err != nil {
		return fmt.Errorf("test VIP %s: %w", vip, err)
	}
	return nil
}

const (
	xdpPass = 2
	xdpTX   = 3
)

func (p *Prober) probeVIP(vip netip.AddrPort, proto uint8, sport uint16) error {
	prog, err := ebpf.LoadPinnedProgram(p.pins.progPath("uplink"), nil)
	if err != nil {
		return fmt.Errorf("open the program: %w", err)
	}
	defer prog.Close()
	c, err := p.cfg()
	if err != nil {
		return err
	}
	source := SelfTestAddr
	if vip.Addr().Is6() {
		source = SelfTestAddr6
	}
	from := netip.AddrPortFrom(source, sport).String()
	probe := packet.TCP(from, vip.String()).SYN()
	if proto == packet.ProtoUDP {
		probe = packet.UDP(from, vip.String())
	}
	uplink := net.HardwareAddr(c.UplinkMac[:]).String()
	in := probe.MACs(uplink, uplink).Bytes()
	out := make([]byte, len(in)+256)
	run := &ebpf.RunOptions{Data: in, DataOut: out}
	action, err := prog.Run(run)
	if err != nil {
		return fmt.Errorf("run the program: %w", err)
	}
	switch {
	case action == xdpTX && len(run.DataOut) > len(in):
		return nil // encapsulated
	case action == xdpPass && len(run.DataOut) > len(in):
		return nil // rewritten, with the note in front
	}
	return fmt.Errorf("the program answers %d: no backend takes the packet", action)
}

// Reasons sums the pinned counters.
func (p *Prober) Reasons() (map[bpf.Reason]uint64, error) {
	m, err := ebpf.LoadPinnedMap(p.pins.mapPath("reasons"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open reasons: %w", err)
	}
	defer m.Close()
	return readReasons(m)
}

// deviceIndex asks the namespace of the caller; a /sys that another namespace
// has mounted would answer for that one.
func deviceIndex(name string) (int, error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	return dev.Index, nil
}
