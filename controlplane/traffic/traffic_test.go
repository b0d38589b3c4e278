// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/dist"
	"cairn/controlplane/eventlog"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

const (
	group, rule, network = cloud.ID("group"), cloud.ID("rule"), cloud.ID("network")
	hour                 = time.Hour
)

func id(n int) cloud.ID { return cloud.ID(fmt.Sprintf("0b6eb34a-0000-4000-8000-%012d", n)) }

// bench is traffic over a zone of two organisations: instance 1 of org a with
// port 1 and port 11 in a private network, instance 2 of org b with port 2.
type bench struct {
	*testing.T
	*Traffic
	folder  string
	replica *replica.Replica
	events  *eventlog.Log
	now     time.Time
	stop    func()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, folder: t.TempDir(), now: noon, stop: func() {}}
	var err error
	if b.replica, err = replica.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.replica.Close)
	b.replica.Commit(replica.Rows{
		Revision: 1, Instances: []*replica.Instance{instanceOf(1, "a"), instanceOf(2, "b")},
		Groups:   []*replica.Group{{ID: group, Body: store.SecurityGroupDoc{Number: 3, RuleNumbers: map[cloud.ID]uint32{rule: 7, "other": 8}}}},
		Services: []*replica.Service{{Doc: store.Doc[store.ServiceDoc]{ID: "service", Body: store.ServiceDoc{Number: 5, LoadBalancer: "balancer"}}}},
	})
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

func instanceOf(n int, org cloud.ID) *replica.Instance {
	i := &replica.Instance{ID: id(n), Org: org}
	i.Body.ID, i.Body.State, i.Body.HostNumber, i.Body.Class, i.Body.Port = i.ID, cloud.InstanceRunning, 1, 1, uint32(n)
	if n == 1 {
		i.Body.Networks = []store.Attachment{{Network: network, Port: 11}}
	}
	return i
}

// start as after a start of the process.
func (b *bench) start() {
	b.Helper()
	var err error
	quiet := slog.New(slog.DiscardHandler)
	if b.events, err = eventlog.Open(eventlog.Config{Folder: filepath.Join(b.folder, "events"), Queue: 100, Log: quiet}); err != nil {
		b.Fatal(err)
	}
	b.Traffic, err = New(Config{
		Zone: "z", Events: b.events, Snapshot: b.replica.Snapshot, File: filepath.Join(b.folder, "usage.json"), Log: quiet,
		Now: func() time.Time { return b.now },
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { b.events.Run(ctx); close(done) }()
	b.stop = func() {
		cancel()
		<-done
		b.events.Close()
		b.stop = func() {}
	}
}

// kill the process: what it has not kept is lost. The log writes what it has.
func (b *bench) kill() { b.stop(); b.start() }

// logged are the events of kinds so far.
func (b *bench) logged(kinds ...eventlog.Kind) (out []eventlog.Event) {
	b.Helper()
	if err := b.events.Append(b.Context(), nil); err != nil { // what was offered before is written
		b.Fatal(err)
	}
	all, _, err := b.events.Read(0, 10000)
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range all {
		if slices.Contains(kinds, e.Kind) {
			out = append(out, e)
		}
	}
	return out
}

func flow(port uint32, event dist.FlowEvent) dist.Flow {
	return dist.Flow{
		Event: event, At: noon, Port: port, Protocol: 6, Source: netip.MustParseAddr("192.0.2.1"), SourcePort: 1024,
		Destination: netip.MustParseAddr("198.51.100.1"), DestinationPort: 80,
	}
}

func TestFlowsGetTheirNames(t *testing.T) {
	b := newBench(t)
	opened, closed, denied, private := flow(1, dist.FlowOpened), flow(1, dist.FlowClosed), flow(2, dist.FlowDenied), flow(11, dist.FlowOpened)
	opened.Rule, opened.Service = 7, 5
	closed.Rule, closed.Packets, closed.Bytes, closed.Opened = 99, 10, 1000, noon.Add(-time.Minute)
	denied.Reason, denied.Direction, denied.Protocol = "policy_out", wire.Egress, 17
	b.Flows("hv1", dist.FlowBatch{Flows: []dist.Flow{opened, closed, denied, private, flow(3, dist.FlowOpened)}})
	got := b.logged(eventlog.FlowOpened, eventlog.FlowClosed, eventlog.FlowDenied)
	if len(got) != 4 || b.Stats.Unknown.Load() != 1 {
		t.Fatalf("%d events, %d unknown", len(got), b.Stats.Unknown.Load())
	}
	e := got[0]
	if e.Kind != eventlog.FlowOpened || e.Zone != "z" || e.Host != "hv1" || e.Org != "a" || e.Instance != id(1) || e.Port != 1 || e.Flow.Event != "opened" ||
		*e.Flow.Rule.SecurityGroup != (cloud.Ref{ID: group}) || e.Flow.Rule.ID != rule || e.Flow.Rule.Number != 7 ||
		*e.Flow.LoadBalancer != (cloud.FlowService{ID: "balancer", Service: "service"}) || e.Flow.Protocol != "tcp" || e.Flow.Direction != cloud.Ingress {
		t.Errorf("opened: %+v %+v", e, e.Flow)
	}
	e = got[1]
	if e.Kind != eventlog.FlowClosed || *e.Flow.Rule != (cloud.FlowRule{Number: 99}) || e.Flow.Packets != 10 || e.Flow.Bytes != 1000 ||
		!e.Flow.OpenedAt.Equal(noon.Add(-time.Minute)) {
		t.Errorf("closed: %+v %+v", e, e.Flow)
	}
	e = got[2]
	if e.Kind != eventlog.FlowDenied || e.Org != "b" || e.Instance != id(2) || e.Flow.Reason != "policy_out" || e.Flow.Rule != nil ||
		e.Flow.Direction != cloud.Egress || e.Flow.Protocol != "udp" {
		t.Errorf("denied: %+v %+v", e, e.Flow)
	}
	if e = got[3]; e.Instance != id(1) || *e.Flow.PrivateNetwork != (cloud.Ref{ID: network}) {
		t.Errorf("private: %+v %+v", e, e.Flow)
	}
}

// TestNamesOutliveTheirObjects: the last that is told of an instance or a rule
// comes when it has gone. A number that has rested means nothing any more.
func TestNamesOutliveTheirObjects(t *testing.T) {
	b := newBench(t)
	f := flow(1, dist.FlowOpened)
	f.Rule = 7
	b.Flows("hv1", dist.FlowBatch{Flows: []dist.Flow{f}})
	b.replica.Commit(replica.Rows{
		Revision: 2, Deleted: []store.Ref{{Kind: store.KindInstance, ID: id(1)}},
		Groups: []*replica.Group{{ID: group, Body: store.SecurityGroupDoc{Number: 3, RuleNumbers: map[cloud.ID]uint32{"other": 8}}}},
	})
	f.Event = dist.FlowClosed
	b.now = noon.Add(2 * time.Minute)
	b.Flows("hv1", dist.FlowBatch{Flows: []dist.Flow{f}})
	got := b.logged(eventlog.FlowClosed)
	if len(got) != 1 || got[0].Instance != id(1) || got[0].Flow.Rule.ID != rule {
		t.Fatalf("%+v", got)
	}
	b.now = noon.Add(11 * time.Minute)
	b.Flows("hv1", dist.FlowBatch{Flows: []dist.Flow{f}})
	b.replica.Commit(replica.Rows{Revision: 3, Instances: []*replica.Instance{instanceOf(1, "b")}})
	b.Flows("hv1", dist.FlowBatch{Flows: []dist.Flow{f}})
	got = b.logged(eventlog.FlowClosed)
	if len(got) != 2 || got[1].Org != "b" || got[1].Flow.Rule.ID != "" {
		t.Errorf("%+v", got)
	}
}

// TestLossesAreToldApart: what agents had no room for, and what was not taken
// here, stand in the log by host.
func TestLossesAreToldApart(t *testing.T) {
	b := newBench(t)
	b.Flows("hv1", dist.FlowBatch{Lost: 5})
	b.Flows("hv1", dist.FlowBatch{Lost: 5})
	b.Flows("hv1", dist.FlowBatch{Flows: []dist.Flow{flow(3, dist.FlowOpened)}, Lost: 7})
	b.Flows("hv2", dist.FlowBatch{Refused: 4})
	b.tellLosses()
	b.Flows("hv1", dist.FlowBatch{Lost: 2}) // an agent that counts anew
	b.tellLosses()
	b.tellLosses()
	var got []string
	for _, e := range b.logged(eventlog.Lost) {
		got = append(got, fmt.Sprint(e.Host, *e.Loss))
	}
	if want := []string{"hv1{7 1}", "hv2{0 4}", "hv1{2 0}"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	if b.Stats.AgentLost.Load() != 9 || b.Stats.Refused.Load() != 4 || b.Stats.Unknown.Load() != 1 {
		t.Errorf("lost %d, refused %d, unknown %d", b.Stats.AgentLost.Load(), b.Stats.Refused.Load(), b.Stats.Unknown.Load())
	}
	b.Flows("hv1", dist.FlowBatch{Lost: 12}) // and that is not told any more
	if err := b.keep(); err != nil {
		t.Fatal(err)
	}
	b.kill()
	b.Flows("hv1", dist.FlowBatch{Lost: 13})
	b.tellLosses()
	if got := b.logged(eventlog.Lost); len(got) != 4 || *got[3].Loss != (eventlog.Loss{Agent: 11}) {
		t.Errorf("after a restart: %+v", got[3:])
	}
}

// TestWhatIsLostOnTheWay: an agent that counts what it sends is held to it.
func TestWhatIsLostOnTheWay(t *testing.T) {
	for _, c := range []struct {
		now, before counts
		came, want  uint64
	}{
		{counts{0, 5}, counts{}, 5, 0},
		{counts{0, 500}, counts{}, 5, 0},     // heard of for the first time
		{counts{7, 500}, counts{4, 0}, 5, 3}, // after a restart
		{counts{0, 10}, counts{0, 5}, 5, 0},
		{counts{0, 17}, counts{0, 5}, 5, 7},
		{counts{3, 17}, counts{1, 5}, 5, 9},
		{counts{3, 0}, counts{1, 0}, 5, 2},   // it does not count
		{counts{2, 5}, counts{8, 900}, 5, 2}, // anew
		{counts{8, 905}, counts{8, 900}, 5, 0},
	} {
		if got := c.now.since(c.before, c.came); got != c.want {
			t.Errorf("%+v after %+v and %d: %d missing, want %d", c.now, c.before, c.came, got, c.want)
		}
	}
	b := newBench(t)
	b.Flows("hv1", dist.FlowBatch{Flows: []dist.Flow{flow(1, dist.FlowOpened)}, Taken: 1})
	b.Flows("hv1", dist.FlowBatch{Flows: []dist.Flow{flow(1, dist.FlowOpened)}, Refused: 1, Taken: 6})
	b.tellLosses()
	if got := b.logged(eventlog.Lost); len(got) != 1 || *got[0].Loss != (eventlog.Loss{Agent: 3, ControlPlane: 1}) {
		t.Errorf("told %+v", got)
	}
}

// TestOneHostTakesNoOthersRoom: beyond its rate a host loses its own.
func TestOneHostTakesNoOthersRoom(t *testing.T) {
	b := newBench(t)
	many := make([]dist.Flow, hostBurst+500)
	for i := range many {
		many[i] = flow(3, dist.FlowOpened) // of nobody, so that the log is no matter
	}
	b.Flows("hv1", dist.FlowBatch{Flows: many})
	if got := b.Stats.Throttled.Load(); got != 500 {
		t.Errorf("%d throttled, want 500", got)
	}
	b.Flows("hv2", dist.FlowBatch{Flows: []dist.Flow{flow(1, dist.FlowOpened)}})
	b.now = noon.Add(100 * time.Millisecond)
	b.Flows("hv1", dist.FlowBatch{Flows: many[:600]})
	if got := b.Stats.Throttled.Load(); got != 600 {
		t.Errorf("%d throttled, want 600", got)
	}
	if len(b.logged(eventlog.FlowOpened)) != 1 {
		t.Error("another host's flow is missing")
	}
	b.stop() // nobody empties the queue
	b.Flows("hv2", dist.FlowBatch{Flows: slices.Repeat([]dist.Flow{flow(1, dist.FlowOpened)}, 130)})
	if got := b.Stats.Overflowed.Load(); got != 130 {
		t.Errorf("%d overflowed", got)
	}
}

func counted(port uint32, bytes uint64) dist.PortUsage {
	return dist.PortUsage{Port: port, PacketsIn: bytes / 100, BytesIn: bytes, PacketsOut: 1, BytesOut: 3 * bytes}
}

func (b *bench) usage() (out []string) {
	b.Helper()
	for _, e := range b.logged(eventlog.Usage) {
		if e.ID != e.Usage.ID || e.Instance != e.Usage.Resource || e.Org != e.Usage.Org {
			b.Errorf("event %+v of usage %+v", e, e.Usage)
		}
		out = append(out, fmt.Sprintf("%s %s of %s: in %d out %d", e.Usage.Start.Format("15:04"), e.Instance[len(e.Instance)-2:], e.Org, e.Usage.BytesIn, e.Usage.BytesOut))
	}
	return out
}

// TestUsageIsToldOnce: an instance's ports are one sum; a sum is told when its
// window has been closed, again after a crash before that was noted, and then it
// is the same.
func TestUsageIsToldOnce(t *testing.T) {
	b := newBench(t)
	settle := func() {
		t.Helper()
		if err := b.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	b.Usage("hv1", "boot", noon.Add(time.Minute), []dist.PortUsage{counted(1, 1000), counted(11, 50), counted(2, 7), counted(3, 9)})
	b.now = noon.Add(30 * time.Minute)
	settle()
	b.Usage("hv1", "boot", noon.Add(31*time.Minute), []dist.PortUsage{counted(1, 1500)})
	b.kill() // and what it has heard last is forgotten
	b.now = noon.Add(32 * time.Minute)
	b.Usage("hv1", "boot", noon.Add(32*time.Minute), []dist.PortUsage{counted(1, 1600), counted(11, 50)})
	b.now = noon.Add(hour)
	b.Usage("hv1", "boot", noon.Add(hour), []dist.PortUsage{counted(1, 2000)})
	settle()
	if got := b.usage(); len(got) != 0 {
		t.Errorf("told before its grace is over: %q", got)
	}
	b.now = noon.Add(hour + 5*time.Minute)
	state, err := os.ReadFile(b.cfg.File)
	if err != nil {
		t.Fatal(err)
	}
	settle()
	want := []string{"12:00 01 of a: in 1650 out 4950", "12:00 02 of b: in 7 out 21"}
	if got := b.usage(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	first := b.logged(eventlog.Usage)

	// Killed when the sums were in the log and that was not noted.
	kept, err := os.ReadFile(b.cfg.File)
	if err != nil || !strings.Contains(string(kept), `"pending"`) || strings.Contains(string(state), `"pending"`) {
		t.Fatalf("the file before they are told: %v", err)
	}
	b.kill()
	settle()
	again := b.logged(eventlog.Usage)
	if len(again) != 4 || again[2].ID != first[0].ID || *again[2].Usage != *first[0].Usage || *again[3].Usage != *first[1].Usage {
		t.Errorf("told again: %+v", again[2:])
	}
	settle()
	b.kill()
	settle()
	if got := b.usage(); len(got) != 4 {
		t.Errorf("and once more: %q", got[4:])
	}
	b.now = noon.Add(3 * hour)
	settle()
	if got := b.usage(); len(got) != 5 || got[4] != "13:00 01 of a: in 400 out 1200" {
		t.Errorf("the next window: %q", got[4:])
	}
}

func TestLostSumsAreNotBilledTwice(t *testing.T) {
	for _, damage := range []func(string) error{
		os.Remove,
		func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
		func(path string) error { return os.WriteFile(path, []byte("{}"), 0o600) },
	} {
		b := newBench(t)
		b.Flows("hv1", dist.FlowBatch{Flows: []dist.Flow{flow(1, dist.FlowOpened)}})
		b.Usage("hv1", "boot", noon, []dist.PortUsage{counted(1, 5000)})
		if err := b.keep(); err != nil {
			t.Fatal(err)
		}
		if err := damage(b.cfg.File); err != nil {
			t.Fatal(err)
		}
		b.kill()
		b.now = noon.Add(time.Minute)
		b.Usage("hv1", "boot", b.now, []dist.PortUsage{counted(1, 6000)})
		b.now = noon.Add(2 * time.Minute)
		b.Usage("hv1", "boot", b.now, []dist.PortUsage{counted(1, 6100)})
		b.now = noon.Add(2 * hour)
		if err := b.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := b.usage(), []string{"12:00 01 of a: in 100 out 300"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	}
}

func (b *bench) ask(org, instance cloud.ID, query string) (cloud.FlowList, error) {
	b.Helper()
	b.logged()
	values, err := url.ParseQuery(query)
	if err != nil {
		b.Fatal(err)
	}
	answer, err := b.Handlers()["get-instance-flows"](b.Context(), api.Call{
		Org: org, Args: map[string]string{"id": string(instance)}, Query: values,
	})
	list, _ := answer.(cloud.FlowList)
	return list, err
}

func TestFlowsAreReadByWhomTheyBelongTo(t *testing.T) {
	b := newBench(t)
	for n := range 60 {
		f := flow(uint32(1+n%2), dist.FlowOpened)
		f.SourcePort = uint16(n)
		b.Flows("hv1", dist.FlowBatch{Flows: []dist.Flow{f}, Lost: uint64(n)})
		b.logged()
	}
	b.tellLosses()
	ports := func(l cloud.FlowList) (out []uint16) {
		for _, f := range l.Flows {
			if int(f.Offset) != int(f.SourcePort) {
				t.Errorf("flow %d at %d", f.SourcePort, f.Offset)
			}
			out = append(out, f.SourcePort)
		}
		return out
	}
	for _, c := range []struct {
		org   cloud.ID
		n     int
		query string
		want  []uint16
		next  uint64
	}{
		{"a", 1, "limit=3", []uint16{54, 56, 58}, 61},
		{"b", 2, "limit=2", []uint16{57, 59}, 61},
		{"a", 1, "from=0&limit=2", []uint16{0, 2}, 3},
		{"a", 1, "from=3&limit=2", []uint16{4, 6}, 7},
		{"a", 1, "from=55", []uint16{56, 58}, 61},
		{"a", 1, "from=61", nil, 61},
		{"a", 1, "from=99999", nil, 61},
	} {
		list, err := b.ask(c.org, id(c.n), c.query)
		if got := ports(list); err != nil || !slices.Equal(got, c.want) || list.Next != c.next || list.Flows == nil {
			t.Errorf("%s: %v, next %d, %v; want %v, next %d", c.query, got, list.Next, err, c.want, c.next)
		}
	}
	if list, err := b.ask("a", id(1), ""); err != nil || len(list.Flows) != 30 {
		t.Errorf("all: %d, %v", len(list.Flows), err)
	}
	for _, c := range []struct {
		org   cloud.ID
		n     int
		query string
		want  string
	}{
		{"b", 1, "", "not found"},
		{"a", 2, "", "not found"},
		{"a", 9, "", "not found"},
		{"a", 1, "limit=0", "limit"},
		{"a", 1, "limit=1001", "limit"},
		{"a", 1, "from=-1", "from"},
		{"a", 1, "from=x&limit=y", "from"},
	} {
		list, err := b.ask(c.org, id(c.n), c.query)
		if err == nil || !strings.Contains(err.Error(), c.want) || list.Flows != nil {
			t.Errorf("%s asks for %d, %q: %v, %v", c.org, c.n, c.query, list, err)
		}
	}
}
