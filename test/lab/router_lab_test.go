// SPDX-License-Identifier: Apache-2.0

//go:build lab

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestRouterChoosesByAddressesAndPorts: a connection takes the same next hop
// whenever it is made, and the one that the router's kernel names when asked;
// other ports take others. A hash left by the client's socket would be another
// one for each connection.
func TestRouterChoosesByAddressesAndPorts(t *testing.T) {
	t.Parallel()
	l := New(t, Config{Hypervisors: 3, Bare: true})
	vip := netip.MustParseAddrPort("203.0.113.77:80")
	multipath := &netlink.Route{Dst: ipNet(host(vip.Addr()))}
	for hv := 1; hv <= 3; hv++ {
		multipath.MultiPath = append(multipath.MultiPath, &netlink.NexthopInfo{Gw: l.Endpoint(hv).AsSlice()})
		answerAs(t, l.Hypervisor(hv), vip, fmt.Sprintf("hv%d", hv))
	}
	if err := l.Router().netlink(func(h *netlink.Handle) error { return h.RouteAdd(multipath) }); err != nil {
		t.Fatal(err)
	}
	taken := map[string]int{}
	for port := 40000; port < 40030; port++ {
		want := named(t, l, vip, port)
		taken[want]++
		for range 3 {
			if got := whoAnswers(t, l, vip, port); got != want {
				t.Fatalf("a connection from port %d went to %s, and the router's kernel says %s", port, got, want)
			}
		}
	}
	if len(taken) != 3 {
		t.Errorf("30 ports take these next hops: %v", taken)
	}
}

// answerAs gives a machine the address, and lets it say its name there.
func answerAs(t *testing.T, machine Host, at netip.AddrPort, name string) {
	t.Helper()
	if err := machine.netlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(host(at.Addr()))})
	}); err != nil {
		t.Fatal(err)
	}
	listener, err := machine.Listen("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, name)
			conn.Close() // first, so that the client's port is free again
		}
	}()
}

func whoAnswers(t *testing.T, l *Lab, vip netip.AddrPort, port int) string {
	t.Helper()
	var name []byte
	Eventually(t, fmt.Sprintf("answer to port %d", port), 5*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var conn net.Conn
		conn, err := l.Client(1).DialFrom(ctx, "tcp4", port, vip.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		name, err = io.ReadAll(conn)
		return err
	})
	return string(name)
}

// named is the hypervisor that the router's kernel names for a connection.
func named(t *testing.T, l *Lab, vip netip.AddrPort, port int) string {
	t.Helper()
	out, err := l.Router().Run(t.Context(), "ip", "route", "get", vip.Addr().String(), "from", l.Client(1).Address.String(),
		"iif", "cli1", "ipproto", "tcp", "sport", fmt.Sprint(port), "dport", fmt.Sprint(vip.Port()))
	if err != nil {
		t.Fatal(err)
	}
	for hv := 1; hv <= 3; hv++ {
		if strings.Contains(out, fmt.Sprintf("dev hv%d ", hv)) {
			return fmt.Sprintf("hv%d", hv)
		}
	}
	t.Fatalf("the router names no hypervisor: %s", out)
	return ""
}
