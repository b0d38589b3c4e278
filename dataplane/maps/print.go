// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"cairn/bpf"
)

// String of an entry: map, key and value as one line.
func (e Entry) String() string {
	return fmt.Sprintf("%s %s = %s", e.Map, printKey(e.ID), printValue(e))
}

func u32(b string) uint32 { return binary.NativeEndian.Uint32([]byte(b)) }

func printKey(id ID) string {
	switch id.Map {
	case Prefixes, AddrNet:
		k := As[bpf.PrefixKey](id.Key)
		return prefix(k.Ip, k.Bits)
	case Vteps:
		return bpf.AddrBE32(u32(id.Key)).String()
	case VIPAddr4, VIPAddr6:
		return VIPOf(id).String()
	case RuleIDs:
		k := As[bpf.RulesKey](id.Key)
		if k.Word > 0 {
			return fmt.Sprintf("%d/%s/word %d", k.Policy, direction(k.Direction), k.Word)
		}
		return fmt.Sprintf("%d/%s", k.Policy, direction(k.Direction))
	case PortBounds:
		k := As[bpf.BoundsKey](id.Key)
		if k.Leaf > 0 {
			return fmt.Sprintf("%d/%s/proto %d/leaf %d", k.Policy, direction(k.Direction), k.Proto, k.Leaf)
		}
		return fmt.Sprintf("%d/%s/proto %d", k.Policy, direction(k.Direction), k.Proto)
	case PortBM, CidrBM, PeerBM:
		k := As[bpf.BmKey](id.Key)
		return fmt.Sprintf("%d/%s/class %d", k.Policy, direction(k.Direction), k.Class)
	case Cidr:
		k := As[bpf.CidrKey](id.Key)
		return fmt.Sprintf("%d/%s", k.Policy, prefix(k.Ip, k.Bits-32))
	case Members:
		k := As[bpf.MemberKey](id.Key)
		return fmt.Sprintf("%d/%s", k.Scope, k.Ip.Addr())
	case AddrOK:
		k := As[bpf.AddrKey](id.Key)
		return fmt.Sprintf("%d/%s", k.Port, k.Ip.Addr())
	case AddrAllow:
		k := As[bpf.AllowKey](id.Key)
		return fmt.Sprintf("%d/%s", k.Port, prefix(k.Ip, k.Bits-32))
	case Fdb:
		k := As[bpf.FdbKey](id.Key)
		return fmt.Sprintf("%d/%s", k.Vni, net.HardwareAddr(k.Mac[:]))
	case Neigh:
		k := As[bpf.NeighKey](id.Key)
		return fmt.Sprintf("%d/%s", k.Vni, k.Ip.Addr())
	case AddrPort, VIPNodes:
		return As[bpf.Ip16](id.Key).Addr().String()
	case Local:
		k := As[bpf.LocalKey](id.Key)
		return fmt.Sprintf("service %d port %d", k.Service, k.Port)
	case Quic:
		k := As[bpf.QuicKey](id.Key)
		return fmt.Sprintf("service %d server %s", k.Service, bpf.AddrBE32(k.Server))
	case VIP4, VIP6:
		vip, proto := ServedAt(id)
		return fmt.Sprintf("%s/%d", vip, proto)
	}
	return fmt.Sprint(u32(id.Key)) // arrays and attach: a number
}

func printValue(e Entry) string {
	switch e.Map {
	case Vteps:
		v := As[bpf.Vtep](e.Value)
		return fmt.Sprintf("host %d pmtu %d", v.Host, v.Pmtu)
	case Nexthops:
		v := As[bpf.Nexthop](e.Value)
		return net.HardwareAddr(v.Mac[:]).String()
	case RuleIDs:
		return printRules(As[bpf.Rules](e.Value))
	case PortBounds:
		return printBounds(As[bpf.Bounds](e.Value))
	case PortBM, CidrBM, PeerBM:
		return printBitmap(As[bpf.Bitmap](e.Value))
	case VIPBits:
		return fmt.Sprintf("%#x", binary.NativeEndian.Uint64([]byte(e.Value)))
	case Fdb:
		v := As[bpf.Station](e.Value)
		if v.Endpoint != 0 {
			return "endpoint " + bpf.AddrBE32(v.Endpoint).String()
		}
		return fmt.Sprintf("port %d", v.Port)
	case Neigh:
		v := As[bpf.Neigh](e.Value)
		return fmt.Sprintf("port %d mac %s", v.Port, net.HardwareAddr(v.Mac[:]))
	case Bum:
		v := As[bpf.Bum](e.Value)
		return fmt.Sprintf("%d ports %d hosts rate %d flags %d", v.Ports, v.Hosts, v.Rate, v.Flags)
	case PortCfg:
		v := As[bpf.PortCfg](e.Value)
		line := fmt.Sprintf("device %d mac %s policy %d/%d generation %d mtu %d flags %d",
			v.Ifindex, net.HardwareAddr(v.Mac[:]), v.PolicyIn, v.PolicyOut, v.Generation, v.Mtu, v.Flags)
		if v.Established != 0 {
			line += fmt.Sprintf(" established %d s", v.Established)
		}
		if v.RateFrom != 0 {
			line += fmt.Sprintf(" rate from %d B/s", v.RateFrom)
		}
		return line
	case Shaper:
		v := As[Limit](e.Value)
		return fmt.Sprintf("device %d %d B/s", v.Device, v.Rate)
	case Backends:
		v := As[bpf.Backend](e.Value)
		return fmt.Sprintf("endpoint %s nexthop %d mac %s", bpf.AddrBE32(v.Endpoint), v.Nexthop, net.HardwareAddr(v.Mac[:]))
	case Local:
		v := As[bpf.Local](e.Value)
		return fmt.Sprintf("backend %d %s flags %d", v.Backend, netip.AddrPortFrom(v.Ip.Addr(), bpf.BE16(v.TargetPort)), v.Flags)
	case Quic:
		return fmt.Sprintf("backend %d", u32(e.Value))
	case Slots:
		return printSlots(e.Value)
	case VIPNodes:
		return printNodes(As[bpf.VipNodes](e.Value))
	case Svc:
		v := As[bpf.Svc](e.Value)
		return fmt.Sprintf("service %d %s/%d slots %d+%d generation %d flags %d mtu %d seed %#x",
			v.Id, netip.AddrPortFrom(v.Vip.Addr(), bpf.BE16(v.Port)), v.Proto, v.SlotBase, v.SlotMask+1, v.Generation, v.Flags, v.Mtu, v.Seed)
	}
	return fmt.Sprint(u32(e.Value))
}

// printNodes lists LB nodes; this host has no endpoint.
func printNodes(v bpf.VipNodes) string {
	var all []string
	for _, n := range v.Node[:min(v.Count, uint32(len(v.Node)))] {
		if n.Endpoint == 0 {
			all = append(all, fmt.Sprintf("host %d", n.Host))
			continue
		}
		all = append(all, fmt.Sprintf("host %d endpoint %s nexthop %d", n.Host, bpf.AddrBE32(n.Endpoint), n.Nexthop))
	}
	return strings.Join(all, ", ")
}

// printRules lists the ids of rules; one that keeps its flows has a star.
func printRules(v bpf.Rules) string {
	ids := []string{}
	for i, id := range v.Id {
		switch {
		case id == 0:
		case v.Keep>>i&1 != 0:
			ids = append(ids, fmt.Sprintf("%d*", id))
		default:
			ids = append(ids, fmt.Sprint(id))
		}
	}
	return fmt.Sprintf("rules %v", ids)
}

// printBounds lists where a class begins, and the class.
func printBounds(v bpf.Bounds) string {
	what, whole := "classes", ""
	if v.Leaves > 0 {
		what = "leaves"
	}
	if v.Whole > 0 {
		whole = fmt.Sprintf(" all %d", v.Whole)
	}
	var cuts []string
	for i, c := range v.Cut {
		if i > 0 && c == (bpf.Cut{From: 0xffff, Class: v.Cut[i-1].Class}) {
			break // what is left is not used
		}
		cuts = append(cuts, fmt.Sprintf("%d:%d", c.From, c.Class))
	}
	return fmt.Sprintf("%s %v%s", what, cuts, whole)
}

// printBitmap lists the bits that are set.
func printBitmap(v bpf.Bitmap) string {
	bits := []string{}
	for at := range 64 * len(v.Word) {
		if v.Word[at/64]>>(at%64)&1 != 0 {
			bits = append(bits, fmt.Sprint(at))
		}
	}
	return fmt.Sprintf("bits %v", bits)
}

// printSlots counts the slots of each pair of owners, in order of appearance.
func printSlots(table string) string {
	type pair struct{ cur, prev uint32 }
	count := map[pair]int{}
	var order []pair
	for i := 0; i+8 <= len(table); i += 8 {
		p := pair{binary.LittleEndian.Uint32([]byte(table[i:])), binary.LittleEndian.Uint32([]byte(table[i+4:]))}
		if count[p] == 0 {
			order = append(order, p)
		}
		count[p]++
	}
	var parts []string
	for _, p := range order {
		part := fmt.Sprintf("%d×%d", count[p], p.cur)
		if p.prev != 0 {
			part += fmt.Sprintf("(%d)", p.prev)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " ")
}

func direction(d uint32) string {
	if d == bpf.DirectionOut {
		return "out"
	}
	return "in"
}

func prefix(ip bpf.Ip16, bits uint32) string {
	if a := ip.Addr(); a.Is4() {
		return fmt.Sprintf("%s/%d", a, int(bits)-96)
	}
	return fmt.Sprintf("%s/%d", ip.Addr(), bits)
}
