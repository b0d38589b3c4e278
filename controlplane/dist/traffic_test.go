// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"cairn/cloud"
	"cairn/controlplane/store"
	agentv1 "cairn/proto/agent/v1"
)

// Flows implements Traffic.
func (l listener) Flows(host string, batch FlowBatch) {
	var ports []string
	for _, f := range batch.Flows {
		ports = append(ports, fmt.Sprint(f.Port))
	}
	l.hear("%s flows of %s, lost %d, refused %d", host, strings.Join(ports, " "), batch.Lost, batch.Refused)
}

// Usage implements Traffic.
func (l listener) Usage(host, boot string, at time.Time, ports []PortUsage) {
	if l.now().Sub(at).Abs() > 10*time.Minute {
		l.Errorf("usage as of %s", at)
	}
	for _, p := range ports {
		l.hear("%s boot %s port %d: in %d %d out %d %d dropped %d", host, boot, p.Port, p.PacketsIn, p.BytesIn, p.PacketsOut, p.BytesOut, p.Dropped)
	}
}

func (l listener) hear(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = append(l.heard, fmt.Sprintf(format, args...))
}

// said is what was heard since the last call.
func (b *bench) said() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	heard := b.heard
	b.heard = nil
	return heard
}

func (a *agent) say(messages ...*agentv1.FromAgent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.traffic = append(a.traffic, messages...)
}

func flowsMessage(lost uint64, flows ...*agentv1.Flow) *agentv1.FromAgent {
	return &agentv1.FromAgent{Message: &agentv1.FromAgent_Flows{Flows: &agentv1.Flows{Flows: flows, Lost: lost}}}
}

func usageMessage(ports ...uint32) *agentv1.FromAgent {
	u := &agentv1.Usage{AtNs: time.Now().UnixNano()}
	for _, p := range ports {
		u.Ports = append(u.Ports, &agentv1.PortUsage{
			Port: p, PacketsIn: 1, BytesIn: 100, PacketsOut: 2, BytesOut: 200, PacketsDropped: 3,
		})
	}
	return &agentv1.FromAgent{Message: &agentv1.FromAgent_Usage{Usage: u}}
}

func flowMessage(port uint32, change func(*agentv1.Flow)) *agentv1.Flow {
	f := &agentv1.Flow{
		Event: agentv1.Flow_EVENT_OPENED, AtNs: time.Now().UnixNano(), Port: port, Protocol: 6,
		Source: []byte{192, 0, 2, 1}, Destination: []byte{198, 51, 100, 1}, SourcePort: 1024, DestinationPort: 80, Rule: 5,
	}
	if change != nil {
		change(f)
	}
	return f
}

// TestTrafficOfOwnPortsOnly: an agent is believed of the ports that are on it,
// and a moment longer of those that were.
func TestTrafficOfOwnPortsOnly(t *testing.T) {
	b := newBench(t)
	a1, a2 := b.join("hv1").connect(), b.join("hv2").connect()
	b.inStep(a1, a2)
	b.group(1, 80)
	b.instance(1, a1, 1)
	b.instance(2, a2, 1)
	b.inStep(a1, a2)
	hears := func(want ...string) {
		t.Helper()
		var heard []string
		b.eventually(fmt.Sprint(want), func() bool {
			heard = append(heard, b.said()...)
			return len(heard) >= len(want)
		})
		if !slices.Equal(heard, want) {
			t.Errorf("heard %q, want %q", heard, want)
		}
	}
	a1.say(flowsMessage(7, flowMessage(1, nil), flowMessage(2, nil), flowMessage(3, nil)), usageMessage(1, 2))
	hears("hv1 flows of 1, lost 7, refused 2", "hv1 boot b port 1: in 1 100 out 2 200 dropped 3")
	a2.say(flowsMessage(0, flowMessage(1, nil)), flowsMessage(0, flowMessage(2, nil)))
	hears("hv2 flows of , lost 0, refused 1", "hv2 flows of 2, lost 0, refused 0")

	b.deleted(1)
	b.inStep(a1)
	a2.say(usageMessage(1, 2))
	hears("hv2 boot b port 2: in 1 100 out 2 200 dropped 3")
	a1.say(usageMessage(1)) // its last word
	hears("hv1 boot b port 1: in 1 100 out 2 200 dropped 3")
	b.offset.Store(int64(2 * afterlife))
	a1.say(usageMessage(1), flowsMessage(0))
	hears("hv1 flows of , lost 0, refused 0")

	// Placed somewhere else, it is only there.
	b.commit(false, func(tx *store.Tx, op cloud.ID) error {
		doc, err := store.Get[store.InstanceDoc](tx, "org", instanceID(2))
		if err != nil {
			return err
		}
		doc.Body.HostNumber = numberOf("hv1")
		return store.Put(tx, op, doc)
	})
	b.inStep(a1, a2)
	b.offset.Store(int64(4 * afterlife))
	a2.say(usageMessage(2), flowsMessage(0))
	a1.say(usageMessage(2))
	b.eventually("both have spoken", func() bool {
		s := &b.server.Stats
		return s.UsageForeign.Load() == 4 && s.Usage.Load() == 4
	})
	stats := &b.server.Stats
	if stats.Flows.Load() != 2 || stats.FlowsForeign.Load() != 3 || stats.FlowsIllegible.Load() != 0 {
		t.Errorf("flows %d, foreign %d, illegible %d", stats.Flows.Load(), stats.FlowsForeign.Load(), stats.FlowsIllegible.Load())
	}
}

// TestIllegibleTrafficEndsNothing: what cannot be meant is counted, the session
// goes on, and what is right beside it is taken.
func TestIllegibleTrafficEndsNothing(t *testing.T) {
	b := newBench(t)
	a := b.join("hv1").connect()
	b.inStep(a)
	b.group(1, 80)
	b.instance(1, a, 1)
	b.inStep(a)
	stats := &b.server.Stats
	bad := []func(*agentv1.Flow){
		func(f *agentv1.Flow) { f.Event = 0 },
		func(f *agentv1.Flow) { f.Event = 77 },
		func(f *agentv1.Flow) { f.Port = 0 },
		func(f *agentv1.Flow) { f.Protocol = 256 },
		func(f *agentv1.Flow) { f.Source = []byte{1, 2, 3} },
		func(f *agentv1.Flow) { f.Destination = make([]byte, 17) },
		func(f *agentv1.Flow) { f.SourcePort = 65536 },
		func(f *agentv1.Flow) { f.DestinationPort = 1 << 31 },
		func(f *agentv1.Flow) { f.Reason = "Not a word" },
		func(f *agentv1.Flow) { f.Reason = strings.Repeat("a", maxReason+1) },
	}
	var m []*agentv1.Flow
	for _, change := range bad {
		m = append(m, flowMessage(1, change), flowMessage(1, nil))
	}
	many := make([]*agentv1.Flow, maxFlows+5)
	for i := range many {
		many[i] = flowMessage(1, nil)
	}
	a.say(flowsMessage(0, m...), flowsMessage(0, many...), flowsMessage(0), usageMessage(0), usageMessage())
	b.eventually("all was looked at", func() bool { return stats.UsageIllegible.Load() == 1 })
	if got, want := stats.FlowsIllegible.Load(), uint64(len(bad)+5); got != want {
		t.Errorf("%d illegible, want %d", got, want)
	}
	if got, want := stats.Flows.Load(), uint64(len(bad)+maxFlows); got != want {
		t.Errorf("%d taken, want %d", got, want)
	}
	b.group(1, 443)
	b.inStep(a)
	if n := stats.Sessions.Load(); n != 1 || a.snapshots != 1 {
		t.Errorf("%d sessions, %d snapshots: the stream has ended", n, a.snapshots)
	}
}

// TestAnyFlowIsReadOrRefused: nothing that can be sent panics, and what is taken
// is within bounds.
func TestAnyFlowIsReadOrRefused(t *testing.T) {
	now := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		m := &agentv1.Flow{}
		if err := proto.Unmarshal(rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "bytes"), m); err != nil {
			m = &agentv1.Flow{
				Event: agentv1.Flow_Event(rapid.Int32().Draw(t, "event")), AtNs: rapid.Int64().Draw(t, "at"), Port: rapid.Uint32().Draw(t, "port"),
				Protocol: rapid.Uint32().Draw(t, "protocol"), Source: rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "source"),
				SourcePort: rapid.Uint32().Draw(t, "source port"), OpenedNs: rapid.Int64().Draw(t, "opened"), Reason: rapid.String().Draw(t, "reason"),
			}
		}
		f, ok := flowOf(m, now)
		if ok && (uint32(f.Protocol) != m.Protocol || uint32(f.SourcePort) != m.SourcePort || len(f.Reason) > maxReason ||
			f.At.Before(now.Add(-clockBehind)) || f.At.After(now.Add(clockAhead))) {
			t.Fatalf("%v was taken as %+v", m, f)
		}
	})
}
