// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	stdmaps "maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/debug"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
	"cairn/lb/slots"
)

var _ debug.Source = (*Agent)(nil)

// Status implements debug.Source.
func (a *Agent) Status() debug.Status {
	view := a.table.View()
	s := debug.Status{
		Name: a.cfg.Name, Version: Version, Started: a.started, Restarts: a.restarts,
		Desired: view.Mark(), Control: a.client.State(), Digests: map[string]debug.Digest{},
		Programs: map[string]uint32{}, Maps: map[string]uint32{}, Memory: resident(), Rounds: a.rounds.list(),
	}
	s.UplinkMTU, s.UplinkDown = a.senses.Uplink()
	for _, kind := range wire.Kinds() {
		d := view.Digests()[kind]
		s.Digests[kind.String()] = debug.Digest{Count: d.Count, Sum: fmt.Sprintf("%016x", d.Sum)}
	}
	s.Alarm, s.Refusals = a.table.Alarm()
	s.Tunnels = a.tunnels()
	var meta bpf.Meta
	if err := a.host.Maps.Meta.Lookup(uint32(0), &meta); err == nil {
		s.Programs = map[string]uint32{
			"uplink": meta.UplinkProg, "uplink_in": meta.UplinkInProg, "vm_in": meta.VmInProg,
			"vm_guard": meta.VmGuardProg, "svc_in": meta.SvcInProg, "overlay_in": meta.OverlayInProg,
		}
	}
	for name, m := range map[string]*ebpf.Map{
		"vip4": a.host.Maps.Vip4, "vip6": a.host.Maps.Vip6, "svc": a.host.Maps.Svc, "slots": a.host.Maps.Slots, "backends": a.host.Maps.Backends,
		"port_cfg": a.host.Maps.PortCfg, "members": a.host.Maps.Members, "vteps": a.host.Maps.Vteps, "ct_est": a.host.Maps.CtEst,
	} {
		if info, err := m.Info(); err == nil {
			id, _ := info.ID()
			s.Maps[name] = uint32(id)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Programmed, s.Repaired, s.Flows = a.programmed, a.repaired, a.flows
	s.Unsettled = stdmaps.Clone(a.loop.Unsettled())
	return s
}

// resident is the memory of this process, in bytes.
func resident() uint64 {
	var size, pages uint64
	text, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(text), &size, &pages)
	}
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

// Ports implements debug.Source.
func (a *Agent) Ports() []debug.Port {
	view := a.table.View()
	machines := map[string]string{}
	for _, of := range a.worker.Machines() {
		for _, m := range of {
			machines[m.ID] = m.State
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	ports := []debug.Port{}
	for p := range table.All[wire.Port](view) {
		d := debug.Port{
			ID: p.ID, Instance: p.Instance, Machine: cmp.Or(machines[p.Instance], "absent"), Addresses: p.Addresses,
			MAC: net.HardwareAddr(p.MAC[:]).String(), Policy: p.Policy,
		}
		if value, ok := a.loop.Image().Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(p.ID)}); ok {
			cfg := maps.As[bpf.PortCfg](value)
			d.Programmed, d.Generation, d.Device = cfg.PolicyIn, cfg.Generation, cfg.Ifindex
		}
		_, d.Attached = a.loop.Image().Get(maps.ID{Map: maps.Attach, Key: maps.Bytes(p.ID)})
		d.Flows = a.countFlows(p.ID)
		if s, err := a.host.PortStats(p.ID); err == nil { // a port that is not attached has none
			d.Counters = debug.Counters(s)
		}
		ports = append(ports, d)
	}
	slices.SortFunc(ports, func(a, b debug.Port) int { return cmp.Compare(a.ID, b.ID) })
	return ports
}

// countFlows of a port; a port without a flow table has none.
func (a *Agent) countFlows(port uint32) int {
	flows, err := a.host.Flows(port)
	if err != nil {
		return 0
	}
	defer flows.Close()
	n := 0
	if err := flows.Each(func(bpf.CtKey, bpf.Ct) { n++ }); err != nil {
		return 0
	}
	return n
}

// Services implements debug.Source.
func (a *Agent) Services() []debug.Service {
	view := a.table.View()
	a.mu.Lock()
	defer a.mu.Unlock()
	services := []debug.Service{}
	for s := range table.All[wire.Service](view) {
		d := debug.Service{
			ID: s.ID, VIP: fmt.Sprintf("%s/%s", netip.AddrPortFrom(s.VIP, s.Port), protocol(s.Protocol)),
			Panic: s.Panic, Backends: []debug.Backend{},
		}
		if at, record, slots, ok := a.programmedService(s.VIP, s.Port, s.Protocol); ok {
			d.Record, d.Base, d.Slots, d.Generation = at, record.SlotBase, len(slots), record.Generation
			d.Limit, d.Backends = record.Limit, a.backends(view, slots)
		}
		a.countBalanced(&d)
		services = append(services, d)
	}
	slices.SortFunc(services, func(a, b debug.Service) int { return cmp.Compare(a.ID, b.ID) })
	return services
}

func trafficOf(s bpf.Stat) debug.Traffic {
	return debug.Traffic{Packets: s.Packets, Bytes: s.Bytes, Opened: s.Opened, Forwarded: s.Forwarded}
}

// countBalanced adds what is counted of a service. What cannot be read is 0.
func (a *Agent) countBalanced(s *debug.Service) {
	if n, err := a.host.ServiceStat(s.ID); err == nil {
		s.Traffic = trafficOf(n)
	}
	if l, err := a.host.Latency(s.ID); err == nil {
		s.Latency = debug.Latency{Count: l.Count[:], Micros: l.Sum}
	}
	for i := range s.Backends {
		b := &s.Backends[i]
		if n, err := a.host.BackendStat(b.ID); err == nil {
			b.Traffic = trafficOf(n)
		}
		if c, err := a.host.ConnStat(b.ID); err == nil {
			b.Connections = debug.Connections{
				Live: c.Opened - c.Closed, Opened: c.Opened, Closed: c.Closed, Refused: c.Refused,
				ResetsIn: c.ResetsIn, ResetsOut: c.ResetsOut, RetransmitsIn: c.RetransmitsIn, RetransmitsOut: c.RetransmitsOut,
			}
		}
	}
}

func protocol(p uint8) string {
	switch p {
	case 6:
		return "tcp"
	case 17:
		return "udp"
	}
	return fmt.Sprint(p)
}

// programmedService reads a service's record and slots out of the image.
func (a *Agent) programmedService(vip netip.Addr, port uint16, proto uint8) (at uint32, r bpf.Svc, t slots.Table, ok bool) {
	im := a.loop.Image()
	index, ok := im.Get(maps.ServiceID(netip.AddrPortFrom(vip, port), proto))
	if !ok {
		return 0, r, nil, false
	}
	record, ok := im.Get(maps.ID{Map: maps.Svc, Key: index})
	if !ok {
		return 0, r, nil, false
	}
	r = maps.As[bpf.Svc](record)
	body, ok := im.Get(maps.ID{Map: maps.Slots, Key: maps.Bytes(r.SlotBase)})
	if !ok {
		return 0, r, nil, false
	}
	t, err := slots.Decode([]byte(body))
	return maps.As[uint32](index), r, t, err == nil
}

func (a *Agent) backends(view table.View, t slots.Table) []debug.Backend {
	owns, owned := t.Shares(), t.Draining()
	ids := map[uint32]bool{}
	for id := range owns {
		ids[id] = true
	}
	for id := range owned {
		ids[id] = true
	}
	delete(ids, 0)
	out := []debug.Backend{}
	for id := range ids {
		b, _ := table.Get[wire.Backend](view, fmt.Sprint(id))
		d := debug.Backend{
			ID: id, Host: b.Host, Endpoint: a.endpoint(id), Address: netip.AddrPortFrom(b.Address, b.TargetPort).String(),
			Slots: owns[id], Former: owned[id], State: "ready",
		}
		switch {
		case b.Draining:
			d.State = "draining"
		case b.Unhealthy:
			d.State = "unhealthy"
		}
		if a.checks != nil {
			d.Check = string(a.checks.Status()[wire.CheckKey(b.Service, id).ID].Verdict)
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b debug.Backend) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// endpoint of a programmed backend.
func (a *Agent) endpoint(id uint32) string {
	value, ok := a.loop.Image().Get(maps.ID{Map: maps.Backends, Key: maps.Bytes(id)})
	if !ok {
		return "unknown"
	}
	if e := maps.As[bpf.Backend](value).Endpoint; e != 0 {
		return bpf.AddrBE32(e).String()
	}
	return "local"
}

// Flow implements debug.Source.
func (a *Agent) Flow(f debug.Flow) (debug.Path, error) {
	view := a.table.View()
	a.mu.Lock()
	defer a.mu.Unlock()
	p := debug.Path{Flow: f}
	_, r, t, ok := a.programmedService(f.VIP.Addr(), f.VIP.Port(), f.Protocol)
	if !ok || len(t) == 0 {
		return p, fmt.Errorf("%s/%s is no service that this host forwards", f.VIP, protocol(f.Protocol))
	}
	p.Service, p.Generation = r.Id, r.Generation
	p.Hash = slots.Hash(r.Seed, f.Client.Addr(), f.VIP.Addr(), f.Client.Port(), f.VIP.Port(), f.Protocol, r.Flags&bpf.SvcSourceHash != 0)
	p.Slot = p.Hash & r.SlotMask
	s := t.Select(p.Hash)
	p.Cur, p.Prev, p.Endpoint = s.Cur(), s.Prev(), a.endpoint(s.Cur())
	if b, ok := table.Get[wire.Backend](view, fmt.Sprint(p.Cur)); ok {
		p.Address = netip.AddrPortFrom(b.Address, b.TargetPort).String()
	}
	p.Known = a.knows(view, f, r.Id)
	return p, nil
}

// knows tells whether a port of this host has the flow.
func (a *Agent) knows(view table.View, f debug.Flow, service uint32) bool {
	for b := range table.All[wire.Backend](view) {
		if b.Service != service || a.endpoint(b.ID) != "local" {
			continue
		}
		flows, err := a.host.Flows(b.Port)
		if err != nil {
			continue
		}
		key := bpf.CtKey{
			Peer: bpf.IP16(f.Client.Addr()), Own: bpf.IP16(b.Address), PeerPort: bpf.BE16(f.Client.Port()),
			OwnPort: bpf.BE16(b.TargetPort), Proto: f.Protocol,
		}
		entry, known := flows.Lookup(key)
		flows.Close()
		if known && entry.Service == service {
			return true
		}
	}
	return false
}

// Diff implements debug.Source: it reads the maps anew and asks what an agent
// that starts now would change in them.
func (a *Agent) Diff() (debug.Diff, error) {
	view := a.table.View()
	a.mu.Lock()
	defer a.mu.Unlock()
	found, err := maps.Load(a.store)
	if err != nil {
		return debug.Diff{}, fmt.Errorf("compare: %w", err)
	}
	return a.loop.Compare(view, found, a.facts(view)), nil
}

// Drops implements debug.Source.
func (a *Agent) Drops() ([]debug.Drop, error) {
	counts, err := a.host.Reasons()
	if err != nil {
		return nil, fmt.Errorf("count drops: %w", err)
	}
	drops := []debug.Drop{}
	for _, r := range bpf.Reasons() {
		if n := counts[r]; n > 0 {
			drops = append(drops, debug.Drop{Reason: r.String(), Count: n, Drop: r.IsDrop()})
		}
	}
	slices.SortFunc(drops, func(a, b debug.Drop) int { return strings.Compare(a.Reason, b.Reason) })
	return drops, nil
}
