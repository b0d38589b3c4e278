// SPDX-License-Identifier: Apache-2.0

//go:build lab

package leak

import (
	"net"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/test/rig"
)

func TestMain(m *testing.M) { rig.TestAlone(m.Run) }

// Whatever a machine sends in a private network, nobody of another network sees
// a frame of it; its own network does where it may. All four networks are senders
// in turn, so that every tap is seen to work.
func TestNothingLeaksBetweenTenants(t *testing.T) {
	w := newWorld(t)
	sent, leaked := map[string]int{}, 0
	for _, s := range w.segments {
		for _, k := range kinds {
			n, foreign := w.play(s, k)
			sent[k.name] += n
			leaked += foreign
		}
	}
	total := 0
	for _, k := range kinds {
		if sent[k.name] == 0 {
			t.Errorf("%s: nothing was sent", k.name)
		}
		total += sent[k.name]
	}
	t.Logf("%d kinds, %d frames sent, cross_tenant_frames=%d", len(kinds), total, leaked)
	public, foreign := w.playPublic()
	t.Logf("public ports: %d frames sent, cross_tenant_frames=%d", public, foreign)
	w.control()
	for _, st := range w.all {
		if lost, err := st.tap.Lost(); err != nil || lost != 0 {
			t.Errorf("the tap of %s has lost %d frames: %v", st.name, lost, err)
		}
	}
}

// play has machine 1 send a kind to 2 and to 3.
func (w *world) play(s *segment, k kind) (sent, foreign int) {
	w.Helper()
	from, friends := s.stations[0], s.stations[1:]
	want := map[*station]int{}
	may := k.unmanaged
	if s.managed {
		may = k.managed
	}
	for _, to := range friends {
		for _, frame := range k.make(from, to) {
			must(w, "send "+k.name, from.tap.Send(frame))
			sent++
			switch may {
			case addressee:
				want[to]++
			case everybody:
				want[friends[0]]++
				want[friends[1]]++
			}
		}
	}
	w.drain(from, udp, friends...)
	for _, st := range w.all {
		got := st.take()
		switch {
		case st == from: // answers of the network itself
			if may != gateway && len(got) > 0 {
				w.Errorf("%s, %s: the sender got %d frames back: %x", s.tenant, k.name, len(got), got[0])
			}
		case st == friends[0] || st == friends[1]:
			if len(got) != want[st] {
				w.Errorf("%s (network %d), %s: %s got %d frames, want %d", s.tenant, s.vni, k.name, st.name, len(got), want[st])
			}
		case len(got) > 0:
			foreign += len(got)
			w.Errorf("%s (network %d), %s: %s got %d frames: %x", s.tenant, s.vni, k.name, st.name, len(got), got[0])
		}
	}
	return sent, foreign
}

// playPublic has a machine on the public network send to machines of the other
// tenant, whose group admits nothing, here and there; and the same to its own.
func (w *world) playPublic() (sent, foreign int) {
	w.Helper()
	from := w.public["red"]
	for _, names := range [][]string{{"red here", "red there"}, {"blue here", "blue there"}} {
		for _, name := range names {
			to := w.public[name]
			frames := w.publicFrames(from, to)
			for _, f := range frames {
				must(w, "send", from.tap.Send(f))
			}
			sent += len(frames)
			friends := []*station{w.public["red here"], w.public["red there"]}
			w.drain(from, publicUDP, friends...)
			for _, st := range w.all {
				got := st.take()
				switch {
				case st == from:
				case st == to && names[0] == "red here":
					if len(got) == 0 {
						w.Errorf("%s got nothing of what %s may send it", st.name, from.name)
					}
				case len(got) > 0:
					foreign += len(got)
					w.Errorf("%s got %d frames of %s for %s: %x", st.name, len(got), from.name, to.name, got[0])
				}
			}
		}
	}
	return sent, foreign
}

// control makes the leak that the others look for: a port of blue is in red's
// network, by a mistake in the tables. Its tap must see that.
func (w *world) control() {
	w.Helper()
	red, blue := w.segments[0], w.segments[1]
	from, friend, victim := red.stations[0], red.stations[1], blue.stations[2]
	m, id := w.hypervisors[0].Host.Maps, victim.guest.Port
	var cfg bpf.PortCfg
	must(w, "read port_cfg", m.PortCfg.Lookup(id, &cfg))
	cfg.Vni = red.vni
	must(w, "write port_cfg", m.PortCfg.Put(id, &cfg))
	must(w, "write fdb", m.Fdb.Put(bpf.FdbKey{Vni: red.vni, Mac: [6]uint8(victim.guest.MAC)}, bpf.Station{Port: id}))
	must(w, "send", from.tap.Send(udp(from, victim).Bytes()))
	w.drain(from, udp, friend, victim)
	if got := victim.take(); len(got) != 1 {
		w.Errorf("control: %d frames at a tap of blue where one leaks", len(got))
	}
}

// routed goes by the gateway, as everything on the public network.
func routed(p packet.Packet, from *station) packet.Packet { return p.MACs(from.mac, gatewayMAC) }

func publicUDP(from, to *station) packet.Packet {
	return routed(packet.UDP(l4(from.ip, 4000), l4(to.ip, 7)), from)
}

// publicFrames: by the gateway, by the addressee's MAC, to all, and tunnelled to
// the endpoints with frames for private networks in them.
func (w *world) publicFrames(from, to *station) (out [][]byte) {
	ping, datagram := packet.Ping(from.ip, to.ip, 9), packet.UDP(l4(from.ip, 4000), l4(to.ip, 7))
	for _, p := range []packet.Packet{
		packet.TCP(l4(from.ip, 4000), l4(to.ip, 7)).SYN(), datagram, ping,
		packet.IP(from.ip, to.ip, packet.ProtoESP, make([]byte, 40)), packet.IP(from.ip, to.ip, packet.ProtoGRE, make([]byte, 40)),
		packet.IP(from.ip, to.ip, packet.ProtoAH, make([]byte, 40)), packet.IP(from.ip, to.ip, 4, datagram.IP()),
	} {
		for _, mac := range []string{gatewayMAC, to.mac, broadcastMAC} {
			out = append(out, p.MACs(from.mac, mac).Bytes())
		}
	}
	out = append(out, fragments(routed(datagram, from))...)
	out = append(out, packet.ARP(from.mac, from.ip, to.ip), packet.ARPReply(from.mac, to.ip, to.mac, to.ip),
		packet.UDP("0.0.0.0:68", "255.255.255.255:67").Payload(make([]byte, 244)).MACs(from.mac, broadcastMAC).Bytes(),
		packet.Router(packet.RouterAdvertisement, "fe80::1", "ff02::1").MACs(from.mac, allNodesMAC).Bytes())
	for _, s := range w.segments {
		for _, victim := range s.stations {
			for _, endpoint := range []string{"10.64.0.1", "10.64.0.3"} {
				inner := append(packet.VXLAN(s.vni), udp(s.stations[0], victim).Bytes()...)
				for _, src := range []string{from.ip, "10.64.0.1", "10.64.0.3"} { // the last two are forged
					p := packet.UDP(net.JoinHostPort(src, "50000"), l4(endpoint, 4789)).Payload(inner)
					out = append(out, routed(p, from).Bytes())
				}
			}
		}
	}
	return out
}
