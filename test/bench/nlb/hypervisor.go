// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/dataplane/port"
	"cairn/test/bench"
)

// Answers of tc programs.
const tcRedirect = 7

// Where the frames of the tunnel have what the driver varies.
const (
	innerSourceAt = 50 + 14 + 12
	innerPortAt   = 50 + 14 + 20
)

const many = 64_000

// filling is the payload of every frame, SYNs included.
const filling = 64

// transport is one protocol to a backend: the packets of a flow's beginning, and
// one of those after it.
type transport struct {
	name                   string
	opens, answers, goesOn func(src, dst string) packet.Packet
}

var transports = []transport{
	{"TCP",
		func(src, dst string) packet.Packet { return packet.TCP(src, dst).SYN().Sequence(1000) },
		func(src, dst string) packet.Packet {
			return packet.TCP(src, dst).SYN().ACK().Sequence(5000).Acknowledge(1001 + filling)
		},
		func(src, dst string) packet.Packet {
			return packet.TCP(src, dst).ACK().Sequence(1001 + filling).Acknowledge(5001 + filling)
		}},
	{"UDP", packet.UDP, packet.UDP, packet.UDP},
}

// hypervisor: the programs of the host that has the backend, in the order in
// which a packet meets them: uplink takes it out of the tunnel and rewrites it,
// uplink_in judges it by the port's flows and policy.
func (b *nlbBench) hypervisor() error {
	for _, t := range transports {
		if err := b.arrives(t); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

func (b *nlbBench) arrives(t transport) error {
	known, err := newHouse()
	if err != nil {
		return err
	}
	defer known.close()
	crowded, err := newHouse()
	if err != nil {
		return err
	}
	defer crowded.close()
	fresh, err := newHouse()
	if err != nil {
		return err
	}
	defer fresh.close()
	if err := b.establish(known, t, 1); err != nil {
		return err
	}
	if err := b.establish(crowded, t, many); err != nil {
		return err
	}
	tunnel, err := b.tunnel(t, known, crowded, fresh)
	if err != nil {
		return fmt.Errorf("uplink: %w", err)
	}
	in, err := b.judge(t, known, crowded, fresh)
	if err != nil {
		return fmt.Errorf("uplink_in: %w", err)
	}
	b.Note("sum of both, without the driver's floors: %.0f ns at 1 flow, %.0f ns at 64,000, %.0f ns for a new flow",
		tunnel[1]+in[1], tunnel[2]+in[2], tunnel[3]+in[3])
	b.Note("a flow: %d bytes of key and record in the port's table, nothing else", known.established.KeySize()+known.established.ValueSize())
	return nil
}

// tunnel times uplink, and gives each case's ns beyond the floor.
func (b *nlbBench) tunnel(t transport, known, crowded, fresh *house) ([]float64, error) {
	one := tunnelled(t.goesOn)
	crowd := one
	crowd.Ports = many
	begin := tunnelled(t.opens)
	begin.Addresses, begin.Ports, begin.InTurn = 1<<20, 60_000, true
	cases := []bench.Case{
		{Program: b.driver.Floor(ebpf.XDP), Shape: one, Want: xdpTX},
		{Program: known.progs["uplink"], Shape: one, Want: xdpPass},
		{Program: crowded.progs["uplink"], Shape: crowd, Want: xdpPass},
		{Program: fresh.progs["uplink"], Shape: begin, Want: xdpPass},
	}
	b.Title("a backend's host, %s, ns a packet of uplink that takes it out of the tunnel, with its driver", t.name)
	got, err := b.lines([]string{"floor: the driver with XDP_TX", "known flow, 1", "known flows, 64,000", "a new flow every packet"}, cases)
	if err != nil {
		return nil, err
	}
	b.Bar(t.name+": uplink out of the tunnel at 1 flow, × floor", bench.Ratio(got[1], got[0]), 8)
	return beyond(got), nil
}

// judge times uplink_in with the note that uplink leaves.
func (b *nlbBench) judge(t transport, known, crowded, fresh *house) ([]float64, error) {
	one := known.rewritten(t.goesOn)
	crowd := one
	crowd.Ports = many
	begin := known.rewritten(t.opens)
	begin.Addresses, begin.Ports, begin.InTurn = 1<<20, 60_000, true
	bare, err := b.driver.Bare(known.established, crowd, many)
	if err != nil {
		return nil, err
	}
	cases := []bench.Case{
		{Program: b.driver.Floor(ebpf.SchedCLS), Shape: one},
		{Program: known.progs["uplink_in"], Shape: one, Want: tcRedirect},
		{Program: crowded.progs["uplink_in"], Shape: crowd, Want: tcRedirect},
		{Program: fresh.progs["uplink_in"], Shape: begin, Want: tcRedirect},
		bare,
	}
	b.Title("a backend's host, %s, ns a packet of uplink_in with the note, with its driver", t.name)
	got, err := b.lines([]string{"floor: the driver with an empty program", "known flow, 1", "known flows, 64,000", "a new flow every packet",
		"bare lookup in a table like it, 64,000 flows"}, cases)
	if err != nil {
		return nil, err
	}
	b.Bar(t.name+": uplink_in at 1 flow, × floor", bench.Ratio(got[1], got[0]), 7)
	b.Bar(t.name+": uplink_in, new flow, × floor", bench.Ratio(got[3], got[0]), 30)
	return beyond(got), nil
}

func (b *nlbBench) lines(names []string, cases []bench.Case) ([]bench.Figure, error) {
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

func beyond(got []bench.Figure) []float64 {
	out := make([]float64, len(got))
	for i, f := range got {
		out[i] = f.P25 - got[0].P25
	}
	return out
}

// tunnelled frames come from the LB node, a client's packet within.
func tunnelled(build func(src, dst string) packet.Packet) bench.Shape {
	frame := packet.Tunnel{
		SrcMAC: routerMAC, DstMAC: uplinkMAC, Src: balancer.String(), Dst: self.String(), Port: 50000, VNI: bpf.LBVNI,
		Backend: net.HardwareAddr(portMAC[:]).String(), Tag: packet.Tag{},
	}.Wrap(build(client, vip+":80").Payload(make([]byte, filling)))
	return bench.Shape{Frame: frame, Head: bench.HeadMax, AddressAt: innerSourceAt, PortAt: innerPortAt, Addresses: 1, Ports: 1}
}

// rewritten frames are what uplink makes of those, with its note.
func (h *house) rewritten(build func(src, dst string) packet.Packet) bench.Shape {
	own := netip.AddrPortFrom(ownAddress, targetPort).String()
	frame := build(client, own).MACs(routerMAC, uplinkMAC).Payload(make([]byte, filling)).Bytes()
	return bench.Shape{Frame: frame, Head: portAt + 20, AddressAt: sourceAt, PortAt: portAt, Addresses: 1, Ports: 1, Note: h.notes[frame[14+9]]}
}

// answered frames are the instance's.
func answered(build func(src, dst string) packet.Packet) bench.Shape {
	own := netip.AddrPortFrom(ownAddress, targetPort).String()
	frame := build(own, client).MACs(net.HardwareAddr(portMAC[:]).String(), net.HardwareAddr(port.GatewayMAC[:]).String()).Payload(make([]byte, filling)).Bytes()
	return bench.Shape{Frame: frame, Head: portAt + 20, AddressAt: destinationAt, PortAt: portAt + 2, Addresses: 1, Ports: 1}
}

// establish has the port know the flows: each comes, is answered and goes on, in
// batches that fit into the table of flows that are not yet established.
func (b *nlbBench) establish(h *house, t transport, flows int) error {
	const batch = 512
	for from := 0; from < flows; from += batch {
		for _, leg := range []struct {
			program string
			shape   bench.Shape
		}{{"uplink_in", h.rewritten(t.opens)}, {"vm_in", answered(t.answers)}, {"uplink_in", h.rewritten(t.goesOn)}} {
			leg.shape.InTurn, leg.shape.Ports = true, uint32(flows)
			if err := b.driver.Seek(uint64(from)); err != nil {
				return err
			}
			if err := b.driver.Visit(bench.Case{Program: h.progs[leg.program], Shape: leg.shape, Want: tcRedirect}, min(batch, flows-from)); err != nil {
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
