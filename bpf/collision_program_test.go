// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// entrance is one by which a client's packets can come to addr5:8080.
type entrance struct {
	name string
	via  string // VIP:port; "" is the instance's own address
	ctx  skb
}

// newEntrances makes services of three tuples that lead to the same instance and port.
func newEntrances(w *world, proto uint8) []entrance {
	all := []entrance{{"the first VIP", "203.0.113.1:81", skb{}}, {"another port of it", "203.0.113.1:82", skb{}},
		{"another VIP", "203.0.113.2:81", skb{}}, {"none", "", skb{}}}
	for i := range all[:3] {
		index, id := uint32(40+i), uint32(30+i)
		key := flowKey(proto, client, all[i].via)
		w.put("svc", index, &bpf.Svc{Vip: key.Own, Port: key.OwnPort, Proto: proto, Id: id, Mtu: 1500})
		w.put("local", bpf.LocalKey{Service: id, Port: port5}, &bpf.Local{
			Backend: backend12, Ip: ip16(addr5), TargetPort: bpf.BE16(8080), Flags: bpf.LocalReady})
		all[i].ctx = noted(index, backend12, uint32(i))
	}
	return all
}

// Four live connections of one client's port have one tuple at the instance, whichever
// comes first: the VM sees four, and each answer comes from where its client asked.
func TestFourConnectionsOfOneTuple(t *testing.T) {
	for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
		for first := range 4 {
			t.Run(fmt.Sprint(proto, first), func(t *testing.T) {
				w := newWorld(t)
				rule := web
				rule.proto = uint32(proto)
				w.admit(rule)
				ways := newEntrances(w, proto)
				ways[0], ways[first] = ways[first], ways[0]
				ports := map[uint16]bool{}
				for i, way := range ways {
					seen := w.talk(way, proto, i > 0)
					if ports[seen] {
						t.Fatalf("%s: the VM knows port %d already", way.name, seen)
					}
					ports[seen] = true
				}
				if !ports[1234] {
					t.Error("the first one was translated, too")
				}
				for i, way := range ways { // and all of them go on
					if seen := w.talk(way, proto, i > 0); !ports[seen] {
						t.Fatalf("%s has another port now", way.name)
					}
				}
			})
		}
	}
}

// talk has a client say something by a way, and the instance answer it. It returns the
// client's port as the instance sees it.
func (w *world) talk(way entrance, proto uint8, translated bool) (seen uint16) {
	w.Helper()
	in, of := packet.UDP(client, addr5+":8080"), packet.UDP
	if proto == packet.ProtoTCP {
		in, of = packet.TCP(client, addr5+":8080").ACK(), packet.TCP
		if _, ok := w.flow(port5, flowKey(proto, client, addr5+":8080")); !ok || translated {
			in = packet.TCP(client, addr5+":8080").SYN()
		}
	}
	why := bpf.ReasonToPort
	if translated {
		why = bpf.ReasonToPortTranslated
	}
	w.expect(moved{why: 1}, func() {
		_, out, _ := w.tc("uplink_in", fromRouter(in).Bytes(), way.ctx)
		seen = binary.BigEndian.Uint16(out[34:])
		w.same("delivered", out, toVM(in.From(fmt.Sprintf("192.0.2.9:%d", seen)), mac5).Bytes())
	})
	if translated != (seen >= 32768) {
		w.Fatalf("%s: the VM sees port %d", way.name, seen)
	}
	from := way.via
	if from == "" {
		from = addr5 + ":8080"
	}
	answer, want := of(fmt.Sprintf("192.0.2.9:%d", seen), addr5+":8080").Reply(), of(client, from).Reply().TTL(63)
	if proto == packet.ProtoTCP {
		answer, want = answer.ACK(), want.ACK()
	}
	w.out(answer, want)
	return seen
}
