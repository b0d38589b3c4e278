// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// frame of a packet, as the router gives it to a host. Numbers of TCP are always
// the same, and fit.
func (p Packet) frame() packet.Packet {
	if p.Proto == UDP {
		return packet.UDP(p.Client.String(), vip.String()).MACs(routerMAC, uplinkMAC).Payload([]byte("question"))
	}
	f := packet.TCP(p.Client.String(), vip.String()).MACs(routerMAC, uplinkMAC).Window(1000)
	switch p.Kind {
	case SYN:
		return f.SYN().Sequence(100)
	case FIN:
		return f.FIN().ACK().Sequence(101).Acknowledge(501)
	}
	return f.ACK().Sequence(101).Acknowledge(501)
}

// Answers of XDP and tc programs.
const (
	xdpPass, xdpTX = 2, 3
	tcRedirect     = 7
)

// Send a packet, and follow it from host to host to whoever gets it.
func (f *Fabric) Send(p Packet) (Outcome, error) {
	h, frame := p.At, p.frame().Bytes()
	for range 5 {
		action, out, err := f.nodes[h].uplink(frame)
		if err != nil {
			return Outcome{}, err
		}
		switch to, isTunnel := tunnelled(out); {
		case action == xdpPass:
			return f.enter(h, p, out)
		case action == xdpTX && isTunnel:
			h = Host(to.As4()[3] - 1)
			if to != endpoint(h) || h >= Hosts {
				return Outcome{}, fmt.Errorf("a packet for %s", to)
			}
			frame = append(append(packet.MAC(uplinkMAC), packet.MAC(routerMAC)...), out[12:]...)
		case action == xdpTX:
			return Outcome{Why: "refused"}, nil
		default:
			return Outcome{Why: "dropped"}, nil
		}
	}
	return Outcome{}, fmt.Errorf("%s goes from host to host for ever", p)
}

func (n *node) uplink(frame []byte) (action uint32, out []byte, err error) {
	run := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	action, err = n.progs["uplink"].Run(run)
	return action, run.DataOut, err
}

// tunnelled tells where a frame with VXLAN is for.
func tunnelled(b []byte) (to netip.Addr, ok bool) {
	if len(b) < 14+20+8 || b[14+9] != UDP || binary.BigEndian.Uint16(b[14+20+2:]) != 4789 {
		return to, false
	}
	return netip.AddrFrom4([4]byte(b[14+16:])), true
}

// enter a host's own port, with the note that uplink has left in front.
func (f *Fabric) enter(h Host, p Packet, b []byte) (Outcome, error) {
	if len(b) < 16 || binary.NativeEndian.Uint32(b) != bpf.NotePresent {
		return Outcome{}, fmt.Errorf("%s passes host %d without a note", p, h)
	}
	var ctx skb
	for i := range 4 {
		ctx.Cb[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	run := &ebpf.RunOptions{Data: b[16:], DataOut: make([]byte, len(b)+256), Context: &ctx}
	action, err := f.nodes[h].progs["uplink_in"].Run(run)
	if err != nil {
		return Outcome{}, err
	}
	if action != tcRedirect {
		return Outcome{Why: "dropped"}, nil
	}
	at := f.ports[uint32(run.DataOut[5])]
	if at == 0 {
		return Outcome{}, fmt.Errorf("%s reaches a port that is not there: %x", p, run.DataOut)
	}
	want := p.frame().To(netip.AddrPortFrom(address(uint32(run.DataOut[5])), targetPort).String())
	if ip := want.IP(); string(run.DataOut[14+12:]) != string(ip[12:]) { // before that is what changes on the way
		return Outcome{}, fmt.Errorf("%s reaches backend %d as\n%x, want\n%x", p, at, run.DataOut[14:], ip)
	}
	return Outcome{Backend: at}, nil
}

// Answer a packet that a backend got: the client sees the VIP.
func (f *Fabric) Answer(p Packet, from Backend) error {
	for port, b := range f.ports {
		if b != from {
			continue
		}
		n := f.nodes[1+(port-5)/2]
		if err := n.maps["ifindex_port"].Put(uint32(loopback), port); err != nil {
			return err
		}
		own := netip.AddrPortFrom(address(port), targetPort).String()
		answer := packet.UDP(own, p.Client.String()).Payload([]byte("answer"))
		if p.Proto == TCP {
			answer = packet.TCP(own, p.Client.String()).Window(1000).ACK().Sequence(501).Acknowledge(101)
			if p.Kind == SYN {
				answer = answer.SYN().Sequence(500)
			}
		}
		in := answer.MACs(portMAC(port).String(), gatewayMAC).Bytes()
		run := &ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: &skb{}}
		action, err := n.progs["vm_in"].Run(run)
		if err != nil {
			return err
		}
		want := answer.From(vip.String()).IP()
		if action != tcRedirect || string(run.DataOut[14+12:]) != string(want[12:]) {
			return fmt.Errorf("the answer of backend %d to %s leaves (%d) as\n%x, want\n%x", from, p, action, run.DataOut[14:], want)
		}
	}
	return nil
}

// skb is the beginning of struct __sk_buff.
type skb struct {
	_  [12]uint32
	Cb [5]uint32
}
