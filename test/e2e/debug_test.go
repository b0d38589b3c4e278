// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	"cairn/dataplane/debug"
	"cairn/test/lab"
	"cairn/test/story"
)

// observed is an instance that an engineer looks at.
type observed struct {
	*cloudUnderTest
	address netip.Addr
	group   v3.UUID
	port    uint32
}

// TestDebug: an engineer asks a hypervisor what becomes of packets and why, and
// the answers are those that packets get.
func TestDebug(t *testing.T) {
	t.Parallel()
	o := newObserved(t)
	t.Run("a trace foretells", o.foretells)
	t.Run("a flow says why it lives", o.explains)
	t.Run("drops are seen as they happen", o.seesDrops)
	must(t, "kill cairnd", o.Control().Kill())
	t.Run("a capture has comments", o.captures)
	t.Run("a damaged map is mended", o.mends)
}

func newObserved(t *testing.T) *observed {
	t.Helper()
	o := &observed{cloudUnderTest: newCloud(t, lab.Config{Hypervisors: 1})}
	var err error
	o.group, err = o.Group("web", 80)
	must(t, "security group", err)
	id, err := o.Launch("web", "", o.group)
	must(t, "instance", err)
	i, err := o.GetInstance(t.Context(), id)
	must(t, "read the instance", err)
	o.address, _ = netip.AddrFromSlice(i.PublicIP.To4())
	lab.Eventually(t, "an answer", 20*time.Second, func() error { return o.ask() })
	ports, err := story.AskAgent[[]debug.Port](t.Context(), o.Lab, 1, "ports")
	must(t, "ports", err)
	for _, p := range ports {
		o.port = p.ID
	}
	return o
}

func (o *observed) to(port uint16) netip.AddrPort { return netip.AddrPortFrom(o.address, port) }

func (o *observed) ask() error {
	ctx, cancel := context.WithTimeout(o.Context(), 2*time.Second)
	defer cancel()
	_, err := story.Ask(ctx, o.Lab.Client(1), 0, o.to(80))
	return err
}

// knock asks for a connection that nobody grants.
func (o *observed) knock(t *testing.T, port uint16) {
	t.Helper()
	ctx, cancel := context.WithTimeout(o.Context(), 300*time.Millisecond)
	defer cancel()
	if conn, err := o.Lab.Client(1).DialContext(ctx, "tcp", o.to(port).String()); err == nil {
		conn.Close()
		t.Fatalf("port %d let a connection in", port)
	}
}

// cairn runs `cairn debug` against the hypervisor.
func (o *observed) cairn(ctx context.Context, out io.Writer, args ...string) error {
	c := debug.Command()
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetOut(out)
	c.SetErr(io.Discard)
	c.SetArgs(append(args, "--socket", o.AgentSocket(1)))
	return c.ExecuteContext(ctx)
}

func asked[T any](t *testing.T, o *observed, args ...string) (answer T) {
	t.Helper()
	var out bytes.Buffer
	must(t, strings.Join(args, " "), o.cairn(t.Context(), &out, append(args, "--json")...))
	must(t, "read the answer", json.Unmarshal(out.Bytes(), &answer))
	return answer
}

func (o *observed) trace(t *testing.T, args ...string) debug.Trace {
	t.Helper()
	return asked[debug.Trace](t, o, append([]string{"trace", "--port", fmt.Sprint(o.port)}, args...)...)
}

func (o *observed) foretells(t *testing.T) {
	client := o.Lab.Client(1)
	guest := o.Instance(1, o.port, o.address)
	from, own := netip.AddrPortFrom(client.Address, 40000).String(), o.to(40001).String()
	beyond := func(port uint16) string { return netip.AddrPortFrom(client.Address, port).String() }
	flows := o.flowCount(t)
	for _, c := range []struct {
		args    []string
		verdict string
		reason  bpf.Reason
		origin  string
	}{
		{[]string{"--in", "tcp", from, o.to(80).String()}, "delivered", bpf.ReasonToPort, "web/"},
		{[]string{"--in", "tcp", from, o.to(81).String()}, "dropped", bpf.ReasonPolicyIn, ""},
		{[]string{"--in", "icmp", "8/0", client.Address.String(), o.address.String()}, "dropped", bpf.ReasonPolicyIn, ""},
		{[]string{"--out", "udp", own, beyond(9)}, "sent", bpf.ReasonToUplink, ""},
		{[]string{"--out", "tcp", own, beyond(25)}, "dropped", bpf.ReasonSMTP, ""},
		{[]string{"--out", "udp", beyond(1), beyond(9)}, "dropped", bpf.ReasonSpoofedIP, ""},
	} {
		got := o.trace(t, c.args...)
		if got.Verdict != c.verdict || got.Reason != c.reason.String() || !strings.HasPrefix(got.Origin, c.origin) || (c.origin == "") != (got.Origin == "") {
			t.Errorf("%v: %s (%s) by %q, want %s (%s)\n%+v", c.args, got.Verdict, got.Reason, got.Origin, c.verdict, c.reason, got.Steps)
		}
		if c.verdict == "sent" && !strings.Contains(got.NextHop, " on ") {
			t.Errorf("%v: next hop %q", c.args, got.NextHop)
		}
	}
	if now := o.flowCount(t); now != flows {
		t.Errorf("%d flows after the traces, %d before", now, flows)
	}
	// And so it goes.
	must(t, "port 80", o.ask())
	in := o.drops(1, bpf.ReasonPolicyIn)
	o.knock(t, 81)
	if o.drops(1, bpf.ReasonPolicyIn) == in {
		t.Error("port 81 was let in")
	}
	must(t, "out to UDP 9", o.datagram(client, guest, 9))
	mail := o.drops(1, bpf.ReasonSMTP)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if conn, err := guest.DialContext(ctx, "tcp", beyond(25)); err == nil {
		conn.Close()
		t.Error("mail has left")
	}
	if o.drops(1, bpf.ReasonSMTP) == mail {
		t.Error("mail was not dropped as such")
	}
}

func (o *observed) flowCount(t *testing.T) int {
	t.Helper()
	ports, err := story.AskAgent[[]debug.Port](t.Context(), o.Lab, 1, "ports")
	must(t, "ports", err)
	return ports[0].Flows
}

// datagram goes from the guest to the client.
func (o *observed) datagram(to, from lab.Host, port uint16) error {
	var listening net.PacketConn
	err := to.Do(func() (err error) {
		listening, err = net.ListenPacket("udp", netip.AddrPortFrom(to.Address, port).String())
		return err
	})
	if err != nil {
		return err
	}
	defer listening.Close()
	conn, err := from.DialContext(o.Context(), "udp", listening.LocalAddr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	if err := listening.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	_, _, err = listening.ReadFrom(make([]byte, 16))
	return err
}

// open a connection that stays.
func (o *observed) open(t *testing.T) net.Conn {
	t.Helper()
	conn, err := o.Lab.Client(1).DialContext(t.Context(), "tcp", o.to(80).String())
	must(t, "connect", err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (o *observed) explains(t *testing.T) {
	conn := o.open(t)
	why := asked[debug.Why](t, o, "why", "tcp", conn.LocalAddr().String(), conn.RemoteAddr().String())
	f := why.Flow
	if f == nil || f.State != "established" || !strings.HasPrefix(f.Rule.Origin, "web/") || f.Generation != why.Generation ||
		time.Since(f.Created) > time.Minute || f.Packets < 2 || f.Revision == 0 || f.Revision > why.Revision || !why.Admitted {
		t.Errorf("a flow that lives: %+v, %+v", why, f)
	}
	// The other side of the same flow.
	if back := asked[debug.Why](t, o, "why", "tcp", conn.RemoteAddr().String(), conn.LocalAddr().String()); back.Flow == nil || back.Direction != "out" {
		t.Errorf("from the other side: %+v", back)
	}
	why = asked[debug.Why](t, o, "why", "tcp", conn.LocalAddr().String(), o.to(81).String())
	if why.Flow != nil || why.Admitted || why.Reason != "policy_in" || len(why.Nearest) == 0 ||
		!strings.HasPrefix(why.Nearest[0].Rule.Origin, "web/") || !strings.HasPrefix(why.Nearest[0].Differs[0], "port: ") {
		t.Errorf("what is refused: %+v", why)
	}
	if err := o.cairn(t.Context(), io.Discard, "why", "tcp", "192.0.2.1:1", "192.0.2.2:2"); err == nil || !strings.Contains(err.Error(), "--port") {
		t.Errorf("nobody's packet: %v", err)
	}
}

// followed are the lines of a stream.
func followed[T any](t *testing.T, o *observed, args ...string) (lines <-chan T, end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- o.cairn(ctx, w, append(args, "--json")...)
		w.Close()
	}()
	out := make(chan T, 1024)
	go func() {
		defer close(out)
		scan := bufio.NewScanner(r)
		for scan.Scan() {
			var line T
			if json.Unmarshal(scan.Bytes(), &line) == nil {
				out <- line
			}
		}
	}()
	return out, func() error { cancel(); return <-done }
}

// await a line.
func await[T any](t *testing.T, lines <-chan T, what string, is func(T) bool) (found T) {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatalf("%s: the stream has ended", what)
			}
			if is(line) {
				return line
			}
		case <-late:
			t.Fatalf("%s did not come", what)
		}
	}
}

func (o *observed) seesDrops(t *testing.T) {
	lines, end := followed[debug.DropEvent](t, o, "drops", "--watch", "--port", fmt.Sprint(o.port))
	await(t, lines, "the beginning", func(e debug.DropEvent) bool { return e.Loss != nil })
	o.knock(t, 81)
	await(t, lines, "the drop", func(e debug.DropEvent) bool {
		return e.Packet != nil && e.Packet.Reason == "policy_in" && e.Packet.Dst == o.to(81) && e.Packet.Port == o.port && e.Packet.Flags == "S"
	})
	conn := o.open(t)
	group, err := o.GetSecurityGroup(t.Context(), o.group)
	must(t, "read the group", err)
	rule := group.Rules[0]
	_, err = o.Done(o.DeleteRuleFromSecurityGroup(t.Context(), o.group, rule.ID))
	must(t, "delete the rule", err)
	go func() { _, _ = conn.Write([]byte("GET / HTTP/1.1\r\n")) }() // of the flow that the rule had admitted
	got := await(t, lines, "the drop of the revoked flow", func(e debug.DropEvent) bool {
		return e.Packet != nil && e.Packet.Dst == o.to(80) && e.Packet.Rule != 0
	})
	if got.Packet.Reason != "policy_in" {
		t.Errorf("dropped for %s", got.Packet.Reason)
	}
	must(t, "the end of watching", end())
	lab.Eventually(t, "nobody watches", 10*time.Second, func() error {
		m, err := ebpf.LoadPinnedMap(filepath.Join(o.Pins(1), "v1", "watch"), nil)
		if err != nil {
			return err
		}
		defer m.Close()
		var w bpf.Watch
		if err := m.Lookup(uint32(0), &w); err != nil {
			return err
		}
		if w.DropsUntil != 0 {
			return errors.New("the programs are still asked")
		}
		return nil
	})
	must(t, "the rule again", o.Admit(o.group, v3.AddRuleToSecurityGroupRequestProtocolTCP, 80))
	lab.Eventually(t, "an answer", 10*time.Second, func() error { return o.ask() })
}

func (o *observed) captures(t *testing.T) {
	const enough = 40 // frames, of several questions and refusals
	file := filepath.Join(t.TempDir(), "port.pcapng")
	done := make(chan error, 1)
	go func() {
		done <- o.cairn(t.Context(), io.Discard, "capture", "--port", fmt.Sprint(o.port), "--count", fmt.Sprint(enough), "-w", file)
	}()
	deadline := time.After(20 * time.Second)
	for {
		_ = o.ask() // until enough was captured
		o.knock(t, 81)
		select {
		case err := <-done:
			must(t, "capture", err)
		case <-deadline:
			t.Fatal("the capture does not end")
		default:
			continue
		}
		break
	}
	b, err := os.ReadFile(file)
	must(t, "read the file", err)
	for _, want := range []string{"in: dropped (policy_in)", "in: passed (to_port), rule ", "(web/", "out: passed (to_uplink)"} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("no comment says %q", want)
		}
	}
	if n := packets(t, b); n != enough {
		t.Errorf("%d packets", n)
	}
}

// packets of a pcapng file, every block of which must be whole.
func packets(t *testing.T, b []byte) (n int) {
	t.Helper()
	const packetBlock = 6
	u32 := func(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 | int(b[3])<<24 }
	for len(b) > 0 {
		length := 0
		if len(b) >= 12 {
			length = u32(b[4:])
		}
		if length < 12 || length > len(b) || u32(b[length-4:]) != length {
			t.Fatalf("a block of %d bytes, of %d", length, len(b))
		}
		if u32(b) == packetBlock {
			n++
		}
		b = b[length:]
	}
	return n
}

func (o *observed) mends(t *testing.T) {
	var out bytes.Buffer
	must(t, "diff", o.cairn(t.Context(), &out, "diff"))
	m, err := ebpf.LoadPinnedMap(filepath.Join(o.Pins(1), "v1", "addr_port"), nil)
	must(t, "open addr_port", err)
	defer m.Close()
	stray := bpf.IP16(netip.MustParseAddr("198.51.100.250"))
	var mended string
	for range 5 { // the agent's own audit, every 30 seconds, may come first
		must(t, "take the address away", m.Delete(bpf.IP16(o.address)))
		must(t, "add one that nobody wants", m.Put(stray, uint32(77)))
		if err := o.cairn(t.Context(), &out, "diff"); !errors.Is(err, debug.ErrDiffers) {
			continue
		}
		o.knock(t, 80) // nobody has the address
		repair := asked[debug.Repair](t, o, "diff", "--repair")
		if mended = strings.Join(repair.Mended, "\n"); mended != "" {
			break
		}
	}
	if !strings.Contains(mended, "missing addr_port "+o.address.String()) || !strings.Contains(mended, "foreign addr_port "+stray.Addr().String()) {
		t.Errorf("mended:\n%s", mended)
	}
	must(t, "an answer", o.ask())
	must(t, "diff after the repair", o.cairn(t.Context(), &out, "diff"))
	if again := asked[debug.Repair](t, o, "diff", "--repair"); len(again.Mended) != 0 {
		t.Errorf("a second repair mends %v", again.Mended)
	}
}
