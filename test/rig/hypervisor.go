// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"

	"cairn/cloud/wire"
	"cairn/dataplane/agent"
	"cairn/dataplane/host"
	"cairn/dataplane/maps"
	"cairn/dataplane/nlb"
	"cairn/dataplane/port"
	"cairn/dataplane/table"
)

// Uplink is the name of every hypervisor's.
const Uplink = "up0"

// Hypervisor is a machine with the dataplane, and the loop of an agent.
type Hypervisor struct {
	Number    uint32 // from 1
	Space     *Space
	Config    host.Config
	Host      *host.Host
	UplinkMAC net.HardwareAddr
	RouterMAC net.HardwareAddr

	rig      *Rig
	kernel   *maps.Kernel
	table    *table.Table
	watcher  *table.Watcher
	loop     *agent.Loop
	revision uint64
}

// Name of hypervisor N, as the tables have it.
func Name(number uint32) string { return fmt.Sprintf("hv%d", number) }

// endpoint of hypervisor N and its router's address on the same link.
func endpoint(number uint32) (router, own netip.Addr) {
	router = netip.AddrFrom4([4]byte{10, 64, 0, byte(2 * (number - 1))})
	return router, router.Next()
}

// Hypervisor makes the next one, with so many queues at its uplink.
func (r *Rig) Hypervisor(queues int) (*Hypervisor, error) {
	h := &Hypervisor{Number: uint32(len(r.hypervisors) + 1), rig: r}
	router, own := endpoint(h.Number)
	h.Config = host.Config{Pins: filepath.Join(r.pins, Name(h.Number)), Uplink: Uplink, Endpoint: own}
	h.UplinkMAC, h.RouterMAC = net.HardwareAddr{2, 0xaa, 0, 0, 0, byte(h.Number)}, net.HardwareAddr{2, 0xbb, 0, 0, 0, byte(h.Number)}
	var err error
	if h.Space, err = r.Space(); err != nil {
		return nil, err
	}
	err = Pair(
		End{h.Space, Uplink, h.UplinkMAC, netip.PrefixFrom(own, 31)},
		End{r.wire, h.RouterDevice(), h.RouterMAC, netip.PrefixFrom(router, 31)}, UnderlayMTU, queues)
	if err == nil {
		err = errors.Join(
			r.wire.Do(func() error {
				return errors.Join(PassXDP(h.RouterDevice()), neighbour(h.RouterDevice(), own, h.UplinkMAC))
			}),
			h.Space.Do(func() error { return errors.Join(neighbour(Uplink, router, h.RouterMAC), gateway(router)) }))
	}
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", Name(h.Number), err)
	}
	if h.table, err = table.New(table.Mark{}); err != nil {
		return nil, err
	}
	r.Defer(func() error { h.table.Close(); return nil })
	if h.watcher, err = h.table.Watch(); err != nil {
		return nil, err
	}
	r.hypervisors = append(r.hypervisors, h)
	return h, nil
}

// RouterDevice is the other end of the uplink, in the underlay.
func (h *Hypervisor) RouterDevice() string { return fmt.Sprintf("r%d", h.Number) }

// neighbour is known for good: nobody asks for it while something is measured.
func neighbour(device string, address netip.Addr, mac net.HardwareAddr) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: address.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT})
}

func gateway(via netip.Addr) error {
	return netlink.RouteReplace(&netlink.Route{Gw: via.AsSlice()})
}

// Open has the dataplane in force, as a process that starts would, and ends it
// with the rig.
func (h *Hypervisor) Open() error {
	err := h.Space.Do(func() (err error) {
		h.Host, err = host.Open(h.Config)
		return err
	})
	if err != nil {
		return fmt.Errorf("open %s: %w", Name(h.Number), err)
	}
	h.rig.Defer(h.Shut)
	return h.begin()
}

// begin the loop over the maps as they are.
func (h *Hypervisor) begin() (err error) {
	if h.kernel, err = maps.NewKernel(h.Host); err != nil {
		return err
	}
	h.loop, err = agent.NewLoop(h.kernel, table.Mark{}, nlb.Capacities{
		Slots: h.kernel.Capacity(maps.Slots), Services: h.kernel.Capacity(maps.Svc), Nexthops: h.kernel.Capacity(maps.Nexthops),
	})
	return err
}

// Shut ends the dataplane: nothing of it stays in force.
func (h *Hypervisor) Shut() error {
	return errors.Join(h.Let(), h.Remove())
}

// Remove what an agent has left in force.
func (h *Hypervisor) Remove() error {
	return h.Space.Do(func() error {
		c := h.Config
		c.Door = Name(h.Number) + "-svc" // as the agent calls it
		return host.Remove(c)
	})
}

// Hold brings items to the tables and programs what they say. Ports whose
// device is there are attached.
func (h *Hypervisor) Hold(items ...wire.Item) error {
	if err := h.tell(items); err != nil {
		return fmt.Errorf("hold the items: %w", err)
	}
	facts, err := h.facts()
	if err != nil {
		return err
	}
	return h.Space.Do(func() error {
		view := h.table.View()
		out := h.loop.Round(view, h.watcher.Changed(view), facts, time.Now())
		if len(out.Faults) > 0 {
			return fmt.Errorf("program %s: %v", Name(h.Number), out.Faults)
		}
		if left := h.loop.Unsettled(); len(left) > 0 {
			return fmt.Errorf("program %s: %v", Name(h.Number), left)
		}
		return nil
	})
}

// Know brings items to the tables and programs nothing: that is for an agent.
func (h *Hypervisor) Know(items ...wire.Item) error { return h.tell(items) }

// View of what the tables hold.
func (h *Hypervisor) View() table.View { return h.table.View() }

func (h *Hypervisor) tell(items []wire.Item) error {
	var ups []table.Upsert
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			return err
		}
		ups = append(ups, table.Upsert{Key: item.Key(), Body: body})
	}
	h.revision++
	at := table.Mark{Epoch: 1, Revision: h.revision}
	var faults []table.Fault
	var err error
	if h.revision == 1 {
		faults, err = h.table.Restore(at, ups)
	} else {
		faults, err = h.table.Apply(table.Delta{From: h.revision - 1, To: at, Upserts: ups})
	}
	if err == nil && len(faults) > 0 {
		err = fmt.Errorf("%v", faults)
	}
	return err
}

// facts are what an agent would find out by itself.
func (h *Hypervisor) facts() (agent.Facts, error) {
	router, own := endpoint(h.Number)
	f := agent.Facts{
		Balancer: nlb.Facts{
			Self: h.Number, MTU: UnderlayMTU, Via: map[netip.Addr]netip.Addr{}, MAC: map[netip.Addr][6]byte{router: [6]byte(h.RouterMAC)},
		},
		Ports: port.Facts{Devices: map[uint32]uint32{}, Own: []netip.Prefix{netip.PrefixFrom(own, 31).Masked()}, Underlay: UnderlayMTU},
	}
	for _, other := range h.rig.hypervisors {
		if other != h {
			f.Balancer.Via[other.Config.Endpoint] = router
		}
	}
	return f, h.Space.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if id, ok := port.Device(l.Attrs().Name); ok {
				f.Ports.Devices[id] = uint32(l.Attrs().Index)
			}
		}
		return err
	})
}

// Hosts are all hypervisors, as items.
func (r *Rig) Hosts() (items []wire.Item) {
	for _, h := range r.hypervisors {
		items = append(items, wire.Host{ID: h.Number, Name: Name(h.Number), Endpoint: h.Config.Endpoint, MTU: UnderlayMTU})
	}
	return items
}
