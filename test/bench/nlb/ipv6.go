// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/cilium/ebpf"

	"cairn/bpf/packet"
	"cairn/dataplane/load"
	"cairn/test/bench"
)

// Where the driver varies a frame of IPv6: the last word of the source.
const (
	source6At = 14 + 8 + 12
	port6At   = 14 + 40

	client6 = "[2001:db8:9::]:1024"
	vip6    = "[2001:db8:ee::1]:80" // load.FirstVIP6
)

func shape6(p packet.Packet, addresses, ports uint32) bench.Shape {
	s := shape(p, source6At, addresses, ports)
	s.PortAt = port6At
	return s
}

// ipv6: the same LB node for clients of IPv6, in the same tunnel over IPv4.
func (b *nlbBench) ipv6() error {
	six, err := load.Open(load.Want{VIPs: 1, Targets: 100, Protocols: []uint8{load.TCP, load.UDP}, IPv6: true})
	if err != nil {
		return fmt.Errorf("one VIP of IPv6: %w", err)
	}
	defer six.Close()
	ack, datagram := packet.TCP(client6, vip6).ACK(), packet.UDP(client6, vip6)
	cases := []timed{{name: "floor: the driver with XDP_TX", Case: bench.Case{
		Program: b.driver.Floor(ebpf.XDP), Shape: shape6(ack, 1, 1), Want: xdpTX}}}
	add := func(name string, s bench.Shape, want uint32, bar float64) {
		cases = append(cases, timed{name, bench.Case{Program: six.Program(), Shape: s, Want: want}, bar})
	}
	add("another address: passed", shape6(packet.TCP(client6, "[2001:db8:1::1]:80").ACK(), 1, 1), xdpPass, 1.5)
	add("TCP, 1 flow", shape6(ack, 1, 1), xdpTX, 4.9)
	add("TCP, 64,000 flows", shape6(ack, 64, 1000), xdpTX, 4.9)
	add("TCP, 512,000 flows", shape6(ack, 512, 1000), xdpTX, 4.9)
	add("UDP, 1 flow", shape6(datagram, 1, 1), xdpTX, 4.9)
	add("UDP, 64,000 flows", shape6(datagram, 64, 1000), xdpTX, 4.9)
	add("UDP, 512,000 flows", shape6(datagram, 512, 1000), xdpTX, 4.9)
	b.Title("IPv6, ns a packet of uplink with its driver (min, p25, median of %d runs of %d packets in turn); 100 backends a service", bench.Runs, bench.Packets)
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
		b.Bar("IPv6: "+c.name+", × floor", ratio, c.bar)
	}
	b.Bar("IPv6: growth from 1 to 512,000 flows", bench.Ratio(got[4], got[2]), 1.25)
	return nil
}
