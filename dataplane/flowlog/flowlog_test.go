// SPDX-License-Identifier: Apache-2.0

package flowlog

import (
	"context"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cairn/bpf"
	"cairn/dataplane/host"
	dsync "cairn/dataplane/sync"
)

var epoch = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// kernel is a dataplane that tells what it is told to.
type kernel struct {
	counts host.EventCounts
	ring   []bpf.Event // told, and not read
	missed uint64
	stats  map[uint32]host.PortStats
}

func (k *kernel) EventCounts() (host.EventCounts, error) {
	c := k.counts
	c.Waiting = 0
	return c, nil
}

func (k *kernel) EventsWaiting() (host.EventCounts, error) {
	c := k.counts
	c.Waiting = uint64(len(k.ring))
	return c, nil
}

func (k *kernel) AllPortStats() (map[uint32]host.PortStats, error) { return k.stats, nil }

func (k *kernel) Missed() uint64 { return k.missed }

// All events that are in the ring.
func (k *kernel) All(context.Context) iter.Seq[bpf.Event] {
	return func(yield func(bpf.Event) bool) {
		for len(k.ring) > 0 {
			e := k.ring[0]
			k.ring = k.ring[1:]
			if !yield(e) {
				return
			}
		}
	}
}

func (k *kernel) tell(events ...bpf.Event) {
	k.counts.Told += uint64(len(events))
	k.ring = append(k.ring, events...)
}

func event(kind uint8, n uint16) bpf.Event {
	return bpf.Event{
		At: 5e9, Kind: kind, Audience: bpf.EventForLog, Port: 7, Proto: 6, Src: ip16("192.0.2.1"), Dst: ip16("198.51.100.1"),
		Sport: bpf.BE16(n), Dport: bpf.BE16(80),
	}
}

func ip16(s string) (ip bpf.Ip16) { return bpf.IP16(netip.MustParseAddr(s)) }

func events(n int) (out []bpf.Event) {
	for i := range n {
		out = append(out, event(bpf.EventOpened, uint16(i)))
	}
	return out
}

func start(t *testing.T, k *kernel, path string, queue int) *Log {
	t.Helper()
	l, err := New(Config{
		Host: k, Ledger: path, Queue: queue, Log: slog.New(slog.DiscardHandler),
		Time: func(at uint64) time.Time { return epoch.Add(time.Duration(at)) },
	}, func() (Events, error) { k.missed = 0; return k, nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestEventsAreFlows(t *testing.T) {
	opened, closed, denied, out := event(bpf.EventOpened, 1), event(bpf.EventClosed, 2), event(bpf.EventDenied, 3), event(bpf.EventDenied, 4)
	opened.Rule, opened.Service = 9, 4
	closed.Opened, closed.Packets, closed.Bytes, closed.Rule = 2e9, 10, 1000, 9
	denied.Reason, denied.Packets, denied.Bytes = uint32(bpf.ReasonPolicyIn), 1, 60
	out.Direction, out.Src, out.Dst, out.Reason = uint8(bpf.DirectionOut), bpf.Ip16{}, bpf.Ip16{}, uint32(bpf.ReasonNoPolicy)
	watched, dropped, nowhere := event(bpf.EventDenied, 5), event(bpf.EventDropped, 6), event(bpf.EventDenied, 7)
	watched.Audience, nowhere.Port = bpf.EventForWatch, 0
	k := &kernel{}
	l := start(t, k, filepath.Join(t.TempDir(), "ledger"), 0)
	k.tell(opened, closed, denied, out, watched, dropped, nowhere)
	l.Run(t.Context())
	flows, lost, taken := l.Take(100)
	flow := func(kind dsync.FlowEvent, port uint16) dsync.Flow {
		return dsync.Flow{
			Event: kind, At: epoch.Add(5 * time.Second), Port: 7, Protocol: 6, Source: netip.MustParseAddr("192.0.2.1"), SourcePort: port,
			Destination: netip.MustParseAddr("198.51.100.1"), DestinationPort: 80,
		}
	}
	want := []dsync.Flow{flow(dsync.FlowOpened, 1), flow(dsync.FlowClosed, 2), flow(dsync.FlowDenied, 3), flow(dsync.FlowDenied, 4)}
	want[0].Rule, want[0].Service = 9, 4
	want[1].Rule, want[1].Opened, want[1].Packets, want[1].Bytes = 9, epoch.Add(2*time.Second), 10, 1000
	want[2].Reason = "policy_in"
	want[3].Reason, want[3].Egress, want[3].Source, want[3].Destination = "no_policy", true, netip.Addr{}, netip.Addr{}
	for i := range want {
		if flows[i].Source.IsValid() {
			flows[i].Source, flows[i].Destination = flows[i].Source.Unmap(), flows[i].Destination.Unmap()
		}
		if !reflect.DeepEqual(flows[i], want[i]) {
			t.Errorf("flow %d:\n got %+v\nwant %+v", i, flows[i], want[i])
		}
	}
	if len(flows) != 4 || lost != 0 || taken != 4 {
		t.Errorf("%d flows, lost %d, taken %d", len(flows), lost, taken)
	}
}

// TestLossesAreCountedForGood: in the ring, beyond a rate, with a slow listener,
// in a full queue, and with an agent that is killed.
func TestLossesAreCountedForGood(t *testing.T) {
	k, path := &kernel{counts: host.EventCounts{Told: 100, Lost: 40, Muted: 2}}, filepath.Join(t.TempDir(), "ledger")
	l := start(t, k, path, 5)
	take := func(most, want int, lost, taken uint64) {
		t.Helper()
		flows, gotLost, gotTaken := l.Take(most)
		if len(flows) != want || gotLost != lost || gotTaken != taken {
			t.Errorf("%d flows, lost %d, taken %d; want %d, %d, %d", len(flows), gotLost, gotTaken, want, lost, taken)
		}
	}
	take(10, 0, 0, 0) // what was before nobody has asked for
	k.tell(events(8)...)
	l.Run(t.Context())
	take(3, 3, 3, 3)
	k.counts.Lost, k.counts.Muted = 45, 4
	take(10, 2, 3+7, 5)
	k.counts.Told, k.missed = k.counts.Told+6, 6
	take(10, 0, 10+6, 5)

	// Killed with 4 in its queue; 3 come meanwhile and wait, one finds no room.
	k.tell(events(4)...)
	l.Run(t.Context())
	k.tell(events(3)...)
	k.counts.Lost++
	l = start(t, k, path, 5)
	take(10, 0, 16+4+1, 5)
	l.Run(t.Context())
	take(10, 3, 21, 8)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = start(t, k, path, 5) // nothing was lost with that one
	take(10, 0, 21, 8)
	l.Close()

	// The machine was started anew: so are all counts.
	k.counts, k.ring = host.EventCounts{Told: 2}, nil
	l = start(t, k, path, 5)
	take(10, 0, 0, 0)
	l.Close()
	if err := os.WriteFile(path, []byte("of another version"), 0o600); err != nil {
		t.Fatal(err)
	}
	l = start(t, k, path, 5)
	take(10, 0, 0, 0)
	l.Close()
	l = start(t, k, "/nowhere/ledger", 5) // goes on without one
	k.tell(events(7)...)
	l.Run(t.Context())
	take(10, 5, 2, 5)
}

// Of a port whose flows flood the queue some are lost, of others none.
func TestAFloodLeavesRoomForOtherPorts(t *testing.T) {
	k := &kernel{}
	l := start(t, k, filepath.Join(t.TempDir(), "ledger"), 80)
	defer l.Close()
	one := func(port uint32) bpf.Event {
		e := event(bpf.EventDenied, 1)
		e.Port = port
		return e
	}
	for round := range 2 { // what was taken makes room again
		for range 200 {
			k.tell(one(7))
		}
		k.tell(one(8), one(9))
		l.Run(t.Context())
		flows, lost, _ := l.Take(100)
		by := map[uint32]int{}
		for _, f := range flows {
			by[f.Port]++
		}
		if by[7] != 78 || by[8] != 1 || by[9] != 1 || lost != uint64(122*(round+1)) {
			t.Errorf("round %d: of the ports there are %v, lost %d", round, by, lost)
		}
	}
}

func woken(l *Log) bool {
	select {
	case <-l.Wake():
		return true
	default:
		return false
	}
}

func TestItWakesWhenThereIsSomethingToTell(t *testing.T) {
	k := &kernel{}
	l := start(t, k, filepath.Join(t.TempDir(), "ledger"), 0)
	defer l.Close()
	if woken(l) {
		t.Error("awake with nothing to tell")
	}
	k.tell(events(3)...)
	l.Run(t.Context())
	if !woken(l) {
		t.Error("asleep")
	}
	l.Take(2)
	if !woken(l) {
		t.Error("asleep with one left")
	}
	l.Take(2)
	if woken(l) {
		t.Error("awake with none left")
	}
	l.Usage()
	if woken(l) {
		t.Error("awake with no loss to tell")
	}
	k.counts.Muted++
	l.Usage()
	if !woken(l) {
		t.Error("asleep with a loss to tell")
	}
}

func TestCountersOfAPortOutliveItForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kernel{stats: map[uint32]host.PortStats{
			9: {PacketsIn: 1, BytesIn: 2, PacketsOut: 3, BytesOut: 4, Dropped: 5}, 3: {PacketsIn: 6},
		}}
		l := start(t, k, filepath.Join(t.TempDir(), "ledger"), 0)
		defer l.Close()
		says := func(want ...dsync.PortUsage) {
			t.Helper()
			if got := l.Usage(); !slices.Equal(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
		nine := dsync.PortUsage{Port: 9, PacketsIn: 1, BytesIn: 2, PacketsOut: 3, BytesOut: 4, Dropped: 5}
		says(dsync.PortUsage{Port: 3, PacketsIn: 6}, nine)
		delete(k.stats, 3)
		l.Detached(3, host.PortStats{PacketsIn: 7})
		says(dsync.PortUsage{Port: 3, PacketsIn: 7}, nine)
		time.Sleep(farewell)
		says(dsync.PortUsage{Port: 3, PacketsIn: 7}, nine)
		time.Sleep(time.Nanosecond)
		says(nine)
		l.Detached(4, host.PortStats{PacketsIn: 7})
		k.stats[4] = host.PortStats{} // it is back, and counts from 0
		says(dsync.PortUsage{Port: 4, PacketsIn: 7}, dsync.PortUsage{Port: 4}, nine)
		says(dsync.PortUsage{Port: 4}, nine)
	})
}
