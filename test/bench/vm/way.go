// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cairn/cloud/wire"
	"cairn/test/rig"
)

// way is two machines on two hypervisors and what carries their frames.
type way struct {
	name        string
	xdp         bool // a program at both ends of both uplinks
	carry       func(r *rig.Rig, w *way) error
	hypervisors [2]*rig.Hypervisor
	machines    [2]*machine
	ports       [2]uint32
}

const vni = 100

var addresses = [2]netip.Prefix{netip.MustParsePrefix("10.0.0.11/24"), netip.MustParsePrefix("10.0.0.12/24")}

func (w *way) build(r *rig.Rig) error {
	for i := range w.hypervisors {
		h, err := r.Hypervisor(1)
		if err != nil {
			return err
		}
		w.hypervisors[i], w.ports[i] = h, 10*h.Number
		if w.machines[i], err = newMachine(r, h, w.ports[i], addresses[i]); err != nil {
			return err
		}
	}
	if err := w.carry(r, w); err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	for _, h := range w.hypervisors {
		ends := map[string]*rig.Space{rig.Uplink: h.Space, h.RouterDevice(): r.Wire()}
		for _, step := range []func(string) error{w.bare, w.offload} {
			for device, space := range ends {
				if err := space.Do(func() error { return step(device) }); err != nil {
					return fmt.Errorf("%s: %w", w.name, err)
				}
			}
		}
	}
	return nil
}

// bare waits until an end of the underlay has no program, if none is wanted: the
// kernel takes it away some time after its last user went.
func (w *way) bare(device string) error {
	if w.xdp {
		return nil
	}
	for deadline := time.Now().Add(5 * time.Second); ; <-time.After(time.Millisecond) {
		l, err := netlink.LinkByName(device)
		if err != nil || l.Attrs().Xdp == nil || !l.Attrs().Xdp.Attached {
			return err
		}
		err = netlink.LinkSetXdpFd(l, -1)
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%s keeps its program", device), err)
		}
	}
}

// offload puts an end of the underlay as it would be: received segments are
// merged. Without programs checksums and cuts are left to who needs them.
func (w *way) offload(device string) error {
	if err := rig.Offload(device, unix.ETHTOOL_SGRO, true); err != nil || w.xdp {
		return err
	}
	return rig.Offload(device, unix.ETHTOOL_STXCSUM, true)
}

// ours is the shipped dataplane. Without XDP its uplink program is taken away:
// private networks do without.
func ours(r *rig.Rig, w *way) error {
	hosts := []uint32{w.hypervisors[0].Number, w.hypervisors[1].Number}
	items := append(r.Hosts(), wire.Network{VNI: vni, ID: "network", MTU: 1500, Hosts: hosts, Lease: &wire.Lease{
		Server: netip.MustParseAddr("10.0.0.254"), Bits: 24, Start: netip.MustParseAddr("10.0.0.10"), End: netip.MustParseAddr("10.0.0.99"),
	}})
	for i, id := range w.ports {
		items = append(items, wire.Neighbour{VNI: vni, Port: id, Host: hosts[i], MAC: [6]byte(rig.PortMAC(id)),
			Addresses: []netip.Addr{addresses[i].Addr()}, Name: fmt.Sprint(id)})
	}
	for i, h := range w.hypervisors {
		if err := h.Open(); err != nil {
			return err
		}
		id := w.ports[i]
		err := h.Hold(append(items, wire.Port{ID: id, Instance: fmt.Sprint(id), MAC: [6]byte(rig.PortMAC(id)),
			Addresses: []netip.Addr{addresses[i].Addr()}, Network: vni, MTU: 1500})...)
		if err != nil || w.xdp {
			if err != nil {
				return err
			}
			continue
		}
		if err := errors.Join(h.Let(), h.CutXDP()); err != nil {
			return err
		}
	}
	return nil
}

// bridge is Linux's own: a bridge with the TAP and a vxlan device for the one
// network, and if there are programs, one that passes everything.
func bridge(_ *rig.Rig, w *way) error {
	for i, h := range w.hypervisors {
		other := w.hypervisors[1-i]
		err := h.Space.Do(func() error {
			if w.xdp {
				if err := rig.PassXDP(rig.Uplink); err != nil {
					return err
				}
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "br0"
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
				return fmt.Errorf("add the bridge: %w", err)
			}
			attrs = netlink.NewLinkAttrs()
			attrs.Name, attrs.MTU = "vxlan0", rig.UnderlayMTU-50
			vxlan := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, SrcAddr: h.Config.Endpoint.AsSlice(), Group: other.Config.Endpoint.AsSlice(),
				Port: 4789, Learning: true, UDPCSum: false}
			if err := netlink.LinkAdd(vxlan); err != nil {
				return fmt.Errorf("add the vxlan device: %w", err)
			}
			br, err := netlink.LinkByName("br0")
			if err != nil {
				return err
			}
			for _, name := range []string{"vxlan0", rig.PortDevice(w.ports[i])} {
				l, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				if err := errors.Join(netlink.LinkSetMaster(l, br), netlink.LinkSetUp(l)); err != nil {
					return fmt.Errorf("%s into the bridge: %w", name, err)
				}
			}
			return netlink.LinkSetUp(br)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// transfer has machine 1 send to machine 2 over one TCP connection, and gives the
// bits that came a second.
func (w *way) transfer(lasts time.Duration) (float64, error) {
	var listener net.Listener
	err := w.machines[1].space.Do(func() (err error) {
		listener, err = net.Listen("tcp4", net.JoinHostPort(w.machines[1].address.String(), "5001"))
		return err
	})
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	received := make(chan error, 1)
	var bytes int64
	var took time.Duration
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			defer conn.Close()
			bytes, took, err = drain(conn, lasts)
		}
		received <- err
	}()
	var conn net.Conn
	err = w.machines[0].space.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		conn, err = d.Dial("tcp4", net.JoinHostPort(w.machines[1].address.String(), "5001"))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", w.name, err)
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		buf := make([]byte, 1<<18)
		for {
			if _, err := conn.Write(buf); err != nil {
				return // the receiver has had enough
			}
		}
	})
	err = <-received
	conn.Close()
	sending.Wait()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", w.name, err)
	}
	return float64(bytes) * 8 / took.Seconds(), nil
}

// drain reads for a while; the first tenth is for the connection to get going.
func drain(conn net.Conn, lasts time.Duration) (bytes int64, took time.Duration, err error) {
	buf := make([]byte, 1<<18)
	begin := time.Now().Add(lasts / 10)
	if err := conn.SetReadDeadline(time.Now().Add(lasts + 5*time.Second)); err != nil {
		return 0, 0, err
	}
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return 0, 0, err
		}
		now := time.Now()
		if now.Before(begin) {
			continue
		}
		bytes += int64(n)
		if took = now.Sub(begin); took >= lasts {
			return bytes, took, nil
		}
	}
}
