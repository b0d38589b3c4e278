// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/lb/slots"
)

func TestFormerOwnersWaitBeforeTheyAreCounted(t *testing.T) {
	w := newWorld(t)
	defer w.table.Close()
	items := append(small(), aPort(3, 3), aBackend(3, 1, 1, 3))
	w.mustApply(items)
	d := drains{since: map[drainKey]time.Time{}, told: map[drainKey]uint64{}}
	now := time.Unix(100, 0)
	step := func(what string, after time.Duration, table wire.Slots, want int) {
		t.Helper()
		now = now.Add(after)
		w.mustApply([]wire.Item{table})
		d.renew(former(w.table.View(), 1), now)
		if due := d.due(now); len(due) != want {
			t.Errorf("%s: due %v, want %d", what, due, want)
		}
	}
	step("nobody owned anything before", 0, aTable(1, 2, 256, [2]uint32{1, 0}, [2]uint32{2, 0}), 0)
	step("one here and one elsewhere, just now", 0, aTable(1, 3, 256, [2]uint32{2, 1}, [2]uint32{3, 2}), 0)
	step("not long enough", drainAfter/2, aTable(1, 3, 256, [2]uint32{2, 1}, [2]uint32{3, 2}), 0)
	step("long enough, though others' slots moved", drainAfter/2, aTable(1, 4, 256, [2]uint32{2, 1}, [2]uint32{3, 0}), 1)
	d.told[drainKey{1, 1}] = 4
	step("told", time.Hour, aTable(1, 4, 256, [2]uint32{2, 1}, [2]uint32{3, 0}), 0)
	step("to be told again of the next table", time.Second, aTable(1, 5, 256, [2]uint32{2, 1}, [2]uint32{2, 0}), 1)
	step("owned other slots before", time.Hour, aTable(1, 6, 256, [2]uint32{2, 0}, [2]uint32{3, 1}), 0)
	table7 := aTable(1, 7, 256, [2]uint32{2, 1}, [2]uint32{2, 0})
	step("long enough again", drainAfter, table7, 0)
	step("and again", drainAfter, table7, 1)
	d.told[drainKey{1, 1}] = 7
	w.mustApply([]wire.Item{draining(aBackend(1, 1, 1, 1))})
	step("draining: told again, and nobody else's table matters", 0, table7, 1)
	d.told[drainKey{1, 1}] = 7
	step("draining, told", time.Hour, aTable(1, 7, 256, [2]uint32{2, 1}, [2]uint32{2, 0}), 0)
	for what, change := range map[string]func(*wire.Service){
		"draining, but a datagram opens a flow": func(s *wire.Service) { s.Protocol = 17 },
		"draining, but all are open":            func(s *wire.Service) { s.Panic = true },
	} {
		d = drains{since: map[drainKey]time.Time{}, told: map[drainKey]uint64{}}
		service := aService(1)
		change(&service)
		w.mustApply([]wire.Item{service})
		table := aTable(1, 7, 256, [2]uint32{2, 1}, [2]uint32{2, 0})
		step(what, 0, table, 0)
		step(what+", for long", drainAfter, table, 1)
	}
	if gone := d.renew(nil, now); len(gone) != 1 || len(d.since) != 0 || len(d.told) != 0 {
		t.Errorf("gone %v, left %v %v", gone, d.since, d.told)
	}
}

func draining(b wire.Backend) wire.Backend {
	b.Draining = true
	return b
}

func TestWhichFlowsAreAlive(t *testing.T) {
	const second = uint64(time.Second)
	now := 10_000 * second
	for _, c := range []struct {
		name  string
		proto uint8
		state uint8
		idle  uint64
		want  bool
	}{
		{"established", 6, bpf.CtEstablished, 3599, true},
		{"established, expired", 6, bpf.CtEstablished, 3601, false},
		{"half closed", 6, bpf.CtClosing, 100, true},
		{"closed", 6, bpf.CtClosed, 0, false},
		{"reset", 6, bpf.CtReset, 0, false},
		{"new", 6, bpf.CtNew, 29, true},
		{"new, never answered", 6, bpf.CtNew, 31, false},
		{"answered", 6, bpf.CtReplied, 59, true},
		{"udp", 17, bpf.CtReplied, 61, false},
		{"udp stream", 17, bpf.CtEstablished, 179, true},
		{"ping", 1, bpf.CtEstablished, 6, false},
		{"ping of IPv6", 58, bpf.CtEstablished, 6, false},
		{"tunnel", 47, bpf.CtReplied, 61, false},
		{"tunnel, answered", 47, bpf.CtEstablished, 599, true},
	} {
		f := bpf.Ct{State: c.state, Seen: now - c.idle*second}
		if got := alive(bpf.CtKey{Proto: c.proto}, f, now); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestTwoAgentsDoNotShareAState(t *testing.T) {
	folder := t.TempDir()
	first, err := lock(folder)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(folder); err == nil {
		t.Error("locked twice")
	}
	first.Close()
	second, err := lock(folder)
	if err != nil {
		t.Fatalf("after the first one ended: %v", err)
	}
	second.Close()
	for want := range uint64(3) {
		if n, err := countStart(folder); err != nil || n != want {
			t.Errorf("%d starts before, want %d: %v", n, want, err)
		}
	}
}

// While the seed rotates every backend here may have flows from before, whoever owns
// which slot; they are counted by the new seed, whatever hash they began with.
func TestRotatingServicesAreCounted(t *testing.T) {
	w := newWorld(t)
	defer w.table.Close()
	s := aService(1)
	w.mustApply(small())
	if got := former(w.table.View(), 1); len(got) != 0 {
		t.Errorf("nothing rotates: %v", got)
	}
	s.Rotating, s.PrevSeed, s.Seed, s.SlotsGeneration = true, s.Seed, 5, 9
	w.mustApply([]wire.Item{s})
	got := former(w.table.View(), 1)
	if l := got[drainKey{1, 1}]; len(got) != 1 || l.port != 1 || l.generation != 9 || l.closed || l.slots == 0 {
		t.Errorf("backend 1 is the one of this host: %v", got)
	}
	peer := netip.MustParseAddr("192.0.2.9")
	f := bpf.Ct{Hash: 77, Vip: bpf.IP16(s.VIP), VipPort: bpf.BE16(s.Port), PeerPort: bpf.BE16(1234)}
	for name, c := range map[string]struct {
		peer string
		vip  netip.Addr
		want uint32
	}{
		"a client's":           {"192.0.2.9", s.VIP, slots.Hash(5, peer, s.VIP, 1234, s.Port, 6, false)},
		"its own client's":     {"169.254.169.252", s.VIP, 77},
		"of a VIP from before": {"192.0.2.9", netip.MustParseAddr("203.0.113.99"), 77},
	} {
		f.Vip = bpf.IP16(c.vip)
		if got := hashNow(s, bpf.CtKey{Peer: bpf.IP16(netip.MustParseAddr(c.peer)), PeerPort: bpf.BE16(60000), Proto: 6}, f); got != c.want {
			t.Errorf("%s: %#x, want %#x", name, got, c.want)
		}
	}
}
