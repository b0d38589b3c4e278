// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/cloud/wire"
	"cairn/test/bench"
	"cairn/test/rig"
)

// world is one hypervisor with two ports, and clients behind the underlay:
//
//	clients ── wire ── hypervisor ── flooded port
//	           flood               └─ other port
type world struct {
	rig           *rig.Rig
	hypervisor    *rig.Hypervisor
	clients       *rig.Space
	target, other *rig.Guest
}

const (
	flooded = uint32(1) // the port
	policy  = uint32(1)
	quota   = 32768 // confirmed flows of a large instance

	open    = 7  // admitted, and served
	closed  = 9  // admitted, and nobody listens
	refused = 11 // not admitted
)

var (
	clientPrefix = netip.MustParsePrefix("192.0.2.0/24")
	forged       = netip.MustParsePrefix("100.64.0.0/10") // sources of the flood: nobody is there
)

// flood is who is sent what.
type flood struct {
	name  string
	build func(src, dst string) packet.Packet
	port  uint16
	end   bpf.Reason // of its packets
	again uint32     // so few sources, which come again; 0: each but once
}

func syn(src, dst string) packet.Packet { return packet.TCP(src, dst).SYN() }

func datagram(src, dst string) packet.Packet {
	return packet.UDP(src, dst).NoChecksum().Payload(make([]byte, 18))
}

var floods = []flood{
	{name: "SYN flood of an open port", build: syn, port: open, end: bpf.ReasonToPort},
	{name: "SYN flood of a closed port", build: syn, port: closed, end: bpf.ReasonToPort},
	{name: "UDP flood of an open port", build: datagram, port: open, end: bpf.ReasonToPort},
	{name: "UDP flood of a closed port", build: datagram, port: closed, end: bpf.ReasonToPort},
	// The control: who sends a datagram again after the answer has confirmed its
	// flow, by the rules. So many flows must be seen to come.
	{name: "datagrams of few sources, again and again", build: datagram, port: open, end: bpf.ReasonToPort, again: 4000},
	{name: "SYN flood of a refused port", build: syn, port: refused, end: bpf.ReasonPolicyIn},
	{name: "UDP flood of a refused port", build: datagram, port: refused, end: bpf.ReasonPolicyIn},
}

func newWorld(folder string, server func(*rig.Guest) (func() error, error)) (_ *world, err error) {
	w := &world{}
	if w.rig, err = rig.New(folder); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.rig.Close())
		}
	}()
	// The generator uses the queue of the CPU that it runs on; people have one of
	// their own, else it were the link's queue that is measured.
	people := runtime.NumCPU()
	if w.hypervisor, err = w.rig.Hypervisor(people + 1); err != nil {
		return nil, err
	}
	err = w.rig.Wire().Do(func() error { return useQueue(w.hypervisor.RouterDevice(), people) })
	if err != nil {
		return nil, err
	}
	if w.target, err = w.hypervisor.Guest(flooded, netip.MustParsePrefix("198.51.100.1/32")); err != nil {
		return nil, err
	}
	if w.other, err = w.hypervisor.Guest(2, netip.MustParsePrefix("198.51.100.2/32")); err != nil {
		return nil, err
	}
	if err := w.wireClients(); err != nil {
		return nil, err
	}
	if err := w.hypervisor.Open(); err != nil {
		return nil, err
	}
	rules := []wire.Rule{
		rig.Any(1, wire.Ingress, 6, open, open), rig.Any(2, wire.Ingress, 17, open, open),
		rig.Any(3, wire.Ingress, 6, closed, closed), rig.Any(4, wire.Ingress, 17, closed, closed),
	}
	err = w.hypervisor.Hold(append(w.rig.Hosts(),
		wire.Class{ID: policy, Groups: []uint32{1}}, wire.Policy{ID: policy, Rules: rules},
		w.target.Public(policy), w.other.Public(policy))...)
	if err != nil {
		return nil, err
	}
	if err := w.hypervisor.Host.SetQuota(flooded, quota); err != nil {
		return nil, err
	}
	for _, g := range []*rig.Guest{w.target, w.other} {
		stop, err := server(g)
		if err != nil {
			return nil, err
		}
		w.rig.Defer(stop)
	}
	return w, nil
}

func (w *world) Close() error { return w.rig.Close() }

// wireClients puts a whole prefix of clients behind the underlay, which drops
// what is sent to forged sources.
func (w *world) wireClients() (err error) {
	if w.clients, err = w.rig.Space(); err != nil {
		return err
	}
	router, client := netip.MustParsePrefix("192.168.0.0/31"), netip.MustParsePrefix("192.168.0.1/31")
	err = rig.Pair(rig.End{Space: w.clients, Name: "eth0", Address: client}, rig.End{Space: w.rig.Wire(), Name: "clients", Address: router}, 1500, 1)
	if err != nil {
		return err
	}
	instances := netip.MustParsePrefix("198.51.100.0/24")
	return errors.Join(
		w.clients.Do(func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return errors.Join(
				netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: rig.IPNet(clientPrefix), Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL}),
				netlink.RouteAdd(&netlink.Route{Gw: router.Addr().AsSlice()}))
		}),
		w.rig.Wire().Do(func() error {
			return errors.Join(
				netlink.RouteAdd(&netlink.Route{Dst: rig.IPNet(clientPrefix), Gw: client.Addr().AsSlice()}),
				netlink.RouteAdd(&netlink.Route{Dst: rig.IPNet(instances), Gw: w.hypervisor.Config.Endpoint.AsSlice()}),
				netlink.RouteAdd(&netlink.Route{Dst: rig.IPNet(forged), Type: unix.RTN_BLACKHOLE}))
		}))
}

// useQueue has what the stack sends to a device of the thread's namespace leave by
// one queue.
func useQueue(device string, queue int) error {
	const queueMapping = 12 // in struct __sk_buff
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "flood_queue", Type: ebpf.SchedCLS, License: "Apache-2.0",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, int32(queue+1)), // as if received by that one: 0 is none
			asm.StoreMem(asm.R1, queueMapping, asm.R2, asm.Word),
			asm.Mov.Imm(asm.R0, -1 /* TCX_NEXT */), asm.Return(),
		},
	})
	if err != nil {
		return fmt.Errorf("load the program that chooses a queue: %w", err)
	}
	defer prog.Close() // the device holds it
	return link.RawAttachProgram(link.RawAttachProgramOptions{Target: l.Attrs().Index, Program: prog, Attach: ebpf.AttachTCXEgress})
}

// spray the flood, each packet another source, until it is told to stop. The
// thread is in the underlay's namespace.
func (b *floodBench) spray(f flood, stop <-chan struct{}) (sent uint64, err error) {
	const burst = 1 << 16
	l, err := netlink.LinkByName(b.world.hypervisor.RouterDevice())
	if err != nil {
		return 0, err
	}
	frame := f.build(netip.AddrPortFrom(forged.Addr(), 1024).String(), netip.AddrPortFrom(b.world.target.Address, f.port).String()).
		MACs(b.world.hypervisor.RouterMAC.String(), b.world.hypervisor.UplinkMAC.String()).Bytes()
	shape := bench.Shape{
		Frame: frame, Head: len(frame), AddressAt: 26, Addresses: 1 << 20, PortAt: 34, Ports: 1 << 15, InTurn: true,
	}
	if f.again > 0 {
		shape.Addresses, shape.Ports = f.again, 1
	}
	if err := b.driver.Seek(0); err != nil {
		return 0, err
	}
	for {
		select {
		case <-stop:
			return sent, nil
		default:
		}
		if _, err := b.driver.Spray(l.Attrs().Index, shape, burst); err != nil {
			return sent, fmt.Errorf("spray: %w", err)
		}
		sent += burst
	}
}
