// SPDX-License-Identifier: Apache-2.0

// Command nlb times the program of an LB node, in ns a packet: what it costs to
// choose a backend, encapsulate and send, whatever the number of flows, beside
// floors of the same driver.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"cairn/bpf/packet"
	"cairn/dataplane/load"
	"cairn/test/bench"
)

func main() {
	veth := flag.Bool("veth", true, "compare with nftables through veths too")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Times the programs that balance load: %d runs of %d packets a line. Needs root.\n", bench.Runs, bench.Packets)
		flag.PrintDefaults()
	}
	flag.Parse()
	_ = rlimit.RemoveMemlock()
	report := &bench.Report{Out: os.Stdout}
	report.Machine()
	err := run(report, *veth)
	met := report.Close() // bars that were reached before a failure are told too
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-nlb:", err)
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
	b := &nlbBench{Report: report, driver: driver}
	if err := b.balancer(); err != nil {
		return err
	}
	if err := b.hypervisor(); err != nil {
		return fmt.Errorf("a backend's host: %w", err)
	}
	if veth {
		return compareNftables(report)
	}
	return nil
}

// balancer: the program of an LB node without backends of its own.
func (b *nlbBench) balancer() error {
	one, err := load.Open(load.Want{VIPs: 1, Targets: 100, Protocols: []uint8{load.TCP, load.UDP}})
	if err != nil {
		return fmt.Errorf("one VIP: %w", err)
	}
	defer one.Close()
	begin := time.Now()
	many, err := load.Open(load.Want{VIPs: 1000, Targets: 100, Protocols: []uint8{load.TCP}})
	if err != nil {
		return fmt.Errorf("1,000 VIPs: %w", err)
	}
	defer many.Close()
	b.filled = time.Since(begin)
	if err := b.all(one, many); err != nil {
		return err
	}
	return b.ipv6()
}

type nlbBench struct {
	*bench.Report
	driver *bench.Driver
	filled time.Duration // that 1,000 services took
}

// Answers of XDP programs.
const (
	xdpPass = 2
	xdpTX   = 3
)

// Where the driver varies a frame of IPv4 without options.
const (
	sourceAt      = 14 + 12
	destinationAt = 14 + 16
	portAt        = 14 + 20
)

type timed struct {
	name string
	bench.Case
	bar float64 // × floor; 0: none
}

func (b *nlbBench) all(one, many *load.Node) error {
	syn := func(p packet.Packet) packet.Packet { return p.SYN() }
	same := func(p packet.Packet) packet.Packet { return p.ACK() }
	cases := []timed{{name: "floor: the driver with XDP_TX", Case: bench.Case{
		Program: b.driver.Floor(ebpf.XDP), Shape: shape(same(packet.TCP(client, vip+":80")), sourceAt, 1, 1), Want: xdpTX}}}
	add := func(name string, n *load.Node, s bench.Shape, want uint32, bar float64) {
		cases = append(cases, timed{name, bench.Case{Program: n.Program(), Shape: s, Want: want}, bar})
	}
	add("another address: passed", one, shape(same(packet.TCP(client, "198.51.100.1:80")), sourceAt, 1, 1), xdpPass, 1.5)
	for _, flows := range []struct {
		name             string
		addresses, ports uint32
	}{{"1 flow", 1, 1}, {"1,000 flows", 10, 100}, {"64,000 flows", 64, 1000}, {"512,000 flows", 512, 1000}} {
		add("TCP, "+flows.name, one, shape(same(packet.TCP(client, vip+":80")), sourceAt, flows.addresses, flows.ports), xdpTX, 4.5)
	}
	fresh := shape(syn(packet.TCP(client, vip+":80")), sourceAt, 1<<20, 60000)
	fresh.InTurn = true
	add("TCP, a new flow every packet", one, fresh, xdpTX, 4.5)
	add("UDP, 64,000 flows", one, shape(packet.UDP(client, vip+":80"), sourceAt, 64, 1000), xdpTX, 4.5)
	add("TCP, "+randomCase, many, shape(same(packet.TCP(client, vip+":80")), destinationAt, 1000, 60000), xdpTX, 0)
	lines, err := b.driver.Lines(cases[0].Shape, 100_000)
	if err != nil {
		return err
	}
	cases = append(cases, timed{name: "the memory alone of a choice among 100,000 backends", Case: lines})

	b.Title("IPv4, ns a packet of uplink with its driver (min, p25, median of %d runs of %d packets in turn); 100 backends a service", bench.Runs, bench.Packets)
	all := make([]bench.Case, len(cases))
	for i, c := range cases {
		all[i] = c.Case
	}
	got, err := b.driver.Time(all...)
	if err != nil {
		return err
	}
	b.Line(cases[0].name, got[0], 0)
	for i, c := range cases[1:] {
		ratio := bench.Ratio(got[i+1], got[0])
		b.Line(c.name, got[i+1], ratio)
		if c.bar > 0 {
			b.Bar(c.name+", × floor", ratio, c.bar)
		}
	}
	b.random(got[0], got[2], got[len(got)-2], got[len(got)-1])
	b.Bar("growth from 1 to 512,000 flows", bench.Ratio(got[5], got[2]), 1.25)
	return b.memory(many)
}

const randomCase = "1,000 services × 100 backends at random"

// random judges packets for any of 100,000 backends. Each needs a slot, a backend
// and a counter that are in no cache: what that memory alone takes, with one flow's
// work, is printed beside it.
func (b *nlbBench) random(floor, one, random, lines bench.Figure) {
	b.Bar(randomCase+", × floor", bench.Ratio(random, floor), randomBar)
	alone := one.P25 + lines.P25 - floor.P25
	b.Note("one flow and the memory of a random choice alone take %.2f × floor; the program %.2f × that", alone/floor.P25, random.P25/alone)
}

const randomBar = 8

func (b *nlbBench) memory(many *load.Node) error {
	b.Title("memory, and time to load")
	b.Note("%s from 1,000 services of 100 backends as items to maps that hold them, their slots assigned anew", b.filled.Round(time.Millisecond))
	b.Note("0 bytes a flow: nothing is written for one")
	var sum uint64
	for _, name := range []string{"slots", "svc", "svc_stat", "backends", "backend_stat", "vip4", "vipaddr4", "vip_bits"} {
		bytes, err := memory(many.Objects.Maps[name])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		sum += bytes
		b.Note("%-13s %7.2f MB reserved", name, float64(bytes)/1e6)
	}
	b.Note("%-13s %7.1f kB a VIP of 100 backends, with room for %d services and %d backends", "sum", float64(sum)/1000/1e3,
		many.Objects.Maps["vip4"].MaxEntries(), many.Objects.Maps["backends"].MaxEntries())
	return nil
}

// memory is what the kernel has reserved for a map, in bytes.
func memory(m *ebpf.Map) (uint64, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	bytes, ok := info.Memlock()
	if !ok {
		return 0, errors.New("the kernel does not say how large it is")
	}
	return bytes, nil
}

const (
	client = "192.0.0.0:1024"
	vip    = "203.0.0.0" // load.FirstVIP

	uplinkMAC = "02:aa:00:00:00:01"
	routerMAC = "02:bb:00:00:00:01"
)

func shape(p packet.Packet, addressAt int, addresses, ports uint32) bench.Shape {
	frame := p.Payload(make([]byte, 24)).MACs(routerMAC, uplinkMAC).Bytes()
	return bench.Shape{Frame: frame, Head: 64, AddressAt: addressAt, PortAt: portAt, Addresses: addresses, Ports: ports}
}
