// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A tap is the far end of a device: what a copy for it would reach.
type tap struct {
	fd      int
	ifindex uint32 // of the near end
}

// inOwnNetns runs a test in a network namespace of its own, that ends with it.
func inOwnNetns(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in the namespace
		ns, err := netns.New()
		defer func() { done <- err }() // also when f ends the goroutine
		if err == nil {
			defer ns.Close()
			f()
		}
	}()
	must(t, <-done)
}

func newTap(t *testing.T, name string) *tap {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "t"}); err != nil {
		t.Error(err)
		return nil
	}
	near, _ := netlink.LinkByName(name)
	far, _ := netlink.LinkByName(name + "t")
	for _, l := range []netlink.Link{near, far} {
		if err := netlink.LinkSetUp(l); err != nil {
			t.Error(err)
			return nil
		}
	}
	// Until the kernel has noticed that its peer is up, a device drops all.
	for deadline := time.Now().Add(5 * time.Second); near.Attrs().OperState != netlink.OperUp; {
		if time.Now().After(deadline) {
			t.Errorf("%s is %s", name, near.Attrs().OperState)
			return nil
		}
		<-time.After(time.Millisecond)
		near, _ = netlink.LinkByName(name)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: far.Attrs().Index})
	}
	if err != nil {
		t.Error(err)
		return nil
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return &tap{fd: fd, ifindex: uint32(near.Attrs().Index)}
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}

// count the frames that came and are the test's own, for a moment after the
// last: the devices' own chatter (MLD, router solicitations) is left out.
func (p *tap) count(own net.HardwareAddr) int {
	n := 0
	buf := make([]byte, 4096)
	for {
		polled, _ := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 30)
		if polled <= 0 {
			return n
		}
		size, from, err := unix.Recvfrom(p.fd, buf, 0)
		if ll, ok := from.(*unix.SockaddrLinklayer); err == nil && size > 12 && ok && ll.Pkttype != unix.PACKET_OUTGOING &&
			net.HardwareAddr(buf[6:12]).String() == own.String() {
			n++
		}
	}
}

// segmentTaps are ports 20, 21 and 23 of network 7, ports 30 and 31 of network 8
// and the overlay, all with taps.
type segmentTaps struct {
	*world
	taps map[string]*tap
}

const port23, mac23 = uint32(23), "02:ca:00:00:00:17"

func newSegmentTaps(t *testing.T, from uint32) *segmentTaps {
	s := &segmentTaps{world: newSegments(t, from), taps: map[string]*tap{}}
	for name, id := range map[string]uint32{"p20": port20, "p21": port21, "p23": port23, "p30": port30, "p31": port31} {
		tap := newTap(t, name)
		if tap == nil {
			return nil
		}
		s.taps[name] = tap
		if id == port23 {
			s.put("port_cfg", id, &bpf.PortCfg{Mac: mac(mac23), GatewayMac: mac(gatewayMAC), Generation: 1, Mtu: 1500, Vni: managed})
		}
		s.edit(id, func(pc *bpf.PortCfg) { pc.Ifindex = tap.ifindex })
	}
	s.taps["overlay"] = newTap(t, "ovl")
	var c bpf.Cfg
	must(t, s.maps["cfg"].Lookup(uint32(0), &c))
	c.Overlay = s.taps["overlay"].ifindex
	s.put("cfg", uint32(0), &c)
	s.list(managed, 0, []uint32{port20, port21, port23}, endpoint2, "10.64.0.7")
	s.list(unmanaged, 0, []uint32{port30, port31}, endpoint2)
	return s
}

func (s *segmentTaps) list(vni, flags uint32, ports []uint32, hosts ...string) {
	b := bpf.Bum{Rate: 1000, Flags: flags, Ports: uint32(len(ports)), Hosts: uint32(len(hosts))}
	copy(b.Port[:], ports)
	for i, h := range hosts {
		b.Host[i] = be32(h)
	}
	s.put("bum", vni, &b)
}

// reach sends a frame and wants so many copies at each tap; a tap that is not
// named gets none.
func (s *segmentTaps) reach(prog string, frame []byte, ctx skb, want map[string]int) {
	s.Helper()
	copies := uint64(0)
	for _, n := range want {
		copies += uint64(n)
	}
	counters := moved{bpf.ReasonFlooded: 1}
	if copies > 0 {
		counters[bpf.ReasonCopied] = copies
	}
	s.expect(counters, func() {
		if action, _, _ := s.tc(prog, frame, ctx); action != tcDrop {
			s.Errorf("action %d", action)
		}
	})
	for name, tap := range s.taps {
		if got := tap.count(frame[6:12]); got != want[name] {
			s.Errorf("%s: %d copies, want %d", name, got, want[name])
		}
	}
}

func TestBroadcastReachesEachOnce(t *testing.T) {
	inOwnNetns(t, func() {
		s := newSegmentTaps(t, port20)
		if s == nil {
			return
		}
		frame := packet.UDP(ip20+":1", "10.0.0.255:2").MACs(mac20, all).Bytes()
		s.reach("vm_in", frame, skb{}, map[string]int{"p21": 1, "p23": 1, "overlay": 2})
		// From another host it goes to no host again.
		frame = packet.UDP(ip22+":1", "10.0.0.255:2").MACs(mac22, all).Bytes()
		s.reach("overlay_in", frame, arrived(managed, endpoint2), map[string]int{"p20": 1, "p21": 1, "p23": 1})
		// A port that moved to the other network, as the list does not know yet.
		s.edit(port23, func(pc *bpf.PortCfg) { pc.Vni = unmanaged })
		s.reach("overlay_in", frame, arrived(managed, endpoint2), map[string]int{"p20": 1, "p21": 1})
	})
}

func TestFloodOfTheOtherNetworkStaysThere(t *testing.T) {
	inOwnNetns(t, func() {
		s := newSegmentTaps(t, port30)
		if s == nil {
			return
		}
		// The same addresses as in network 7.
		s.reach("vm_in", packet.UDP(ip20+":1", "10.0.0.255:2").MACs(mac30, all).Bytes(), skb{}, map[string]int{"p31": 1, "overlay": 1})
		s.reach("vm_in", packet.ARP(mac30, ip20, ip21), skb{}, map[string]int{"p31": 1, "overlay": 1})
	})
}

func TestCopyForADeviceThatIsGone(t *testing.T) {
	inOwnNetns(t, func() {
		s := newSegmentTaps(t, port20)
		if s == nil {
			return
		}
		s.edit(port21, func(pc *bpf.PortCfg) { pc.Ifindex = 9999 })
		frame := packet.UDP(ip20+":1", "10.0.0.255:2").MACs(mac20, all).Bytes()
		s.expect(moved{bpf.ReasonFlooded: 1, bpf.ReasonCopied: 3, bpf.ReasonCopyFailed: 1}, func() { s.tc("vm_in", frame, skb{}) })
	})
}

// group messages of one port or host.
func igmp(kind uint8, mac, src, group string, rest ...byte) []byte {
	body := append([]byte{kind, 0, 0, 0}, rest...)
	if len(rest) == 0 {
		body = append(body, net.ParseIP(group).To4()...)
	}
	return packet.IP(src, group, 2, body).TTL(1).MACs(mac, "01:00:5e:01:01:01").Bytes()
}

func record(kind uint8, group string, sources int) []byte {
	b := []byte{kind, 0, 0, byte(sources)}
	ip := net.ParseIP(group)
	if v4 := ip.To4(); v4 != nil {
		ip = v4
	}
	return append(append(b, ip...), make([]byte, sources*len(ip))...)
}

func TestSnoopedGroupsReachWhoAsked(t *testing.T) {
	inOwnNetns(t, func() {
		s := newSegmentTaps(t, port20)
		if s == nil {
			return
		}
		s.list(managed, bpf.BumSnooping, []uint32{port20, port21, port23}, endpoint2, "10.64.0.7")
		everyone := map[string]int{"p21": 1, "p23": 1, "overlay": 2}
		const group = "239.1.1.1"
		data := packet.UDP(ip20+":1", group+":2").MACs(mac20, "01:00:5e:01:01:01").Bytes()
		local := packet.UDP(ip20+":1", "224.0.0.251:5353").MACs(mac20, "01:00:5e:00:00:fb").Bytes()
		s.reach("vm_in", data, skb{}, nil)
		s.reach("vm_in", local, skb{}, everyone)

		as := func(port uint32, hw, ip string, frame func(hw, ip string) []byte) {
			s.Helper()
			s.put("addr_ok", bpf.AddrKey{Port: port, Ip: ip16(ip)}, uint32(0))
			s.put("ifindex_port", uint32(loopback), port)
			s.tc("vm_in", frame(hw, ip), skb{})
			s.put("ifindex_port", uint32(loopback), port20)
			for _, tap := range s.taps {
				tap.count(nil)
			}
		}
		v2 := func(kind uint8) func(hw, ip string) []byte {
			return func(hw, ip string) []byte { return igmp(kind, hw, ip, group) }
		}
		v3 := func(records ...[]byte) func(hw, ip string) []byte {
			return func(hw, ip string) []byte {
				rest := []byte{0, 0, 0, byte(len(records))}
				for _, r := range records {
					rest = append(rest, r...)
				}
				return igmp(0x22, hw, ip, "224.0.0.22", rest...)
			}
		}
		as(port21, mac21, ip21, v2(0x16))
		s.reach("vm_in", data, skb{}, map[string]int{"p21": 1})
		as(port21, mac21, ip21, v2(0x17))
		s.reach("vm_in", data, skb{}, nil)
		as(port23, mac23, "10.0.0.23", v3(record(4, "239.9.9.9", 2), record(4, group, 0)))
		s.reach("vm_in", data, skb{}, map[string]int{"p23": 1})
		as(port23, mac23, "10.0.0.23", v3(record(3, group, 0)))
		s.reach("vm_in", data, skb{}, nil)

		// Host 2 tells of one of its own; host 7 does not get what it did not ask for.
		s.tc("overlay_in", v2(0x16)(mac22, ip22), arrived(managed, endpoint2))
		for _, tap := range s.taps {
			tap.count(nil)
		}
		s.reach("vm_in", data, skb{}, map[string]int{"overlay": 1})
		// One leaves there, others may stay: the host goes on to be a listener.
		s.tc("overlay_in", v2(0x17)(mac22, ip22), arrived(managed, endpoint2))
		for _, tap := range s.taps {
			tap.count(nil)
		}
		s.reach("vm_in", data, skb{}, map[string]int{"overlay": 1})
		// A router of groups gets all.
		as(port21, mac21, ip21, v2(0x11))
		s.reach("vm_in", data, skb{}, map[string]int{"overlay": 1, "p21": 1})
	})
}

// A port joins some groups a second: what it joins pushes out what others have
// joined, everywhere. What it is in already it may say as often as it likes.
func TestGroupsAreJoinedAtAPace(t *testing.T) {
	inOwnNetns(t, func() {
		s := newSegmentTaps(t, port20)
		if s == nil {
			return
		}
		s.list(managed, bpf.BumSnooping, []uint32{port20, port21}, endpoint2)
		report := func(n int) []byte {
			return igmp(0x16, mac20, ip20, netip.AddrFrom4([4]byte{239, 9, byte(n >> 8), byte(n)}).String())
		}
		const many, rate = 300, 16
		begin := time.Now()
		for n := range many {
			s.tc("vm_in", report(n), skb{})
		}
		most := rate + int(time.Since(begin).Seconds()*rate) + 2
		joined := 0
		for n := range many {
			key := bpf.ListenerKey{Vni: managed, Port: port20, Group: bpf.IP16(netip.AddrFrom4([4]byte{239, 9, byte(n >> 8), byte(n)}))}
			var at uint64
			if s.maps["listeners"].Lookup(key, &at) == nil {
				joined++
			}
		}
		if joined < rate-2 || joined > most {
			t.Errorf("%d groups of %d, want %d to %d", joined, many, rate-2, most)
		}
		for _, tap := range s.taps {
			tap.count(nil)
		}
		s.put("pace", port20, &bpf.Pace{})
		for range 2 * rate {
			s.reach("vm_in", report(0), skb{}, map[string]int{"overlay": 1})
		}
	})
}

// Who has not been heard for 260 s listens no more, if there is somebody who asks.
func TestListenersExpire(t *testing.T) {
	inOwnNetns(t, func() {
		s := newSegmentTaps(t, port20)
		if s == nil {
			return
		}
		s.list(managed, bpf.BumSnooping, []uint32{port20, port21, port23}, endpoint2)
		const group = "239.1.1.1"
		data := packet.UDP(ip20+":1", group+":2").MACs(mac20, "01:00:5e:01:01:01").Bytes()
		said := func(port uint32, group bpf.Ip16, ago time.Duration) {
			s.put("listeners", bpf.ListenerKey{Vni: managed, Port: port, Group: group}, now()-uint64(ago))
		}
		const lately, long = 250 * time.Second, 270 * time.Second
		said(port21, ip16(group), long)
		said(port23, ip16(group), lately)
		s.reach("vm_in", data, skb{}, map[string]int{"p21": 1, "p23": 1})
		said(0, bpf.Ip16{}, lately)
		s.reach("vm_in", data, skb{}, map[string]int{"p23": 1})
		said(port21, bpf.Ip16{}, lately) // it is who asks
		s.reach("vm_in", data, skb{}, map[string]int{"p21": 1, "p23": 1})
		said(port21, bpf.Ip16{}, long)
		said(0, bpf.Ip16{}, long)
		s.reach("vm_in", data, skb{}, map[string]int{"p21": 1, "p23": 1})
	})
}

// Who hears another's answer keeps its own back: only routers hear it, and other
// hosts, which have to learn as well.
func TestAnswersReachRoutersOnly(t *testing.T) {
	inOwnNetns(t, func() {
		s := newSegmentTaps(t, port20)
		if s == nil {
			return
		}
		s.list(managed, bpf.BumSnooping, []uint32{port20, port21, port23}, endpoint2)
		const group = "239.1.1.1"
		s.put("listeners", bpf.ListenerKey{Vni: managed, Port: port21, Group: ip16(group)}, now())
		report, leave, query := igmp(0x16, mac20, ip20, group), igmp(0x17, mac20, ip20, group), igmp(0x11, mac20, ip20, "224.0.0.1")
		v3 := igmp(0x22, mac20, ip20, "224.0.0.22", append([]byte{0, 0, 0, 1}, record(4, group, 0)...)...)
		for _, answer := range [][]byte{report, v3, leave} {
			s.reach("vm_in", answer, skb{}, map[string]int{"overlay": 1})
		}
		s.put("listeners", bpf.ListenerKey{Vni: managed, Port: port23}, now()) // it asks
		for _, answer := range [][]byte{report, v3, leave} {
			s.reach("vm_in", answer, skb{}, map[string]int{"overlay": 1, "p23": 1})
		}
		s.reach("vm_in", query, skb{}, map[string]int{"overlay": 1, "p21": 1, "p23": 1})
		s.list(managed, 0, []uint32{port20, port21, port23}, endpoint2)
		s.reach("vm_in", report, skb{}, map[string]int{"overlay": 1, "p21": 1, "p23": 1})
	})
}

func TestSnoopedGroupsOfIPv6(t *testing.T) {
	inOwnNetns(t, func() {
		s := newSegmentTaps(t, port20)
		if s == nil {
			return
		}
		s.list(managed, bpf.BumSnooping, []uint32{port20, port21, port23}, endpoint2)
		const group = "ff05::1:3"
		data := packet.UDP("["+link20+"]:1", "["+group+"]:2").MACs(mac20, "33:33:00:01:00:03").Bytes()
		s.reach("vm_in", data, skb{}, nil)
		report := func(kind uint8, rest uint32, body []byte) []byte {
			return packet.ICMPError(link21, "ff02::16", kind, 0, rest, body).
				Extensions(packet.Extension{Proto: 0, Body: []byte{5, 2, 0, 0, 1, 0}}).TTL(1).MACs(mac21, "33:33:00:00:00:16").Bytes()
		}
		for _, c := range []struct {
			what  string
			frame []byte
			want  int
		}{
			{"version 2 joins", report(143, 1, record(4, group, 0)), 1},
			{"version 2 leaves", report(143, 1, record(3, group, 0)), 0},
			{"version 1 reports", report(131, 0, net.ParseIP(group)), 1},
			{"version 1 is done", report(132, 0, net.ParseIP(group)), 0},
		} {
			s.put("ifindex_port", uint32(loopback), port21)
			s.expect(moved{bpf.ReasonFlooded: 1, bpf.ReasonCopied: 1}, func() { s.tc("vm_in", c.frame, skb{}) }) // to the host
			s.put("ifindex_port", uint32(loopback), port20)
			for _, tap := range s.taps {
				tap.count(nil)
			}
			t.Log(c.what)
			want := map[string]int{}
			if c.want > 0 {
				want["p21"] = c.want
			}
			s.reach("vm_in", data, skb{}, want)
		}
	})
}

// With a firewall at a port, a copy for all is judged there as any packet.
func TestCopiesPassTheFirewallOfEachPort(t *testing.T) {
	inOwnNetns(t, func() {
		s := newSegmentTaps(t, port20)
		if s == nil {
			return
		}
		s.edit(port21, func(pc *bpf.PortCfg) { pc.Flags |= bpf.PortFirewall; pc.PolicyIn = 900 })
		s.put("ct_est", port21, s.flows[port5])
		s.put("ct_new", port21, s.fresh[port5])
		frame := packet.UDP(ip20+":1", "10.0.0.255:2").MACs(mac20, all).Bytes()
		s.expect(moved{bpf.ReasonFlooded: 1, bpf.ReasonCopied: 3, bpf.ReasonPolicyIn: 1}, func() { s.tc("vm_in", frame, skb{}) })
		for name, want := range map[string]int{"p21": 0, "p23": 1, "overlay": 2} {
			if got := s.taps[name].count(packet.MAC(mac20)); got != want {
				t.Errorf("%s: %d copies, want %d", name, got, want)
			}
		}
		one := packet.UDP(ip20+":1", ip21+":2").MACs(mac20, mac21).Bytes()
		s.dropped("vm_in", one, bpf.ReasonPolicyIn)
		s.sends(packet.ARPReply(mac20, ip20, mac21, ip21), bpf.ReasonToPort, bpf.GuardMark)
	})
}
