// SPDX-License-Identifier: Apache-2.0

//go:build lab

package speaker

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"cairn/dataplane/announce"
)

// BenchmarkRouter measures, for one VIP at a time, from the agent's write of the
// file to the change of the router's kernel table, as that kernel reports it.
// Run it with -benchtime 200x; beside the mean it prints median and maximum.
func BenchmarkRouter(b *testing.B) {
	for _, router := range []string{"bird", "frr"} {
		b.Run(router, func(b *testing.B) {
			r := newRig(b, router)
			r.startSpeaker("--bfd")
			r.lookUp(true)
			events := make(chan netlink.RouteUpdate, 64)
			done := make(chan struct{})
			defer close(done)
			r.router.do(b, func() error {
				ns, err := netns.Get()
				if err != nil {
					return err
				}
				defer ns.Close()
				return netlink.RouteSubscribeAt(ns, events, done)
			})
			b.ResetTimer()
			var announced, withdrawn []time.Duration
			for range b.N {
				begin := time.Now()
				r.want(labVIP)
				await(b, events, unix.RTM_NEWROUTE)
				announced = append(announced, time.Since(begin))
				begin = time.Now()
				r.want()
				await(b, events, unix.RTM_DELROUTE)
				withdrawn = append(withdrawn, time.Since(begin))
			}
			report(b, announced, "announce")
			report(b, withdrawn, "withdraw")
		})
	}
}

func await(b *testing.B, events <-chan netlink.RouteUpdate, kind uint16) {
	b.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case e := <-events:
			if e.Type == kind && e.Dst != nil && e.Dst.String() == labVIP.Prefix.String() {
				return
			}
		case <-deadline:
			b.Fatal("no change of the router's table within 20 s")
		}
	}
}

func report(b *testing.B, times []time.Duration, name string) {
	slices.Sort(times)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(times[len(times)/2]), name+"-p50-ms")
	b.ReportMetric(ms(times[len(times)-1]), name+"-max-ms")
}

// BenchmarkSelfTest is the price of one test each: what a round of Budget
// prefixes costs is a hundred times that.
func BenchmarkSelfTest(b *testing.B) {
	r := newRig(b, "none")
	r.addPort(9)
	pins := NewPins(r.dataplane.Pins, r.dataplane.Uplink)
	for _, test := range []struct {
		name string
		do   func() error
	}{
		{"link", pins.Link},
		{"probe", func() error { return pins.Probe(vip, web) }},
		{"port", func() error { return pins.Port(9) }},
	} {
		b.Run(test.name, func(b *testing.B) {
			r.host.do(b, func() error {
				for range b.N {
					if err := test.do(); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	// A round over many VIPs, all of them the one that there is.
	b.Run("round of 1000 VIPs", func(b *testing.B) {
		var many []announce.Wanted
		for i := range 1000 {
			w := labVIP
			w.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 32)
			many = append(many, w)
		}
		s := New(Config{File: r.file, State: r.folder, Log: quietLog()}, oneVIP{pins}, &fakeRouter{})
		s.source.set.Wanted = many
		r.host.do(b, func() error {
			s.round(everything)
			b.ResetTimer()
			for range b.N {
				s.round(everything)
			}
			return nil
		})
	})
}

// oneVIP probes the rig's VIP, whatever it is asked.
type oneVIP struct{ *Pins }

func (o oneVIP) Probe(_ netip.Addr, s announce.Service) error { return o.Pins.Probe(vip, s) }
