// SPDX-License-Identifier: Apache-2.0

//go:build program

package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const senseNamespace = "cagt-sense"

// onThread runs f on a thread in the namespace; the thread ends with it.
func onThread(t *testing.T, create bool, f func()) {
	t.Helper()
	done := thread(t, create, f)
	<-done
}

func thread(t *testing.T, create bool, f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var ns netns.NsHandle
		var err error
		if create {
			_ = netns.DeleteNamed(senseNamespace) // of a test that was killed
			ns, err = netns.NewNamed(senseNamespace)
		} else if ns, err = netns.GetFromName(senseNamespace); err == nil {
			err = netns.Set(ns)
		}
		if err != nil {
			t.Errorf("enter the namespace: %v", err)
			return
		}
		defer ns.Close()
		f()
	}()
	return done
}

func TestSensesFollowTheKernel(t *testing.T) {
	t.Cleanup(func() {
		if err := netns.DeleteNamed(senseNamespace); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("remove the namespace: %v", err)
		}
	})
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	veth := func(name, peer string) netlink.Link {
		t.Helper()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		do(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}))
		for _, n := range []string{peer, name} {
			l, err := netlink.LinkByName(n)
			do(err)
			if err == nil {
				do(netlink.LinkSetUp(l))
			}
		}
		l, err := netlink.LinkByName(name)
		do(err)
		return l
	}
	peer, gateway := netip.MustParseAddr("10.64.7.7"), netip.MustParseAddr("10.64.0.0")
	var s *Senses
	var err error
	onThread(t, true, func() {
		up := veth("up0", "r0")
		do(netlink.AddrAdd(up, &netlink.Addr{IPNet: &net.IPNet{IP: net.IP{10, 64, 0, 1}, Mask: net.CIDRMask(31, 32)}}))
		s, err = NewSenses("up0", slog.New(slog.DiscardHandler))
		do(err)
	})
	if s == nil {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	running := thread(t, false, func() { s.Run(ctx) })
	defer func() { cancel(); <-running }()
	until := func(what string, ok func(Facts) bool) {
		t.Helper()
		deadline := time.Now().Add(5 * time.Second)
		for {
			var f Facts
			onThread(t, false, func() { f = s.Facts([]netip.Addr{peer}) })
			if ok(f) {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%s: %+v", what, f)
				return
			}
			select {
			case <-s.Wake():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	index := 0
	until("own prefix", func(f Facts) bool {
		return len(f.Ports.Own) == 1 && f.Ports.Own[0] == netip.MustParsePrefix("10.64.0.0/31") && len(f.Balancer.Via) == 0
	})
	onThread(t, false, func() { index = veth("cp7", "eth0").Attrs().Index })
	until("a port's device", func(f Facts) bool { return f.Ports.Devices[7] == uint32(index) })
	onThread(t, false, func() {
		up, err := netlink.LinkByName("up0")
		do(err)
		do(netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: gateway.AsSlice()}))
	})
	until("the way to another host", func(f Facts) bool { return f.Balancer.Via[peer] == gateway })
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	onThread(t, false, func() {
		up, err := netlink.LinkByName("up0")
		do(err)
		do(netlink.NeighSet(&netlink.Neigh{LinkIndex: up.Attrs().Index, IP: gateway.AsSlice(), HardwareAddr: mac, State: netlink.NUD_REACHABLE}))
	})
	until("the next hop's MAC", func(f Facts) bool { return f.Balancer.MAC[gateway] == [6]byte(mac) })
	onThread(t, false, func() {
		r, err := netlink.LinkByName("r0")
		do(err)
		do(netlink.LinkSetDown(r))
	})
	until("the carrier is gone, the last way is kept", func(f Facts) bool {
		_, down := s.Uplink()
		return down && f.Balancer.Via[peer] == gateway && f.Balancer.MAC[gateway] == [6]byte(mac)
	})
	onThread(t, false, func() {
		r, err := netlink.LinkByName("r0")
		do(err)
		do(netlink.LinkSetUp(r))
		up, err := netlink.LinkByName("up0")
		do(err)
		do(netlink.LinkSetMTU(up, 1400))
		cp, err := netlink.LinkByName("cp7")
		do(err)
		do(netlink.LinkDel(cp))
	})
	until("the carrier is back, the device is gone", func(f Facts) bool {
		_, down := s.Uplink()
		return !down && len(f.Ports.Devices) == 0 && f.Balancer.MTU == 1400 && f.Balancer.Via[peer] == gateway
	})
}
