// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
)

const vni = 7

func inside(n uint32) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) }

func aNetwork(hosts ...uint32) wire.Network {
	return wire.Network{VNI: vni, MTU: 1500, Hosts: hosts, Lease: &wire.Lease{
		Server: inside(254), Bits: 24, Start: inside(10), End: inside(99),
	}}
}

func aPrivatePort(id uint32) wire.Port {
	return wire.Port{ID: id, MAC: mac(id), Addresses: []netip.Addr{inside(id)}, MTU: 1500, Network: vni}
}

func aNeighbour(port, host uint32, extra ...netip.Addr) wire.Neighbour {
	return wire.Neighbour{VNI: vni, Port: port, Host: host, MAC: mac(port), Addresses: append([]netip.Addr{inside(port)}, extra...)}
}

func has(out Outcome, line string) bool { return slices.Contains(lines(out.Steps), line) }

func TestOnePrivateNetwork(t *testing.T) {
	w := newWorld(t)
	w.facts.Ports.Devices[31] = 17
	out := w.mustApply([]wire.Item{
		aHost(1), aHost(2), aHost(3), aNetwork(1, 2, 3), aPrivatePort(31), aNeighbour(31, 1), aNeighbour(32, 2),
	})
	for _, want := range []string{
		"put attach 31 = 17 for port/31",
		"put addr_ok 31/10.0.0.31 = 0 for port/31",
		"put fdb 7/02:ca:00:00:00:1f = port 31 for neighbour/31",
		"put fdb 7/02:ca:00:00:00:20 = endpoint 10.64.0.2 for neighbour/32",
		"put neigh 7/10.0.0.31 = port 31 mac 02:ca:00:00:00:1f for address/7/10.0.0.31",
		"put neigh 7/fe80::ca:ff:fe00:20 = port 32 mac 02:ca:00:00:00:20 for address/7/fe80::ca:ff:fe00:20",
		"put neigh 7/10.0.0.254 = port 0 mac 02:cb:00:00:00:01 for address/7/10.0.0.254",
		"put neigh 7/169.254.169.254 = port 0 mac 02:cb:00:00:00:01 for address/7/169.254.169.254",
		"put bum 7 = 1 ports 2 hosts rate 500 flags 0 for network/7",
		"put port_cfg 31 = device 17 mac 02:ca:00:00:00:1f policy 0/0 generation 1 mtu 1500 flags 0 for port/31",
	} {
		if !has(out, want) {
			t.Errorf("no step %q in %q", want, lines(out.Steps))
		}
	}
	for _, line := range lines(out.Steps) {
		if strings.HasPrefix(line, "put addr_port") || strings.HasPrefix(line, "put fdb 16777214/") {
			t.Errorf("a private address or MAC is public: %s", line)
		}
	}
	w.settled()
}

func TestANeighbourMoves(t *testing.T) {
	w := newWorld(t)
	w.mustApply([]wire.Item{aHost(1), aHost(2), aHost(3), aNetwork(1, 2, 3), aNeighbour(32, 2)})
	out := w.mustApply([]wire.Item{aNeighbour(32, 3)})
	expect(t, lines(out.Steps), "put fdb 7/02:ca:00:00:00:20 = endpoint 10.64.0.3 for neighbour/32")
	w.settled()
}

func TestAnAddressOfTwoHasNoOwner(t *testing.T) {
	w := newWorld(t)
	virtual := inside(200)
	w.mustApply([]wire.Item{aHost(1), aHost(2), aNetwork(1, 2), aNeighbour(32, 2, virtual), aNeighbour(33, 2)})
	out := w.mustApply([]wire.Item{aNeighbour(33, 2, virtual)})
	expect(t, lines(out.Steps), "delete neigh 7/10.0.0.200 for address/7/10.0.0.200")
	w.settled()
	out = w.mustApply(nil, aNeighbour(32, 2))
	if want := "put neigh 7/10.0.0.200 = port 33 mac 02:ca:00:00:00:21 for address/7/10.0.0.200"; !has(out, want) {
		t.Errorf("no step %q in %q", want, lines(out.Steps))
	}
	w.settled()
}

func TestAPortLeavesItsNetwork(t *testing.T) {
	w := newWorld(t)
	w.facts.Ports.Devices[31], w.facts.Ports.Devices[34] = 17, 18
	w.mustApply([]wire.Item{
		aHost(1), aHost(2), aNetwork(1, 2), aPrivatePort(31), aPrivatePort(34), aNeighbour(31, 1), aNeighbour(34, 1),
	})
	out := w.mustApply(nil, aPrivatePort(34), aNeighbour(34, 1))
	for _, want := range []string{
		"put bum 7 = 1 ports 1 hosts rate 500 flags 0 for network/7",
		"delete attach 34 for port/34",
		"delete fdb 7/02:ca:00:00:00:22 for neighbour/34",
		"delete neigh 7/10.0.0.34 for address/7/10.0.0.34",
	} {
		if !has(out, want) {
			t.Errorf("no step %q in %q", want, lines(out.Steps))
		}
	}
	w.settled()
}

func TestWithoutALeaseAddressesAreTheGuestsOwn(t *testing.T) {
	w := newWorld(t)
	w.facts.Ports.Devices[31] = 17
	w.mustApply([]wire.Item{aHost(1), aNetwork(1), aPrivatePort(31), aNeighbour(31, 1)})
	bare := aNetwork(1)
	bare.Lease, bare.Snooping, bare.BroadcastRate = nil, true, 99
	out := w.mustApply([]wire.Item{bare})
	expect(t, lines(out.Steps),
		"put port_cfg 31 = device 17 mac 02:ca:00:00:00:1f policy 0/0 generation 1 mtu 1500 flags 256 for port/31",
		"put bum 7 = 1 ports 0 hosts rate 99 flags 1 for network/7",
		"delete neigh 7/10.0.0.254 for address/7/10.0.0.254")
	w.settled()
}

// An underlay without room refuses new ports by name; those there go on.
func TestAnUnderlayWithoutRoomRefusesNewPorts(t *testing.T) {
	w := newWorld(t)
	w.facts.Ports.Devices[31], w.facts.Ports.Devices[34] = 17, 18
	w.facts.Ports.Underlay = 1550
	w.mustApply([]wire.Item{aHost(1), aNetwork(1), aPrivatePort(31), aNeighbour(31, 1)})
	w.facts.Ports.Underlay = 1549
	out := w.apply([]wire.Item{aPrivatePort(34)})
	if len(out.Faults) != 1 || !strings.Contains(out.Faults[0].Reason, "MTU 1549 has no room for packets of 1500 bytes: it needs 1550") {
		t.Errorf("faults %v", out.Faults)
	}
	im := w.loop.Image()
	for port, want := range map[uint32]bool{31: true, 34: false} {
		if _, ok := im.Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(port)}); ok != want {
			t.Errorf("port %d is there: %v, want %v", port, ok, want)
		}
	}
	w.facts.Ports.Underlay = 1600
	if out := w.apply(nil); len(out.Faults) > 0 {
		t.Error(out.Faults)
	}
	w.settled()
}

func TestTooManyPortsOfANetworkOnOneHost(t *testing.T) {
	w := newWorld(t)
	items := []wire.Item{aHost(1), aNetwork(1)}
	for id := range uint32(bpf.BumPorts + 1) {
		p := aPrivatePort(1000 + id)
		p.MAC = [6]byte{2, 0xca, 0, 0, byte(id >> 8), byte(id)}
		items = append(items, p)
	}
	out := w.apply(items)
	for _, f := range out.Faults {
		if strings.Contains(f.Reason, "257 ports on one host are more than 256") {
			return
		}
	}
	t.Errorf("faults %v", out.Faults)
}

// Whatever comes and goes, and in which order, the maps end as if the last state
// had been the first.
func TestNetworksEndAsIfFromNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.mustApply([]wire.Item{aHost(1), aHost(2), aHost(3)})
		there := map[string]wire.Item{}
		for range rapid.IntRange(1, 12).Draw(t, "deltas") {
			var up, gone []wire.Item
			if _, ok := there["network"]; !ok || rapid.Bool().Draw(t, "network") {
				n := aNetwork(1, 2, 3)
				if rapid.Bool().Draw(t, "bare") {
					n.Lease = nil
				}
				up, there["network"] = append(up, n), n
			}
			for id := range uint32(5) {
				host := rapid.Uint32Range(0, 3).Draw(t, fmt.Sprint("host of ", id))
				key, port := fmt.Sprint("neighbour", id), fmt.Sprint("port", id)
				n := aNeighbour(id+40, host, inside(rapid.Uint32Range(100, 102).Draw(t, "extra")))
				if host != 0 {
					up, there[key] = append(up, n), n
				} else if there[key] != nil {
					delete(there, key)
					gone = append(gone, n)
				}
				p := aPrivatePort(id + 40)
				if host == 1 {
					up, there[port] = append(up, p), p
				} else if there[port] != nil {
					delete(there, port)
					gone = append(gone, p)
				}
			}
			w.mustApply(up, gone...)
		}
		w.settled()
		fresh := newWorld(t)
		last := []wire.Item{aHost(1), aHost(2), aHost(3)}
		for _, item := range there {
			last = append(last, item)
		}
		fresh.mustApply(last)
		for _, m := range []maps.Map{maps.Fdb, maps.Neigh, maps.Bum, maps.AddrOK} {
			want, got := entries(fresh.loop.Image(), m), entries(w.loop.Image(), m)
			if !slices.Equal(got, want) {
				t.Fatalf("%s: %q, want %q", m, got, want)
			}
		}
	})
}

func entries(im *maps.Image, m maps.Map) []string {
	var out []string
	for e := range im.Entries(m) {
		out = append(out, e.String())
	}
	slices.Sort(out)
	return out
}
