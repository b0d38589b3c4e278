// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/ndp"
	"pgregory.net/rapid"

	"cairn/cloud/wire"
	"cairn/dataplane/port"
	"cairn/dataplane/table"
)

var (
	guest   = [6]byte{2, 0xca, 0, 0, 0, 20}
	address = netip.MustParseAddr("10.0.0.20")
	leased6 = netip.MustParseAddr("2001:db8::20")
	link6   = netip.MustParseAddr("fe80::ca:ff:fe00:14")
	server  = netip.MustParseAddr("10.0.0.254")
)

// tables with a public port 5, a port 20 of managed network 7, and a port 30 of
// network 8, which leases nothing.
func tables(t interface{ Fatal(...any) }) table.View {
	items := []wire.Item{
		wire.Instance{ID: "a", Name: "web-1", Driver: "netns", Command: "echo", Port: 5},
		wire.Port{ID: 5, Instance: "a", MAC: guest, MTU: 1500, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.5"), leased6}},
		wire.Network{VNI: 7, MTU: 1450, Lease: &wire.Lease{
			Server: server, Bits: 24, Start: address, End: address, Routers: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			DNSServers: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("2001:db8::53")},
			NTPServers: []netip.Addr{netip.MustParseAddr("10.0.0.3")}, DomainSearch: []string{"example.net", "in.example.net"},
		}},
		wire.Port{ID: 20, Instance: "a", Network: 7, MAC: guest, MTU: 1450, Addresses: []netip.Addr{address, leased6}},
		wire.Network{VNI: 8},
		wire.Port{ID: 30, Instance: "a", Network: 8, MAC: guest},
	}
	at := table.Mark{Epoch: 1, Revision: 1}
	s := table.Snapshot{At: at}
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			t.Fatal(err)
		}
		s.Upserts = append(s.Upserts, table.Upsert{Key: item.Key(), Body: body})
		s.Digests[item.Key().Kind].Add(item.Key(), body)
	}
	tab, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tab.Replace(s); err != nil {
		t.Fatal(err)
	}
	return tab.View()
}

func private(t *testing.T) Link {
	t.Helper()
	l, ok := LinkOf(tables(t), 20, nil)
	if !ok {
		t.Fatal("no link")
	}
	return l
}

// question4 is a guest's frame around a message.
func question4(m *dhcpv4.DHCPv4, src, dst netip.Addr) []byte {
	return reply{
		srcMAC: guest, dstMAC: broadcastMAC, src: src, dst: dst, proto: protoUDP, srcPort: 68, dstPort: 67, hops: 64, payload: m.ToBytes(),
	}.bytes()
}

func ask4(t *testing.T, l Link, m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, message) {
	t.Helper()
	frame, err := Answer(l, question4(m, netip.IPv4Unspecified(), broadcast))
	if err != nil {
		t.Fatal(err)
	}
	out, err := parse(frame)
	if err != nil {
		t.Fatal(err)
	}
	a, err := dhcpv4.FromBytes(out.payload)
	if err != nil {
		t.Fatal(err)
	}
	if out.srcMAC != port.GatewayMAC || out.src != l.Server || out.srcPort != 67 || out.dstPort != 68 {
		t.Errorf("answer from %x %s:%d to port %d", out.srcMAC, out.src, out.srcPort, out.dstPort)
	}
	return a, out
}

var wants = dhcpv4.WithRequestedOptions(
	dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionHostName,
	dhcpv4.OptionInterfaceMTU, dhcpv4.OptionNTPServers, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionClasslessStaticRoute)

func discover(t *testing.T, more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.NewDiscovery(guest[:], append(more, wants)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func request(t *testing.T, more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithHwAddr(guest[:]), wants}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLeaseWithAllOptions(t *testing.T) {
	l := private(t)
	offer, _ := ask4(t, l, discover(t))
	if offer.MessageType() != dhcpv4.MessageTypeOffer || !offer.YourIPAddr.Equal(address.AsSlice()) {
		t.Fatalf("offer %s", offer.Summary())
	}
	taken, err := dhcpv4.NewRequestFromOffer(offer, wants)
	if err != nil {
		t.Fatal(err)
	}
	ack, _ := ask4(t, l, taken)
	var search []string
	if s := ack.DomainSearch(); s != nil {
		search = s.Labels
	}
	got := fmt.Sprint(ack.MessageType(), ack.YourIPAddr, net.IP(ack.SubnetMask()), ack.Router(), ack.DNS(), ack.NTPServers(), search,
		ack.HostName(), ack.Options.Get(dhcpv4.OptionInterfaceMTU), ack.ServerIdentifier(), ack.IPAddressLeaseTime(0), ack.ClasslessStaticRoute())
	want := "ACK 10.0.0.20 255.255.255.0 [10.0.0.1] [10.0.0.2] [10.0.0.3] [example.net in.example.net]" +
		"web-1[5 170] 10.0.0.254 1h0m0s [route to 169.254.169.254/32 via 10.0.0.254 route to 0.0.0.0/0 via 10.0.0.1]"
	if got != want {
		t.Errorf("ack\n got %s\nwant %s", got, want)
	}
}

func TestOnlyWhatIsAskedForIsTold(t *testing.T) {
	m, err := dhcpv4.NewDiscovery(guest[:], dhcpv4.WithoutOption(dhcpv4.OptionParameterRequestList), dhcpv4.WithRequestedOptions(dhcpv4.OptionRouter))
	if err != nil {
		t.Fatal(err)
	}
	a, _ := ask4(t, private(t), m)
	if a.DNS() != nil || a.Router() == nil {
		t.Errorf("options %s", a.Options)
	}
}

func TestPublicPortStandsAlone(t *testing.T) {
	l, ok := LinkOf(tables(t), 5, []netip.Addr{netip.MustParseAddr("198.51.100.53")})
	if !ok {
		t.Fatal("no link")
	}
	a, _ := ask4(t, l, discover(t))
	got := fmt.Sprint(a.YourIPAddr, net.IP(a.SubnetMask()), a.Router(), a.DNS(), a.ClasslessStaticRoute(), a.ServerIdentifier())
	want := "198.51.100.5 255.255.255.255 [169.254.0.1] [198.51.100.53] [route to 169.254.0.1/32 via 0.0.0.0 route to 0.0.0.0/0 via 169.254.0.1] 169.254.0.1"
	if got != want {
		t.Errorf("offer\n got %s\nwant %s", got, want)
	}
}

func TestVerdictsOfDHCP(t *testing.T) {
	l := private(t)
	wrong := net.IPv4(10, 0, 0, 99)
	for name, c := range map[string]struct {
		m    *dhcpv4.DHCPv4
		want dhcpv4.MessageType
		err  string
	}{
		"renewal":               {m: request(t, dhcpv4.WithClientIP(address.AsSlice())), want: dhcpv4.MessageTypeAck},
		"renewal of another":    {m: request(t, dhcpv4.WithClientIP(wrong)), want: dhcpv4.MessageTypeNak},
		"after a boot":          {m: request(t, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(address.AsSlice()))), want: dhcpv4.MessageTypeAck},
		"after a boot, another": {m: request(t, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(wrong))), want: dhcpv4.MessageTypeNak},
		"of no address":         {m: request(t), want: dhcpv4.MessageTypeNak},
		"another's offer": {m: request(t, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(wrong)),
			dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(address.AsSlice()))), err: "takes the offer"},
		"inform":            {m: request(t, dhcpv4.WithMessageType(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(address.AsSlice())), want: dhcpv4.MessageTypeAck},
		"release":           {m: request(t, dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease)), err: "no answer is due"},
		"decline":           {m: request(t, dhcpv4.WithMessageType(dhcpv4.MessageTypeDecline), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(address.AsSlice()))), err: "10.0.0.20 in use"},
		"an offer":          {m: request(t, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer)), err: "of kind OFFER"},
		"for another's MAC": {m: request(t, dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 1})), err: "not the port's"},
		"by way of a relay": {m: request(t, dhcpv4.WithGatewayIP(wrong)), err: "relay"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.err != "" {
				if frame, err := Answer(l, question4(c.m, address, server)); err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("answer %x, error %v", frame, err)
				}
				return
			}
			a, m := ask4(t, l, c.m)
			if a.MessageType() != c.want {
				t.Errorf("answer %s, want %s", a.MessageType(), c.want)
			}
			switch {
			case c.want == dhcpv4.MessageTypeNak && (m.dst != broadcast || !a.YourIPAddr.IsUnspecified()):
				t.Errorf("NAK to %s for %s", m.dst, a.YourIPAddr)
			case name == "inform" && (a.IPAddressLeaseTime(-1) != -1 || !a.YourIPAddr.IsUnspecified() || m.dst != address):
				t.Errorf("inform leases: %s to %s", a.Summary(), m.dst)
			}
		})
	}
}

func TestNothingIsLeasedWhereNothingIsManaged(t *testing.T) {
	for _, id := range []uint32{30, 99} {
		if l, ok := LinkOf(tables(t), id, nil); ok {
			t.Errorf("port %d: %+v", id, l)
		}
	}
}

func ask6(t *testing.T, l Link, m *dhcpv6.Message) (*dhcpv6.Message, error) {
	t.Helper()
	frame, err := Answer(l, reply{
		srcMAC: guest, dstMAC: allNodesMAC, src: link6, dst: netip.MustParseAddr("ff02::1:2"),
		proto: protoUDP, srcPort: 546, dstPort: 547, hops: 1, payload: m.ToBytes(),
	}.bytes())
	if err != nil {
		return nil, err
	}
	out, err := parse(frame)
	if err != nil || out.dst != link6 || out.srcPort != 547 || out.dstPort != 546 || !out.src.IsLinkLocalUnicast() {
		t.Fatalf("answer %+v, %v", out, err)
	}
	return dhcpv6.MessageFromBytes(out.payload)
}

func TestLeaseOfIPv6(t *testing.T) {
	l := private(t)
	solicit, err := dhcpv6.NewSolicit(guest[:])
	if err != nil {
		t.Fatal(err)
	}
	adv, err := ask6(t, l, solicit)
	if err != nil || adv.Type() != dhcpv6.MessageTypeAdvertise {
		t.Fatalf("%v, %v", adv, err)
	}
	ask, err := dhcpv6.NewRequestFromAdvertise(adv)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := ask6(t, l, ask)
	if err != nil {
		t.Fatal(err)
	}
	ia := rep.Options.OneIANA()
	if rep.Type() != dhcpv6.MessageTypeReply || ia == nil || len(ia.Options.Addresses()) != 1 || !ia.Options.OneAddress().IPv6Addr.Equal(leased6.AsSlice()) ||
		ia.T1 != 30*time.Minute || fmt.Sprint(rep.Options.DNS()) != "[2001:db8::53]" || !slices.Equal(rep.Options.DomainSearchList().Labels, []string{"example.net", "in.example.net"}) {
		t.Errorf("reply %s", rep.Summary())
	}
}

func TestVerdictsOfDHCPv6(t *testing.T) {
	l := private(t)
	other := net.ParseIP("2001:db8::99")
	with := func(kind dhcpv6.MessageType, ip net.IP, more ...dhcpv6.Modifier) *dhcpv6.Message {
		m, err := dhcpv6.NewMessage(append([]dhcpv6.Modifier{
			dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: guest[:]}),
			dhcpv6.WithIAID([4]byte{1}), dhcpv6.WithIANA(dhcpv6.OptIAAddress{IPv6Addr: ip}),
		}, more...)...)
		if err != nil {
			t.Fatal(err)
		}
		m.MessageType = kind
		return m
	}
	rep, err := ask6(t, l, with(dhcpv6.MessageTypeRenew, other))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range rep.Options.OneIANA().Options.Addresses() {
		if valid := a.ValidLifetime > 0; valid != a.IPv6Addr.Equal(leased6.AsSlice()) {
			t.Errorf("%s is leased for %s", a.IPv6Addr, a.ValidLifetime)
		}
	}
	for name, c := range map[string]struct {
		m    *dhcpv6.Message
		want iana.StatusCode
	}{
		"confirm":            {with(dhcpv6.MessageTypeConfirm, leased6.AsSlice()), iana.StatusSuccess},
		"confirm of another": {with(dhcpv6.MessageTypeConfirm, other), iana.StatusNotOnLink},
		"release":            {with(dhcpv6.MessageTypeRelease, leased6.AsSlice()), iana.StatusSuccess},
	} {
		rep, err := ask6(t, l, c.m)
		if err != nil || rep.Options.Status() == nil || rep.Options.Status().StatusCode != c.want {
			t.Errorf("%s: %v, %v", name, rep, err)
		}
	}
	stranger := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 9, 9, 9, 9, 9}}
	if _, err := ask6(t, l, with(dhcpv6.MessageTypeRequest, leased6.AsSlice(), dhcpv6.WithServerID(stranger))); !errors.Is(err, ErrSilent) {
		t.Errorf("another server's question: %v", err)
	}
}

func TestRouterSolicitationIsAnswered(t *testing.T) {
	for name, c := range map[string]struct {
		port     uint32
		src, dst netip.Addr
		lifetime time.Duration
		onLink   bool
		mtu      uint32
	}{
		"private":                  {20, link6, link6, 0, true, 1450},
		"public":                   {5, link6, link6, routerLifetime, false, 1500},
		"before it has an address": {5, netip.IPv6Unspecified(), allNodes, routerLifetime, false, 1500},
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := LinkOf(tables(t), c.port, nil)
			frame, err := Answer(l, reply{
				srcMAC: guest, src: c.src, dst: netip.MustParseAddr("ff02::2"), proto: protoICMPv6, hops: 255, payload: []byte{133, 0, 0, 0, 0, 0, 0, 0},
			}.bytes())
			if err != nil {
				t.Fatal(err)
			}
			out, err := parse(frame)
			if err != nil || out.dst != c.dst || out.hops != 255 {
				t.Fatalf("to %s, hops %d, %v", out.dst, out.hops, err)
			}
			pseudo := append(out.src.AsSlice(), out.dst.AsSlice()...)
			if sum := checksum(add(uint32(len(out.payload))+protoICMPv6, pseudo), out.payload); sum != 0 {
				t.Errorf("checksum is off by %#x", sum)
			}
			m, err := ndp.ParseMessage(out.payload)
			if err != nil {
				t.Fatal(err)
			}
			ra := m.(*ndp.RouterAdvertisement)
			if !ra.ManagedConfiguration || !ra.OtherConfiguration || ra.RouterLifetime != c.lifetime {
				t.Errorf("%+v", ra)
			}
			var mtu uint32
			onLink := false
			for _, o := range ra.Options {
				switch o := o.(type) {
				case *ndp.MTU:
					mtu = o.MTU
				case *ndp.PrefixInformation:
					onLink = o.OnLink && !o.AutonomousAddressConfiguration && o.Prefix == netip.MustParseAddr("2001:db8::")
				}
			}
			if mtu != c.mtu || onLink != c.onLink {
				t.Errorf("MTU %d, on link %v", mtu, onLink)
			}
		})
	}
}

// Whatever a guest sends, there is an answer or a reason, and an answer is a
// frame to the guest.
func TestAnyFrame(t *testing.T) {
	l := private(t)
	seeds := [][]byte{question4(discover(t), netip.IPv4Unspecified(), broadcast)}
	if m, err := dhcpv6.NewSolicit(guest[:]); err == nil {
		seeds = append(seeds, reply{srcMAC: guest, src: link6, dst: allNodes, proto: protoUDP, srcPort: 546, dstPort: 547, hops: 1, payload: m.ToBytes()}.bytes())
	}
	rapid.Check(t, func(t *rapid.T) {
		frame := slices.Clone(rapid.SampledFrom(seeds).Draw(t, "frame"))
		for range rapid.IntRange(0, 8).Draw(t, "changes") {
			frame[rapid.IntRange(0, len(frame)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
		frame = frame[:rapid.IntRange(0, len(frame)).Draw(t, "length")]
		answer, err := Answer(l, frame)
		if (answer == nil) == (err == nil) {
			t.Fatalf("answer %x, error %v", answer, err)
		}
		if err != nil {
			return
		}
		if m, err := parse(answer); err != nil || m.srcMAC != l.Gateway {
			t.Fatalf("answer %x: %v", answer, err)
		}
	})
}

func TestPunts(t *testing.T) {
	record := make([]byte, 16+1024)
	record[8], record[12] = 20, 3
	copy(record[16:], "abc")
	if port, frame, err := puntOf(record); port != 20 || string(frame) != "abc" || err != nil {
		t.Errorf("%d %q %v", port, frame, err)
	}
	record[13] = 0xff
	if _, _, err := puntOf(record); err == nil {
		t.Error("a length beyond the record is taken")
	}
	if _, _, err := puntOf(record[:10]); err == nil {
		t.Error("half a head is taken")
	}
}
