// SPDX-License-Identifier: Apache-2.0

//go:build program

package agent

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/cloud/wire"
	"cairn/dataplane/debug"
	"cairn/dataplane/maps"
	"cairn/dataplane/trace"
)

func tuple(t *testing.T, words string) debug.Tuple {
	t.Helper()
	got, err := debug.ParseTuple(strings.Fields(words))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// in puts a frame through the live uplink_in.
func (b *bench) in(p packet.Packet) {
	b.t.Helper()
	uplink, err := netlink.LinkByName("up0")
	if err != nil {
		b.fatal(err)
	}
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(b.cfg.Pins, "v1", "progs", "uplink_in"), nil)
	if err != nil {
		b.fatal(err)
	}
	defer prog.Close()
	frame := p.MACs("02:00:00:00:00:01", uplink.Attrs().HardwareAddr.String()).Bytes()
	if _, err := prog.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}); err != nil {
		b.fatal(err)
	}
}

// What an engineer is told agrees with what the programs do, and asking changes
// nothing.
func TestTraceAndWhyOfAHost(t *testing.T) {
	onBench(t, map[string]uint32{"slots": 1024}, func(b *bench) {
		b.mustApply(small())
		a := &Agent{table: b.table, host: b.host, loop: b.loop, tracer: trace.New(b.host)}
		defer a.tracer.Close()
		count := func() int { return a.countFlows(1) }
		for _, c := range []struct {
			words           string
			out             bool
			verdict, reason string
			rule            uint32
			steps           []string
		}{
			{"tcp 192.0.2.1:1000 198.51.100.1:80", false, "delivered", "to_port", 1,
				[]string{"exit", "address", "port", "flow", "policy", "opens", "exit"}},
			{"tcp 192.0.2.1:1000 198.51.100.1:81", false, "dropped", "policy_in", 0,
				[]string{"exit", "address", "port", "flow", "policy", "exit"}},
			{"udp 198.51.100.1:1 9.9.9.9:53", true, "sent", "to_uplink", 0, []string{"port", "owner", "prefix", "flow", "opens", "address", "exit"}},
			{"udp 198.51.100.9:1 9.9.9.9:53", true, "dropped", "spoofed_ip", 0, []string{"port", "owner", "exit"}},
		} {
			flows := count()
			got, err := a.Trace(debug.TraceRequest{Port: 1, Out: c.out, Tuple: tuple(t, c.words), Flags: packet.SYN})
			if err != nil {
				t.Fatalf("%s: %v", c.words, err)
			}
			var steps []string
			for _, s := range got.Steps {
				steps = append(steps, s.Stage)
			}
			if got.Verdict != c.verdict || got.Reason != c.reason || got.Rule != c.rule || !slices.Equal(steps, c.steps) || got.TookNS <= 0 {
				t.Errorf("%s: %s (%s) by rule %d, steps %q", c.words, got.Verdict, got.Reason, got.Rule, steps)
			}
			t.Logf("%s: %d ns", c.words, got.TookNS)
			if n := count(); n != flows {
				t.Errorf("%s: %d flows, before the trace %d", c.words, n, flows)
			}
		}
		balanced, err := a.Trace(debug.TraceRequest{Port: 1, Tuple: tuple(t, "tcp 192.0.2.1:1000 203.0.113.1:81"), Flags: packet.SYN})
		if err != nil || balanced.Steps[0].Program != "uplink" || balanced.Steps[0].Stage != "service" {
			t.Errorf("to a VIP: %+v, %v", balanced, err)
		}
		_, err = a.Trace(debug.TraceRequest{Port: 7, Tuple: tuple(t, "tcp 192.0.2.1:1000 198.51.100.1:80")})
		if err == nil || !strings.Contains(err.Error(), "--port 7") {
			t.Errorf("a port that is not here: %v", err)
		}

		ask := func(words string) debug.Why {
			y, err := a.Why(debug.WhyRequest{Tuple: tuple(t, words)})
			if err != nil {
				t.Fatal(err)
			}
			return y
		}
		if y := ask("tcp 192.0.2.1:1000 198.51.100.1:80"); y.Flow != nil || !y.Admitted || y.Rule.ID != 1 || y.Programmed == 0 || y.Generation == 0 {
			t.Errorf("before the flow: %+v", y)
		}
		b.in(packet.TCP("192.0.2.1:1000", "198.51.100.1:80").SYN())
		for _, words := range []string{"tcp 192.0.2.1:1000 198.51.100.1:80", "tcp 198.51.100.1:80 192.0.2.1:1000"} {
			y := ask(words)
			if f := y.Flow; f == nil || f.State != "new" || f.Confirmed || f.Rule.ID != 1 || f.Packets != 1 || f.Begun != "in" || !f.Expires.After(f.Seen) {
				t.Errorf("%s: %+v, %+v", words, y, f)
			}
		}
		if y := ask("tcp 192.0.2.1:1000 198.51.100.1:81"); y.Flow != nil || y.Admitted || y.Reason != "policy_in" ||
			len(y.Nearest) != 2 || y.Nearest[0].Rule.ID != 1 || y.Nearest[0].Differs[0] != "port: the rule has 80, the packet 81" {
			t.Errorf("refused: %+v", y)
		}
		// Host 2's port is of the group that rule 2 names.
		if y := ask("tcp 198.51.100.2:5 198.51.100.1:22"); !y.Admitted || y.Rule.ID != 2 {
			t.Errorf("a member: %+v", y)
		}
		if _, err := a.Why(debug.WhyRequest{Tuple: tuple(t, "tcp 192.0.2.1:1 192.0.2.2:2")}); err == nil || !strings.Contains(err.Error(), "--port") {
			t.Errorf("nobody's packet: %v", err)
		}
	})
}

func TestTraceInAPrivateNetwork(t *testing.T) {
	onBench(t, map[string]uint32{"slots": 1024}, func(b *bench) {
		b.mustApply([]wire.Item{aHost(1), aHost(2), aNetwork(1, 2), aPrivatePort(1), aNeighbour(1, 1), aNeighbour(32, 2)})
		a := &Agent{table: b.table, host: b.host, loop: b.loop, tracer: trace.New(b.host)}
		defer a.tracer.Close()
		for _, c := range []struct {
			words                    string
			out                      bool
			program, verdict, reason string
			hop                      string
		}{
			{"udp 10.0.0.1:1 10.0.0.32:2", true, "vm_in", "sent", "to_tunnel", "host 10.64.0.2 by the overlay"},
			{"udp 10.0.0.32:2 10.0.0.1:1", false, "overlay_in", "delivered", "to_port", "the device of port 1"},
			{"udp 10.0.0.1:1 255.255.255.255:2", true, "vm_in", "sent", "flooded", ""},
			{"udp 10.0.0.1:1 10.0.0.254:2", true, "vm_in", "dropped", "to_server", ""},
			{"udp 10.0.0.32:1 10.0.0.32:2", true, "vm_in", "dropped", "spoofed_ip", ""},
		} {
			got, err := a.Trace(debug.TraceRequest{Port: 1, Out: c.out, Tuple: tuple(t, c.words)})
			if err != nil {
				t.Errorf("%s: %v", c.words, err)
				continue
			}
			if got.Verdict != c.verdict || got.Reason != c.reason || got.NextHop != c.hop || got.Steps[0].Program != c.program {
				t.Errorf("%s: %+v", c.words, got)
			}
		}
		_, err := a.Trace(debug.TraceRequest{Port: 1, Out: true, Tuple: tuple(t, "udp 10.0.0.1:1 10.0.0.77:2")})
		if err == nil || !strings.Contains(err.Error(), "nobody in network 7") {
			t.Errorf("to nobody: %v", err)
		}
	})
}

// A damaged map is named entry by entry and is as it was after a round over
// everything.
func TestDamageIsNamedAndMended(t *testing.T) {
	onBench(t, map[string]uint32{"slots": 1024}, func(b *bench) {
		b.mustApply(small())
		stray := netip.MustParseAddr("198.51.100.250")
		var cfg bpf.PortCfg
		for _, err := range []error{
			b.host.Maps.AddrPort.Delete(bpf.IP16(address(1))),
			b.host.Maps.AddrPort.Put(bpf.IP16(stray), uint32(77)),
			b.host.Maps.PortCfg.Lookup(uint32(1), &cfg),
		} {
			if err != nil {
				b.fatal(err)
			}
		}
		cfg.Flags ^= bpf.PortEgressOpen
		if err := b.host.Maps.PortCfg.Put(uint32(1), &cfg); err != nil {
			b.fatal(err)
		}
		found, err := maps.Load(b.kernel)
		if err != nil {
			b.fatal(err)
		}
		diff := b.loop.Compare(b.table.View(), found, b.facts)
		named := strings.Join(append(diff.Missing, diff.Foreign...), "\n")
		for _, want := range []string{address(1).String(), stray.String(), "port_cfg"} {
			if !strings.Contains(named, want) {
				t.Errorf("%s is not named:\n%s", want, named)
			}
		}
		if lines, err := b.loop.Audit(); err != nil || len(lines) != 3 {
			t.Errorf("audit %q, %v", lines, err)
		}
		b.loop.Anew()
		if out := b.round(); len(out.Faults) > 0 {
			t.Error(fmt.Sprint(out.Faults))
		}
		b.compare()
	})
}
