// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"regexp"
)

// The addresses and numbers of every lab. The customers' prefixes are the
// documentation prefixes of RFC 5737 and RFC 3849.
const (
	RouterAS     = 65000
	HypervisorAS = 65001
	UplinkMTU    = 1600 // room for an encapsulated full frame of a 1500-byte client
	Zone         = "ch-gva-2"

	uplinkName     = "uplink"
	managementName = "mgmt0"
	clientName     = "eth0"
	agentPort      = 7443

	maxHypervisors = 200
	maxClients     = 15
)

var (
	UnderlayPrefix   = netip.MustParsePrefix("10.64.0.0/16")
	ManagementPrefix = netip.MustParsePrefix("10.65.0.0/24")
	ClientPrefix     = netip.MustParsePrefix("192.0.2.0/24")
	InstancePrefix   = netip.MustParsePrefix("198.51.100.0/24")
	VIPPrefix        = netip.MustParsePrefix("203.0.113.0/24")
	ElasticPrefix    = netip.MustParsePrefix("192.0.2.240/28") // behind the last client's

	UnderlayPrefix6 = netip.MustParsePrefix("2001:db8:64::/64")
	ClientPrefix6   = netip.MustParsePrefix("2001:db8:c::/48")
	InstancePrefix6 = netip.MustParsePrefix("2001:db8:1::/64")
	VIPPrefix6      = netip.MustParsePrefix("2001:db8:ee::/64")
	ElasticPrefix6  = netip.MustParsePrefix("2001:db8:e::/64") // of /96s

	controlAddress = netip.MustParseAddr("10.65.0.1")
	routerID       = netip.MustParseAddr("192.0.2.1")
)

// topology is everything that makes a lab's network, as data.
type topology struct {
	namespaces []string
	links      []link
	loopback   map[string]netip.Prefix // namespace → a further address of lo
	routes     []route
	sysctls    []sysctl
	rules      map[string]string // namespace → nftables text
}

type link struct {
	a, b end
	mtu  int
}

// end is one side of a veth. An end that feeds or receives frames of an XDP
// program finishes its checksums itself; one that such a program transmits to
// carries a program of its own, since veth drops XDP_TX frames otherwise. A
// router's end towards a client forgets the hash that the client's socket gave
// its packets: the kernel would choose the next hop by that random number
// instead of the addresses and ports, as no router does.
type end struct {
	namespace, name string
	address         netip.Prefix // none if invalid
	address6        netip.Prefix // the same; without one the link speaks no IPv6
	finishChecksums bool
	passXDP         bool
	forgetHash      bool
}

type route struct {
	namespace, link string
	to              netip.Prefix
	via             netip.Addr // none if invalid: on the link itself
}

// sysctl is set before the namespace has any link, so that default.* holds.
type sysctl struct{ namespace, key, value string }

func controlNamespace(lab string) string           { return lab + "-ctl" }
func routerNamespace(lab string) string            { return lab + "-rtr" }
func hypervisorNamespace(lab string, i int) string { return fmt.Sprintf("%s-hv%d", lab, i) }
func clientNamespace(lab string, i int) string {
	return fmt.Sprintf("%s-cli%d", lab, i)
}

// ownNamespace matches every namespace that a lab of this name can have, those
// of its instances included.
func ownNamespace(lab string) *regexp.Regexp {
	return regexp.MustCompile(`^` + regexp.QuoteMeta(lab) + `-(ctl|rtr|cli[0-9]+|hv[0-9]+(-(i[0-9]+|n[0-9a-f]{8}|svc))?)$`)
}

// uplinkAddresses gives both addresses of a hypervisor's /31, counted from 1.
func uplinkAddresses(i int) (router, hypervisor netip.Addr) {
	base := UnderlayPrefix.Addr().As4()
	n := 2 * (i - 1)
	base[2], base[3] = byte(n>>8), byte(n)
	router = netip.AddrFrom4(base)
	return router, router.Next()
}

// uplinkAddresses6 gives both addresses of a hypervisor's /127 (RFC 6164).
func uplinkAddresses6(i int) (router, hypervisor netip.Addr) {
	base := UnderlayPrefix6.Addr().As16()
	n := 2 * (i - 1)
	base[14], base[15] = byte(n>>8), byte(n)
	router = netip.AddrFrom16(base)
	return router, router.Next()
}

func managementAddress(i int) netip.Addr {
	a := ManagementPrefix.Addr().As4()
	a[3] = byte(10 + i)
	return netip.AddrFrom4(a)
}

// clientAddresses gives the two ends of client i's /28, counted from 1.
func clientAddresses(i int) (router, client netip.Addr) {
	a := ClientPrefix.Addr().As4()
	a[3] = byte(16*(i-1) + 1)
	router = netip.AddrFrom4(a)
	return router, router.Next()
}

// clientAddresses6 gives the two ends of client i's /64.
func clientAddresses6(i int) (router, client netip.Addr) {
	a := ClientPrefix6.Addr().As16()
	a[7], a[15] = byte(i), 1
	router = netip.AddrFrom16(a)
	return router, router.Next()
}

// plan draws the topology: clients and hypervisors on links of their own to the
// router, hypervisors on links of their own to the control namespace.
func plan(lab string, hypervisors, clients int) topology {
	ctl, rtr := controlNamespace(lab), routerNamespace(lab)
	t := topology{namespaces: []string{ctl, rtr}, loopback: map[string]netip.Prefix{ctl: host(controlAddress)}}
	t.routerSettings(rtr)
	for i := 1; i <= hypervisors; i++ {
		t.addHypervisor(lab, i)
	}
	for i := 1; i <= clients; i++ {
		t.addClient(lab, i)
	}
	for _, ns := range t.namespaces {
		for _, key := range []string{"ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"} {
			t.sysctls = append(t.sysctls, sysctl{ns, key, "1"})
		}
		// A link that has an IPv6 address has that one and a link-local one, at
		// once, and says little by itself: packets are counted.
		for key, value := range map[string]string{"addr_gen_mode": "1", "accept_ra": "0", "accept_dad": "0", "dad_transmits": "0"} {
			t.sysctls = append(t.sysctls, sysctl{ns, "ipv6/conf/default/" + key, value})
		}
		// A hypervisor that has withdrawn a VIP still answers for it, and a
		// client's packet arrives at any of them: nobody checks reverse paths.
		for _, key := range []string{"ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"} {
			t.sysctls = append(t.sysctls, sysctl{ns, key, "0"})
		}
		forward := "0"
		if ns == rtr {
			forward = "1"
		}
		t.sysctls = append(t.sysctls, sysctl{ns, "ipv4/ip_forward", forward})
	}
	return t
}

func (t *topology) routerSettings(rtr string) {
	t.sysctls = append(t.sysctls, sysctl{rtr, "ipv4/fib_multipath_hash_policy", "1"},
		sysctl{rtr, "ipv6/fib_multipath_hash_policy", "1"}, sysctl{rtr, "ipv6/conf/all/forwarding", "1"})
	t.rules = map[string]string{rtr: fmt.Sprintf(`table ip lab {
	chain from-clients {
		type filter hook prerouting priority filter; policy accept;
		iifname "cli*" ip daddr { %s, %s } counter drop comment "clients never reach the underlay"
	}
}
table ip6 lab {
	chain from-clients {
		type filter hook prerouting priority filter; policy accept;
		iifname "cli*" ip6 daddr %s counter drop comment "clients never reach the underlay"
	}
}
`, UnderlayPrefix, ManagementPrefix, UnderlayPrefix6)}
}

func (t *topology) addHypervisor(lab string, i int) {
	ctl, rtr, hv := controlNamespace(lab), routerNamespace(lab), hypervisorNamespace(lab, i)
	port := fmt.Sprintf("hv%d", i)
	gateway, endpoint := uplinkAddresses(i)
	gateway6, endpoint6 := uplinkAddresses6(i)
	t.namespaces = append(t.namespaces, hv)
	t.links = append(t.links, link{
		a:   end{namespace: rtr, name: port, address: netip.PrefixFrom(gateway, 31), address6: netip.PrefixFrom(gateway6, 127), finishChecksums: true, passXDP: true},
		b:   end{namespace: hv, name: uplinkName, address: netip.PrefixFrom(endpoint, 31), address6: netip.PrefixFrom(endpoint6, 127), finishChecksums: true},
		mtu: UplinkMTU,
	}, link{
		a:   end{namespace: ctl, name: port},
		b:   end{namespace: hv, name: managementName, address: host(managementAddress(i))},
		mtu: 1500,
	})
	t.routes = append(t.routes,
		route{namespace: hv, link: uplinkName, to: netip.PrefixFrom(netip.IPv4Unspecified(), 0), via: gateway},
		route{namespace: hv, link: uplinkName, to: netip.PrefixFrom(netip.IPv6Unspecified(), 0), via: gateway6},
		route{namespace: hv, link: managementName, to: host(controlAddress)},
		route{namespace: ctl, link: port, to: host(managementAddress(i))},
	)
}

func (t *topology) addClient(lab string, i int) {
	rtr, cli := routerNamespace(lab), clientNamespace(lab, i)
	gateway, address := clientAddresses(i)
	gateway6, address6 := clientAddresses6(i)
	t.namespaces = append(t.namespaces, cli)
	t.links = append(t.links, link{
		a:   end{namespace: rtr, name: fmt.Sprintf("cli%d", i), address: netip.PrefixFrom(gateway, 28), address6: netip.PrefixFrom(gateway6, 64), finishChecksums: true, forgetHash: true},
		b:   end{namespace: cli, name: clientName, address: netip.PrefixFrom(address, 28), address6: netip.PrefixFrom(address6, 64), finishChecksums: true, passXDP: true},
		mtu: 1500,
	})
	t.routes = append(t.routes,
		route{namespace: cli, link: clientName, to: netip.PrefixFrom(netip.IPv4Unspecified(), 0), via: gateway},
		route{namespace: cli, link: clientName, to: netip.PrefixFrom(netip.IPv6Unspecified(), 0), via: gateway6})
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
