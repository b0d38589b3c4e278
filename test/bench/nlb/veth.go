// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"cairn/bpf/packet"
	"cairn/dataplane/load"
	"cairn/test/bench"
	"cairn/test/rig"
)

// compareNftables sends the same packets through the same veths to the balancer
// and to nftables with as many targets, all on one core. The namespace ends with
// its thread.
func compareNftables(report *bench.Report) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, and with it the namespace, ends here
		done <- inOwnNamespace(report)
	}()
	return <-done
}

func inOwnNamespace(report *bench.Report) error {
	var core unix.CPUSet
	core.Set(runtime.NumCPU() - 1)
	if err := unix.SchedSetaffinity(0, &core); err != nil {
		return fmt.Errorf("stay on one core: %w", err)
	}
	// What else the machine does is in nobody's figure.
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20); err != nil {
		return fmt.Errorf("go first: %w", err)
	}
	ns, err := netns.New()
	if err != nil {
		return fmt.Errorf("make a namespace: %w", err)
	}
	defer ns.Close()
	driver, err := bench.NewDriver()
	if err != nil {
		return err
	}
	defer driver.Close()
	w, err := wireUp(driver)
	if err != nil {
		return err
	}
	report.Title("live frames through veths, the generator on the same core: ns a packet (min, p25, median of %d runs), 100 backends", bench.Runs)
	figures := make([]bench.Figure, len(ways))
	for i, way := range ways {
		var spoilt int
		if figures[i], spoilt, err = w.measure(way); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		report.Line(way.name, figures[i], 0)
		report.Note("%54s %.2f Mpps, received = sent; %d further runs lost packets", "", 1e3/figures[i].P25, spoilt)
	}
	nlb, dnat := figures[1], figures[2]
	report.Least("live frames a core, known flows, × nftables DNAT", dnat.P25/nlb.P25, 4)
	report.Note("new flows: %.1f × nftables DNAT", figures[4].P25/figures[3].P25)
	return nil
}

// way is something that packets can be sent through.
type way struct {
	name  string
	fresh bool   // each packet is of another flow
	sent  uint32 // packets of a run: so many that its beginning and end do not matter
	begin func(*wires) (received func() (uint64, error), end func() error, err error)
}

var ways = []way{
	{"XDP_DROP: what the generator itself takes", false, 1_000_000, (*wires).drop},
	{"uplink, 1,000 flows", false, 1_000_000, (*wires).balance},
	{"nftables DNAT, 1,000 flows", false, 200_000, (*wires).nftables},
	{"uplink, a new flow every packet", true, 1_000_000, (*wires).balance},
	{"nftables DNAT, a new flow every packet", true, 200_000, (*wires).nftables},
}

// wires: frames sprayed into gen come out of in. The balancer sends them back;
// nftables translates, and the kernel routes them to out, for a neighbour that is
// not there.
type wires struct {
	driver       *bench.Driver
	gen, in, out netlink.Link
}

func wireUp(driver *bench.Driver) (*wires, error) {
	w := &wires{driver: driver}
	if err := rig.Sysctl("ipv6/conf/default/disable_ipv6", "1"); err != nil { // its own packets would be counted
		return nil, err
	}
	for _, pair := range [][2]string{{"gen", "in"}, {"out", "end"}} {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: pair[0]}, PeerName: pair[1]}); err != nil {
			return nil, fmt.Errorf("add veth %s: %w", pair[0], err)
		}
	}
	for name, at := range map[string]*netlink.Link{"gen": &w.gen, "in": &w.in, "out": &w.out, "end": new(netlink.Link)} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", name, err)
		}
		*at = l
	}
	next := net.IPv4(10, 9, 9, 2)
	subnet, _ := netlink.ParseAddr("10.9.9.1/30")
	_, targets, _ := net.ParseCIDR("198.51.0.0/16")
	return w, errors.Join(
		netlink.LinkSetHardwareAddr(w.in, load.UplinkMAC[:]),
		netlink.LinkSetXdpFd(w.gen, driver.Sink().FD()),
		netlink.AddrAdd(w.out, subnet),
		netlink.NeighSet(&netlink.Neigh{LinkIndex: w.out.Attrs().Index, IP: next, State: netlink.NUD_PERMANENT,
			HardwareAddr: net.HardwareAddr{0x02, 0x99, 0, 0, 0, 9}}),
		netlink.RouteAdd(&netlink.Route{LinkIndex: w.out.Attrs().Index, Dst: targets, Gw: next}),
		rig.Sysctl("ipv4/ip_forward", "1"), rig.Sysctl("ipv4/conf/all/rp_filter", "0"), rig.Sysctl("ipv4/conf/in/rp_filter", "0"))
}

func (w *wires) measure(way way) (figure bench.Figure, spoilt int, err error) {
	received, end, err := way.begin(w)
	if err != nil {
		return figure, spoilt, err
	}
	defer func() { err = errors.Join(err, end(), w.run(nil)) }()
	s := shape(packet.UDP(client, vip+":80").NoChecksum(), sourceAt, 10, 100)
	before := func() error { return nil }
	if way.fresh {
		s.Addresses, s.Ports, s.InTurn = 1<<20, 60_000, true
		// A table that is full would be timed instead of the rules.
		before = func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }
	}
	var last uint64
	return w.driver.Rate(w.gen.Attrs().Index, s, way.sent, before, func() (uint64, error) {
		now, err := received()
		n := now - last
		last = now
		return n, err
	})
}

// run has a program take what arrives; nil is none.
func (w *wires) run(p *ebpf.Program) error {
	fd := -1
	if p != nil {
		fd = p.FD()
	}
	return netlink.LinkSetXdpFd(w.in, fd)
}

func nothing() error { return nil }

func (w *wires) drop() (func() (uint64, error), func() error, error) {
	return w.driver.Sunk, nothing, w.run(w.driver.Sink())
}

func (w *wires) balance() (func() (uint64, error), func() error, error) {
	n, err := load.Open(load.Want{VIPs: 1, Targets: 100, Protocols: []uint8{load.UDP}})
	if err != nil {
		return nil, nil, err
	}
	return w.driver.Sunk, func() error { n.Close(); return nil }, w.run(n.Program()) // back at gen
}

func (w *wires) nftables() (func() (uint64, error), func() error, error) {
	var rules strings.Builder
	fmt.Fprintf(&rules, "table ip bench {\nchain pre { type nat hook prerouting priority dstnat\nip daddr %s udp dport 80 dnat to jhash ip saddr . udp sport mod 100 map {", vip)
	for i := range 100 {
		fmt.Fprintf(&rules, "%d : 198.51.0.%d,", i, i+1)
	}
	rules.WriteString("} : 8080\n}\n}\n")
	sent := func() (uint64, error) {
		l, err := netlink.LinkByIndex(w.out.Attrs().Index)
		if err != nil {
			return 0, err
		}
		return l.Attrs().Statistics.TxPackets, nil
	}
	return sent, func() error { return nft("delete table ip bench\n") }, errors.Join(w.run(w.driver.LetIn()), nft(rules.String()))
}

func nft(rules string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %.300s", err, out)
	}
	return nil
}
