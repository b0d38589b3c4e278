// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cairn/bpf"
	"cairn/cloud/compute"
	"cairn/test/lab"
)

// A member is an instance in a private network.
type member struct {
	lab.Host // its namespace; Address is the private one
	id       v3.UUID
	hv       int
	link     string
	mac      net.HardwareAddr
}

// network makes a managed private network with the addresses that all of them
// have here: two of them are two tenants who chose the same.
func (c *cloudUnderTest) network(name string) v3.UUID {
	c.Helper()
	id, err := c.Done(c.CreatePrivateNetwork(c.Context(), v3.CreatePrivateNetworkRequest{
		Name: name, StartIP: net.ParseIP("10.0.0.10"), EndIP: net.ParseIP("10.0.0.99"), Netmask: net.ParseIP("255.255.255.0"),
		Options: &v3.PrivateNetworkOptions{DNSServers: []net.IP{net.ParseIP("10.0.0.2")}, DomainSearch: []string{"example.net"}},
	}))
	must(c.T, "private network", err)
	return id
}

// members launches n instances, each on another hypervisor, and attaches them
// while they run: to 10.0.0.11 and on.
func (c *cloudUnderTest) attachMembers(name string, network v3.UUID, n int) []member {
	c.Helper()
	apart, err := c.Done(c.CreateAntiAffinityGroup(c.Context(), v3.CreateAntiAffinityGroupRequest{Name: name}))
	must(c.T, "anti-affinity group", err)
	var ids []v3.UUID
	for i := range n {
		id, err := c.Launch(fmt.Sprintf("%s-%d", name, i+1), apart, "")
		must(c.T, "instance", err)
		ids = append(ids, id)
	}
	var out []member
	for i, id := range ids {
		address := fmt.Sprintf("10.0.0.%d", 11+i)
		_, err = c.Done(c.AttachInstanceToPrivateNetwork(c.Context(), network, v3.AttachInstanceToPrivateNetworkRequest{
			IP: net.ParseIP(address), Instance: &v3.AttachInstanceToPrivateNetworkRequestInstance{ID: id},
		}))
		must(c.T, "attach", err)
		out = append(out, c.member(id, netip.MustParseAddr(address)))
	}
	return out
}

// member waits until the guest has leased its address.
func (c *cloudUnderTest) member(id v3.UUID, address netip.Addr) member {
	c.Helper()
	m := member{id: id}
	lab.Eventually(c.T, "lease of "+address.String(), 20*time.Second, func() error {
		for hv := 1; hv <= c.Hypervisors(); hv++ {
			b, err := os.ReadFile(filepath.Join(compute.MachinesFolder(c.AgentState(hv)), string(id), "record.json"))
			if err != nil {
				continue
			}
			var record struct {
				Namespace string
				Links     map[uint32]string
			}
			if err := json.Unmarshal(b, &record); err != nil {
				return err
			}
			for _, link := range record.Links {
				m.hv, m.link = hv, link
				m.Host = lab.Host{Namespace: record.Namespace, Address: address}
			}
		}
		if m.link == "" {
			return fmt.Errorf("instance %s has no private link", id)
		}
		return m.Do(func() error {
			link, err := netlink.LinkByName(m.link)
			if err != nil {
				return err
			}
			m.mac = link.Attrs().HardwareAddr
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if a.IPNet.String() == address.String()+"/24" {
					return nil
				}
			}
			return fmt.Errorf("%s has %v", m.link, addrs)
		})
	})
	return m
}

// echoes sends one datagram from a member to another's echo service.
func echoes(ctx context.Context, from, to member, text string) error {
	conn, err := from.DialContext(ctx, "udp", netip.AddrPortFrom(to.Address, 7).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(text)); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	n, err := conn.Read(buf)
	if err == nil && !bytes.Contains(buf[:n], []byte(text)) {
		err = fmt.Errorf("answer %q", buf[:n])
	}
	return err
}

// A listener sees every frame that enters a member's private link.
type listener struct {
	member
	fd int
}

func (c *cloudUnderTest) listen(m member) *listener {
	c.Helper()
	l := &listener{member: m}
	must(c.T, "listen on a link", m.Do(func() error {
		link, err := netlink.LinkByName(m.link)
		if err != nil {
			return err
		}
		proto := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		if l.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(proto)); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
		return unix.Bind(l.fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: link.Attrs().Index})
	}))
	c.Cleanup(func() { _ = unix.Close(l.fd) })
	return l
}

// frames that came in so far and since the last call, for a moment after the
// last one.
func (l *listener) frames() (out [][]byte) {
	buf := make([]byte, 65536)
	for {
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}, 100); n <= 0 {
			return out
		}
		n, from, err := unix.Recvfrom(l.fd, buf, 0)
		if ll, ok := from.(*unix.SockaddrLinklayer); err == nil && ok && ll.Pkttype != unix.PACKET_OUTGOING {
			out = append(out, slices.Clone(buf[:n]))
		}
	}
}

func holding(frames [][]byte, what string) (n int) {
	for _, f := range frames {
		if bytes.Contains(f, []byte(what)) {
			n++
		}
	}
	return n
}

// counted sums a counter over all hypervisors.
func (c *cloudUnderTest) counted(reason bpf.Reason) (sum uint64) {
	c.Helper()
	for hv := 1; hv <= c.Hypervisors(); hv++ {
		sum += c.drops(hv, reason)
	}
	return sum
}

func TestPrivateNetworksOfTwoTenants(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	red, blue := c.network("red"), c.network("blue")
	reds, blues := c.attachMembers("red", red, 3), c.attachMembers("blue", blue, 3)
	var listeners []*listener
	for _, m := range append(slices.Clone(reds), blues...) {
		listeners = append(listeners, c.listen(m))
	}
	c.inStep()

	t.Run("every member reaches every other", func(t *testing.T) {
		flooded := c.counted(bpf.ReasonFlooded)
		for _, tenant := range [][]member{reds, blues} {
			for _, from := range tenant {
				for _, to := range tenant {
					if from.id == to.id {
						continue
					}
					if err := echoes(c.Context(), from, to, "hello from "+string(from.id)); err != nil {
						t.Errorf("%s on hv%d to %s on hv%d: %v", from.Address, from.hv, to.Address, to.hv, err)
					}
				}
			}
		}
		if got := c.counted(bpf.ReasonFlooded); got != flooded {
			t.Errorf("%d frames were flooded though every address is known", got-flooded)
		}
	})
	t.Run("nobody sees the other tenant", func(t *testing.T) {
		own := map[string]string{}
		for _, m := range reds {
			own[m.mac.String()] = "red"
		}
		for _, m := range blues {
			own[m.mac.String()] = "blue"
		}
		seen, foreign := 0, 0
		for i, l := range listeners {
			tenant := []string{"red", "blue"}[i/3]
			for _, f := range l.frames() {
				src := net.HardwareAddr(f[6:12]).String()
				switch own[src] {
				case tenant:
					seen++
				case "":
				default:
					foreign++
				}
			}
		}
		t.Logf("frames %d cross_tenant_frames=%d", seen, foreign)
		if seen == 0 || foreign != 0 {
			t.Errorf("%d frames of the own tenant, %d of the other", seen, foreign)
		}
	})
	t.Run("broadcast reaches each once", func(t *testing.T) {
		const word = "a word for all of red"
		must(t, "broadcast", reds[0].Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
				return err
			}
			return unix.Sendto(fd, []byte(word), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 0, 0, 255}})
		}))
		for i, l := range listeners {
			want := 0
			if i == 1 || i == 2 {
				want = 1
			}
			if got := holding(l.frames(), word); got != want {
				t.Errorf("member %d on hv%d: %d copies, want %d", i, l.hv, got, want)
			}
		}
	})
	t.Run("unmanaged, addresses are the guests' own", func(t *testing.T) { c.within(t).unmanaged(reds) })
	t.Run("agents die under traffic", func(t *testing.T) { c.within(t).networkOutlivesAgents(reds) })
	t.Run("one leaves while it runs", func(t *testing.T) { c.within(t).leaves(red, reds) })
}

// unmanaged gives two members addresses in a network that leases none, and one of
// them a further one.
func (c *cloudUnderTest) unmanaged(members []member) {
	c.Helper()
	network, err := c.Done(c.CreatePrivateNetwork(c.Context(), v3.CreatePrivateNetworkRequest{Name: "bare"}))
	must(c.T, "private network", err)
	var own []member
	for i, m := range members[:2] {
		_, err := c.Done(c.AttachInstanceToPrivateNetwork(c.Context(), network, v3.AttachInstanceToPrivateNetworkRequest{
			Instance: &v3.AttachInstanceToPrivateNetworkRequestInstance{ID: m.id},
		}))
		must(c.T, "attach", err)
		m.link, m.Address = "eth2", netip.AddrFrom4([4]byte{192, 168, 7, byte(1 + i)})
		lab.Eventually(c.T, "second private link", 10*time.Second, func() error { return m.give(m.Address) })
		own = append(own, m)
	}
	lab.Eventually(c.T, "an echo between own addresses", 10*time.Second, func() error {
		return echoes(c.Context(), own[0], own[1], "hello")
	})
	shared := own[1]
	shared.Address = netip.AddrFrom4([4]byte{192, 168, 7, 100})
	must(c.T, "a further address", shared.give(shared.Address))
	// Over TCP: the echo of UDP answers from the address that the route prefers.
	conn, err := own[0].DialContext(c.Context(), "tcp", netip.AddrPortFrom(shared.Address, 7).String())
	must(c.T, "a connection to it", err)
	conn.Close()
}

// give the member's link an address.
func (m member) give(address netip.Addr) error {
	return m.Do(func() error {
		link, err := netlink.LinkByName(m.link)
		if err != nil {
			return err
		}
		return netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(24, 32)}})
	})
}

// networkOutlivesAgents keeps datagrams going between two hosts while their
// agents are killed and come back.
func (c *cloudUnderTest) networkOutlivesAgents(members []member) {
	c.Helper()
	from, to := members[0], members[1]
	stop, done := make(chan struct{}), make(chan [2]int, 1)
	go func() {
		sent, lost := 0, 0
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				done <- [2]int{sent, lost}
				return
			case <-c.Context().Done(): // the test has ended without asking
				return
			case <-tick.C:
			}
			sent++
			if err := echoes(c.Context(), from, to, fmt.Sprintf("datagram %d", sent)); err != nil {
				lost++
				c.Logf("datagram %d: %v", sent, err)
			}
		}
	}()
	for range 3 {
		for _, m := range members[:2] {
			must(c.T, "kill the agent", c.Agent(m.hv).Kill())
			must(c.T, "start the agent", c.Agent(m.hv).Start())
		}
		c.inStep()
	}
	close(stop)
	count := <-done
	c.Logf("pkts sent %d lost=%d agent_restarts=6", count[0], count[1])
	if count[0] < 100 || count[1] != 0 {
		c.Errorf("%d of %d datagrams lost", count[1], count[0])
	}
}

// leaves detaches the last member: its link goes, and nobody is told that it is
// there any more.
func (c *cloudUnderTest) leaves(network v3.UUID, members []member) {
	c.Helper()
	last := members[len(members)-1]
	_, err := c.Done(c.DetachInstanceFromPrivateNetwork(c.Context(), network, v3.DetachInstanceFromPrivateNetworkRequest{
		Instance: &v3.Instance{ID: last.id},
	}))
	must(c.T, "detach", err)
	lab.Eventually(c.T, "the link is gone", 10*time.Second, func() error {
		return last.Do(func() error {
			_, err := netlink.LinkByName(last.link)
			if err == nil {
				return fmt.Errorf("%s is still there", last.link)
			}
			if !strings.Contains(err.Error(), "not found") {
				return err
			}
			return nil
		})
	})
	c.inStep()
	if err := echoes(c.Context(), members[0], last, "are you there"); err == nil {
		c.Error("a member that left answers")
	}
	must(c.T, "the others", echoes(c.Context(), members[0], members[1], "and you"))
}
