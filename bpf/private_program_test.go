// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"

	"github.com/cilium/ebpf/ringbuf"
)

// Network 7 is managed: ports 20 and 21 here, a station at host 2. Network 8 is
// not: ports 30 and 31 here, a station at host 2.
const (
	managed, unmanaged = uint32(7), uint32(8)

	port20, mac20, ip20 = uint32(20), "02:ca:00:00:00:14", "10.0.0.20"
	port21, mac21, ip21 = uint32(21), "02:ca:00:00:00:15", "10.0.0.21"
	mac22, ip22         = "02:ca:00:00:00:16", "10.0.0.22" // of network 7, at host 2
	port30, mac30       = uint32(30), "02:ca:00:00:00:1e"
	port31, mac31       = uint32(31), "02:ca:00:00:00:1f"
	mac32               = "02:ca:00:00:00:20" // of network 8, at host 2

	server = "10.0.0.254"
	link20 = "fe80::ca:ff:fe00:14"
	link21 = "fe80::ca:ff:fe00:15"
	link22 = "fe80::ca:ff:fe00:16"
	all    = "ff:ff:ff:ff:ff:ff"

	overlayDevice = 1002
)

// newSegments is a world with the two networks; what runs vm_in comes from from.
func newSegments(t *testing.T, from uint32) *world {
	t.Helper()
	w := newWorld(t)
	var c bpf.Cfg
	must(t, w.maps["cfg"].Lookup(uint32(0), &c))
	c.Overlay = overlayDevice
	w.put("cfg", uint32(0), &c)
	for _, p := range []struct {
		id, vni uint32
		mac     string
		flags   uint32
	}{
		{port20, managed, mac20, 0}, {port21, managed, mac21, 0},
		{port30, unmanaged, mac30, bpf.PortUnmanaged}, {port31, unmanaged, mac31, bpf.PortUnmanaged},
	} {
		w.put("port_cfg", p.id, &bpf.PortCfg{
			Ifindex: 100 + p.id, Flags: p.flags, Mac: mac(p.mac), GatewayMac: mac(gatewayMAC), Generation: 1, Mtu: 1500, Vni: p.vni,
		})
		w.put("fdb", bpf.FdbKey{Vni: p.vni, Mac: mac(p.mac)}, bpf.Station{Port: p.id})
	}
	w.put("fdb", bpf.FdbKey{Vni: managed, Mac: mac(mac22)}, bpf.Station{Endpoint: be32(endpoint2)})
	w.put("fdb", bpf.FdbKey{Vni: unmanaged, Mac: mac(mac32)}, bpf.Station{Endpoint: be32(endpoint2)})
	for ip, owner := range map[string]bpf.Neigh{
		ip20: {Port: port20, Mac: mac(mac20)}, link20: {Port: port20, Mac: mac(mac20)},
		ip21: {Port: port21, Mac: mac(mac21)}, link21: {Port: port21, Mac: mac(mac21)},
		ip22: {Port: 22, Mac: mac(mac22)}, link22: {Port: 22, Mac: mac(mac22)},
		server: {Mac: mac(gatewayMAC)},
	} {
		w.put("neigh", bpf.NeighKey{Vni: managed, Ip: ip16(ip)}, owner)
	}
	w.put("neigh", bpf.NeighKey{Vni: unmanaged, Ip: ip16("fe80::ca:ff:fe00:1f")}, bpf.Neigh{Port: port31, Mac: mac(mac31)})
	w.put("addr_ok", bpf.AddrKey{Port: port20, Ip: ip16(ip20)}, uint32(0))
	w.put("addr_ok", bpf.AddrKey{Port: port21, Ip: ip16(ip21)}, uint32(0))
	for _, vni := range []uint32{managed, unmanaged} {
		w.put("bum", vni, &bpf.Bum{Rate: 100}) // nobody: copies are for devices, which are another test's
	}
	w.put("ifindex_port", uint32(loopback), from)
	return w
}

// sends runs vm_in with a frame and wants it redirected for a reason.
func (w *world) sends(frame []byte, why bpf.Reason, mark uint32) (out []byte) {
	w.Helper()
	w.expect(moved{why: 1}, func() {
		w.Helper()
		action, got, after := w.tc("vm_in", frame, skb{Mark: 77})
		if action != tcRedirect || after.Mark != mark {
			w.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		out = got
	})
	return out
}

func TestPrivateFramesGoByMAC(t *testing.T) {
	w := newSegments(t, port20)
	for name, c := range map[string]struct {
		p    packet.Packet
		why  bpf.Reason
		mark uint32
	}{
		"to a port here":     {packet.UDP(ip20+":1", ip21+":2").MACs(mac20, mac21), bpf.ReasonToPort, bpf.GuardMark},
		"to another host":    {packet.UDP(ip20+":1", ip22+":2").MACs(mac20, mac22), bpf.ReasonToTunnel, 0},
		"of TCP":             {packet.TCP(ip20+":1", ip22+":2").SYN().MACs(mac20, mac22), bpf.ReasonToTunnel, 0},
		"of any protocol":    {packet.IP(ip20, ip21, 112, []byte("vrrp")).MACs(mac20, mac21), bpf.ReasonToPort, bpf.GuardMark},
		"of IPv6":            {packet.UDP("["+link20+"]:1", "["+link21+"]:2").MACs(mac20, mac21), bpf.ReasonToPort, bpf.GuardMark},
		"a first fragment":   {packet.UDP(ip20+":1", ip21+":2").Payload(make([]byte, 16)).Fragment(true, 0).MACs(mac20, mac21), bpf.ReasonToPort, bpf.GuardMark},
		"a later fragment":   {packet.IP(ip20, ip21, 17, make([]byte, 8)).Fragment(false, 9).MACs(mac20, mac21), bpf.ReasonToPort, bpf.GuardMark},
		"to a remote prefix": {packet.UDP(ip20+":1", "10.64.0.1:2").MACs(mac20, mac21), bpf.ReasonToPort, bpf.GuardMark}, // the guests' own 10.64.0.1
	} {
		t.Run(name, func(t *testing.T) {
			w := w.of(t)
			in := c.p.Bytes()
			w.same("frame", w.sends(in, c.why, c.mark), in)
		})
	}
}

// of is the same world for a subtest.
func (w *world) of(t *testing.T) *world { v := *w; v.T = t; return &v }

func TestManagedPortsSayOnlyWhatIsTheirs(t *testing.T) {
	w := newSegments(t, port20)
	frame := func(p packet.Packet) []byte { return p.MACs(mac20, mac21).Bytes() }
	toAll := func(p packet.Packet) []byte { return p.MACs(mac20, all).Bytes() }
	lease := packet.UDP("0.0.0.0:68", "255.255.255.255:67").Payload(make([]byte, 244))
	ns := packet.Solicitation(mac20, link20, "fe80::99")
	for name, c := range map[string]struct {
		frame []byte
		why   bpf.Reason
	}{
		"another's MAC":               {packet.UDP(ip20+":1", ip21+":2").MACs(mac21, mac22).Bytes(), bpf.ReasonSpoofedMAC},
		"another's IPv4":              {frame(packet.UDP(ip21+":1", ip22+":2")), bpf.ReasonSpoofedIP},
		"an IPv4 nobody has":          {frame(packet.UDP("10.0.0.77:1", ip21+":2")), bpf.ReasonSpoofedIP},
		"another's link-local":        {frame(packet.UDP("["+link21+"]:1", "["+link22+"]:2")), bpf.ReasonSpoofedIP},
		"a global IPv6 not its own":   {frame(packet.UDP("[2001:db8::1]:1", "["+link21+"]:2")), bpf.ReasonSpoofedIP},
		"no IPv4 yet":                 {frame(packet.UDP("0.0.0.0:1", ip21+":2")), bpf.ReasonSpoofedIP},
		"no IPv6 yet":                 {frame(packet.UDP("[::]:1", "["+link21+"]:2")), bpf.ReasonSpoofedIP},
		"the probe's address":         {frame(packet.UDP("169.254.169.253:1", ip21+":2")), bpf.ReasonBadSource},
		"loopback":                    {frame(packet.UDP("127.0.0.1:1", ip21+":2")), bpf.ReasonBadSource},
		"a group as its source":       {frame(packet.UDP("[ff02::1]:1", "["+link21+"]:2")), bpf.ReasonBadSource},
		"a MAC nobody has":            {packet.UDP(ip20+":1", ip21+":2").MACs(mac20, "02:ca:00:00:00:99").Bytes(), bpf.ReasonUnknownMAC},
		"a MAC of another network":    {packet.UDP(ip20+":1", ip21+":2").MACs(mac20, mac30).Bytes(), bpf.ReasonUnknownMAC},
		"its own MAC":                 {packet.UDP(ip20+":1", ip21+":2").MACs(mac20, mac20).Bytes(), bpf.ReasonUnknownMAC},
		"the server, not for a lease": {packet.Ping(ip20, server, 1).MACs(mac20, gatewayMAC).Bytes(), bpf.ReasonToServer},
		"neither IP nor ARP":          {append(packet.Ethernet(packet.MAC(mac21), packet.MAC(mac20), 0x88cc), make([]byte, 46)...), bpf.ReasonNotIP},
		"a tag of VLAN 5":             {append(packet.Ethernet(packet.MAC(mac21), packet.MAC(mac20), 0x8100), make([]byte, 46)...), bpf.ReasonVLAN},
		"half a UDP header":           {frame(packet.UDP(ip20+":1", ip21+":2"))[:38], bpf.ReasonMalformed},
		"a DHCP server":               {toAll(packet.UDP(ip20+":67", "255.255.255.255:68").Payload(make([]byte, 244))), bpf.ReasonRogueDHCP},
		"a DHCP server, to one":       {frame(packet.UDP(ip20+":67", ip21+":68").Payload(make([]byte, 244))), bpf.ReasonRogueDHCP},
		"a DHCPv6 server":             {frame(packet.UDP("["+link20+"]:547", "["+link21+"]:546").Payload(make([]byte, 40))), bpf.ReasonRogueDHCP6},
		"a DHCPv6 server, behind others": {frame(packet.UDP("["+link20+"]:547", "["+link21+"]:546").Payload(make([]byte, 40)).
			Extensions(packet.Extension{Proto: 60, Body: make([]byte, 6)})), bpf.ReasonRogueDHCP6},
		"a lease in fragments": {toAll(lease.Payload(make([]byte, 248)).Fragment(true, 0)), bpf.ReasonFragment},
		"a router":             {toAll(packet.Router(packet.RouterAdvertisement, link20, "ff02::1")), bpf.ReasonRogueRA},
		"a router, behind others": {toAll(packet.Router(packet.RouterAdvertisement, link20, "ff02::1").
			Extensions(packet.Extension{Proto: 0, Body: make([]byte, 6)})), bpf.ReasonRogueRA},
		"a redirect":                   {frame(packet.Router(packet.Redirect, link20, link21)), bpf.ReasonSpoofedND},
		"ARP for another":              {packet.ARPReply(mac20, ip21, mac21, ip21), bpf.ReasonSpoofedARP},
		"ARP of another's MAC":         {packet.ARPReply(mac21, ip20, mac22, ip22), bpf.ReasonSpoofedMAC},
		"ARP as another":               {packet.ARP(mac20, ip21, ip22), bpf.ReasonSpoofedARP},
		"ARP as the server":            {packet.ARP(mac20, server, ip22), bpf.ReasonSpoofedARP},
		"ARP as nobody":                {packet.ARP(mac20, "10.0.0.77", ip22), bpf.ReasonSpoofedARP},
		"ARP for itself":               {packet.ARP(mac20, "0.0.0.0", ip20), bpf.ReasonARPIgnored},
		"ARP announcing itself":        {packet.ARP(mac20, ip20, ip20), bpf.ReasonARPIgnored},
		"ARP of another kind":          {withByte(packet.ARP(mac20, ip20, ip22), 21, 3), bpf.ReasonARPIgnored},
		"ARP cut short":                {packet.ARP(mac20, ip20, ip22)[:30], bpf.ReasonMalformed},
		"ND as another":                {toAll(packet.Solicitation(mac20, link21, link22)), bpf.ReasonSpoofedND},
		"ND of another's MAC":          {toAll(packet.Solicitation(mac21, link20, link22)), bpf.ReasonSpoofedND},
		"ND of another's MAC, second":  {toAll(ns.LinkAddress(packet.SourceLinkAddress, mac21)), bpf.ReasonSpoofedND},
		"ND for another":               {toAll(packet.Advertisement(mac20, link20, "ff02::1", link21, 0x20)), bpf.ReasonSpoofedND},
		"ND for itself":                {toAll(packet.Solicitation(mac20, "::", link20)), bpf.ReasonNDIgnored},
		"ND announcing itself":         {toAll(packet.Advertisement(mac20, link20, "ff02::1", link20, 0x20)), bpf.ReasonNDIgnored},
		"ND from afar":                 {toAll(ns.TTL(254)), bpf.ReasonSpoofedND},
		"ND in fragments":              {toAll(ns.Fragment(true, 0)), bpf.ReasonSpoofedND},
		"ND with half an option":       {toAll(ns.Payload(make([]byte, 20))), bpf.ReasonMalformed},
		"larger, and may be cut":       {frame(packet.UDP(ip20+":1", ip21+":2").Payload(make([]byte, 1473))), bpf.ReasonOversize},
		"TCP with an odd set of flags": {frame(packet.TCP(ip20+":1", ip21+":2").SYN().FIN()), bpf.ReasonTCPFlags},
	} {
		t.Run(name, func(t *testing.T) { w.of(t).dropped("vm_in", c.frame, c.why) })
	}
}

func withByte(b []byte, at int, v byte) []byte { b[at] = v; return b }

func TestUnmanagedAddressesAreTheGuestsOwn(t *testing.T) {
	w := newSegments(t, port30)
	for name, c := range map[string]struct {
		frame []byte
		why   bpf.Reason
		mark  uint32
	}{
		"any IPv4":        {packet.UDP("192.168.7.7:1", "192.168.7.8:2").MACs(mac30, mac31).Bytes(), bpf.ReasonToPort, bpf.GuardMark},
		"any IPv6":        {packet.UDP("[2001:db8::7]:1", "[2001:db8::8]:2").MACs(mac30, mac32).Bytes(), bpf.ReasonToTunnel, 0},
		"a DHCP server":   {packet.UDP("192.168.7.7:67", "192.168.7.8:68").MACs(mac30, mac31).Bytes(), bpf.ReasonToPort, bpf.GuardMark},
		"any protocol":    {append(packet.Ethernet(packet.MAC(mac32), packet.MAC(mac30), 0x88cc), make([]byte, 46)...), bpf.ReasonToTunnel, 0},
		"ARP to a MAC":    {packet.ARPReply(mac30, "192.168.7.7", mac31, "192.168.7.8"), bpf.ReasonToPort, bpf.GuardMark},
		"ND to a MAC":     {packet.Advertisement(mac30, "fe80::7", "fe80::8", "fe80::7", 0x60).MACs(mac30, mac31).Bytes(), bpf.ReasonToPort, bpf.GuardMark},
		"a router to one": {packet.Router(packet.RouterAdvertisement, "fe80::7", "fe80::8").MACs(mac30, mac31).Bytes(), bpf.ReasonToPort, bpf.GuardMark},
	} {
		t.Run(name, func(t *testing.T) { w := w.of(t); w.same("frame", w.sends(c.frame, c.why, c.mark), c.frame) })
	}
	for name, c := range map[string]struct {
		frame []byte
		why   bpf.Reason
	}{
		"another's MAC":         {packet.UDP("192.168.7.7:1", "192.168.7.8:2").MACs(mac31, mac32).Bytes(), bpf.ReasonSpoofedMAC},
		"ARP of another's MAC":  {withMAC(packet.ARP(mac30, "192.168.7.7", "192.168.7.8"), 22, mac31), bpf.ReasonSpoofedARP},
		"what is known another": {packet.UDP("[fe80::ca:ff:fe00:1f]:1", "[fe80::8]:2").MACs(mac30, mac32).Bytes(), bpf.ReasonSpoofedIP},
		"a MAC nobody has":      {append(packet.Ethernet(packet.MAC(mac20), packet.MAC(mac30), 0x88cc), make([]byte, 46)...), bpf.ReasonUnknownMAC},
		"a tag of VLAN 5":       {append(packet.Ethernet(packet.MAC(mac31), packet.MAC(mac30), 0x8100), make([]byte, 46)...), bpf.ReasonVLAN},
	} {
		t.Run(name, func(t *testing.T) { w.of(t).dropped("vm_in", c.frame, c.why) })
	}
	// What is asked of all: the list is empty, so nobody gets it, at a rate.
	for name, frame := range map[string][]byte{
		"ARP for an unknown":  packet.ARP(mac30, "192.168.7.7", "192.168.7.8"),
		"ARP announcing":      packet.ARP(mac30, "192.168.7.7", "192.168.7.7"),
		"ND for an unknown":   packet.Solicitation(mac30, "fe80::7", "fe80::8").MACs(mac30, "33:33:ff:00:00:08").Bytes(),
		"a search for a twin": packet.Solicitation(mac30, "::", "fe80::7").MACs(mac30, "33:33:ff:00:00:07").Bytes(),
		"VRRP":                packet.IP("192.168.7.7", "224.0.0.18", 112, make([]byte, 20)).MACs(mac30, "01:00:5e:00:00:12").Bytes(),
		"a DHCP client":       packet.UDP("0.0.0.0:68", "255.255.255.255:67").Payload(make([]byte, 244)).MACs(mac30, all).Bytes(),
	} {
		t.Run(name, func(t *testing.T) { w.of(t).dropped("vm_in", frame, bpf.ReasonFlooded) })
	}
}

func withMAC(b []byte, at int, hw string) []byte { copy(b[at:], packet.MAC(hw)); return b }

func TestKnownAddressesAreAnsweredFromTheTable(t *testing.T) {
	w := newSegments(t, port20)
	for name, c := range map[string]struct{ in, want []byte }{
		"a port here":      {packet.ARP(mac20, ip20, ip21), packet.ARPReply(mac21, ip21, mac20, ip20)},
		"at another host":  {packet.ARP(mac20, ip20, ip22), packet.ARPReply(mac22, ip22, mac20, ip20)},
		"the server":       {packet.ARP(mac20, ip20, server), packet.ARPReply(gatewayMAC, server, mac20, ip20)},
		"before it is had": {packet.ARP(mac20, "0.0.0.0", ip22), packet.ARPReply(mac22, ip22, mac20, "0.0.0.0")},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.of(t)
			w.same("answer", w.sends(c.in, bpf.ReasonARPAnswered, bpf.GuardMark), c.want)
		})
	}
	for name, c := range map[string]struct{ in, want packet.Packet }{
		"ND":        {packet.Solicitation(mac20, link20, link22), packet.Advertisement(mac22, link22, link20, link22, 0x60).MACs(mac22, mac20)},
		"duplicate": {packet.Solicitation(mac20, "::", link22), packet.Advertisement(mac22, link22, "ff02::1", link22, 0x20).MACs(mac22, "33:33:00:00:00:01")},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.of(t)
			in := c.in.MACs(mac20, "33:33:ff:00:00:16").Bytes()
			w.same("answer", w.sends(in, bpf.ReasonNDAnswered, bpf.GuardMark), c.want.Bytes())
		})
	}
	// The question whether a station is still there goes to the station.
	unicast := withMAC(packet.ARP(mac20, ip20, ip22), 0, mac22)
	w.same("probe", w.sends(unicast, bpf.ReasonToTunnel, 0), unicast)
}

func TestAPortMayHaveFurtherAddresses(t *testing.T) {
	w := newSegments(t, port20)
	p := packet.UDP("10.0.0.200:1", ip21+":2").MACs(mac20, mac21).Bytes()
	w.dropped("vm_in", p, bpf.ReasonSpoofedIP)
	w.put("addr_ok", bpf.AddrKey{Port: port20, Ip: ip16("10.0.0.200")}, uint32(0))
	w.sends(p, bpf.ReasonToPort, bpf.GuardMark)
	// Two may have it, so the table names nobody: an announcement tells all.
	w.dropped("vm_in", packet.ARP(mac20, "10.0.0.200", "10.0.0.200"), bpf.ReasonFlooded)
}

func TestQuestionsGoToTheAgent(t *testing.T) {
	w := newSegments(t, port20)
	ring, err := ringbuf.NewReader(w.maps["punts"])
	must(t, err)
	defer ring.Close()
	drain(t, ring)
	link := "[" + link20 + "]"
	for name, frame := range map[string][]byte{
		"DHCP":                    packet.UDP("0.0.0.0:68", "255.255.255.255:67").Payload(make([]byte, 244)).MACs(mac20, all).Bytes(),
		"renewal":                 packet.UDP(ip20+":68", server+":67").Payload(make([]byte, 301)).MACs(mac20, gatewayMAC).Bytes(),
		"DHCPv6":                  packet.UDP(link+":546", "[ff02::1:2]:547").Payload(make([]byte, 60)).MACs(mac20, "33:33:00:01:00:02").Bytes(),
		"router":                  packet.Router(packet.RouterSolicitation, link20, "ff02::2").MACs(mac20, "33:33:00:00:00:02").Bytes(),
		"router, without address": packet.Router(packet.RouterSolicitation, "::", "ff02::2").MACs(mac20, "33:33:00:00:00:02").Bytes(),
	} {
		t.Run(name, func(t *testing.T) {
			w := w.of(t)
			w.dropped("vm_in", frame, bpf.ReasonPunted)
			record, err := ring.Read()
			must(t, err)
			port, length := binary.NativeEndian.Uint32(record.RawSample[8:]), binary.NativeEndian.Uint32(record.RawSample[12:])
			if port != port20 || !bytes.Equal(record.RawSample[16:16+length], frame) {
				t.Errorf("port %d, frame %x, want %x", port, record.RawSample[16:16+length], frame)
			}
		})
	}
	w.dropped("vm_in", packet.UDP("0.0.0.0:68", "255.255.255.255:67").Payload(make([]byte, 1000)).MACs(mac20, all).Bytes(), bpf.ReasonOversize)
}

func drain(t *testing.T, ring *ringbuf.Reader) {
	t.Helper()
	ring.SetDeadline(time.Now())
	for {
		if _, err := ring.Read(); err != nil {
			if !errors.Is(err, ringbuf.ErrFlushed) {
				ring.SetDeadline(time.Now().Add(5 * time.Second))
				return
			}
		}
	}
}

func TestQuestionsKeepTheirPace(t *testing.T) {
	w := newSegments(t, port20)
	frame := packet.UDP("0.0.0.0:68", "255.255.255.255:67").Payload(make([]byte, 244)).MACs(mac20, all).Bytes()
	before := w.reasons()
	for range 100 {
		w.tc("vm_in", frame, skb{})
	}
	after := w.reasons()
	asked, refused := after[bpf.ReasonPunted]-before[bpf.ReasonPunted], after[bpf.ReasonPuntRate]-before[bpf.ReasonPuntRate]
	if asked < 20 || asked > 40 || asked+refused != 100 { // 20 at once, then 20 a second
		t.Errorf("%d asked, %d refused", asked, refused)
	}
}

// Each is told from whom it sent to, with the MTU of the network.
func TestTooLargePacketsAreAnswered(t *testing.T) {
	w := newSegments(t, port20)
	v4 := packet.UDP(ip20+":1", ip22+":2").Payload(make([]byte, 1473)).DF().MACs(mac20, mac22)
	out := w.sends(v4.Bytes(), bpf.ReasonTooBigAnswered, bpf.GuardMark)
	w.same("IPv4", out, packet.ICMPError(ip22, ip20, 3, 4, 1500, v4.IP()[:68]).MACs(mac22, mac20).Bytes())

	v6 := packet.UDP("["+link20+"]:1", "["+link22+"]:2").Payload(make([]byte, 1453)).MACs(mac20, mac22)
	out = w.sends(v6.Bytes(), bpf.ReasonTooBigAnswered, bpf.GuardMark)
	w.same("IPv6", out, packet.ICMPError(link22, link20, 2, 0, 1500, v6.IP()[:128]).MACs(mac22, mac20).Bytes())

	w.sends(packet.UDP(ip20+":1", ip22+":2").Payload(make([]byte, 1472)).DF().MACs(mac20, mac22).Bytes(), bpf.ReasonToTunnel, 0)
	w.dropped("vm_in", packet.ICMPError(ip20, ip22, 3, 1, 0, make([]byte, 1600)).DF().MACs(mac20, mac22).Bytes(), bpf.ReasonOversize)
	w.dropped("vm_in", packet.UDP(ip20+":1", "239.1.1.1:2").Payload(make([]byte, 1473)).DF().MACs(mac20, "01:00:5e:01:01:01").Bytes(), bpf.ReasonOversize)
}

func TestBroadcastKeepsItsPace(t *testing.T) {
	w := newSegments(t, port20)
	w.put("bum", managed, &bpf.Bum{Rate: 50})
	frame := packet.UDP(ip20+":1", "10.0.0.255:2").MACs(mac20, all).Bytes()
	before := w.reasons()
	for range 300 {
		w.tc("vm_in", frame, skb{})
	}
	after := w.reasons()
	sent, refused := after[bpf.ReasonFlooded]-before[bpf.ReasonFlooded], after[bpf.ReasonBumRate]-before[bpf.ReasonBumRate]
	if sent < 50 || sent > 100 || sent+refused != 300 {
		t.Errorf("%d sent, %d refused", sent, refused)
	}
	w.put("ifindex_port", uint32(loopback), port21)
	w.dropped("vm_in", packet.UDP(ip21+":1", "10.0.0.255:2").MACs(mac21, all).Bytes(), bpf.ReasonFlooded)
}

// arrived is what the kernel says of a frame from a host.
func arrived(vni uint32, sender string) skb { return skb{Cb: [5]uint32{vni, be32(sender)}} }

func TestFramesFromOtherHosts(t *testing.T) {
	w := newSegments(t, port20)
	in := packet.UDP(ip22+":1", ip20+":2").MACs(mac22, mac20)
	w.expect(moved{bpf.ReasonToPort: 1}, func() {
		action, out, after := w.tc("overlay_in", in.Bytes(), arrived(managed, endpoint2))
		if action != tcRedirect || after.Mark != bpf.GuardMark {
			t.Fatalf("action %d, mark %#x", action, after.Mark)
		}
		w.same("frame", out, in.Bytes())
	})
	other := packet.UDP("192.168.7.7:1", "192.168.7.8:2").MACs(mac32, mac30)
	for name, c := range map[string]struct {
		frame []byte
		from  skb
		why   bpf.Reason
	}{
		"of the load balancer":        {in.Bytes(), arrived(bpf.LBVNI, endpoint2), bpf.ReasonOverlayLB},
		"from a stranger":             {in.Bytes(), arrived(managed, "10.64.0.99"), bpf.ReasonUnknownEndpoint},
		"of another network":          {in.Bytes(), arrived(unmanaged, endpoint2), bpf.ReasonWrongHost},
		"of no network":               {in.Bytes(), arrived(9, endpoint2), bpf.ReasonWrongHost},
		"from a MAC that is here":     {in.MACs(mac21, mac20).Bytes(), arrived(managed, endpoint2), bpf.ReasonWrongHost},
		"from a MAC nobody has":       {in.MACs("02:ca:00:00:00:99", mac20).Bytes(), arrived(managed, endpoint2), bpf.ReasonWrongHost},
		"to a MAC that is elsewhere":  {in.MACs(mac22, mac22).Bytes(), arrived(managed, endpoint2), bpf.ReasonUnknownMAC},
		"to a MAC of another network": {in.MACs(mac22, mac30).Bytes(), arrived(managed, endpoint2), bpf.ReasonUnknownMAC},
		"into the other network":      {other.MACs(mac32, mac20).Bytes(), arrived(unmanaged, endpoint2), bpf.ReasonUnknownMAC},
		"from the probe":              {packet.UDP("169.254.169.253:1", ip20+":2").MACs(mac22, mac20).Bytes(), arrived(managed, endpoint2), bpf.ReasonBadSource},
		"malformed":                   {in.Bytes()[:38], arrived(managed, endpoint2), bpf.ReasonMalformed},
		"to all, with nobody here":    {in.MACs(mac22, all).Bytes(), arrived(managed, endpoint2), bpf.ReasonFlooded},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.of(t)
			w.expect(moved{c.why: 1}, func() {
				if action, _, _ := w.tc("overlay_in", c.frame, c.from); action != tcDrop {
					t.Fatalf("action %d", action)
				}
			})
		})
	}
	// The known endpoint of another host of the zone cannot speak for host 2.
	w.put("vteps", be32("10.64.0.7"), &bpf.Vtep{Host: 7, Pmtu: 1600})
	w.expect(moved{bpf.ReasonWrongHost: 1}, func() {
		w.tc("overlay_in", in.Bytes(), arrived(managed, "10.64.0.7"))
	})
}

// With a firewall at a private port, what belongs to a flow follows it: the rest
// of a datagram in fragments, and errors about it.
func TestFirewallOfAPrivatePort(t *testing.T) {
	w := newSegments(t, port20)
	w.edit(port20, func(pc *bpf.PortCfg) { pc.Flags |= bpf.PortFirewall | bpf.PortEgressOpen })
	w.edit(port21, func(pc *bpf.PortCfg) { pc.Flags |= bpf.PortFirewall; pc.PolicyIn = 901 })
	w.put("ct_est", port20, w.flows[port5])
	w.put("ct_est", port21, w.flows[port6])
	w.put("ct_new", port20, w.fresh[port5])
	w.put("ct_new", port21, w.fresh[port6])
	out := packet.UDP(ip20+":1", ip22+":2").Payload(make([]byte, 64)).MACs(mac20, mac22)
	w.dropped("vm_in", packet.IP(ip20, ip22, 17, make([]byte, 8)).Fragment(false, 9).MACs(mac20, mac22).Bytes(), bpf.ReasonFragmentEarly)
	for _, part := range out.ID(7).Split(32) {
		w.sends(part.Bytes(), bpf.ReasonToTunnel, 0)
	}
	// Nobody's rule admits this one into port 21.
	w.dropped("vm_in", packet.UDP(ip20+":1", ip21+":2").MACs(mac20, mac21).Bytes(), bpf.ReasonPolicyIn)
	// An answer needs no rule, an error about the flow neither; one about none is dropped.
	back := packet.UDP(ip22+":2", ip20+":1").MACs(mac22, mac20)
	for name, c := range map[string]struct {
		p   packet.Packet
		why bpf.Reason
	}{
		"answer":         {back, bpf.ReasonToPort},
		"error about it": {packet.ICMPError(ip22, ip20, 3, 3, 0, out.IP()[:28]).MACs(mac22, mac20), bpf.ReasonToPort},
		"error about no flow": {packet.ICMPError(ip22, ip20, 3, 3, 0, packet.UDP(ip20+":9", ip22+":9").IP()).MACs(mac22, mac20),
			bpf.ReasonICMPUnmatched},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.of(t)
			w.expect(moved{c.why: 1}, func() { w.tc("overlay_in", c.p.Bytes(), arrived(managed, endpoint2)) })
		})
	}
}
