// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cairn/bpf"
	"cairn/cloud"
	"cairn/test/lab"
)

// own gives a guest one more address of its own. It is the link's, because a
// guest without link-local addresses asks for its router with one of the link's.
func own(at lab.Host, a netip.Addr) error {
	return at.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{
			IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD,
		})
	})
}

// An elastic IP of IPv6 is a /96: routed whole to the instance that has it, which
// may use any address of it, and to nobody when it is detached.
func TestAnElasticPrefixIsRoutedToItsInstance(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{Hypervisors: 2})
	group, err := c.Group("web", 80)
	must(t, "security group", err)
	_, err = c.Done(c.AddRuleToSecurityGroup(c.Context(), group, v3.AddRuleToSecurityGroupRequest{
		FlowDirection: v3.AddRuleToSecurityGroupRequestFlowDirectionIngress, Protocol: v3.AddRuleToSecurityGroupRequestProtocolTCP,
		Network: "::/0", StartPort: 80, EndPort: 80,
	}))
	must(t, "rule for IPv6", err)
	i := c.launch("holder", func(r *v3.CreateInstanceRequest) {
		r.SecurityGroups = []v3.SecurityGroup{{ID: group}}
		r.PublicIPAssignment = v3.PublicIPAssignmentDual
	})
	at, hv := c.machine(i)
	id, err := c.Done(c.CreateElasticIP(c.Context(), v3.CreateElasticIPRequest{Addressfamily: v3.CreateElasticIPRequestAddressfamilyInet6}))
	must(t, "elastic ip", err)
	elastic, err := c.GetElasticIP(c.Context(), id)
	must(t, "get elastic ip", err)
	prefix, err := netip.ParsePrefix(elastic.Cidr)
	if err != nil || prefix.Bits() != 96 {
		t.Fatalf("elastic ip %q of %q: %v, want a /96", elastic.IP, elastic.Cidr, err)
	}
	routed := func(want int) {
		t.Helper()
		lab.Eventually(t, fmt.Sprintf("%d routes to %s", want, prefix), 15*time.Second, func() error {
			hops, err := c.RouterRoutes(prefix)
			if err == nil && len(hops) != want {
				err = fmt.Errorf("next hops %v", hops)
			}
			return err
		})
	}
	routed(0)
	target := &v3.InstanceTarget{ID: i.ID}
	_, err = c.Done(c.AttachInstanceToElasticIP(c.Context(), id, v3.AttachInstanceToElasticIPRequest{Instance: target}))
	must(t, "attach", err)
	routed(1)
	last := prefix.Addr().As16()
	last[12], last[15] = 0xff, 0xfe
	for _, a := range []netip.Addr{prefix.Addr().Next(), netip.AddrFrom16(last)} {
		must(t, "the guest's own address", own(at, a))
		lab.Eventually(t, "an answer of "+a.String(), 15*time.Second, func() error {
			return c.answeredBy(c.Client6(1), netip.AddrPortFrom(a, 80), i.Name)
		})
	}

	_, err = c.Done(c.DetachInstanceFromElasticIP(c.Context(), id, v3.DetachInstanceFromElasticIPRequest{Instance: target}))
	must(t, "detach", err)
	routed(0)
	spoofed := c.drops(hv, bpf.ReasonSpoofedIP)
	err = at.Do(func() error {
		conn, err := net.DialUDP("udp6", &net.UDPAddr{IP: last[:]}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.Client6(1).Address, 9)))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("no longer mine"))
		return err
	})
	if err != nil || c.drops(hv, bpf.ReasonSpoofedIP) == spoofed {
		t.Errorf("the former holder may still speak for it: %v", err)
	}
}

// An instance sends no more than its type has it: what is beyond is dropped and
// counted. One without a limit is the control.
func TestATypeLimitsWhatIsSent(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{Hypervisors: 1})
	limited, ok := find(cloud.InstanceTypes, "shared.micro")
	if !ok {
		t.Fatal("no type shared.micro")
	}
	dropped := func(name string, change func(*v3.CreateInstanceRequest)) uint64 {
		t.Helper()
		at, hv := c.machine(c.launch(name, change))
		before := c.drops(hv, bpf.ReasonRate)
		const datagrams, length = 5000, 1400 // 7 MB, of which the limit lets 1.25 go at once
		must(t, "send", at.Do(func() error {
			conn, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: c.Lab.Client(1).Address.AsSlice(), Port: 9})
			if err != nil {
				return err
			}
			defer conn.Close()
			for range datagrams {
				_, _ = conn.Write(make([]byte, length)) // a refusal by the client's host comes back as an error
			}
			return nil
		}))
		return c.drops(hv, bpf.ReasonRate) - before
	}
	if n := dropped("free", func(*v3.CreateInstanceRequest) {}); n != 0 {
		t.Errorf("%d datagrams of an instance without a limit were beyond it", n)
	}
	if n := dropped("limited", func(r *v3.CreateInstanceRequest) { r.InstanceType = &v3.InstanceType{ID: v3.UUID(limited.ID)} }); n == 0 {
		t.Error("no datagram of 7 MB at once was beyond 12.5 MB/s")
	}
}

func find(types []cloud.InstanceType, title string) (cloud.InstanceType, bool) {
	for _, t := range types {
		if t.Title() == title {
			return t, true
		}
	}
	return cloud.InstanceType{}, false
}
