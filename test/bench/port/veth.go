// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/cloud/wire"
	"cairn/test/bench"
)

// compareNftables sends the same packets through the same veths, to the port
// program and to nftables with the same rules, each packet a new flow. The
// namespace ends with its thread.
func compareNftables(report *bench.Report) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, and with it the namespace, ends here
		done <- inOwnNamespace(report)
	}()
	return <-done
}

func inOwnNamespace(report *bench.Report) error {
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
	report.Title("new flows through veths, ns a packet (min, p25, median of %d runs of %d packets)", bench.Runs, bench.Sprayed)
	figures := map[string]map[int]bench.Figure{}
	for _, form := range forms {
		figures[form.name] = map[int]bench.Figure{}
		for _, rules := range []int{1, 1000} {
			figure, spoilt, err := w.measure(form, rules)
			if err != nil {
				return fmt.Errorf("%s, %d rules: %w", form.name, rules, err)
			}
			report.Line(fmt.Sprintf("%s, %d rules", form.name, rules), figure, 0)
			report.Note("%54s %.2f Mpps, %d further runs lost packets", "", 1e3/figure.P25, spoilt)
			figures[form.name][rules] = figure
		}
	}
	grown := func(form string) float64 { return figures[form][1000].P25 - figures[form][1].P25 }
	report.Note("growth from 1 to 1,000 rules: port program %+.0f ns, nftables list %+.0f ns, nftables set %+.0f ns",
		grown(forms[0].name), grown(forms[1].name), grown(forms[2].name))
	report.Bar("growth 1 → 1,000 rules, × (nftables list's / 5)", max(grown(forms[0].name), 0)/(grown(forms[1].name)/5), 1)
	report.Bar("1,000 rules, × nftables set of 1,000", figures[forms[0].name][1000].P25/figures[forms[2].name][1000].P25, 1)
	return nil
}

// form is one way to judge packets between the two devices.
type form struct {
	name  string
	begin func(w *wires, rules int) (end func() error, err error)
}

var forms = []form{
	{"port program", (*wires).portProgram},
	{"nftables, a list", func(w *wires, n int) (func() error, error) { return w.nftables(listOf(n)) }},
	{"nftables, a set", func(w *wires, n int) (func() error, error) { return w.nftables(setOf(n)) }},
}

// wires: frames sprayed into gen come out of in, are judged, routed, and leave
// by out for a neighbour that is not there.
type wires struct {
	driver       *bench.Driver
	gen, in, out netlink.Link
	sent         uint64 // packets of out when last asked
}

func wireUp(driver *bench.Driver) (*wires, error) {
	w := &wires{driver: driver}
	if err := sysctl("ipv6/conf/default/disable_ipv6", "1"); err != nil { // its own packets would be counted
		return nil, err
	}
	for _, pair := range [][2]string{{"gen", "in"}, {"out", "sink"}} {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: pair[0]}, PeerName: pair[1]}
		if err := netlink.LinkAdd(veth); err != nil {
			return nil, fmt.Errorf("add veth %s: %w", pair[0], err)
		}
	}
	for name, at := range map[string]*netlink.Link{"gen": &w.gen, "in": &w.in, "out": &w.out, "sink": nil} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", name, err)
		}
		if at != nil {
			*at = l
		}
	}
	mac := net.HardwareAddr{0x02, 0xcb, 0, 0, 0, 1}
	next := net.IPv4(10, 9, 9, 2)
	subnet, _ := netlink.ParseAddr("10.9.9.1/30")
	_, peers, _ := net.ParseCIDR("192.0.0.0/8")
	err := errors.Join(
		netlink.LinkSetHardwareAddr(w.in, mac),
		netlink.LinkSetXdpFd(w.in, driver.LetIn().FD()),
		netlink.AddrAdd(w.out, subnet),
		netlink.NeighSet(&netlink.Neigh{LinkIndex: w.out.Attrs().Index, IP: next, State: netlink.NUD_PERMANENT,
			HardwareAddr: net.HardwareAddr{0x02, 0x99, 0, 0, 0, 9}}),
		netlink.RouteAdd(&netlink.Route{LinkIndex: w.out.Attrs().Index, Dst: peers, Gw: next}),
		sysctl("ipv4/ip_forward", "1"), sysctl("ipv4/conf/all/rp_filter", "0"), sysctl("ipv4/conf/in/rp_filter", "0"))
	return w, err
}

func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644)
}

func (w *wires) measure(f form, rules int) (figure bench.Figure, spoilt int, err error) {
	end, err := f.begin(w, rules)
	if err != nil {
		return figure, spoilt, err
	}
	defer func() { err = errors.Join(err, end()) }()
	v4 := families[0]
	shape := bench.Shape{
		Frame: v4.frame(packet.UDP, 5000), Head: v4.portAt + 6, AddressAt: v4.peerAt, PortAt: v4.portAt,
		Addresses: 1 << 20, Ports: uint32(rules),
	}
	// A table that is full would be timed instead of the rules.
	flush := func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }
	return w.driver.Rate(w.gen.Attrs().Index, shape, bench.Sprayed, flush, w.received)
}

// received tells how many packets have left since it was last asked.
func (w *wires) received() (uint64, error) {
	l, err := netlink.LinkByIndex(w.out.Attrs().Index)
	if err != nil {
		return 0, err
	}
	now := l.Attrs().Statistics.TxPackets
	n := now - w.sent
	w.sent = now
	return n, nil
}

func (w *wires) portProgram(rules int) (func() error, error) {
	h, err := newHouse()
	if err != nil {
		return nil, err
	}
	in, out := uint32(w.in.Attrs().Index), uint32(w.out.Attrs().Index)
	cfg := bpf.Cfg{Endpoint: bpf.BE32(families[0].own), LbVni: bpf.LBVNI, Uplink: out}
	widest := families[0]
	widest.any = peersOf(widest)
	err = errors.Join(
		h.hold(items(prefixRules(widest, rules), nil)...),
		h.maps["cfg"].Put(uint32(0), &cfg),
		h.maps["ifindex_port"].Put(in, thePort))
	if err != nil {
		return nil, err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: int(in), Program: h.progs["vm_in"], Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return nil, fmt.Errorf("attach vm_in: %w", err)
	}
	return func() error {
		h.close()
		return l.Close()
	}, nil
}

// nftables judges statefully, as the port program does.
func (w *wires) nftables(judge string) (func() error, error) {
	rules := "table ip bench {\n" + judge + "}\n"
	if err := nft(rules); err != nil {
		return nil, err
	}
	return func() error { return nft("delete table ip bench\n") }, nil
}

const chain = "chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept\n"

func listOf(n int) string {
	var b strings.Builder
	b.WriteString(chain)
	eachRule(n, func(r wire.Rule) { fmt.Fprintf(&b, "ip daddr %s udp dport %d accept\n", r.Peer, r.PortMin) })
	return b.String() + "}\n"
}

func setOf(n int) string {
	var b strings.Builder
	b.WriteString("set admitted { type ipv4_addr . inet_service; flags interval; elements = {\n")
	eachRule(n, func(r wire.Rule) { fmt.Fprintf(&b, "%s . %d,\n", r.Peer, r.PortMin) })
	return b.String() + "}\n}\n" + chain + "ip daddr . udp dport @admitted accept\n}\n"
}

func eachRule(n int, do func(wire.Rule)) {
	f := families[0]
	f.any = peersOf(f)
	for _, r := range prefixRules(f, n) {
		do(r)
	}
}

func nft(rules string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %.300s", err, out)
	}
	return nil
}
