// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cairn/bpf/packet"
	"cairn/cloud/wire"
	"cairn/dataplane/port"
	"cairn/test/rig"
)

// world is two hypervisors with machines that have no stack, so that nobody says
// anything but what the streams send:
//
//	client ─ r1 ── hv1: public machines 1 and 2, private 11 and 13
//	         r2 ── hv2: private 12
type world struct {
	rig         *rig.Rig
	hypervisors []*rig.Hypervisor
	traffic     traffic
	places      map[string]*place
}

const (
	client  = "192.0.2.9"
	public1 = "198.51.100.1"
	public2 = "198.51.100.2"
	vni     = 100
	policy  = 1
)

var private = map[uint32]string{11: "10.0.0.11", 12: "10.0.0.12", 13: "10.0.0.13"}

func newWorld(folder string) (_ *world, err error) {
	w := &world{places: map[string]*place{}}
	if w.rig, err = rig.New(folder); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.rig.Close())
		}
	}()
	for range 2 {
		h, err := w.rig.Hypervisor(1)
		if err != nil {
			return nil, err
		}
		w.hypervisors = append(w.hypervisors, h)
	}
	err = w.rig.Wire().Do(func() error { // what is for clients is seen at r1, and goes nowhere
		return netlink.RouteAdd(&netlink.Route{Dst: rig.IPNet(netip.MustParsePrefix("192.0.2.0/24")), Type: unix.RTN_BLACKHOLE})
	})
	if err != nil {
		return nil, err
	}
	if err := w.hold(); err != nil {
		return nil, err
	}
	if err := w.place("client", w.rig.Wire(), w.hypervisors[0].RouterDevice()); err != nil {
		return nil, err
	}
	w.addStreams()
	w.traffic.watch()
	return w, w.handshake()
}

// hold makes the machines and has both hypervisors know them.
func (w *world) hold() error {
	first, second := w.hypervisors[0], w.hypervisors[1]
	rules := []wire.Rule{rig.Any(1, wire.Ingress, packet.ProtoTCP, 7, 7), rig.Any(2, wire.Ingress, packet.ProtoUDP, 7, 7), rig.Any(3, wire.Ingress, packet.ProtoICMP, 0, 0)}
	common := append(w.rig.Hosts(),
		wire.Class{ID: policy, Groups: []uint32{1}}, wire.Policy{ID: policy, Rules: rules},
		wire.Network{VNI: vni, ID: "network", MTU: 1500, Hosts: []uint32{1, 2}, Lease: &wire.Lease{
			Server: netip.MustParseAddr("10.0.0.254"), Bits: 24, Start: netip.MustParseAddr("10.0.0.10"), End: netip.MustParseAddr("10.0.0.99"),
		}})
	ports := map[*rig.Hypervisor][]wire.Item{}
	for id, address := range map[uint32]string{1: public1, 2: public2} {
		g, err := w.machine(first, id)
		if err != nil {
			return err
		}
		g.Address = netip.MustParseAddr(address)
		ports[first] = append(ports[first], g.Public(policy))
	}
	for id, address := range private {
		h := first
		if id == 12 {
			h = second
		}
		g, err := w.machine(h, id)
		if err != nil {
			return err
		}
		ports[h] = append(ports[h], g.Private(vni, netip.MustParseAddr(address)))
		common = append(common, g.Neighbour(vni, h.Number, netip.MustParseAddr(address)))
	}
	for _, h := range w.hypervisors {
		if err := h.Open(); err != nil {
			return err
		}
		if err := h.Hold(append(ports[h], common...)...); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) machine(h *rig.Hypervisor, port uint32) (*rig.Guest, error) {
	g, err := h.Guest(port, netip.Prefix{})
	if err != nil {
		return nil, err
	}
	return g, w.place(fmt.Sprint(port), g.Space, rig.GuestDevice)
}

func (w *world) place(name string, s *rig.Space, device string) error {
	tap, err := s.Tap(device)
	if err != nil {
		return err
	}
	w.rig.Defer(tap.Close)
	p := &place{name, tap}
	w.places[name] = p
	w.traffic.places = append(w.traffic.places, p)
	return nil
}

// fromClient and fromPublic1 are the two directions between those.
func (w *world) fromClient() pair {
	h := w.hypervisors[0]
	return pair{h.RouterMAC.String(), h.UplinkMAC.String(), client, public1}
}

func fromPublic1(dst string) pair {
	return pair{rig.PortMAC(1).String(), net.HardwareAddr(port.GatewayMAC[:]).String(), public1, dst}
}

func between(from, to uint32) pair {
	return pair{rig.PortMAC(from).String(), rig.PortMAC(to).String(), private[from], private[to]}
}

func (w *world) addStreams() {
	at := w.places
	t := &w.traffic
	in, out := w.fromClient(), fromPublic1(client)
	for _, s := range []struct {
		name    string
		in, out maker
	}{
		{"UDP", in.udp(40000, 7), out.udp(7, 40000)},
		{"TCP", in.tcp(40000, 7, 1001, 5001), out.tcp(7, 40000, 5001, 1001)},
		{"ping", in.ping(77), out.pong(77)},
		{"fragments", in.fragments(40001, 7), out.fragments(7, 40001)},
		{"ICMP errors", in.unreachable(7, 40000), out.unreachable(40000, 7)},
	} {
		t.add("public "+s.name+" in", at["client"], at["1"], s.in)
		t.add("public "+s.name+" out", at["1"], at["client"], s.out)
	}
	t.add("public UDP on one host", at["1"], at["2"], fromPublic1(public2).udp(40002, 7))
	for _, legs := range []struct {
		name     string
		from, to uint32
	}{{"to another host", 11, 12}, {"from another host", 12, 11}, {"on one host", 11, 13}} {
		p := between(legs.from, legs.to)
		for name, m := range map[string]maker{
			"UDP": p.udp(40000, 7), "TCP": p.tcp(40000, 7, 1001, 5001), "ping": p.ping(78), "fragments": p.fragments(40001, 7),
			"ICMP errors": p.unreachable(7, 40000),
		} {
			t.add("private "+name+" "+legs.name, at[fmt.Sprint(legs.from)], at[fmt.Sprint(legs.to)], m)
		}
	}
}

// handshake opens the flows that the streams go on with.
func (w *world) handshake() error {
	in, out := w.fromClient(), fromPublic1(client)
	segment := func(p pair, sport, dport int) packet.Packet {
		return packet.TCP(fmt.Sprintf("%s:%d", p.src, sport), fmt.Sprintf("%s:%d", p.dst, dport)).MACs(p.srcMAC, p.dstMAC)
	}
	for _, step := range []struct {
		from  string
		frame packet.Packet
	}{
		{"client", segment(in, 40000, 7).SYN().Sequence(1000)},
		{"1", segment(out, 7, 40000).SYN().ACK().Sequence(5000).Acknowledge(1001)},
		{"client", segment(in, 40000, 7).ACK().Sequence(1001).Acknowledge(5001)},
	} {
		if err := w.places[step.from].tap.Send(step.frame.Bytes()); err != nil {
			return err
		}
	}
	return nil
}
