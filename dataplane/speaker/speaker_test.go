// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"cairn/dataplane/announce"
	"cairn/lb/bgp"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

var (
	web = announce.Service{Port: 80, Protocol: 6}
	dns = announce.Service{Port: 53, Protocol: 17}

	lastVIP  = announce.Wanted{Prefix: prefix("203.0.113.1/32"), Origin: announce.VIP, Services: []announce.Service{web, dns}}
	otherVIP = announce.Wanted{Prefix: prefix("203.0.113.2/32"), Origin: announce.VIP, Rank: 1, Services: []announce.Service{web}}
	machine  = announce.Wanted{Prefix: prefix("198.51.100.7/32"), Origin: announce.Instance, Port: 9}
)

// fakeDataplane fails what it is told to fail.
type fakeDataplane struct {
	mu     sync.Mutex
	link   error
	probes map[string]error // "203.0.113.1 80/tcp"
	ports  map[uint32]error
	asked  []string
}

func (d *fakeDataplane) Link() error { d.mu.Lock(); defer d.mu.Unlock(); return d.link }

func (d *fakeDataplane) Probe(vip netip.Addr, s announce.Service) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := vip.String() + " " + s.String()
	d.asked = append(d.asked, key)
	return d.probes[key]
}

func (d *fakeDataplane) Port(id uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, fmt.Sprint("port ", id))
	return d.ports[id]
}

// fakeRouter remembers what it was told.
type fakeRouter struct {
	mu     sync.Mutex
	routes []bgp.Route
	log    []string
	err    error
}

func (r *fakeRouter) Set(want []bgp.Route) ([]bgp.Step, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	steps := bgp.Plan(want, r.routes)
	for _, s := range steps {
		r.log = append(r.log, s.String())
	}
	r.routes = want
	return steps, r.err
}

func (r *fakeRouter) Sessions() ([]bgp.Session, error) {
	return []bgp.Session{{Peer: netip.MustParseAddr("10.64.0.0"), Established: true, State: "established"}}, nil
}

func (r *fakeRouter) prefixes() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, x := range r.routes {
		var line strings.Builder
		line.WriteString(x.Prefix.String())
		for _, c := range x.Communities {
			line.WriteString(" " + c.String())
		}
		out = append(out, line.String())
	}
	return strings.Join(out, ", ")
}

type bench struct {
	t         *testing.T
	file      string
	state     string
	dataplane *fakeDataplane
	router    *fakeRouter
	speaker   *Speaker
}

func newBench(t *testing.T) *bench {
	t.Helper()
	folder := t.TempDir()
	b := &bench{t: t, file: filepath.Join(folder, "agent", "announcements.json"), state: folder,
		dataplane: &fakeDataplane{probes: map[string]error{}, ports: map[uint32]error{}}, router: &fakeRouter{}}
	if err := os.Mkdir(filepath.Dir(b.file), 0o750); err != nil {
		t.Fatal(err)
	}
	b.restart()
	return b
}

// restart is a new process: what it knows comes from the disk.
func (b *bench) restart() {
	b.speaker = New(Config{File: b.file, State: b.state, Log: quietLog()}, b.dataplane, b.router)
	b.router.routes = nil
}

func (b *bench) write(revision uint64, wanted ...announce.Wanted) {
	b.t.Helper()
	if err := announce.Write(b.file, announce.Set{Revision: revision, Wanted: wanted}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) announced(want string) {
	b.t.Helper()
	if got := b.router.prefixes(); got != want {
		b.t.Errorf("announced %q, want %q; %+v", got, want, b.speaker.Status())
	}
}

func (b *bench) withheld(p netip.Prefix, why string) {
	b.t.Helper()
	for _, v := range b.speaker.Status().Withheld {
		if v.Prefix == p {
			if !strings.Contains(v.Reason, why) {
				b.t.Errorf("%s withheld because %q, want %q", p, v.Reason, why)
			}
			return
		}
	}
	b.t.Errorf("%s is not withheld", p)
}

func (b *bench) tick() {
	b.speaker.source.poll()
	b.speaker.round(everything)
}

const all = "198.51.100.7/32, 203.0.113.1/32, 203.0.113.2/32"

func TestAnnouncesWhatPasses(t *testing.T) {
	b := newBench(t)
	b.write(1, lastVIP, otherVIP, machine)
	b.speaker.source.start()
	b.speaker.round(everything)
	b.announced(all)

	t.Run("a failed probe withdraws its VIP and no other", func(t *testing.T) {
		b.t = t
		b.dataplane.probes["203.0.113.2 80/tcp"] = errors.New("dropped")
		b.tick()
		b.announced(all)
		b.tick()
		b.announced("198.51.100.7/32, 203.0.113.1/32")
		b.withheld(otherVIP.Prefix, "80/tcp: dropped")
		if got := b.speaker.Status().Probes.LastFailed; got != "probe 203.0.113.2 80/tcp: dropped" {
			t.Errorf("last failed %q", got)
		}
		delete(b.dataplane.probes, "203.0.113.2 80/tcp")
		b.tick()
		b.announced(all)
	})
	t.Run("rank 0 stays", func(t *testing.T) {
		b.t = t
		b.dataplane.probes["203.0.113.1 53/udp"] = errors.New("dropped")
		b.tick()
		b.tick()
		b.tick()
		b.announced(all)
		clear(b.dataplane.probes)
	})
	t.Run("a missing link withdraws all VIPs and no instance", func(t *testing.T) {
		b.t = t
		b.dataplane.link = errors.New("program is detached")
		b.tick()
		b.announced(all)
		asked := len(b.dataplane.asked)
		b.tick()
		b.announced("198.51.100.7/32")
		b.withheld(lastVIP.Prefix, "program is detached")
		for _, a := range b.dataplane.asked[asked:] {
			if !strings.HasPrefix(a, "port") {
				t.Errorf("%s was probed without a program", a)
			}
		}
		b.dataplane.link = nil
		b.tick()
		b.announced(all)
	})
	t.Run("a port that is gone withdraws its address and no other", func(t *testing.T) {
		b.t = t
		b.dataplane.ports[9] = errors.New("device is gone")
		b.tick()
		b.tick()
		b.announced("203.0.113.1/32, 203.0.113.2/32")
		b.withheld(machine.Prefix, "device is gone")
		clear(b.dataplane.ports)
		b.tick()
		b.announced(all)
	})
	t.Run("a drain is told, and withdrawn by the next set", func(t *testing.T) {
		b.t = t
		drained := otherVIP
		drained.Drain = true
		drained.Communities = []uint32{65001<<16 | 1}
		b.write(2, lastVIP, drained)
		b.tick()
		b.announced("203.0.113.1/32, 203.0.113.2/32 65001:1 65535:0")
		b.write(3, lastVIP)
		b.tick()
		b.announced("203.0.113.1/32")
	})
}

func TestStaleBeatsEmpty(t *testing.T) {
	b := newBench(t)
	b.write(7, lastVIP, machine)
	b.speaker.source.start()
	b.speaker.round(everything)
	const good = "198.51.100.7/32, 203.0.113.1/32"
	b.announced(good)
	damage := []struct {
		name, complaint string
		do              func()
	}{
		{"removed", "no announcement file", func() { must(t, os.Remove(b.file)) }},
		{"emptied", "corrupt", func() { must(t, os.WriteFile(b.file, nil, 0o600)) }},
		{"half", "corrupt", func() {
			b.write(9, otherVIP)
			data, err := os.ReadFile(b.file)
			must(t, err)
			must(t, os.WriteFile(b.file, data[:len(data)/2], 0o600))
		}},
		{"older", "revision 6 is older than 7", func() { b.write(6, otherVIP) }},
		{"older and empty", "revision 0 is older", func() { b.write(0) }},
	}
	for _, d := range damage {
		d.do()
		b.tick()
		b.announced(good)
		if got := b.speaker.Status().Complaint; !strings.Contains(got, d.complaint) {
			t.Errorf("%s: complaint %q, want %q", d.name, got, d.complaint)
		}
		// A restart finds nothing better than its own copy.
		b.restart()
		b.speaker.source.start()
		b.speaker.round(everything)
		b.announced(good)
		if got := b.speaker.Status(); got.Revision != 7 || got.Source != b.speaker.source.copy {
			t.Errorf("%s: after a restart revision %d from %s", d.name, got.Revision, got.Source)
		}
	}
	if got := b.speaker.Status().Refused; got == 0 {
		t.Error("no refusal was counted")
	}
	// The same revision with other contents is the agent's second thought.
	b.write(7, lastVIP)
	b.tick()
	b.announced("203.0.113.1/32")
	if got := b.speaker.Status(); got.Complaint != "" || got.Source != b.file {
		t.Errorf("after a good file: %+v", got)
	}
	// Negative control: an empty set of a newer revision is meant.
	b.write(8)
	b.tick()
	b.announced("")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A newcomer is tested at once, but two quick changes never make two failures
// of what is announced.
func TestChangesDoNotCountAsFailures(t *testing.T) {
	b := newBench(t)
	b.write(1, otherVIP, machine)
	b.speaker.source.start()
	b.speaker.round(everything)
	b.dataplane.link = errors.New("program is being replaced")
	b.dataplane.probes["203.0.113.2 80/tcp"] = errors.New("dropped")
	for revision := uint64(2); revision < 6; revision++ {
		b.write(revision, otherVIP, machine)
		b.speaker.source.poll()
		b.speaker.round(newcomers)
	}
	b.announced("198.51.100.7/32, 203.0.113.2/32")
	b.dataplane.link = nil
	b.write(6, lastVIP, otherVIP, machine)
	b.speaker.source.poll()
	b.dataplane.asked = nil
	b.speaker.round(newcomers)
	b.announced(all)
	if want := []string{"203.0.113.1 80/tcp", "203.0.113.1 53/udp"}; !slices.Equal(b.dataplane.asked, want) {
		t.Errorf("asked %v, want %v", b.dataplane.asked, want)
	}
}

func TestChooseGivesEverythingItsTurn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, budget := rapid.IntRange(1, 60).Draw(t, "wanted"), rapid.IntRange(1, 20).Draw(t, "budget")
		want := make([]announce.Wanted, n)
		tested := map[netip.Prefix]bool{}
		for i := range want {
			want[i].Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32)
			tested[want[i].Prefix] = rapid.Bool().Draw(t, "tested")
		}
		turn := rapid.IntRange(0, 100).Draw(t, "turn")
		times := make([]int, n)
		for round := range (n + budget - 1) / budget {
			var chosen []int
			chosen, turn = choose(want, tested, turn, budget)
			again := 0
			seen := map[int]bool{}
			for _, i := range chosen {
				if seen[i] {
					t.Fatalf("%d chosen twice in a round", i)
				}
				seen[i] = true
				times[i]++
				if tested[want[i].Prefix] {
					again++
				}
				if round == 0 {
					continue
				}
			}
			if again > budget {
				t.Fatalf("%d tested again, budget %d", again, budget)
			}
			for i := range want {
				if !tested[want[i].Prefix] && !seen[i] {
					t.Fatalf("newcomer %d waits", i)
				}
				tested[want[i].Prefix] = true
			}
		}
		for i, k := range times {
			if k == 0 {
				t.Fatalf("%d never had its turn: %v", i, times)
			}
		}
	})
	if chosen, turn := choose(nil, nil, 7, 5); len(chosen) != 0 || turn != 0 {
		t.Errorf("choose of nothing = %v, %d", chosen, turn)
	}
}

// The loop in false time: the link goes, and the VIPs within two intervals.
func TestRunNoticesAMissingLink(t *testing.T) {
	b := newBench(t)
	b.write(1, lastVIP, machine)
	synctest.Test(t, func(t *testing.T) {
		b.t = t
		changes := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.speaker.loop(ctx, changes) }()
		synctest.Wait()
		b.announced("198.51.100.7/32, 203.0.113.1/32")
		b.dataplane.mu.Lock()
		b.dataplane.link = errors.New("program is detached")
		b.dataplane.mu.Unlock()
		<-time.After(2 * Interval)
		synctest.Wait()
		b.announced("198.51.100.7/32")
		cancel()
		<-done
		b.announced("198.51.100.7/32") // ending is not withdrawing
	})
}

func TestRouterRefusalIsTold(t *testing.T) {
	b := newBench(t)
	b.router.err = errors.New("announce 2001:db8::1/128: no next hop")
	b.write(1, lastVIP)
	b.speaker.source.start()
	b.speaker.round(everything)
	if got := b.speaker.Status().Router; got != b.router.err.Error() {
		t.Errorf("status says %q", got)
	}
	b.router.err = nil
	b.tick()
	if got := b.speaker.Status().Router; got != "" {
		t.Errorf("status still says %q", got)
	}
}

// Over the real file system: inotify, socket, client.
func TestRunOverFilesAndSocket(t *testing.T) {
	b := newBench(t)
	b.write(1, otherVIP)
	ctx, cancel := context.WithCancel(t.Context())
	socket := filepath.Join(b.state, "speaker.sock")
	must(t, os.WriteFile(socket, nil, 0o600)) // what a killed speaker leaves
	var wg sync.WaitGroup
	wg.Go(func() { b.speaker.Run(ctx) })
	wg.Go(func() {
		if err := b.speaker.Serve(ctx, socket); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	status := func(revision uint64, count int) announce.Status {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for {
			s, err := announce.Query(ctx, socket)
			if err == nil && s.Revision == revision && len(s.Announced) == count {
				return s
			}
			if time.Now().After(deadline) {
				t.Fatalf("revision %d with %d announced: last saw %+v, %v", revision, count, s, err)
			}
			<-time.After(5 * time.Millisecond)
		}
	}
	s := status(1, 1)
	if s.Announced[0].Prefix != otherVIP.Prefix || s.Announced[0].Reason == "" || !s.Sessions[0].Established || s.Probes.Link.Passed == 0 {
		t.Errorf("status %+v", s)
	}
	b.write(2, lastVIP, otherVIP, machine)
	status(2, 3)
}

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }
