// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/bpf/packet"
)

func (s source) Repair(context.Context) (Repair, error) { return s.repair, nil }

func (s source) WatchDrops(ctx context.Context, f DropFilter, line func(DropEvent) error) error {
	if f.Port == 99 {
		return errors.New("--port 99 is not on this host")
	}
	for _, e := range s.lines {
		if e.Packet == nil || f.Reason == "" || f.Reason == e.Packet.Reason {
			if err := line(e); err != nil {
				return err
			}
		}
	}
	return nil // the agent ends
}

func (s source) WatchSamples(_ context.Context, service uint32, line func(SampleEvent) error) error {
	if service == 99 {
		return errors.New("--service 99 is not on this host")
	}
	for _, e := range []SampleEvent{{Loss: &Loss{}}, {Packet: &SampledPacket{
		At: time.Unix(1_800_000_000, 0).UTC(), Service: 7, Backend: 12, Protocol: 6, Bytes: 40, Flags: "S",
		Src: netip.MustParseAddrPort("192.0.2.9:1234"), Dst: netip.MustParseAddrPort("203.0.113.1:80"),
	}}, {Loss: &Loss{Lost: 2, Muted: 3}}} {
		if err := line(e); err != nil {
			return err
		}
	}
	return nil
}

func TestSamples(t *testing.T) {
	got, err := run(t, source{}, "samples", "--service", "7")
	want := `TIME            SERVICE BACKEND  BYTES PACKET
08:00:00.000000       7      12     40 tcp 192.0.2.9:1234 > 203.0.113.1:80 [S]
(2 events lost, 3 more than the host's rate)
`
	if err == nil || got != want {
		t.Errorf("got %q, %v\nwant %q", got, err, want)
	}
	if _, err := run(t, source{}, "samples", "--service", "99"); err == nil || !strings.Contains(err.Error(), "--service 99") {
		t.Errorf("a service of another host: %v", err)
	}
}

func (s source) Capture(ctx context.Context, r CaptureRequest, line func(CaptureEvent) error) error {
	for _, e := range s.frames {
		if err := line(e); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

func (s source) Trace(r TraceRequest) (Trace, error) {
	t := Trace{Tuple: r.Tuple, Direction: "in", Verdict: "delivered", Reason: "to_port", Port: r.Port, Rule: 3, Origin: "web/r-3",
		Text: "ingress tcp port 80", Frame: "a frame", NextHop: "the device of port 5", TookNS: 41_500,
		Steps: []TraceStep{{Program: "uplink_in", Stage: "address", Port: 5, Text: "198.51.100.1 is port 5's"}, {Program: "uplink_in", Stage: "exit", Text: "to_port"}}}
	if r.Flags == packet.RST {
		t.Verdict, t.Reason, t.Rule, t.NextHop = "dropped", "tcp_flags", 0, ""
	}
	return t, nil
}

func (s source) Why(r WhyRequest) (Why, error) {
	y := Why{Tuple: r.Tuple, Port: 5, Direction: "in", Policy: 3, Programmed: 1, Generation: 4, Revision: 90}
	if r.Port == 6 {
		y.Reason, y.Text = "policy_in", "no ingress rule admits it"
		y.Nearest = []Near{{Rule: Rule{4, "web/r-4", "ingress tcp port 81"}, Differs: []string{"port: the rule has 81, the packet 80"}}}
		return y, nil
	}
	at := time.Unix(0, 0).UTC()
	y.Admitted, y.Reason, y.Text, y.Rule = true, "rule", "a rule admits it", &Rule{3, "web/r-3", "ingress tcp port 80"}
	y.Flow = &Flowing{State: "established", Confirmed: true, Begun: "in", Rule: *y.Rule, Generation: 3, Created: at, Revision: 40, Seen: at, Expires: at.Add(time.Hour), Packets: 9, Bytes: 900}
	return y, nil
}

func dropped(reason string) DropEvent {
	return DropEvent{Packet: &DroppedPacket{
		At: time.Unix(0, 1000).UTC(), Port: 5, Direction: "in", Reason: reason, Protocol: 6, EtherType: 0x800, Packets: 1,
		Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("198.51.100.1:81"), Flags: "S",
	}}
}

func TestDropsAsTheyHappen(t *testing.T) {
	s := source{lines: []DropEvent{{Loss: &Loss{}}, dropped("policy_in"), {Loss: &Loss{Lost: 3, Muted: 7}}, dropped("spoofed_ip")}}
	got, err := run(t, s, "drops", "--watch")
	const want = `TIME              PORT DIR REASON             RULE                     PACKET
00:00:00.000001      5 in  policy_in          -                        tcp 192.0.2.1:40000 > 198.51.100.1:81 [S]
(3 events lost, 7 more than their ports' rate)
00:00:00.000001      5 in  spoofed_ip         -                        tcp 192.0.2.1:40000 > 198.51.100.1:81 [S]
`
	if got != want || err == nil || !strings.Contains(err.Error(), "ended the stream") {
		t.Errorf("%v\n%s\nwant:\n%s", err, got, want)
	}
	got, _ = run(t, s, "drops", "--watch", "--reason", "spoofed_ip", "--json")
	for line := range strings.Lines(got) {
		var e DropEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil || (e.Packet != nil && e.Packet.Reason != "spoofed_ip") {
			t.Errorf("%v: %s", err, line)
		}
	}
	if strings.Count(got, "\n") != 3 {
		t.Errorf("lines:\n%s", got)
	}
}

func captured(port uint32) []CaptureEvent {
	frame := packet.TCP("192.0.2.1:40000", "198.51.100.1:80").SYN().MACs("02:00:00:00:00:01", "02:ca:00:00:00:05").Bytes()
	at := time.Unix(1, 5).UTC()
	return []CaptureEvent{
		{Loss: &Loss{}},
		{Frame: &CapturedFrame{At: at, Port: port, Direction: "in", Reason: "to_port", Rule: 3, Origin: "web/r-3", Length: len(frame), Bytes: frame}},
		{Frame: &CapturedFrame{At: at, Port: port, Direction: "out", Dropped: true, Reason: "policy_out", Length: 1500, Bytes: frame[:51]}},
	}
}

func TestCaptureInLines(t *testing.T) {
	got, err := run(t, source{frames: captured(5)}, "capture", "--port", "5", "--count", "2")
	const want = `00:00:01.000000 in: passed (to_port), rule 3 (web/r-3)
    02:00:00:00:00:01 > 02:ca:00:00:00:05, tcp 192.0.2.1:40000 > 198.51.100.1:80 [S], ttl 64, 54 bytes
00:00:01.000000 out: dropped (policy_out)
    02:00:00:00:00:01 > 02:ca:00:00:00:05, tcp 192.0.2.1:40000 > 198.51.100.1:80 [S], ttl 64, 1500 bytes
`
	if err != nil || got != want {
		t.Errorf("%v\n%s\nwant:\n%s", err, got, want)
	}
	if _, err := run(t, source{frames: captured(5)}, "capture", "--port", "5", "--duration", "50ms"); err != nil {
		t.Errorf("the end of the time: %v", err)
	}
}

// blocks reads a pcapng file: by the draft, not by what wrote it.
func blocks(t *testing.T, b []byte) (out []struct {
	kind uint32
	body []byte
}) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 12 {
			t.Fatalf("%d bytes are left", len(b))
		}
		kind, length := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		if length%4 != 0 || int(length) > len(b) || binary.LittleEndian.Uint32(b[length-4:]) != length {
			t.Fatalf("block %#x of %d bytes", kind, length)
		}
		out = append(out, struct {
			kind uint32
			body []byte
		}{kind, b[8 : length-4]})
		b = b[length:]
	}
	return out
}

// optionOf a list of options.
func optionOf(t *testing.T, b []byte, code uint16) string {
	t.Helper()
	for len(b) >= 4 {
		c, n := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		if c == code {
			return string(b[4 : 4+n])
		}
		b = b[4+(n+3)/4*4:]
	}
	t.Errorf("no option %d", code)
	return ""
}

func TestCaptureAsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.pcapng")
	if _, err := run(t, source{frames: captured(5)}, "capture", "--port", "5", "--count", "2", "-w", file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := blocks(t, b)
	if len(all) != 4 || all[0].kind != 0x0a0d0d0a || all[1].kind != 1 || binary.LittleEndian.Uint16(all[1].body) != 1 {
		t.Fatalf("blocks %+v", all)
	}
	if got := optionOf(t, all[1].body[8:], 2); got != "port5" {
		t.Errorf("the interface is called %q", got)
	}
	for i, want := range []struct {
		comment   string
		size, was int
	}{{"in: passed (to_port), rule 3 (web/r-3)", 54, 54}, {"out: dropped (policy_out)", 51, 1500}} {
		body := all[2+i].body
		stamp := uint64(binary.LittleEndian.Uint32(body[4:]))<<32 | uint64(binary.LittleEndian.Uint32(body[8:]))
		size, was := int(binary.LittleEndian.Uint32(body[12:])), int(binary.LittleEndian.Uint32(body[16:]))
		if all[2+i].kind != 6 || stamp != 1_000_000_005 || size != want.size || was != want.was {
			t.Errorf("packet %d: kind %d at %d, %d of %d bytes", i, all[2+i].kind, stamp, size, was)
		}
		if got := optionOf(t, body[20+(size+3)/4*4:], 1); got != want.comment {
			t.Errorf("packet %d: %q, want %q", i, got, want.comment)
		}
	}
}

func TestTraceAndWhy(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"trace", "--port", "5", "tcp", "192.0.2.1:1", "198.51.100.1:80"}, `tcp 192.0.2.1:1 > 198.51.100.1:80, in

uplink_in  address  198.51.100.1 is port 5's
           exit     to_port

verdict   delivered (to_port) at port 5
rule      rule 3 (web/r-3)
          ingress tcp port 80
frame     a frame
next hop  the device of port 5
took      41.5 µs, nothing was changed
`},
		{[]string{"trace", "--port", "5", "--flags", "r", "tcp", "192.0.2.1:1", "198.51.100.1:80"}, `tcp 192.0.2.1:1 > 198.51.100.1:80, in

uplink_in  address  198.51.100.1 is port 5's
           exit     to_port

verdict  dropped (tcp_flags) at port 5
took     41.5 µs, nothing was changed
`},
		{[]string{"why", "tcp", "192.0.2.1:1", "198.51.100.1:80"}, `packet          tcp 192.0.2.1:1 > 198.51.100.1:80, in at port 5
flow            established, begun in
admitted by     rule 3 (web/r-3)
                ingress tcp port 80
judged          at generation 3, again with its next packet (the port is at 4)
created         1970-01-01T00:00:00Z, at revision 40
last packet     1970-01-01T00:00:00Z
expires         1970-01-01T01:00:00Z
counted         9 packets, 900 bytes, both ways
policy          3 as 1, generation 4, revision 90
a first packet  admitted: a rule admits it (rule)
by              rule 3 (web/r-3)
                ingress tcp port 80
`},
		{[]string{"why", "--port", "6", "icmp", "8", "192.0.2.1", "198.51.100.1"}, `packet          icmp 8/0 192.0.2.1 > 198.51.100.1, in at port 5
flow            none lives
policy          3 as 1, generation 4, revision 90
a first packet  refused: no ingress rule admits it (policy_in)
nearest         rule 4 (web/r-4)
                ingress tcp port 81
                  port: the rule has 81, the packet 80
`},
	} {
		got, err := run(t, source{}, c.args...)
		if err != nil || got != c.want {
			t.Errorf("%v: %v\n%s\nwant:\n%s", c.args, err, got, c.want)
		}
		text, err := run(t, source{}, append(c.args, "--json")...)
		if err != nil || !json.Valid([]byte(text)) {
			t.Errorf("%v --json: %v\n%s", c.args, err, text)
		}
	}
}

func TestRepairSaysWhatItDid(t *testing.T) {
	got, err := run(t, source{repair: Repair{Mended: []string{"missing vteps 10.64.0.9 = host 9"}}}, "diff", "--repair")
	if err != nil || got != "mended\tmissing vteps 10.64.0.9 = host 9\ndesired and programmed agree\n" {
		t.Errorf("%v\n%s", err, got)
	}
	if _, err := run(t, source{repair: Repair{Left: Diff{Faults: []string{"service/1: no"}}}}, "diff", "--repair", "--json"); !errors.Is(err, ErrDiffers) {
		t.Errorf("what is left: %v", err)
	}
}

// An error names what is wrong.
func TestErrorsNameTheFlag(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"drops", "--port", "5"}, "--watch"},
		{[]string{"drops", "--watch", "--all"}, "--all"},
		{[]string{"drops", "--watch", "--port", "99"}, "--port 99"},
		{[]string{"capture"}, "--port"},
		{[]string{"capture", "--port", "5", "--bytes", "3"}, "--bytes 3"},
		{[]string{"capture", "--port", "5", "--count", "-3"}, "--count -3"},
		{[]string{"capture", "--port", "5", "-w", "/nowhere/file"}, "-w"},
		{[]string{"trace", "tcp", "192.0.2.1:1", "198.51.100.1:80"}, "--port"},
		{[]string{"trace", "--port", "5", "--in", "--out", "tcp", "192.0.2.1:1", "198.51.100.1:80"}, "--out"},
		{[]string{"trace", "--port", "5", "--flags", "SX", "tcp", "192.0.2.1:1", "198.51.100.1:80"}, "--flags"},
		{[]string{"trace", "--port", "5", "tcp", "192.0.2.1", "198.51.100.1:80"}, "SRC"},
		{[]string{"trace", "--port", "5", "tcp", "192.0.2.1:1", "[2001:db8::1]:80"}, "family"},
		{[]string{"trace", "--port", "5", "bgp", "192.0.2.1:1", "198.51.100.1:80"}, `"bgp"`},
		{[]string{"why", "icmp", "300", "192.0.2.1", "198.51.100.1"}, "TYPE/CODE"},
		{[]string{"why", "icmpv6", "128/0", "192.0.2.1", "198.51.100.1"}, "icmpv6"},
		{[]string{"why"}, "SRC:PORT"},
	} {
		if _, err := run(t, source{}, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want a word of %q", c.args, err, c.want)
		}
	}
}

func TestDescribeFrame(t *testing.T) {
	macs := func(p packet.Packet) []byte { return p.MACs("02:00:00:00:00:01", "02:00:00:00:00:02").Bytes() }
	for _, c := range []struct {
		frame []byte
		want  string
	}{
		{macs(packet.UDP("[2001:db8::1]:5", "[2001:db8::2]:53")), "udp [2001:db8::1]:5 > [2001:db8::2]:53, ttl 64"},
		{macs(packet.Ping("192.0.2.1", "192.0.2.2", 1)), "icmp 8/0 192.0.2.1 > 192.0.2.2, ttl 64"},
		{macs(packet.IP("192.0.2.1", "192.0.2.2", 112, nil)), "112 192.0.2.1 > 192.0.2.2, ttl 64"},
		{macs(packet.UDP("192.0.2.1:1", "192.0.2.2:2"))[:30], "ip, cut off"},
		{macs(packet.UDP("192.0.2.1:1", "192.0.2.2:2").EtherType(0x88cc)), "type 0x88cc"},
		{[]byte{1, 2}, "2 bytes"},
	} {
		if got := DescribeFrame(c.frame); !strings.HasSuffix(got, c.want) {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
	for flags := range uint8(64) {
		if got, err := ParseFlags(FlagNames(flags)); err != nil || got != flags {
			t.Errorf("flags %d: %d, %v", flags, got, err)
		}
	}
}

func TestEveryVerbExplainsItself(t *testing.T) {
	verbs := Command().Commands()
	if len(verbs) < 8 {
		t.Errorf("%d verbs", len(verbs))
	}
	for _, v := range verbs {
		if !strings.Contains(v.Example, "cairn debug "+v.Name()) || v.Short == "" {
			t.Errorf("%s: %q, example %q", v.Name(), v.Short, v.Example)
		}
		if v.InheritedFlags().Lookup("json") == nil {
			t.Errorf("%s has no --json", v.Name())
		}
	}
}
