// SPDX-License-Identifier: Apache-2.0

package port

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
)

// configured is a port's record, and whether its generation is another than
// before it had any option.
func configured(t *testing.T, item wire.Port) (cfg bpf.PortCfg, raised bool) {
	t.Helper()
	plain := wire.Port{ID: item.ID, MAC: item.MAC, Network: item.Network}
	start, end := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.9")
	im := maps.NewImage()
	var got [2]bpf.PortCfg
	for i, p := range []wire.Port{plain, item} {
		items := []wire.Item{p}
		if p.Network != 0 {
			items = append(items, wire.Network{VNI: p.Network, Lease: &wire.Lease{Server: end, Bits: 24, Start: start, End: end}})
		}
		desired := tableOf(t, items...)
		image(t, desired.View(), im)
		value, _ := im.Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(item.ID)})
		got[i] = maps.As[bpf.PortCfg](value)
		desired.Close()
	}
	return got[1], got[1].Generation != got[0].Generation
}

// A port without a policy has neither direction open.
func TestOptions(t *testing.T) {
	for name, c := range map[string]struct {
		port        wire.Port
		flags       uint32
		established uint32
		raised      bool
	}{
		"none":                   {port: wire.Port{}},
		"mail":                   {port: wire.Port{Flags: wire.PortSMTP}, flags: bpf.PortSMTPOpen, raised: true},
		"a firewall":             {port: wire.Port{Network: 12, Flags: wire.PortFirewall}, flags: bpf.PortFirewall, raised: true},
		"a public port has it":   {port: wire.Port{Flags: wire.PortFirewall}},
		"logged flows":           {port: wire.Port{Flags: wire.PortFlowLog}, flags: bpf.PortFlowLog},
		"both":                   {port: wire.Port{Network: 12, Flags: wire.PortSMTP | wire.PortFirewall}, flags: bpf.PortSMTPOpen | bpf.PortFirewall, raised: true},
		"an idle time":           {port: wire.Port{Established: 90 * time.Second}, established: 90},
		"no less than a minute":  {port: wire.Port{Established: time.Second}, established: 60},
		"no more than five days": {port: wire.Port{Established: 1000 * time.Hour}, established: 5 * 24 * 3600},
		"five days":              {port: wire.Port{Established: 5 * 24 * time.Hour}, established: 5 * 24 * 3600},
	} {
		t.Run(name, func(t *testing.T) {
			c.port.ID, c.port.MAC = 1, [6]byte{2}
			got, raised := configured(t, c.port)
			if got.Flags != c.flags || got.Established != c.established || raised != c.raised {
				t.Errorf("flags %d established %d, generation raised %t", got.Flags, got.Established, raised)
			}
		})
	}
}

// The quota is wanted with the device, since the tables are the device's; another
// one is a step of its own.
func TestQuota(t *testing.T) {
	for _, c := range []struct{ flows, want uint32 }{{0, bpf.CtQuota}, {1, 1}, {65536, 65536}, {1 << 30, maxQuota}} {
		desired := tableOf(t, wire.Port{ID: 1, MAC: [6]byte{2}, Flows: c.flows})
		defer desired.Close()
		for _, there := range []bool{true, false} {
			facts := Facts{}
			if there {
				facts.Devices = map[uint32]uint32{1: 100}
			}
			u, err := NewBuilder(desired.View(), facts, maps.NewImage(), nil).Unit("port/1")
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, e := range u.Want {
				if e.Map == maps.Quota {
					got[e.Key] = e.Value
				}
			}
			switch want, ok := got[maps.U32(1)]; {
			case ok != there:
				t.Errorf("%d flows: a quota is wanted: %t, the device is there: %t", c.flows, ok, there)
			case there && want != maps.U32(c.want):
				t.Errorf("%d flows: quota %v, want %d", c.flows, []byte(want), c.want)
			}
		}
	}
}

// What may come from an instance is the programs' matter; what goes to it is the
// device's, and wanted with it.
func TestBandwidth(t *testing.T) {
	const from, to = 1_000_000, 2_000_000
	desired := tableOf(t, wire.Port{ID: 1, MAC: [6]byte{2}, RateFrom: from, RateTo: to})
	defer desired.Close()
	for _, there := range []bool{true, false} {
		facts := Facts{}
		if there {
			facts.Devices = map[uint32]uint32{1: 100}
		}
		u, err := NewBuilder(desired.View(), facts, maps.NewImage(), nil).Unit("port/1")
		if err != nil {
			t.Fatal(err)
		}
		limited := false
		for _, e := range u.Want {
			switch e.Map {
			case maps.Shaper:
				limited = e == maps.Make(maps.Shaper, uint32(1), maps.Limit{Device: 100, Rate: to})
			case maps.PortCfg:
				if got := maps.As[bpf.PortCfg](e.Value).RateFrom; got != from {
					t.Errorf("%d B/s may come from it, want %d", got, from)
				}
			}
		}
		if limited != there {
			t.Errorf("a limit towards it is wanted: %t, the device is there: %t", limited, there)
		}
	}
}

// What a port has beside its addresses: single ones go among these, ranges into
// maps of their own, and what would hold IPv4 among IPv6 nowhere.
func TestFurtherAddresses(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	start, end := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.9")
	network := wire.Network{VNI: 7, Lease: &wire.Lease{Server: end, Bits: 24, Start: start, End: end}}
	ranges := prefixes("198.51.100.7/32", "203.0.113.65/26", "2001:db8:1::/96", "2001:db8::7/128", "::/0", "::ffff:0:0/97")
	for _, c := range []struct {
		port wire.Port
		want []string
	}{
		{wire.Port{ID: 1, Allowed: ranges}, []string{
			"addr_ok 1/198.51.100.7 = 0", "addr_ok 1/2001:db8::7 = 0", "addr_allow 1/203.0.113.64/26 = 0", "addr_allow 1/2001:db8:1::/96 = 0",
		}},
		{wire.Port{ID: 1, Active: ranges}, []string{
			"addr_port 198.51.100.7 = 1", "addr_port 2001:db8::7 = 1", "addr_net 203.0.113.64/26 = 1", "addr_net 2001:db8:1::/96 = 1",
		}},
		{wire.Port{ID: 1, Network: 7, Allowed: prefixes("10.1.0.0/16", "10.2.0.1/32"), Active: ranges}, []string{
			"addr_ok 1/10.2.0.1 = 0", "addr_allow 1/10.1.0.0/16 = 0",
		}},
	} {
		desired := tableOf(t, network, c.port)
		defer desired.Close()
		u, err := NewBuilder(desired.View(), Facts{}, maps.NewImage(), nil).Unit("port/1")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range u.Want {
			if e.Map != maps.PortCfg && e.Map != maps.Fdb {
				got = append(got, e.String())
			}
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v wants\n%q, want\n%q", c.port, got, c.want)
		}
	}
}

// A public port takes no more than the uplink does.
func TestMTU(t *testing.T) {
	for _, c := range []struct{ port, uplink, want uint32 }{{1500, 1600, 1500}, {9000, 1600, 1600}, {0, 1600, 1600}, {1500, 0, 1500}, {0, 0, 0}} {
		desired := tableOf(t, wire.Port{ID: 1, MAC: [6]byte{2}, MTU: c.port})
		defer desired.Close()
		u, err := NewBuilder(desired.View(), Facts{Underlay: c.uplink}, maps.NewImage(), nil).Unit("port/1")
		if err != nil {
			t.Fatal(err)
		}
		got := maps.As[bpf.PortCfg](u.Want[len(u.Want)-1].Value)
		if got.Mtu != c.want {
			t.Errorf("a port of %d behind an uplink of %d: %d, want %d", c.port, c.uplink, got.Mtu, c.want)
		}
	}
}
