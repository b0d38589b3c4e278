// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"net/netip"
	"strings"
	"testing"

	"cairn/bpf"
	"cairn/dataplane/host"
)

const (
	vmAddr6  = "2001:db8:5::5"
	gateway6 = "fe80::cc:ff:fe00:1" // of gwMAC
)

// wire6 gives the router, who is the client, the uplink and the VM IPv6: each link one address, and
// none of the link's own.
func (b *bench) wire6() {
	b.Helper()
	on := func(ns, dev string) {
		var errs []error
		b.in(ns, func() {
			for _, setting := range []string{"addr_gen_mode=1", "accept_ra=0", "disable_ipv6=0"} {
				errs = append(errs, run("sysctl", "-qw", "net.ipv6.conf."+dev+"."+setting))
			}
		})
		for _, err := range errs {
			must(b, err)
		}
	}
	on("cbpf-hv", "up0")
	b.all("cbpf-hv",
		ip("addr", "add", "2001:db8:64::1/127", "dev", "up0", "nodad"),
		ip("route", "add", "default", "via", "2001:db8:64::", "dev", "up0"),
	)
	on("cbpf-rtr", "r0")
	b.all("cbpf-rtr",
		ip("addr", "add", "2001:db8:64::/127", "dev", "r0", "nodad"),
		ip("route", "add", vmAddr6+"/128", "via", "2001:db8:64::1"),
	)
	on("cbpf-vm", "eth0")
	b.all("cbpf-vm",
		ip("addr", "add", vmAddr6+"/128", "dev", "eth0", "nodad"),
		ip("-6", "route", "add", "default", "via", gateway6, "dev", "eth0", "onlink"),
	)
}

// A connection to an instance's IPv6 address over real devices: the router finds
// the host, the guest its gateway, and the group is asked.
func TestConnectionOverIPv6(t *testing.T) {
	b := newBench(t)
	b.wire6()
	h := b.open()
	b.in("cbpf-hv", func() { must(t, h.AttachPort(b.cp5, port5)) })
	programMaps(t, h, b.cp5, true)
	must(t, h.Maps.AddrOk.Put(bpf.AddrKey{Port: port5, Ip: ip16(vmAddr6)}, uint32(0)))
	must(t, h.Maps.AddrPort.Put(ip16(vmAddr6), port5))
	p := netip.MustParsePrefix("2001:db8:64::/48")
	must(t, h.Maps.Cidr.Put(bpf.CidrKey{Bits: bpf.PrefixBits(p, 32), Policy: 1, Ip: bpf.IP16(p.Addr())}, uint32(1)))
	clients := b.serve("[" + vmAddr6 + "]:8080")
	conn, err := b.dial("cbpf-rtr", "tcp", "["+vmAddr6+"]:8080")
	if err != nil {
		t.Fatalf("%v; reasons %v", err, reasons(t, h))
	}
	b.mustEcho(conn, strings.Repeat("0123456789abcdef", 16<<10))
	if got := <-clients; got != conn.LocalAddr().String() {
		t.Errorf("the VM sees %s, the client is %s", got, conn.LocalAddr())
	}
	// The control: another port is not the group's.
	denied := reasons(t, h)[bpf.ReasonPolicyIn]
	if _, err := b.dial("cbpf-rtr", "tcp", "["+vmAddr6+"]:8081"); err == nil || reasons(t, h)[bpf.ReasonPolicyIn] == denied {
		t.Errorf("a port without a rule: %v", err)
	}
	b.healthCheck(h, clients, "["+vmAddr6+"]:8080", host.ProbeAddr6)
}
