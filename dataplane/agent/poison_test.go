// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/cloud/wire"
	"cairn/dataplane/instance"
)

// drawItem makes any item that a control plane gone mad could send.
func drawItem(t *rapid.T) wire.Item {
	id := rapid.Uint32Range(1, 4)
	addr := rapid.SampledFrom([]netip.Addr{
		endpoint(1), endpoint(2), address(1), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("255.255.255.255"),
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("::ffff:198.51.100.9"),
	})
	some := func(name string) uint32 { return id.Draw(t, name) }
	where := addr.Draw(t, "address")
	switch rapid.SampledFrom(wire.Kinds()).Draw(t, "kind") {
	case wire.KindHost:
		return wire.Host{ID: some("id"), Name: "hv", Endpoint: where, MTU: rapid.Uint32().Draw(t, "mtu")}
	case wire.KindClass:
		return wire.Class{ID: some("id"), Groups: []uint32{some("group")}}
	case wire.KindMember:
		return wire.Member{Scope: rapid.Uint32Range(0, 1).Draw(t, "scope"), Address: where, Class: some("class")}
	case wire.KindPolicy:
		p := wire.Policy{ID: some("id")}
		for range rapid.IntRange(0, 3).Draw(t, "rules") {
			r := wire.Rule{ID: some("rule"), Protocol: rapid.Uint8().Draw(t, "protocol"), PortMax: rapid.Uint16().Draw(t, "port"), ICMPType: -1}
			r.Direction = wire.Direction(rapid.IntRange(0, 1).Draw(t, "direction"))
			if r.PeerGroup = rapid.Uint32Range(0, 2).Draw(t, "group"); r.PeerGroup == 0 {
				r.Peer = netip.PrefixFrom(where, rapid.IntRange(0, where.BitLen()).Draw(t, "bits"))
			}
			p.Rules = append(p.Rules, r)
		}
		return p
	case wire.KindInstance:
		return wire.Instance{ID: rapid.SampledFrom([]string{"a", "../..", "\x00"}).Draw(t, "id"), Driver: "netns", Port: some("port"), Running: true}
	case wire.KindPort:
		return wire.Port{ID: some("id"), MAC: mac(some("mac")), Addresses: []netip.Addr{where, where}, Policy: rapid.Uint32Range(0, 4).Draw(t, "policy")}
	case wire.KindBackend:
		return wire.Backend{ID: rapid.SampledFrom([]uint32{1, 2, 3, 1 << 20, 1<<32 - 1}).Draw(t, "id"), Service: some("service"), Host: some("host"), Port: some("port"), Address: where, TargetPort: 1}
	case wire.KindSlots:
		return aTable(some("service"), rapid.Uint64().Draw(t, "generation"), 1<<rapid.IntRange(0, 14).Draw(t, "size"), [2]uint32{some("cur"), some("prev")}, [2]uint32{0, some("prev")})
	case wire.KindService:
		return wire.Service{ID: some("id"), VIP: where, Port: 80, Protocol: rapid.Uint8().Draw(t, "protocol"), Panic: rapid.Bool().Draw(t, "panic")}
	case wire.KindCheck:
		return wire.Check{Service: some("service"), Backend: some("backend"), Mode: "tcp", Address: where, Port: 1, Interval: time.Second, Timeout: time.Second}
	}
	return wire.Announcement{Prefix: netip.PrefixFrom(where, rapid.IntRange(0, where.BitLen()).Draw(t, "bits")), Service: rapid.Bool().Draw(t, "service"), Announcers: []uint32{some("host")}}
}

// No item ends the agent, whatever it says and in whatever order it comes: it
// is programmed, or named and kept apart, and what it leads to is there.
func TestNoItemEndsTheAgent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		defer w.table.Close()
		w.mustApply([]wire.Item{aHost(9)})
		for range rapid.IntRange(1, 6).Draw(t, "deltas") {
			var items, gone []wire.Item
			for range rapid.IntRange(1, 8).Draw(t, "items") {
				items = append(items, drawItem(t))
			}
			for range rapid.IntRange(0, 3).Draw(t, "gone") {
				gone = append(gone, drawItem(t))
			}
			w.apply(items, gone...)
			view := w.table.View()
			wanted(view, w.loop.Image(), 1, true)
			instance.Wanted(view)
			former(view, 1)
			if err := reachable(w.store); err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "restart") {
				w.restart()
				w.round()
			}
		}
	})
}
