// SPDX-License-Identifier: Apache-2.0

// Command ports measures what 1,000 idle ports cost a hypervisor: how long they
// take to be attached, what their maps hold, and how large the agent is.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"cairn/cloud/wire"
	"cairn/dataplane/host"
	"cairn/test/bench"
	"cairn/test/rig"
)

func main() {
	var b portsBench
	flag.IntVar(&b.ports, "ports", 1000, "how many")
	flag.StringVar(&b.agent, "agent", "bin/cairn-agent", "the built agent")
	flag.Parse()
	folder, err := rig.Alone()
	b.Report = &bench.Report{Out: os.Stdout}
	b.folder = folder
	if err == nil {
		b.Machine()
		err = b.run()
	}
	met := b.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-ports:", err)
	}
	if err != nil || !met {
		os.Exit(1)
	}
}

type portsBench struct {
	*bench.Report
	ports  int
	agent  string
	folder string
}

const (
	kilobyte = 1000.0
	mebibyte = 1 << 20
)

// Bars: what an idle port may take of the kernel's memory, the agent of the
// machine's, and all ports of time.
const (
	perPort   = 400 // kB
	agentSize = 60  // MiB
	allPorts  = 60  // seconds
)

func (b *portsBench) run() (err error) {
	r, err := rig.New(b.folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	// Each on a hypervisor of its own: what is taken down keeps the kernel busy for
	// a while, so that all stays until the end.
	for _, measure := range []func(*rig.Hypervisor) error{b.asProcess, b.attach} {
		h, err := r.Hypervisor(1)
		if err != nil {
			return err
		}
		r.Defer(h.Remove)
		if err := b.devices(h); err != nil {
			return err
		}
		if err := measure(h); err != nil {
			return err
		}
	}
	return nil
}

// devices of the ports: TAPs, as virtual machines have them.
func (b *portsBench) devices(h *rig.Hypervisor) error {
	return h.Space.Do(func() error {
		for id := range b.ports {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = rig.PortDevice(uint32(id + 1))
			tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_ONE_QUEUE}
			if err := netlink.LinkAdd(tap); err != nil {
				return fmt.Errorf("add %s: %w", attrs.Name, err)
			}
			if err := netlink.LinkSetUp(tap); err != nil {
				return fmt.Errorf("set up %s: %w", attrs.Name, err)
			}
		}
		return nil
	})
}

// attach has this process attach every port, one after the other, and looks at
// the maps.
func (b *portsBench) attach(h *rig.Hypervisor) error {
	if err := h.Open(); err != nil {
		return err
	}
	before, _, err := common(h)
	if err != nil {
		return err
	}
	var each bench.Durations
	began := time.Now()
	err = h.Space.Do(func() error {
		for id := uint32(1); id <= uint32(b.ports); id++ {
			l, err := netlink.LinkByName(rig.PortDevice(id))
			if err != nil {
				return err
			}
			began := time.Now()
			if err := h.Host.AttachPort(l.Attrs().Index, id); err != nil {
				return err
			}
			each = append(each, time.Since(began))
		}
		return nil
	})
	if err != nil {
		return err
	}
	took := time.Since(began)
	b.Title("attach %d ports, one after the other", b.ports)
	b.Note("each: %s", each)
	b.Note("all:  %.1f s", took.Seconds())
	b.Bar(fmt.Sprintf("%d ports are attached by host.AttachPort, seconds", b.ports), took.Seconds(), allPorts)
	if err := h.Hold(items(h, b.ports)...); err != nil {
		return err
	}
	return b.memory(h, before)
}

// memory sums what the maps hold: a port's own tables of flows, and its share of
// what all ports have in common. What the load balancer has, with ports or
// without, is told beside it.
func (b *portsBench) memory(h *rig.Hypervisor, before uint64) error {
	shared, balancing, err := common(h)
	if err != nil {
		return err
	}
	var fresh, established uint64
	for id := range b.ports {
		n, e, err := own(h.Host, uint32(id+1))
		if err != nil {
			return err
		}
		fresh, established = fresh+n, established+e
	}
	per := func(sum uint64) float64 { return float64(sum) / float64(b.ports) / kilobyte }
	b.Title("map memory of %d idle ports, kB a port (memlock of fdinfo)", b.ports)
	b.Note("own: unconfirmed flows %.1f, established flows %.1f", per(fresh), per(established))
	b.Note("share of the common maps: %.1f; %.1f of it grew with the ports", per(shared), per(shared-before))
	b.Note("beside that, load balancing: %.1f", per(balancing))
	b.Bar("map memory of an idle port, own and share, kB", per(fresh+established+shared), perPort)
	return nil
}

// own tables of a port.
func own(h *host.Host, port uint32) (fresh, established uint64, err error) {
	flows, err := h.Flows(port)
	if err != nil {
		return 0, 0, err
	}
	defer flows.Close()
	if fresh, err = rig.MapMemory(flows.New); err != nil {
		return 0, 0, err
	}
	established, err = rig.MapMemory(flows.Confirmed)
	return fresh, established, err
}

// balancing are the maps that serve VIPs; all others serve ports.
var balancing = map[string]bool{
	"vip_bits": true, "vip4": true, "vipaddr4": true, "svc": true, "slots": true, "backends": true, "nexthops": true,
	"svc_stat": true, "backend_stat": true, "backend_conn": true, "svc_latency": true, "local": true, "refusals": true,
	"vip_nodes": true, "vip_frag": true, "vip_pace": true,
}

// common sums the pinned maps, which all ports of a host share, and those of load
// balancing apart.
func common(h *rig.Hypervisor) (ofPorts, ofBalancing uint64, err error) {
	folder := filepath.Join(h.Config.Pins, "v1")
	entries, err := os.ReadDir(folder)
	if err != nil {
		return 0, 0, err
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(folder, e.Name()), nil)
		if err != nil {
			return 0, 0, fmt.Errorf("open %s: %w", e.Name(), err)
		}
		n, err := rig.MapMemory(m)
		if err := errors.Join(err, m.Close()); err != nil {
			return 0, 0, err
		}
		if balancing[e.Name()] {
			ofBalancing += n
		} else {
			ofPorts += n
		}
	}
	return ofPorts, ofBalancing, nil
}

// items of so many instances: twenty sets of groups with three rules each.
func items(h *rig.Hypervisor, ports int) []wire.Item {
	out := []wire.Item{wire.Host{ID: h.Number, Name: rig.Name(h.Number), Endpoint: h.Config.Endpoint, MTU: rig.UnderlayMTU}}
	const policies = 20
	for id := uint32(1); id <= policies; id++ {
		out = append(out, wire.Class{ID: id, Groups: []uint32{id}}, wire.Policy{ID: id, Rules: []wire.Rule{
			rig.Any(3*id, wire.Ingress, 6, 22, 22), rig.Any(3*id+1, wire.Ingress, 6, 80, 443), rig.Any(3*id+2, wire.Ingress, 1, 0, 0),
		}})
	}
	for id := uint32(1); id <= uint32(ports); id++ {
		address := netip.AddrFrom4([4]byte{198, 51, byte(id >> 8), byte(id)})
		out = append(out, wire.Member{Address: address, Class: id%policies + 1}, wire.Port{
			ID: id, Instance: fmt.Sprint(id), MAC: [6]byte(rig.PortMAC(id)), Addresses: []netip.Addr{address}, Policy: id%policies + 1, MTU: 1500,
		})
	}
	return out
}

// asProcess has the agent find the ports in its cache, on a hypervisor without a
// dataplane.
func (b *portsBench) asProcess(h *rig.Hypervisor) (err error) {
	if err := h.Know(items(h, b.ports)...); err != nil {
		return err
	}
	agent, err := h.Agent(b.agent, filepath.Join(b.folder, "agent"), h.View())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agent.Kill()) }()
	began := time.Now()
	if err := agent.Start(); err != nil {
		return err
	}
	if err := agent.Programmed(b.ports, 5*time.Minute); err != nil {
		return err
	}
	took := time.Since(began)
	var sizes []float64
	for range 3 { // it hands memory back some seconds after it needed it
		<-time.After(5 * time.Second)
		size, err := rig.Resident(agent.PID())
		if err != nil {
			return err
		}
		sizes = append(sizes, float64(size)/mebibyte)
	}
	peak, err := rig.Peak(agent.PID())
	if err != nil {
		return err
	}
	b.Title("cairn-agent with %d ports in its cache, maps and links made anew", b.ports)
	b.Note("all ports attached %.1f s after its start", took.Seconds())
	b.Note("resident 5, 10 and 15 s later %.1f MiB, at most ever %.1f MiB", sizes, float64(peak)/mebibyte)
	b.Bar(fmt.Sprintf("%d ports are attached by the agent, seconds", b.ports), took.Seconds(), allPorts)
	b.Bar(fmt.Sprintf("the agent with %d idle ports, MiB resident", b.ports), sizes[len(sizes)-1], agentSize)
	return nil
}
