// SPDX-License-Identifier: Apache-2.0

//go:build lab

package leak

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"cairn/bpf/packet"
)

// reach of a frame: who gets it.
type reach int

const (
	nobody reach = iota
	addressee
	everybody // of the sender's network
	gateway   // of the network itself: it is answered, or goes to the agent
)

// kind of frames in a private network: made once for each addressee.
type kind struct {
	name               string
	managed, unmanaged reach
	make               func(from, to *station) [][]byte
}

const (
	broadcastMAC = "ff:ff:ff:ff:ff:ff"
	allNodesMAC  = "33:33:00:00:00:01"
)

func one(p packet.Packet) [][]byte { return [][]byte{p.Bytes()} }

func l4(ip string, port int) string {
	return net.JoinHostPort(ip, fmt.Sprint(port))
}

// unicast between the stations' MACs.
func unicast(p packet.Packet, from, to *station) packet.Packet { return p.MACs(from.mac, to.mac) }

func udp(from, to *station) packet.Packet {
	return unicast(packet.UDP(l4(from.ip, 4000), l4(to.ip, 7)), from, to)
}

// protocol is a packet of an IP protocol that has no ports.
func protocol(proto uint8) func(from, to *station) [][]byte {
	return func(from, to *station) [][]byte {
		return one(unicast(packet.IP(from.ip, to.ip, proto, make([]byte, 64)), from, to))
	}
}

// etherType is a frame that is not of IP.
func etherType(dst string, t uint16, rest ...byte) func(from, to *station) [][]byte {
	return func(from, to *station) [][]byte {
		d := dst
		if d == "" {
			d = to.mac
		}
		return [][]byte{append(packet.Ethernet(packet.MAC(d), packet.MAC(from.mac), t), append(rest, make([]byte, 46)...)...)}
	}
}

// tagged puts VLAN tags around an IP packet.
func tagged(types ...uint16) func(from, to *station) [][]byte {
	return func(from, to *station) [][]byte {
		b := packet.Ethernet(packet.MAC(to.mac), packet.MAC(from.mac), types[0])
		for i := range types {
			next := uint16(packet.TypeIPv4)
			if i+1 < len(types) {
				next = types[i+1]
			}
			b = binary.BigEndian.AppendUint16(b, uint16(100*(i+1))) // the networks' numbers
			b = binary.BigEndian.AppendUint16(b, next)
		}
		return [][]byte{append(b, udp(from, to).IP()...)}
	}
}

// tunnelled is a VXLAN packet to each endpoint and network, with a frame for the
// addressee in it, that the sender would have decapsulated.
func tunnelled(dst func(to *station) string) func(from, to *station) [][]byte {
	return func(from, to *station) (out [][]byte) {
		for _, endpoint := range []string{"10.64.0.1", "10.64.0.3"} {
			for _, vni := range []uint32{100, 101, 200, 201, 0xfffffe} {
				inner := append(packet.VXLAN(vni), udp(from, to).Bytes()...)
				out = append(out, packet.UDP(l4(from.ip, 50000), l4(endpoint, 4789)).MACs(from.mac, dst(to)).Payload(inner).Bytes())
			}
		}
		return out
	}
}

func addresseesMAC(to *station) string { return to.mac }
func gatewaysMAC(*station) string      { return gatewayMAC }
func uplinksMAC(to *station) string    { return fmt.Sprintf("02:aa:00:00:00:%02x", to.hypervisor) }

// ownMAC is the one of a network's machine 3: no other network has it.
func ownMAC(vni uint32) string { return fmt.Sprintf("02:ca:00:00:%02x:03", vni) }

func fragments(p packet.Packet) (out [][]byte) {
	for _, f := range p.Payload(make([]byte, 400)).ID(7).Split(200) {
		out = append(out, f.Bytes())
	}
	return out
}

// kinds are honest ones first, then those that are forged.
var kinds = []kind{
	{"tcp", addressee, addressee, func(from, to *station) [][]byte {
		return one(unicast(packet.TCP(l4(from.ip, 4000), l4(to.ip, 7)).SYN(), from, to))
	}},
	{"udp", addressee, addressee, func(from, to *station) [][]byte { return one(udp(from, to)) }},
	{"udp in fragments", addressee, addressee, func(from, to *station) [][]byte { return fragments(udp(from, to)) }},
	{"udp of IPv6", addressee, addressee, func(from, to *station) [][]byte {
		return one(unicast(packet.UDP(l4(from.ip6, 4000), l4(to.ip6, 7)), from, to))
	}},
	{"udp of IPv6 in fragments", addressee, addressee, func(from, to *station) [][]byte {
		return fragments(unicast(packet.UDP(l4(from.ip6, 4000), l4(to.ip6, 7)), from, to))
	}},
	{"icmp", addressee, addressee, func(from, to *station) [][]byte { return one(unicast(packet.Ping(from.ip, to.ip, 7), from, to)) }},
	{"icmpv6", addressee, addressee, func(from, to *station) [][]byte { return one(unicast(packet.Ping(from.ip6, to.ip6, 7), from, to)) }},
	{"esp", addressee, addressee, protocol(packet.ProtoESP)},
	{"ah", addressee, addressee, protocol(packet.ProtoAH)},
	{"gre", addressee, addressee, protocol(packet.ProtoGRE)},
	{"ipip", addressee, addressee, func(from, to *station) [][]byte {
		return one(unicast(packet.IP(from.ip, to.ip, 4, udp(from, to).IP()), from, to))
	}},
	{"sctp", addressee, addressee, protocol(132)},
	{"VXLAN between guests", addressee, addressee, func(from, to *station) [][]byte {
		return one(udp(from, to).To(l4(to.ip, 4789)).Payload(append(packet.VXLAN(200), udp(from, to).Bytes()...)))
	}},

	{"arp asks", gateway, gateway, func(from, to *station) [][]byte { return [][]byte{packet.ARP(from.mac, from.ip, to.ip)} }},
	{"arp asks for nobody's", everybody, everybody, func(from, to *station) [][]byte { return [][]byte{packet.ARP(from.mac, from.ip, "10.0.0.77")} }},
	{"arp probes a station", addressee, addressee, func(from, to *station) [][]byte {
		b := packet.ARP(from.mac, from.ip, to.ip)
		copy(b, packet.MAC(to.mac))
		return [][]byte{b}
	}},
	{"arp answers", addressee, addressee, func(from, to *station) [][]byte {
		return [][]byte{packet.ARPReply(from.mac, from.ip, to.mac, to.ip)}
	}},
	{"nd asks", gateway, gateway, func(from, to *station) [][]byte {
		return one(packet.Solicitation(from.mac, from.ip6, to.ip6).MACs(from.mac, "33:33:ff:00:00:01"))
	}},
	{"nd asks for nobody's", everybody, everybody, func(from, to *station) [][]byte {
		return one(packet.Solicitation(from.mac, from.ip6, "fe80::77").MACs(from.mac, "33:33:ff:00:00:77"))
	}},
	{"nd advertises to a station", addressee, addressee, func(from, to *station) [][]byte {
		return one(unicast(packet.Advertisement(from.mac, from.ip6, to.ip6, from.ip6, 0x60), from, to))
	}},
	{"dhcp asks", gateway, everybody, func(from, to *station) [][]byte {
		return one(packet.UDP("0.0.0.0:68", "255.255.255.255:67").Payload(make([]byte, 244)).MACs(from.mac, broadcastMAC))
	}},
	{"dhcp offers", nobody, addressee, func(from, to *station) [][]byte {
		return one(unicast(packet.UDP(l4(from.ip, 67), l4(to.ip, 68)).Payload(make([]byte, 244)), from, to))
	}},
	{"dhcpv6 asks", gateway, everybody, func(from, to *station) [][]byte {
		return one(packet.UDP(l4(from.ip6, 546), l4("ff02::1:2", 547)).Payload(make([]byte, 44)).MACs(from.mac, "33:33:00:01:00:02"))
	}},
	{"dhcpv6 offers", nobody, addressee, func(from, to *station) [][]byte {
		return one(unicast(packet.UDP(l4(from.ip6, 547), l4(to.ip6, 546)).Payload(make([]byte, 44)), from, to))
	}},
	{"router solicitation", gateway, everybody, func(from, to *station) [][]byte {
		return one(packet.Router(packet.RouterSolicitation, from.ip6, "ff02::2").MACs(from.mac, "33:33:00:00:00:02"))
	}},
	{"router advertisement", nobody, everybody, func(from, to *station) [][]byte {
		return one(packet.Router(packet.RouterAdvertisement, from.ip6, "ff02::1").MACs(from.mac, allNodesMAC))
	}},
	{"multicast", everybody, everybody, func(from, to *station) [][]byte {
		return one(packet.UDP(l4(from.ip, 4000), l4("239.1.1.1", 7)).MACs(from.mac, "01:00:5e:01:01:01"))
	}},
	{"multicast of IPv6", everybody, everybody, func(from, to *station) [][]byte {
		return one(packet.UDP(l4(from.ip6, 4000), l4("ff05::1:3", 7)).MACs(from.mac, "33:33:00:01:00:03"))
	}},
	{"igmp", everybody, everybody, func(from, to *station) [][]byte {
		group := netip.MustParseAddr("239.1.1.1").AsSlice()
		return one(packet.IP(from.ip, "239.1.1.1", 2, append([]byte{0x16, 0, 0, 0}, group...)).TTL(1).MACs(from.mac, "01:00:5e:01:01:01"))
	}},
	{"vrrp", everybody, everybody, func(from, to *station) [][]byte {
		return one(packet.IP(from.ip, "224.0.0.18", 112, make([]byte, 20)).MACs(from.mac, "01:00:5e:00:00:12"))
	}},
	{"broadcast", everybody, everybody, func(from, to *station) [][]byte {
		return one(packet.UDP(l4(from.ip, 4000), l4("10.0.0.255", 7)).MACs(from.mac, broadcastMAC))
	}},
	{"neither IP nor ARP", nobody, addressee, etherType("", 0x88b6)},
	{"lldp", nobody, everybody, etherType("01:80:c2:00:00:0e", 0x88cc)},
	{"spanning tree", nobody, everybody, etherType("01:80:c2:00:00:00", 0x0026, 0x42, 0x42, 3)},
	{"mpls", nobody, addressee, etherType("", 0x8847)},

	{"another's MAC", nobody, nobody, func(from, to *station) [][]byte { return one(udp(from, to).MACs(to.mac, to.mac)) }},
	{"nobody's MAC", nobody, nobody, func(from, to *station) [][]byte { return one(udp(from, to).MACs("02:66:66:66:66:66", to.mac)) }},
	{"another's address", nobody, nobody, func(from, to *station) [][]byte { return one(udp(from, to).From(l4(to.ip, 4000))) }},
	{"another's address of IPv6", nobody, nobody, func(from, to *station) [][]byte {
		return one(unicast(packet.UDP(l4(to.ip6, 4000), l4(to.ip6, 7)), from, to))
	}},
	{"arp as another", nobody, nobody, func(from, to *station) [][]byte {
		return [][]byte{packet.ARPReply(from.mac, to.ip, broadcastMAC, server), packet.ARP(from.mac, to.ip, "10.0.0.77")}
	}},
	{"nd as another", nobody, nobody, func(from, to *station) [][]byte {
		return one(packet.Advertisement(from.mac, from.ip6, "ff02::1", to.ip6, 0x20).MACs(from.mac, allNodesMAC))
	}},
	{"to a MAC of another network alone", nobody, nobody, func(from, to *station) (out [][]byte) {
		for _, vni := range []uint32{100, 101, 200, 201} {
			if vni != from.vni {
				out = append(out, udp(from, to).MACs(from.mac, ownMAC(vni)).Bytes())
			}
		}
		return out
	}},
	{"a tag", nobody, nobody, tagged(packet.TypeVLAN)},
	{"two tags", nobody, nobody, tagged(0x88a8, packet.TypeVLAN)},
	{"tunnelled to the endpoints, by a station", addressee, addressee, tunnelled(addresseesMAC)},
	{"tunnelled to the endpoints, by the gateway", nobody, nobody, tunnelled(gatewaysMAC)},
	{"tunnelled to the endpoints, by the uplink's MAC", nobody, nobody, tunnelled(uplinksMAC)},
	{"tunnelled to the endpoints, to all", everybody, everybody, tunnelled(func(*station) string { return broadcastMAC })},
}
