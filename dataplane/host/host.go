// SPDX-License-Identifier: Apache-2.0

// Package host puts the programs of package bpf into the kernel: it creates or
// re-opens the pinned maps, loads the programs, attaches them to the uplink, the
// ports and the door for the host's own services, and replaces them in place.
// What the maps say is for others (dataplane/nlb, dataplane/port); host writes
// only cfg, meta, ifindex_port and the outer map of the flow tables.
//
// Everything is pinned, so forwarding goes on when the process ends, and the
// next one finds the same maps and links. Start at Open.
package host

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"

	"cairn/bpf"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Config says where a host's dataplane lives.
type Config struct {
	// Pins is a folder on a bpffs (EnsureBPFFS); all goes under Pins/v1.
	Pins string
	// Uplink is the device towards the routers.
	Uplink string
	// Endpoint is the tunnel endpoint, an IPv4 address of the uplink.
	Endpoint netip.Addr
	// Door names the network namespace that holds the far end of cairn-svc.
	// Health checks are sent from there. Without a name there is no door.
	Door string
	// Sizes overrides max_entries of maps by name, when they are created.
	Sizes map[string]uint32
}

var (
	// ProbeAddr is the source of health checks: the door's own address.
	ProbeAddr = netip.MustParseAddr("169.254.169.253")
	// ProbeAddr6 is the same to instances' addresses of IPv6: fe80:: with its last four bytes.
	ProbeAddr6 = netip.MustParseAddr("fe80::a9fe:a9fd")
	// MetadataAddr is where instances ask who they are: the door's other address.
	MetadataAddr = netip.MustParseAddr("169.254.169.254")
	// Identities are what instances' addresses are translated to on their way to
	// MetadataAddr: the first of them plus the number of the port.
	Identities = netip.MustParsePrefix("198.18.0.0/15")
	// SelfTestAddr is the source of the self-test's packets. It counts only in
	// a test run: no packet from the wire can use it.
	SelfTestAddr = netip.MustParseAddr("169.254.169.251")
	// SelfTestAddr6 is the same to VIPs of IPv6: fe80:: with its last four bytes.
	SelfTestAddr6 = netip.MustParseAddr("fe80::a9fe:a9fb")
)

// Maps are the shared maps. They stay open until the Host is closed.
type Maps struct {
	Cfg, Meta, Reasons                                *ebpf.Map
	VipBits, Vip4, Vipaddr4, Svc, Slots               *ebpf.Map
	Vip6, Vipaddr6                                    *ebpf.Map
	Backends, Nexthops, SvcStat, BackendStat          *ebpf.Map
	BackendConn, SvcLatency, Quic, Allowances         *ebpf.Map
	Vteps, VtepSeen, Local, Fdb                       *ebpf.Map
	VipNodes, VipFrag, VipPace, VtepErrors            *ebpf.Map
	PortCfg, IfindexPort, AddrOk, AddrPort, Prefixes  *ebpf.Map
	AddrAllow, AddrNet                                *ebpf.Map
	Members, Cidr, PeerBm, CidrBm, PortBounds, PortBm *ebpf.Map
	RuleIds, RuleStats                                *ebpf.Map
	CtNew, CtEst, CtSwept, Frag, Refusals             *ebpf.Map
	Neigh, Bum, Listeners, Pace, Told, Punts          *ebpf.Map
	PortStat, Events, EventStat, Watch, Captures      *ebpf.Map
}

func (m *Maps) byName() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		"cfg": &m.Cfg, "meta": &m.Meta, "reasons": &m.Reasons,
		"vip_bits": &m.VipBits, "vip4": &m.Vip4, "vipaddr4": &m.Vipaddr4,
		"vip6": &m.Vip6, "vipaddr6": &m.Vipaddr6, "svc": &m.Svc, "slots": &m.Slots,
		"backends": &m.Backends, "nexthops": &m.Nexthops, "svc_stat": &m.SvcStat, "backend_stat": &m.BackendStat,
		"backend_conn": &m.BackendConn, "svc_latency": &m.SvcLatency,
		"quic": &m.Quic, "allowances": &m.Allowances,
		"vteps": &m.Vteps, "vtep_seen": &m.VtepSeen, "local": &m.Local, "fdb": &m.Fdb,
		"vip_nodes": &m.VipNodes, "vip_frag": &m.VipFrag, "vip_pace": &m.VipPace, "vtep_errors": &m.VtepErrors,
		"port_cfg": &m.PortCfg, "ifindex_port": &m.IfindexPort, "addr_ok": &m.AddrOk,
		"addr_port": &m.AddrPort, "addr_allow": &m.AddrAllow, "addr_net": &m.AddrNet, "prefixes": &m.Prefixes,
		"members": &m.Members, "cidr": &m.Cidr, "peer_bm": &m.PeerBm, "cidr_bm": &m.CidrBm,
		"port_bounds": &m.PortBounds, "port_bm": &m.PortBm,
		"rule_ids": &m.RuleIds, "rule_stats": &m.RuleStats,
		"ct_new": &m.CtNew, "ct_est": &m.CtEst, "ct_swept": &m.CtSwept, "frag": &m.Frag, "refusals": &m.Refusals,
		"neigh": &m.Neigh, "bum": &m.Bum, "listeners": &m.Listeners, "pace": &m.Pace, "told": &m.Told, "punts": &m.Punts,
		"port_stat": &m.PortStat, "events": &m.Events, "event_stat": &m.EventStat, "watch": &m.Watch, "captures": &m.Captures,
	}
}

// Host is a dataplane in force.
type Host struct {
	Maps Maps

	cfg     Config
	pins    pins
	uplink  netlink.Link
	door    door
	overlay int           // ifindex of the vxlan device
	ctNew   *ebpf.MapSpec // of one port's flows
	ctEst   *ebpf.MapSpec

	mu    sync.Mutex
	progs map[string]*ebpf.Program
	links map[string]link.Link // by pin name

	events   eventReader
	detached func(port uint32, last PortStats)
	watchers watchers
	capture  sync.Mutex // one captures at a time
	watchMu  sync.Mutex // of the map watch
}

// OnDetach has told what a port had counted when it was detached. It is set before
// any is, and must not wait.
func (h *Host) OnDetach(tell func(port uint32, last PortStats)) { h.detached = tell }

// Open brings the host's dataplane up, or takes it over as it is: pinned maps
// keep their contents and ids, programs whose bytes have not changed stay, and
// others are replaced under the links they hang on, so that no packet meets no
// program. It dies half-way at worst between two programs of different versions;
// opening again finishes.
func Open(cfg Config) (*Host, error) {
	h := &Host{cfg: cfg, pins: pins(filepath.Join(cfg.Pins, "v1")), links: map[string]link.Link{}}
	if err := h.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open the dataplane on %s: %w", cfg.Uplink, err), h.Close())
	}
	return h, nil
}

func (h *Host) open() error {
	if !h.cfg.Endpoint.Is4() {
		return fmt.Errorf("tunnel endpoint %s: not an IPv4 address", h.cfg.Endpoint)
	}
	uplink, err := netlink.LinkByName(h.cfg.Uplink)
	if err != nil {
		return fmt.Errorf("find the uplink: %w", err)
	}
	h.uplink = uplink
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		return err
	}
	if err := h.pins.make(); err != nil {
		return err
	}
	if err := h.openMaps(specs); err != nil {
		return err
	}
	if h.door, err = openDoor(h.cfg.Door); err != nil {
		return fmt.Errorf("open the door: %w", err)
	}
	// A host that cannot have it serves all but private networks; RepairOverlay
	// tries again and says why.
	_, _ = h.ensureOverlay()
	if err := h.writeCfg(); err != nil {
		return err
	}
	loaded, err := h.loadPrograms(specs)
	if err != nil {
		return err
	}
	if err := h.pinFresh(loaded); err != nil {
		return err
	}
	if err := h.attachAll(); err != nil {
		return err
	}
	return h.settle(loaded)
}

func (h *Host) writeCfg() error {
	c := bpf.Cfg{
		Endpoint: bpf.BE32(h.cfg.Endpoint),
		LbVni:    bpf.LBVNI,
		Uplink:   uint32(h.uplink.Attrs().Index),
		Door:     uint32(h.door.ifindex),
		Probe:    bpf.BE32(ProbeAddr),
		DoorMac:  h.door.farMAC,
		Overlay:  uint32(h.overlay),
	}
	copy(c.UplinkMac[:], h.uplink.Attrs().HardwareAddr)
	var have bpf.Cfg
	if err := h.Maps.Cfg.Lookup(uint32(0), &have); err == nil && have == c {
		return nil
	}
	if err := h.Maps.Cfg.Put(uint32(0), &c); err != nil {
		return fmt.Errorf("write cfg: %w", err)
	}
	return nil
}

// Close lets go of maps, programs and links. They are pinned: forwarding goes
// on. Remove ends it.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, l := range h.links {
		errs = append(errs, l.Close())
	}
	for _, p := range h.progs {
		errs = append(errs, p.Close())
	}
	for _, m := range h.Maps.byName() {
		if *m != nil {
			errs = append(errs, (*m).Close())
		}
	}
	h.links, h.progs = nil, nil
	return errors.Join(errs...)
}

// Reasons sums the counters over all CPUs; reasons that never counted are left
// out.
func (h *Host) Reasons() (map[bpf.Reason]uint64, error) { return readReasons(h.Maps.Reasons) }

func readReasons(m *ebpf.Map) (map[bpf.Reason]uint64, error) {
	counts := map[bpf.Reason]uint64{}
	var perCPU []uint64
	for _, r := range bpf.Reasons() {
		if err := m.Lookup(uint32(r), &perCPU); err != nil {
			return nil, fmt.Errorf("read the counter of %s: %w", r, err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		if sum > 0 {
			counts[r] = sum
		}
	}
	return counts, nil
}
