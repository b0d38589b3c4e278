// SPDX-License-Identifier: Apache-2.0

// Command port times the programs of a VM port, in ns a packet: what a packet
// of a known flow costs and what a new flow costs under policies of all sizes,
// beside floors of the same driver and a bare lookup of the same table.
package main

import (
	"flag"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"cairn/bpf/packet"
	"cairn/cloud/wire"
	"cairn/test/bench"
)

func main() {
	veth := flag.Bool("veth", true, "compare with nftables through veths too")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Times the programs of a VM port: %d runs of %d packets a line. Needs root.\n", bench.Runs, bench.Packets)
		flag.PrintDefaults()
	}
	flag.Parse()
	_ = rlimit.RemoveMemlock()
	report := &bench.Report{Out: os.Stdout}
	if err := run(report, *veth); err != nil {
		fmt.Fprintln(os.Stderr, "bench-port:", err)
		os.Exit(1)
	}
	if !report.Close() {
		os.Exit(1)
	}
}

func run(report *bench.Report, veth bool) error {
	driver, err := bench.NewDriver()
	if err != nil {
		return err
	}
	defer driver.Close()
	b := &portBench{report, driver, nil}
	for _, f := range families {
		if err := b.family(f); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if veth {
		return compareNftables(report)
	}
	return nil
}

type portBench struct {
	*bench.Report
	driver *bench.Driver
	house  *house
}

const redirect = 7 // TC_ACT_REDIRECT: it went where it should

func (b *portBench) family(f family) error {
	b.Title("%s, ns a packet of vm_in with its driver (min, p25, median of %d runs of %d packets)", f.name, bench.Runs, bench.Packets)
	shape := bench.Shape{Frame: f.frame(packet.UDP, 9000), AddressAt: f.peerAt, PortAt: f.portAt, Addresses: 1, Ports: 1}
	shape.Head = f.portAt + 2
	floor, err := b.driver.Time(b.driver.Floor(ebpf.SchedCLS), shape, 0, nil)
	if err != nil {
		return err
	}
	b.Line("floor: the driver with an empty program", floor, 0)
	for _, part := range []func(family, bench.Shape, bench.Figure) error{b.hits, b.classify} {
		if b.house, err = newHouse(); err != nil { // with empty tables
			return err
		}
		if err := part(f, shape, floor); err != nil {
			return err
		}
	}
	return nil
}

// hits: packets of flows that are established.
func (b *portBench) hits(f family, shape bench.Shape, floor bench.Figure) error {
	if err := b.house.hold(items(nil, nil)...); err != nil {
		return err
	}
	var one, bare, many bench.Figure
	for _, flows := range []uint32{1, 1000, 64000} {
		shape.Frame, shape.Ports = f.frame(packet.UDP, 1024), flows
		if err := b.establish(f, shape, int(flows)); err != nil {
			return err
		}
		figure, err := b.driver.Time(b.house.progs["vm_in"], shape, redirect, nil)
		if err != nil {
			return err
		}
		b.Line(fmt.Sprintf("conntrack hit, %d flows", flows), figure, bench.Ratio(figure, floor))
		switch flows {
		case 1:
			one = figure
			b.Bar("conntrack hit at 1 flow, × floor", bench.Ratio(figure, floor), 7)
		case 64000:
			many = figure
			if bare, err = b.driver.Bare(shape, int(flows)); err != nil {
				return err
			}
			b.Line("bare lookup in a table like it, 64000 flows", bare, bench.Ratio(bare, floor))
		}
	}
	b.Bar("hit at 64,000 flows, × (1.6 × bare lookup + hit at 1 flow)", many.P25/(1.6*(bare.P25-floor.P25)+one.P25), 1)
	return nil
}

// establish has the table know the flows: each goes out, is answered and goes
// on, in batches that fit into the table of flows that are not yet established.
func (b *portBench) establish(f family, out bench.Shape, flows int) error {
	const batch = 512
	out.InTurn = true
	back := out
	back.Frame = f.back(packet.UDP, uint16(out.Frame[out.PortAt])<<8|uint16(out.Frame[out.PortAt+1]))
	back.AddressAt, back.PortAt = f.peerAt-(f.portAt-f.peerAt-2), f.portAt-2
	if f.own.Is4() {
		back.AddressAt = 26
	} else {
		back.AddressAt = 34
	}
	for from := 0; from < flows; from += batch {
		n := min(batch, flows-from)
		for _, leg := range []struct {
			program string
			shape   bench.Shape
		}{{"vm_in", out}, {"uplink_in", back}, {"vm_in", out}} {
			if err := b.driver.Seek(uint64(from)); err != nil {
				return err
			}
			if err := b.driver.Visit(b.house.progs[leg.program], leg.shape, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// classify: packets of new flows, under policies of all sizes.
func (b *portBench) classify(f family, shape bench.Shape, floor bench.Figure) error {
	var base float64
	for _, rules := range []int{1, 10, 100, 1000} {
		if err := b.house.hold(items(prefixRules(f, rules), nil)...); err != nil {
			return err
		}
		shape.Frame, shape.Addresses, shape.Ports = f.frame(packet.UDP, 5000), 1<<20, uint32(rules)
		figure, err := b.driver.Time(b.house.progs["vm_in"], shape, redirect, nil)
		if err != nil {
			return fmt.Errorf("%d rules: %w", rules, err)
		}
		b.Line(fmt.Sprintf("new flow, %d rules", rules), figure, bench.Ratio(figure, floor))
		if rules == 1 {
			base = figure.P25
		}
		if rules == 1000 {
			b.Bar("new flow under 1,000 rules, × under 1 rule", figure.P25/base, 1.3)
		}
	}
	members := make([]netip.Addr, 10_000)
	for i, a := 0, f.peer; i < len(members); i, a = i+1, a.Next() {
		members[i] = a
	}
	if err := b.house.hold(items(groupRules(1000), members)...); err != nil {
		return err
	}
	shape.Frame, shape.Addresses, shape.Ports = f.frame(packet.UDP, 5000), uint32(len(members)), 1000
	figure, err := b.driver.Time(b.house.progs["vm_in"], shape, redirect, nil)
	if err != nil {
		return fmt.Errorf("10,000 members: %w", err)
	}
	b.Line("new flow, 1000 rules, peers in a group of 10,000", figure, bench.Ratio(figure, floor))
	return nil
}

// prefixRules admit one port each, towards anybody.
func prefixRules(f family, n int) []wire.Rule {
	return portRules(n, func(r *wire.Rule) { r.Peer = f.any })
}

// groupRules admit one port each, towards the members of a group.
func groupRules(n int) []wire.Rule {
	return portRules(n, func(r *wire.Rule) { r.PeerGroup = theGroup })
}

func portRules(n int, peer func(*wire.Rule)) []wire.Rule {
	rules := make([]wire.Rule, n)
	for i := range rules {
		rules[i] = wire.Rule{
			ID: uint32(i + 1), Direction: wire.Egress, Protocol: 17, ICMPType: -1, ICMPCode: -1,
			PortMin: uint16(5000 + i), PortMax: uint16(5000 + i),
		}
		peer(&rules[i])
	}
	return rules
}
