// SPDX-License-Identifier: Apache-2.0

// Command nlb times the program of an LB node, in ns a packet: what it costs to
// choose a backend, encapsulate and send, whatever the number of flows, beside
// floors of the same driver.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"cairn/bpf/packet"
	"cairn/test/bench"
)

func main() {
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Times the program of an LB node: %d runs of %d packets a line. Needs root.\n", bench.Runs, bench.Packets)
		flag.PrintDefaults()
	}
	flag.Parse()
	_ = rlimit.RemoveMemlock()
	report := &bench.Report{Out: os.Stdout}
	report.Machine()
	err := run(report)
	met := report.Close() // bars that were reached before a failure are told too
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-nlb:", err)
	}
	if err != nil || !met {
		os.Exit(1)
	}
}

func run(report *bench.Report) error {
	driver, err := bench.NewDriver()
	if err != nil {
		return err
	}
	defer driver.Close()
	one, err := newNode(1, 100, tcp, udp)
	if err != nil {
		return fmt.Errorf("one VIP: %w", err)
	}
	defer one.close()
	many, err := newNode(1000, 100, tcp)
	if err != nil {
		return fmt.Errorf("1,000 VIPs: %w", err)
	}
	defer many.close()
	return (&nlbBench{report, driver}).all(one, many)
}

type nlbBench struct {
	*bench.Report
	driver *bench.Driver
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

func (b *nlbBench) all(one, many *node) error {
	syn := func(p packet.Packet) packet.Packet { return p.SYN() }
	same := func(p packet.Packet) packet.Packet { return p.ACK() }
	cases := []timed{{name: "floor: the driver with XDP_TX", Case: bench.Case{
		Program: b.driver.Floor(ebpf.XDP), Shape: shape(same(packet.TCP(client, vip+":80")), sourceAt, 1, 1), Want: xdpTX}}}
	add := func(name string, n *node, s bench.Shape, want uint32, bar float64) {
		cases = append(cases, timed{name, bench.Case{Program: n.program(), Shape: s, Want: want}, bar})
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
	add("TCP, 1,000 services at random, a new port each packet", many, shape(same(packet.TCP(client, vip+":80")), destinationAt, 1000, 60000), xdpTX, 8)

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
		b.Bar(c.name+", × floor", ratio, c.bar)
	}
	b.Bar("growth from 1 to 512,000 flows", bench.Ratio(got[5], got[2]), 1.25)
	b.Title("memory")
	b.Note("0 bytes a flow: nothing is written for one")
	for _, name := range []string{"slots", "svc", "backends", "vip4"} {
		bytes, err := many.memory(name)
		if err != nil {
			return err
		}
		b.Note("%-10s %9.1f MB reserved, of room for all; 1,000 services use 4,096,000 slots and 100,000 backends", name, float64(bytes)/1e6)
	}
	b.Note("IPv6: the program has no services of it yet, nothing is timed")
	return nil
}

const (
	client = "192.0.0.0:1024"
	vip    = firstVIP
)

func shape(p packet.Packet, addressAt int, addresses, ports uint32) bench.Shape {
	frame := p.Payload(make([]byte, 24)).MACs(routerMAC, uplinkMAC).Bytes()
	return bench.Shape{Frame: frame, Head: len(frame), AddressAt: addressAt, PortAt: portAt, Addresses: addresses, Ports: ports}
}

func mac(s string) (m [6]byte) { copy(m[:], packet.MAC(s)); return m }
