// SPDX-License-Identifier: Apache-2.0

//go:build lab

package oracle

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"cairn/test/model/firewall"
	"cairn/test/model/frame"
	"cairn/test/model/scenario"
)

// router is a namespace that forwards between two devices, with nftables in
// between. At the far ends of both are sockets of the test, and nobody else.
type router struct {
	*testing.T
	far   map[string]int // sockets, by device
	marks uint32
}

// newRouter stays on a thread of its own, in the namespace, until the test ends.
// Nothing of it has a name, so nothing is left when the process is gone.
func newRouter(t *testing.T) *router {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine
	here, err := netns.Get()
	must(t, err)
	inside, err := netns.New()
	must(t, err)
	t.Cleanup(func() {
		_ = netns.Set(here)
		_ = inside.Close()
		_ = here.Close()
	})
	r := &router{T: t, far: map[string]int{}}
	for _, device := range []string{Network, Instance} {
		r.attach(device, inside)
	}
	r.run("", "ip", "link", "set", "lo", "up") // without it there is no table of local addresses
	for _, sysctl := range []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0"} {
		r.run("", "sysctl", "-qw", sysctl)
	}
	r.route(Network, scenario.RouterMAC, "0.0.0.0/0", "192.0.2.254/32", "::/0", "2001:db8:ffff::1/128")
	v4, v6 := scenario.Addresses(5)[0], scenario.Addresses(5)[1]
	r.route(Instance, scenario.PortMAC(5), v4.String()+"/32", "198.51.100.254/32", v6.String()+"/128", "2001:db8:5::fe/128")
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// attach a device to the router; its far end is in a namespace with nothing else
// in it, so that no stack answers what comes.
func (r *router) attach(device string, inside netns.NsHandle) {
	r.Helper()
	outside, err := netns.New()
	must(r.T, err)
	must(r.T, netns.Set(inside))
	r.Cleanup(func() { _ = outside.Close() })
	must(r.T, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: device, MTU: scenario.MTU, HardwareAddr: net.HardwareAddr(scenario.UplinkMAC[:])},
		PeerName:  "far", PeerNamespace: netlink.NsFd(outside),
	}))
	link, err := netlink.LinkByName(device)
	must(r.T, err)
	must(r.T, netlink.LinkSetUp(link))
	must(r.T, netns.Set(outside))
	defer func() { must(r.T, netns.Set(inside)) }()
	far, err := netlink.LinkByName("far")
	must(r.T, err)
	must(r.T, netlink.LinkSetUp(far))
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})))
	must(r.T, err)
	r.Cleanup(func() { _ = unix.Close(s) })
	must(r.T, unix.Bind(s, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}), Ifindex: far.Attrs().Index}))
	must(r.T, unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	r.far[device] = s
}

// route to a device by way of a next hop whose MAC is known.
func (r *router) route(device string, mac frame.MAC, pairs ...string) {
	r.Helper()
	r.run("", "sysctl", "-qw", "net.ipv6.conf."+device+".accept_dad=0")
	for i := 0; i < len(pairs); i += 2 {
		hop, _, _ := strings.Cut(pairs[i+1], "/")
		r.run("", "ip", "neigh", "replace", hop, "lladdr", net.HardwareAddr(mac[:]).String(), "dev", device, "nud", "permanent")
		r.run("", "ip", "route", "replace", pairs[i], "via", hop, "dev", device, "onlink")
	}
}

func (r *router) run(stdin, name string, args ...string) {
	r.Helper()
	cmd := exec.Command(name, args...) // of this thread, so in its namespace
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.Fatalf("%s %v: %v\n%s\n%s", name, args, err, out, stdin)
	}
}

// filter by the port's rules from now on, and know no flow.
func (r *router) filter(h *firewall.Host) {
	r.Helper()
	r.run(Table(h, h.Ports[5]), "nft", "-f", "-")
}

// passes tells whether the frame comes out at the other end. A frame that passes
// in any case is sent behind it, and what comes before that is looked at.
func (r *router) passes(s scenario.Send) bool {
	r.Helper()
	from, to := Network, Instance
	if s.Hook == scenario.VM {
		from, to = to, from
	}
	s.Spec.To = scenario.UplinkMAC
	r.send(from, s.Spec)
	r.marks++
	mark := frame.Spec{Proto: frame.UDP, Src: netip.MustParseAddrPort("192.0.2.254:1"), Dst: netip.AddrPortFrom(scenario.Addresses(5)[0], MarkPort), To: scenario.UplinkMAC}
	if s.Hook == scenario.VM {
		mark.Src, mark.Dst = netip.MustParseAddrPort("198.51.100.5:1"), netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), MarkPort)
	}
	mark.Src = netip.AddrPortFrom(mark.Src.Addr(), uint16(r.marks%60000+1))
	r.send(from, mark)
	came := false
	for deadline := time.Now().Add(5 * time.Second); ; {
		x := r.receive(to, deadline)
		if x.DstPort == MarkPort && x.Proto == frame.UDP && x.SrcPort == mark.Src.Port() {
			return came
		}
		came = came || x.Src == s.Spec.Src.Addr() && x.Dst == s.Spec.Dst.Addr() && x.Proto == s.Spec.Proto
	}
}

func (r *router) send(device string, spec frame.Spec) {
	r.Helper()
	if _, err := unix.Write(r.far[device], spec.Bytes()); err != nil {
		r.Fatal(fmt.Errorf("send to %s: %w", device, err))
	}
}

// receive the next frame that came through the router.
func (r *router) receive(device string, deadline time.Time) firewall.Headers {
	r.Helper()
	b := make([]byte, 2048)
	for time.Now().Before(deadline) {
		n, from, err := unix.Recvfrom(r.far[device], b, 0)
		if err == unix.EINTR {
			continue
		}
		must(r.T, err)
		if a, ok := from.(*unix.SockaddrLinklayer); ok && a.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if x, why := firewall.Read(b[:n]); why == firewall.None {
			return x
		}
	}
	r.Fatalf("the mark did not come to %s", device)
	return firewall.Headers{}
}
