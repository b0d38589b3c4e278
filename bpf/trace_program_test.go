// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"

	"github.com/cilium/ebpf"
)

// twin is the programs that change nothing, over the maps of the live ones.
type twin struct {
	progs map[string]*ebpf.Program
	steps map[string]*ebpf.Map // by program
}

var loadTwin = sync.OnceValues(func() (*twin, error) {
	live, err := load()
	if err != nil {
		return nil, err
	}
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(specs.Uplink.Variables["note_in_cb"].Set(true), specs.Overlay.Variables["tunnel_in_cb"].Set(true)); err != nil {
		return nil, err
	}
	tw := &twin{map[string]*ebpf.Program{}, map[string]*ebpf.Map{}}
	for _, spec := range []*ebpf.CollectionSpec{specs.Uplink, specs.Port, specs.Overlay} {
		if err := spec.Variables["trace"].Set(true); err != nil {
			return nil, err
		}
		shared := maps.Clone(live.maps)
		for _, own := range bpf.OwnMaps {
			delete(shared, own)
		}
		for name, m := range spec.Maps {
			if shared[name] != nil {
				m.MaxEntries = shared[name].MaxEntries()
			}
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
		if err != nil {
			return nil, err
		}
		for name, p := range coll.Programs {
			tw.progs[name], tw.steps[name] = p, coll.Maps["trace_steps"]
		}
	}
	return tw, nil
})

// traced runs a frame through a twin and lists its steps, one line each.
func (w *world) traced(prog string, frame []byte, ctx any) (action uint32, steps string) {
	w.Helper()
	tw, err := loadTwin()
	must(w.T, err)
	must(w.T, tw.steps[prog].Put(uint32(0), make([]byte, tw.steps[prog].ValueSize())))
	action, err = tw.progs[prog].Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: ctx})
	must(w.T, err)
	var log bpf.TraceLog
	must(w.T, tw.steps[prog].Lookup(uint32(0), &log))
	var lines []string
	for _, s := range log.Step[:log.Steps] {
		var line strings.Builder
		line.WriteString(bpf.Stage(s.Stage).String())
		for _, v := range []struct {
			name  string
			value uint32
		}{{"port", s.Port}, {"rule", s.Rule}} {
			if v.value != 0 {
				line.WriteString(fmt.Sprintf(" %s %d", v.name, v.value))
			}
		}
		if s.Reason != 0 {
			line.WriteString(" " + bpf.Reason(s.Reason).String())
		}
		lines = append(lines, line.String())
	}
	return action, strings.Join(lines, "\n")
}

// dump all that the maps hold, counters included, one line an entry.
func (w *world) dump() []string {
	w.Helper()
	var lines []string
	entries := func(name string, m *ebpf.Map) {
		var key, value []byte
		var perCPU [][]byte
		into := any(&value)
		if m.Type() == ebpf.PerCPUArray || m.Type() == ebpf.PerCPUHash {
			into = &perCPU
		}
		for it := m.Iterate(); it.Next(&key, into); {
			var line strings.Builder
			line.WriteString(name + " " + hex.EncodeToString(key) + " " + hex.EncodeToString(value))
			for _, v := range perCPU {
				line.WriteString(" " + hex.EncodeToString(v))
			}
			lines = append(lines, line.String())
		}
	}
	for name, m := range w.maps {
		if t := m.Type(); t != ebpf.ArrayOfMaps && t != ebpf.RingBuf {
			entries(name, m)
		}
	}
	for port := range w.flows {
		entries(fmt.Sprint("ct_est of ", port), w.flows[port])
		entries(fmt.Sprint("ct_new of ", port), w.fresh[port])
	}
	slices.Sort(lines)
	return lines
}

func TestTwinsSayWhatTheProgramsWouldDo(t *testing.T) {
	w := newSegments(t, port5)
	w.admit(web)
	w.logFlows(port5)
	w.put("watch", uint32(0), &bpf.Watch{DropsUntil: 1 << 62, FramesUntil: 1 << 62, FramesPort: port5, FramesBytes: 262})
	live := packet.TCP("192.0.2.9:7", addr5+":8080")
	w.establish(live)
	frame := func(p packet.Packet) []byte { return fromRouter(p).Bytes() }
	vm := func(p packet.Packet) []byte { return fromVM(p).Bytes() }
	for _, c := range []struct {
		name, prog string
		frame      []byte
		ctx        skb
		want       string
	}{
		{"a first packet", "uplink_in", frame(packet.TCP(client, addr5+":8080").SYN()), skb{},
			"address port 5\nport port 5\nflow port 5\npolicy rule 42\nopens port 5 rule 42\nexit port 5 to_port"},
		{"through a service", "uplink_in", frame(packet.TCP(client, addr5+":8080").SYN()), noted(tcpIndex, backend12, 1),
			"address port 5\nport port 5\nflow port 5\npolicy rule 42\nopens port 5 rule 42\nexit port 5 to_port"},
		{"no rule", "uplink_in", frame(packet.TCP(client, addr5+":81").SYN()), skb{},
			"address port 5\nport port 5\nflow port 5\npolicy policy_in\nexit port 5 policy_in"},
		{"another one's tuple", "uplink_in", frame(live.SYN()), noted(tcpIndex, backend12, 1),
			"address port 5\nport port 5\nflow port 5\npolicy rule 42\nopens port 5 rule 42\nexit port 5 to_port_translated"},
		{"of a flow", "uplink_in", frame(live.ACK().Sequence(101).Acknowledge(501)), skb{},
			"address port 5\nport port 5\nflow port 5 rule 42\nexit port 5 to_port"},
		{"the end of a flow", "uplink_in", frame(live.FIN().ACK().Sequence(101).Acknowledge(501)), skb{},
			"address port 5\nport port 5\nflow port 5 rule 42\nexit port 5 to_port"},
		{"a reply", "vm_in", vm(live.Reply().ACK().Sequence(501).Acknowledge(101)), skb{},
			"port port 5\nowner port 5\nprefix\nflow port 5 rule 42\naddress\nexit port 5 to_uplink"},
		{"out", "vm_in", vm(packet.UDP(addr5+":1", "9.9.9.9:53")), skb{},
			"port port 5\nowner port 5\nprefix\nflow port 5\nopens port 5\naddress\nexit port 5 to_uplink"},
		{"spoofed", "vm_in", vm(packet.UDP("9.9.9.8:1", "9.9.9.9:53")), skb{}, "port port 5\nowner port 5\nexit port 5 spoofed_ip"},
		{"a fragment out", "vm_in", vm(packet.UDP(addr5+":3", "9.9.9.9:53").Payload(make([]byte, 16)).Fragment(true, 0)), skb{},
			"port port 5\nowner port 5\nprefix\nflow port 5\nopens port 5\naddress\nexit port 5 to_uplink"},
		{"to a neighbour", "vm_in", vm(packet.UDP(addr5+":1", addr6+":2")), skb{},
			"port port 5\nowner port 5\nprefix\nflow port 5\nopens port 5\naddress port 6\nport port 6\nflow port 6\npolicy policy_in\nexit port 6 policy_in"},
		{"DHCP", "vm_in", fromVM(packet.UDP("0.0.0.0:68", "255.255.255.255:67")).Bytes(), skb{}, "port port 5\nexit port 5 punted"},
		{"to a VIP", "uplink", frame(packet.TCP(client, vip).SYN()), skb{}, "service\nbackend\nexit sent"},
		{"to another port of a VIP", "uplink", frame(packet.TCP(client, "203.0.113.1:81").SYN()), skb{}, "exit no_service"},
		{"from a host", "overlay_in", packet.UDP(ip22+":1", ip21+":2").MACs(mac22, mac21).Bytes(), skb{Cb: [5]uint32{managed, be32(endpoint2)}},
			"station\nstation port 21\nport port 21\nexit port 21 to_port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.of(t)
			run := func(trace bool) (action uint32, steps string) {
				if c.prog == "uplink" {
					if trace {
						return w.traced(c.prog, c.frame, nil)
					}
					action, _ = w.xdp(c.frame)
					return action, ""
				}
				if trace {
					return w.traced(c.prog, c.frame, &c.ctx)
				}
				action, _, _ = w.tc(c.prog, c.frame, c.ctx)
				return action, ""
			}
			before := w.dump()
			var foreseen uint32
			var steps string
			events := w.told(func() { foreseen, steps = run(true) })
			if after := w.dump(); len(events) != 0 || !slices.Equal(before, after) {
				t.Errorf("%d events; the maps are others:\n%s", len(events), difference(before, after))
			}
			if steps != c.want {
				t.Errorf("steps:\n%s\nwant:\n%s", steps, c.want)
			}
			if action, _ := run(false); action != foreseen {
				t.Errorf("the twin answers %d, the program %d", foreseen, action)
			}
			if slices.Equal(before, w.dump()) {
				t.Error("the program itself changes nothing: this test would not find a twin that does")
			}
		})
	}
}

func difference(a, b []string) string {
	var lines []string
	for _, line := range b {
		if !slices.Contains(a, line) {
			lines = append(lines, "+ "+line)
		}
	}
	for _, line := range a {
		if !slices.Contains(b, line) {
			lines = append(lines, "- "+line)
		}
	}
	return strings.Join(lines[:min(len(lines), 20)], "\n")
}
