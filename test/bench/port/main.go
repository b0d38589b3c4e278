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
	err := run(report, *veth)
	met := report.Close() // bars that were reached before a failure are told too
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-port:", err)
	}
	if err != nil || !met {
		os.Exit(1)
	}
}

func run(report *bench.Report, veth bool) error {
	driver, err := bench.NewDriver()
	if err != nil {
		return err
	}
	defer driver.Close()
	b := &portBench{report, driver}
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
}

const redirect = 7 // TC_ACT_REDIRECT: it went where it should

func (b *portBench) family(f family) error {
	b.Title("%s, ns a packet of vm_in with its driver (min, p25, median of %d runs of %d packets in turn)", f.name, bench.Runs, bench.Packets)
	shape := bench.Shape{Frame: f.frame(packet.UDP, 1024), Head: f.portAt + 6, AddressAt: f.peerAt, PortAt: f.portAt, Addresses: 1, Ports: 1}
	if err := b.hits(f, shape); err != nil {
		return fmt.Errorf("known flows: %w", err)
	}
	return b.classify(f, shape)
}

// hits: packets of flows that are established.
func (b *portBench) hits(f family, shape bench.Shape) error {
	cases := []bench.Case{{Program: b.driver.Floor(ebpf.SchedCLS), Shape: shape}}
	names := []string{"floor: the driver with an empty program"}
	var table *ebpf.Map
	for _, flows := range []uint32{1, 1000, 64000} {
		h, err := newHouse()
		if err != nil {
			return err
		}
		defer h.close()
		table = h.established
		if err := h.hold(items(nil, nil)...); err != nil {
			return err
		}
		shape.Ports = flows
		if err := b.establish(h, f, shape, int(flows)); err != nil {
			return err
		}
		names = append(names, fmt.Sprintf("conntrack hit, %d flows", flows))
		cases = append(cases, bench.Case{Program: h.progs["vm_in"], Shape: shape, Want: redirect})
	}
	bare, err := b.driver.Bare(table, shape, 64000)
	if err != nil {
		return err
	}
	got, err := b.lines(append(names, "bare lookup in a table like it, 64000 flows"), append(cases, bare))
	if err != nil {
		return err
	}
	floor, one, many, lookup := got[0], got[1], got[3], got[4]
	b.Bar(f.name+": conntrack hit at 1 flow, × floor", bench.Ratio(one, floor), 7)
	b.Bar(f.name+": hit at 64,000 flows, × (1.6 × bare lookup + hit at 1 flow)", many.P25/(1.6*(lookup.P25-floor.P25)+one.P25), 1)
	return nil
}

// lines times cases, the first of which is the floor, and prints them.
func (b *portBench) lines(names []string, cases []bench.Case) ([]bench.Figure, error) {
	got, err := b.driver.Time(cases...)
	if err != nil {
		return nil, err
	}
	b.Line(names[0], got[0], 0)
	for i, name := range names[1:] {
		b.Line(name, got[i+1], bench.Ratio(got[i+1], got[0]))
	}
	return got, nil
}

// establish has the table know the flows: each goes out, is answered and goes
// on, in batches that fit into the table of flows that are not yet established.
func (b *portBench) establish(h *house, f family, out bench.Shape, flows int) error {
	const batch = 512
	out.InTurn = true
	back := out
	back.Frame = f.back(packet.UDP, uint16(out.Frame[out.PortAt])<<8|uint16(out.Frame[out.PortAt+1]))
	back.AddressAt, back.PortAt = f.peerAt-len(f.own.AsSlice()), f.portAt-2
	for from := 0; from < flows; from += batch {
		n := min(batch, flows-from)
		for _, leg := range []struct {
			program string
			shape   bench.Shape
		}{{"vm_in", out}, {"uplink_in", back}, {"vm_in", out}} {
			if err := b.driver.Seek(uint64(from)); err != nil {
				return err
			}
			if err := b.driver.Visit(bench.Case{Program: h.progs[leg.program], Shape: leg.shape, Want: redirect}, n); err != nil {
				return fmt.Errorf("establish through %s: %w", leg.program, err)
			}
		}
	}
	var key, value []byte
	known := 0
	for it := h.established.Iterate(); it.Next(&key, &value); {
		known++
	}
	if known < flows {
		return fmt.Errorf("%d of %d flows are established", known, flows)
	}
	return nil
}

// classify: packets of new flows, under policies of all sizes.
func (b *portBench) classify(f family, shape bench.Shape) error {
	cases := []bench.Case{{Program: b.driver.Floor(ebpf.SchedCLS), Shape: shape}}
	names := []string{"floor: the driver with an empty program"}
	shape.Frame = f.frame(packet.UDP, 5000)
	var houses []*house
	defer func() {
		for _, h := range houses {
			h.close()
		}
	}()
	add := func(name string, rules []wire.Rule, members []netip.Addr) error {
		h, err := newHouse()
		if err == nil {
			houses = append(houses, h)
			err = h.hold(items(rules, members)...)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		shape.Addresses, shape.Ports = 1<<20, uint32(len(rules))
		if len(members) > 0 {
			shape.Addresses = uint32(len(members))
		}
		names = append(names, name)
		cases = append(cases, bench.Case{Program: h.progs["vm_in"], Shape: shape, Want: redirect})
		return nil
	}
	for _, rules := range []int{1, 10, 100, 1000} {
		if err := add(fmt.Sprintf("new flow, %d rules", rules), prefixRules(f, rules), nil); err != nil {
			return err
		}
	}
	members := make([]netip.Addr, 10_000)
	for i, a := 0, f.peer; i < len(members); i, a = i+1, a.Next() {
		members[i] = a
	}
	if err := add("new flow, 1000 rules, peers in a group of 10,000", groupRules(1000), members); err != nil {
		return err
	}
	got, err := b.lines(names, cases)
	if err != nil {
		return err
	}
	b.Bar(f.name+": new flow under 1,000 rules, × under 1 rule", got[4].P25/got[1].P25, 1.3)
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
