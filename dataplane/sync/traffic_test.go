// SPDX-License-Identifier: Apache-2.0

package sync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"cairn/dataplane/table"
	agentv1 "cairn/proto/agent/v1"
)

// teller has flows and counters to tell.
type teller struct {
	mu          sync.Mutex
	wake        chan struct{}
	queue       []Flow
	lost, taken uint64
	ports       []PortUsage
}

func (t *teller) Wake() <-chan struct{} { return t.wake }

func (t *teller) add(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for range n {
		t.queue = append(t.queue, Flow{Event: FlowOpened, Port: 1})
	}
	t.poke()
}

func (t *teller) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *teller) Take(most int) ([]Flow, uint64, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := min(most, len(t.queue))
	out := t.queue[:n]
	if t.queue = t.queue[n:]; len(t.queue) > 0 {
		t.poke()
	}
	t.taken += uint64(n)
	return out, t.lost, t.taken
}

func (t *teller) Usage() []PortUsage { return t.ports }

// deadEnd is a stream that notes when it is sent what.
type deadEnd struct {
	grpc.ClientStream
	ctx   context.Context
	began time.Time

	mu    sync.Mutex
	sent  []string
	fails bool
	slow  time.Duration // how long the send of flows takes
}

func (d *deadEnd) Recv() (*agentv1.ToAgent, error) {
	<-d.ctx.Done()
	return nil, io.EOF
}

func (d *deadEnd) Send(m *agentv1.FromAgent) error {
	what := ""
	switch m := m.Message.(type) {
	case *agentv1.FromAgent_Flows:
		time.Sleep(d.slow)
		what = fmt.Sprintf("%d flows, lost %d, taken %d", len(m.Flows.Flows), m.Flows.Lost, m.Flows.Taken)
	case *agentv1.FromAgent_Usage:
		what = fmt.Sprintf("usage of %d", len(m.Usage.Ports))
	case *agentv1.FromAgent_Ack:
		what = fmt.Sprintf("ack %d", m.Ack.Revision)
	default:
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sent = append(d.sent, fmt.Sprintf("%s: %s", time.Since(d.began), what))
	if d.fails {
		return errors.New("the stream is gone")
	}
	return nil
}

// said since the last call.
func (d *deadEnd) said() []string {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	sent := d.sent
	d.sent = nil
	return sent
}

// talking is a client on such a stream, within a bubble.
func talking(t *testing.T, traffic *teller) (*Client, *deadEnd) {
	t.Helper()
	tab, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Inventory: func() Inventory { return Inventory{Name: "hv1"} }, Table: tab, Log: slog.New(slog.DiscardHandler)}
	if traffic != nil {
		cfg.Traffic = traffic
	}
	c := New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	d := &deadEnd{ctx: ctx, began: time.Now()}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.talk(ctx, d)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		tab.Close()
	})
	return c, d
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: sent %q, want %q", what, got, want)
	}
}

func TestFlowsAreSentAtAnEasyPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		traffic := &teller{wake: make(chan struct{}, 1), ports: make([]PortUsage, 5000)}
		_, d := talking(t, traffic)
		expect(t, "at the start", d.said(), "0s: usage of 4096", "0s: usage of 904")
		time.Sleep(time.Second)
		expect(t, "with nothing to tell", d.said())
		traffic.add(1200)
		expect(t, "at once", d.said(), "1s: 500 flows, lost 0, taken 500")
		time.Sleep(250 * time.Millisecond)
		expect(t, "then", d.said(), "1.1s: 500 flows, lost 0, taken 1000", "1.2s: 200 flows, lost 0, taken 1200")
		traffic.add(1)
		expect(t, "one, after a rest", d.said())
		time.Sleep(flowGap)
		expect(t, "one", d.said(), "1.3s: 1 flows, lost 0, taken 1201")
		traffic.mu.Lock()
		traffic.lost = 9
		traffic.poke()
		traffic.mu.Unlock()
		time.Sleep(flowGap)
		expect(t, "a loss", d.said(), "1.4s: 0 flows, lost 9, taken 1201")
		traffic.poke()
		time.Sleep(flowGap)
		expect(t, "no news", d.said())
		time.Sleep(20 * time.Second)
		expect(t, "usage", d.said(), "10s: usage of 4096", "10s: usage of 904", "20s: usage of 4096", "20s: usage of 904")
	})
}

// TestAcknowledgementsGoFirst: however much there is to tell, an acknowledgement
// waits for one message at most.
func TestAcknowledgementsGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		traffic := &teller{wake: make(chan struct{}, 1)}
		c, d := talking(t, traffic)
		d.slow = 300 * time.Millisecond // slower than they come due
		traffic.add(5000)
		time.Sleep(50 * time.Millisecond)
		for revision := range uint64(5) {
			c.Programmed(table.Mark{Epoch: 1, Revision: revision + 1}, 1, nil)
			time.Sleep(300 * time.Millisecond)
		}
		var acks, before []string
		for _, s := range d.said() {
			if slices.Contains([]string{"ack 1", "ack 2", "ack 3", "ack 4", "ack 5"}, s[len(s)-5:]) {
				acks = append(acks, s)
			} else {
				before = append(before, s)
			}
		}
		// Flows from 0 to 300 ms, and so on: each acknowledgement right behind them.
		expect(t, "acknowledgements", acks, "300ms: ack 1", "600ms: ack 2", "900ms: ack 3", "1.2s: ack 4", "1.5s: ack 5")
		if len(before) != 5 {
			t.Errorf("flows meanwhile: %q", before)
		}
	})
}

func TestWithoutTrafficNothingIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, d := talking(t, nil)
		c.Programmed(table.Mark{Epoch: 1, Revision: 1}, 1, nil)
		time.Sleep(time.Minute)
		expect(t, "sent", d.said(), "0s: ack 1")
	})
}

func TestFlowsAsTheyAreOnTheWire(t *testing.T) {
	at := time.Unix(1893456000, 5)
	f := Flow{
		Event: FlowClosed, At: at, Opened: at.Add(-time.Second), Port: 7, Egress: true, Protocol: 17,
		Source: netip.MustParseAddr("::ffff:192.0.2.1"), Destination: netip.MustParseAddr("2001:db8::1"), SourcePort: 1, DestinationPort: 2,
		Rule: 3, Service: 4, Reason: "policy_in", Packets: 5, Bytes: 6,
	}
	got := flowOf(f)
	want := &agentv1.Flow{
		Event: agentv1.Flow_EVENT_CLOSED, AtNs: at.UnixNano(), OpenedNs: at.UnixNano() - 1e9, Port: 7, Egress: true, Protocol: 17,
		Source: []byte{192, 0, 2, 1}, Destination: f.Destination.AsSlice(), SourcePort: 1, DestinationPort: 2,
		Rule: 3, Service: 4, Reason: "policy_in", Packets: 5, Bytes: 6,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if none := flowOf(Flow{Event: FlowDenied, At: at}); len(none.Source) != 0 || none.OpenedNs != 0 {
		t.Errorf("of no IP packet: %v", none)
	}
}
