// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"net/netip"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// toOwner is what uplink puts around a fragment for host 2, which owns it.
func toOwner(port uint16) packet.Tunnel {
	return packet.Tunnel{
		SrcMAC: uplinkMAC, DstMAC: routerMAC, Src: endpoint, Dst: endpoint2, Port: port,
		VNI: bpf.LBVNI, Backend: "0b:00:00:00:00:00", Tag: packet.Tag{Hop: 1},
	}
}

// fromNode is how host 2 hands a fragment over.
func fromNode(p packet.Packet) []byte {
	return tunnelFrom("0b:00:00:00:00:00", packet.Tag{Hop: 1}).Wrap(p)
}

// nodes has both hosts announce the VIPs; alone has host 2 do it without us.
func (w *world) nodes(alone bool) {
	w.Helper()
	n := bpf.VipNodes{Count: 2}
	n.Node[0].Host = 1
	n.Node[1].Host, n.Node[1].Endpoint, n.Node[1].Nexthop = 2, be32(endpoint2), 1
	if alone {
		n.Count, n.Node[0] = 1, n.Node[1]
	}
	for _, f := range families {
		w.put("vip_nodes", bpf.IP16(netip.MustParseAddrPort(f.vip).Addr()), &n)
	}
}

// All fragments go where the first one goes, and stay as they are.
func TestFragmentsForAVIPGoToOneBackend(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			hash := hashOf(f.client, f.vip, packet.ProtoUDP, 0)
			w.owners(backend11, backend12)
			pieces := datagram(f.client, f.vip, 100).Split(32)
			var bytes uint64
			for _, p := range pieces {
				in := fromRouter(p)
				bytes += uint64(len(in.IP()))
				w.expect(moved{bpf.ReasonSent: 1}, func() {
					_, out := w.xdp(in.Bytes())
					w.same("fragment", out, tunnelTo(hash, packet.Tag{Other: backend12}).Wrap(in.TTL(63)))
				})
				w.owners(backend13, 0) // the slot's, from now on; not this datagram's
			}
			if got := w.stat("svc_stat", f.udpService); got.Packets != uint64(len(pieces)) || got.Bytes != bytes {
				t.Errorf("svc_stat: %+v, want %d packets of %d bytes", got, len(pieces), bytes)
			}
			early := fromRouter(pieces[1].ID(78))
			w.expect(moved{bpf.ReasonFragmentEarly: 1}, func() { w.xdp(early.Bytes()) })
		})
	}
}

// Into a port of this host: all have the instance's address, the first one its port
// and a checksum that holds; and through both programs they make up the datagram.
func TestFragmentsForAVIPAreRewritten(t *testing.T) {
	for _, f := range families {
		for name, unchecked := range map[string]bool{"": false, ", unchecked": true} {
			if unchecked && f.name == "ipv6" {
				continue
			}
			t.Run(f.name+name, func(t *testing.T) {
				w := newWorld(t)
				w.owners(backend12, 0)
				r := web
				r.proto, r.cidr = packet.ProtoUDP, "192.0.2.0/24"
				if f.name == "ipv6" {
					r.cidr = "2001:db8:9::/48"
				}
				w.admit(r)
				whole, want := datagram(f.client, f.vip, 100), datagram(f.client, f.target5, 100)
				if unchecked {
					whole, want = whole.NoChecksum(), want.NoChecksum()
				}
				wantPieces := want.Split(32)
				for i, p := range whole.Split(32) {
					out := w.through(p, bpf.ReasonToPort)
					w.same("fragment", out, toVM(wantPieces[i], mac5).Bytes())
				}
				for i, p := range whole.ID(79).Split(32) {
					w.expect(moved{bpf.ReasonDelivered: 1}, func() {
						_, out := w.xdp(tunnelFrom(mac5, packet.Tag{}).Wrap(p))
						hash := hashOf(f.client, f.vip, packet.ProtoUDP, 0)
						w.same("out of the tunnel", out, append(note(f.udpIndex, backend12, hash), fromRouter(wantPieces[i].ID(79)).Bytes()...))
					})
				}
			})
		}
	}
}

// TCP is in fragments sometimes; what has no ports in the first one is nothing.
func TestFragmentsOfTCPForAVIP(t *testing.T) {
	w := newWorld(t)
	segment := packet.TCP(client, vip).ACK().Payload(make([]byte, 100)).ID(77)
	hash := hashOf(client, vip, packet.ProtoTCP, 0)
	for _, p := range segment.Split(64) {
		in := fromRouter(p)
		w.expect(moved{bpf.ReasonSent: 1}, func() {
			_, out := w.xdp(in.Bytes())
			w.same("fragment", out, tunnelTo(hash, packet.Tag{}).Wrap(in.TTL(63)))
		})
	}
	w.expect(moved{bpf.ReasonMalformed: 1}, func() { w.xdp(fromRouter(segment.ID(78).Split(16)[0]).Bytes()) })
	w.expect(moved{bpf.ReasonFragmentEarly: 1}, func() { w.xdp(fromRouter(segment.ID(78).Split(16)[1]).Bytes()) })
	w.expect(moved{bpf.ReasonNoService: 1}, func() {
		w.xdp(fromRouter(datagram(client, vipAddr+":81", 100).Split(64)[0]).Bytes())
	})
	w.expect(moved{bpf.ReasonBadSource: 1}, func() {
		w.xdp(fromRouter(datagram("169.254.1.1:1", vip, 100).Split(64)[0]).Bytes())
	})
	w.expect(moved{bpf.ReasonTTL: 1}, func() { w.xdp(fromRouter(segment.TTL(1).Split(64)[1]).Bytes()) })
}

// What its host hands on to the slot's other owner is handed on whole.
func TestFragmentsForAVIPAreHandedOn(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			w.owners(backend12, 0)
			hash := hashOf(f.client, f.vip, packet.ProtoUDP, 0)
			for _, p := range datagram(f.client, f.vip, 100).Split(64) {
				w.expect(moved{bpf.ReasonForwarded: 1}, func() {
					_, out := w.xdp(tunnelFrom(mac5, packet.Tag{Other: backend11}).Wrap(p))
					w.same("fragment", out, tunnelTo(hash, packet.Tag{Hop: 1, Other: backend12}).Wrap(fromRouter(p.TTL(63))))
				})
			}
		})
	}
}

// Each datagram has one owner among the nodes that announce the VIP, and both have
// their share. A node hands over what it does not own, whichever fragment it is; the
// owner takes it, and never hands it over again.
func TestFragmentsForAVIPHaveAnOwner(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			w.nodes(false)
			hash := hashOf(f.client, f.vip, packet.ProtoUDP, 0)
			ours, theirs := 0, 0
			for id := range uint32(40) {
				w.put("vip_pace", bpf.IP16(netip.MustParseAddrPort(f.vip).Addr()), bpf.VipPace{})
				pieces := datagram(f.client, f.vip, 100).ID(id + 1).Split(64)
				first := w.reasonOf(fromRouter(pieces[0]).Bytes())
				if last := w.reasonOf(fromRouter(pieces[1]).Bytes()); last != first {
					t.Fatalf("number %d: the first is %v, the last %v", id, first, last)
				}
				switch first {
				case bpf.ReasonSent:
					ours++
				case bpf.ReasonToOwner:
					theirs++
					in := fromRouter(pieces[1])
					_, out := w.xdp(in.Bytes())
					port := uint16(out[34])<<8 | uint16(out[35])
					w.same("handed over", out, toOwner(port).Wrap(in.TTL(63)))
					w.expect(moved{bpf.ReasonFragmentEarly: 1}, func() { w.xdp(fromNode(pieces[1])) })
					for _, p := range pieces {
						w.expect(moved{bpf.ReasonSent: 1}, func() {
							_, out := w.xdp(fromNode(p))
							w.same("taken over", out, tunnelTo(hash, packet.Tag{}).Wrap(fromRouter(p.TTL(63))))
						})
					}
				default:
					t.Fatalf("number %d: %v", id, first)
				}
			}
			if ours < 8 || theirs < 8 {
				t.Errorf("of 40 datagrams %d are ours, %d the other node's", ours, theirs)
			}
		})
	}
}

// reasonOf a frame's only exit.
func (w *world) reasonOf(in []byte) bpf.Reason {
	w.Helper()
	before := w.reasons()
	w.xdp(in)
	for r, n := range w.reasons() {
		if n != before[r] {
			return r
		}
	}
	return bpf.ReasonNone
}

func TestFragmentsThatAreNotHandedOver(t *testing.T) {
	w := newWorld(t)
	w.nodes(true)
	piece := fromRouter(datagram(client, vip, 100).Split(64)[1])
	w.expect(moved{bpf.ReasonToOwner: 1}, func() { w.xdp(piece.Bytes()) })
	w.expect(moved{bpf.ReasonTTL: 1}, func() { w.xdp(piece.TTL(1).Bytes()) })
	w.expect(moved{bpf.ReasonMalformed: 1}, func() { w.xdp(fromNode(packet.UDP(client, vip))) }) // it is whole
	w.expect(moved{bpf.ReasonUnknownEndpoint: 1}, func() {
		tunnel := toOwner(1)
		tunnel.Src, tunnel.Dst, tunnel.DstMAC = "10.64.0.77", endpoint, uplinkMAC
		w.xdp(tunnel.Wrap(datagram(client, vip, 100).Split(64)[0]))
	})
	w.put("nexthops", uint32(1), &bpf.Nexthop{})
	w.expect(moved{bpf.ReasonNoNexthop: 1}, func() { w.xdp(piece.Bytes()) })
}

// A VIP may have so many fragments a second at a node, from the wire and from other
// nodes; what came for a port has the port's own rate.
func TestFragmentsForAVIPHaveARate(t *testing.T) {
	w := newWorld(t)
	w.owners(backend12, 0)
	first := datagram(client, vip, 100).Split(64)[0]
	w.put("vip_pace", ip16(vipAddr), bpf.VipPace{Fragments: now() + 2e9})
	w.expect(moved{bpf.ReasonFragmentRate: 1}, func() { w.xdp(fromRouter(first).Bytes()) })
	w.expect(moved{bpf.ReasonFragmentRate: 1}, func() { w.xdp(fromNode(first)) })
	w.expect(moved{bpf.ReasonDelivered: 1}, func() { w.xdp(tunnelFrom(mac5, packet.Tag{}).Wrap(first)) })
	w.expect(moved{bpf.ReasonDelivered: 1}, func() { w.xdp(fromRouter(packet.UDP(client, vip)).Bytes()) })
	w.put("vip_pace", ip16(vipAddr), bpf.VipPace{})
	w.expect(moved{bpf.ReasonDelivered: 1}, func() { w.xdp(fromRouter(first).Bytes()) })
}

// A number comes again: what is remembered of it holds for 2 seconds, and only while
// the service is there.
func TestFragmentsForAVIPAreForgotten(t *testing.T) {
	w := newWorld(t)
	pieces := datagram(client, vip, 100).Split(64)
	w.expect(moved{bpf.ReasonSent: 1}, func() { w.xdp(fromRouter(pieces[0]).Bytes()) })
	var key bpf.VipFragKey
	var f bpf.VipFrag
	must(t, w.maps["vip_frag"].NextKey(nil, &key))
	must(t, w.maps["vip_frag"].Lookup(key, &f))
	f.Seen -= 3e9
	w.put("vip_frag", key, &f)
	w.expect(moved{bpf.ReasonFragmentEarly: 1}, func() { w.xdp(fromRouter(pieces[1]).Bytes()) })
	w.expect(moved{bpf.ReasonSent: 1}, func() { w.xdp(fromRouter(pieces[0]).Bytes()) })
	w.put("svc", udpIndex, &bpf.Svc{Vip: ip16("203.0.113.2"), Id: 9})
	w.expect(moved{bpf.ReasonStaleService: 1}, func() { w.xdp(fromRouter(pieces[1]).Bytes()) })
}
