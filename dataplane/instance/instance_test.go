// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"cairn/cloud/compute"
	"cairn/cloud/wire"
	"cairn/dataplane/table"
)

func spec(id string, generation uint64, running bool) compute.Spec {
	return compute.Spec{ID: id, Port: 1, Driver: "fake", MAC: net.HardwareAddr{2}, Running: running, Generation: generation}
}

func machine(s compute.Spec) compute.Machine {
	m := compute.Machine{ID: s.ID, Port: s.Port, State: compute.StateStopped, Generation: s.Generation, SpecHash: s.Hash()}
	if s.Running {
		m.State = compute.StateRunning
	}
	return m
}

func TestWantedNeedsThePort(t *testing.T) {
	desired, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	defer desired.Close()
	var ups []table.Upsert
	for _, item := range []wire.Item{
		wire.Instance{ID: "a", Name: "web", Driver: "netns", Command: "echo", Port: 1, Running: true, Generation: 4, Zone: "z"},
		wire.Instance{ID: "b", Driver: "netns", Port: 2},
		wire.Instance{ID: "c", Driver: "netns", Port: 3},
		wire.Port{ID: 1, MAC: [6]byte{2, 0xca, 0, 0, 0, 1}, Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("198.51.100.1")}, MTU: 1500},
		wire.Port{ID: 3, MAC: [6]byte{2, 0xca, 0, 0, 0, 3}},
		wire.Instance{ID: "d", Driver: "netns", Networks: []uint32{31, 32}},
		wire.Instance{ID: "e", Driver: "netns", Networks: []uint32{33}},
		wire.Instance{ID: "f", Driver: "netns", Networks: []uint32{34}},
		wire.Network{VNI: 7, Lease: &wire.Lease{Server: netip.MustParseAddr("10.0.0.9"), Start: netip.MustParseAddr("10.0.0.1"), End: netip.MustParseAddr("10.0.0.8"), Bits: 28}},
		wire.Network{VNI: 8},
		wire.Port{ID: 31, Network: 7, MAC: [6]byte{2, 0xca, 0, 0, 0, 31}, MTU: 1450},
		wire.Port{ID: 32, Network: 8, MAC: [6]byte{2, 0xca, 0, 0, 0, 32}},
		wire.Port{ID: 33, Network: 9, MAC: [6]byte{2, 0xca, 0, 0, 0, 33}},
	} {
		body, err := wire.Encode(item)
		if err != nil {
			t.Fatal(err)
		}
		ups = append(ups, table.Upsert{Key: item.Key(), Body: body})
	}
	if _, err := desired.Restore(table.Mark{Epoch: 1, Revision: 1}, ups); err != nil {
		t.Fatal(err)
	}
	got := Wanted(desired.View())
	want := compute.Spec{
		ID: "a", Port: 1, Name: "web", Driver: "netns", Command: "echo", MAC: net.HardwareAddr{2, 0xca, 0, 0, 0, 1},
		Address: netip.MustParseAddr("198.51.100.1"), Gateway: netip.MustParseAddr("169.254.0.1"), MTU: 1500,
		Address6: netip.MustParseAddr("2001:db8::1"), Gateway6: netip.MustParseAddr("fe80::cb:ff:fe00:1"), Running: true, Generation: 4, Zone: "z",
	}
	if got["a"].Fault != "" || got["a"].Spec.Hash() != want.Hash() || got["a"].Spec.Generation != 4 {
		t.Errorf("a: %+v", got["a"])
	}
	private := compute.Spec{ID: "d", Driver: "netns", Gateway: want.Gateway, Networks: []compute.Interface{
		{Port: 31, MAC: net.HardwareAddr{2, 0xca, 0, 0, 0, 31}, MTU: 1450, Leased: true}, {Port: 32, MAC: net.HardwareAddr{2, 0xca, 0, 0, 0, 32}},
	}}
	if got["d"].Fault != "" || got["d"].Spec.Hash() != private.Hash() {
		t.Errorf("d: %+v", got["d"])
	}
	if got["e"].Fault != "network 9 of port 33 is not here" || got["f"].Fault != "port 34 is not here" {
		t.Errorf("e: %q, f: %q", got["e"].Fault, got["f"].Fault)
	}
	if got["b"].Fault != "port 2 is not here" || got["c"].Fault != "port 3 has no IPv4 address" {
		t.Errorf("b: %q, c: %q", got["b"].Fault, got["c"].Fault)
	}
}

func TestPlan(t *testing.T) {
	other := spec("x", 1, true)
	other.Command = "other"
	for _, c := range []struct {
		name string
		want []Want
		have []compute.Machine
		plan []string
	}{
		{"nothing", nil, nil, nil},
		{"a new one", []Want{{Spec: spec("x", 1, true)}}, nil, []string{"ensure x by fake: running, port 1, generation 1"}},
		{"as wanted", []Want{{Spec: spec("x", 1, true)}}, []compute.Machine{machine(spec("x", 1, true))}, nil},
		{"to be stopped", []Want{{Spec: spec("x", 2, false)}}, []compute.Machine{machine(spec("x", 1, true))}, []string{"ensure x by fake: stopped, port 1, generation 2"}},
		{"only its generation differs", []Want{{Spec: spec("x", 2, true)}}, []compute.Machine{machine(spec("x", 1, true))}, []string{"ensure x by fake: running, port 1, generation 2"}},
		{"another workload", []Want{{Spec: other}}, []compute.Machine{machine(spec("x", 1, true))}, []string{"ensure x by fake: running, port 1, generation 1"}},
		{"its workload ended", []Want{{Spec: spec("x", 1, true)}}, []compute.Machine{func() compute.Machine {
			m := machine(spec("x", 1, true))
			m.State = compute.StateStopped
			return m
		}()}, []string{"ensure x by fake: running, port 1, generation 1"}},
		{"half made", []Want{{Spec: spec("x", 1, true)}}, []compute.Machine{{ID: "x", State: compute.StateError}}, []string{"ensure x by fake: running, port 1, generation 1"}},
		{"not wanted, removed before others are made", []Want{{Spec: spec("a", 1, true)}}, []compute.Machine{machine(spec("x", 1, true))}, []string{"remove x by fake", "ensure a by fake: running, port 1, generation 1"}},
		{"cannot be made", []Want{{Spec: spec("x", 1, true), Fault: "port 1 is not here"}}, nil, nil},
		{"cannot be changed, is left alone", []Want{{Spec: spec("x", 2, false), Fault: "port 1 is not here"}}, []compute.Machine{machine(spec("x", 1, true))}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := map[string]Want{}
			for _, w := range c.want {
				want[w.Spec.ID] = w
			}
			var got []string
			for _, s := range Plan(want, map[string][]compute.Machine{"fake": c.have}) {
				got = append(got, s.String())
			}
			if !slices.Equal(got, c.plan) {
				t.Errorf("got %q, want %q", got, c.plan)
			}
		})
	}
}

// fake is a driver in memory.
type fake struct {
	mu       sync.Mutex
	machines map[string]compute.Machine
	fails    map[string]bool
	calls    int
}

func newFake() *fake { return &fake{machines: map[string]compute.Machine{}, fails: map[string]bool{}} }

func (f *fake) Name() string { return "fake" }

func (f *fake) List() ([]compute.Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []compute.Machine
	for _, m := range f.machines {
		all = append(all, m)
	}
	return all, nil
}

func (f *fake) Ensure(s compute.Spec) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.fails[s.ID] {
		return errors.New("no room")
	}
	f.machines[s.ID] = machine(s)
	return nil
}

func (f *fake) Remove(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	delete(f.machines, id)
	return nil
}

// locked looks at the driver, or changes it, between two of its calls.
func (f *fake) locked(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

func (f *fake) count() (calls int) {
	f.locked(func() { calls = f.calls })
	return calls
}

// end a machine's workload.
func (f *fake) end(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.machines[id]
	m.State = compute.StateStopped
	f.machines[id] = m
}

func TestPlanIsDoneOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		driver, want := newFake(), map[string]Want{}
		for i := range rapid.IntRange(0, 8).Draw(t, "machines") {
			id := fmt.Sprint(i)
			if rapid.Bool().Draw(t, "wanted") {
				want[id] = Want{Spec: spec(id, rapid.Uint64Range(1, 2).Draw(t, "generation"), rapid.Bool().Draw(t, "running"))}
			}
			if rapid.Bool().Draw(t, "there") {
				driver.machines[id] = machine(spec(id, 1, rapid.Bool().Draw(t, "running")))
			}
		}
		w := NewWorker([]compute.Driver{driver}, func(Report) {}, slog.New(slog.DiscardHandler))
		w.Set(want)
		if err := w.round(context.Background()); err != nil {
			t.Fatal(err)
		}
		have, err := w.List()
		if err != nil {
			t.Fatal(err)
		}
		if again := Plan(want, have); len(again) > 0 {
			t.Fatalf("left to do: %v", again)
		}
	})
}

func TestWorkerTellsAndTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		driver := newFake()
		var mu sync.Mutex
		told := map[string]Report{}
		w := NewWorker([]compute.Driver{driver}, func(r Report) {
			mu.Lock()
			defer mu.Unlock()
			told[r.ID] = r
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx)
		expect := func(id string, want Report) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if told[id] != want {
				t.Errorf("%s: %+v, want %+v", id, told[id], want)
			}
		}
		driver.locked(func() { driver.machines["old"] = machine(spec("old", 1, true)) })
		<-time.After(5 * time.Second)
		if driver.count() != 0 {
			t.Fatal("machines were touched before anything was wanted")
		}
		driver.locked(func() { driver.fails["bad"] = true })
		w.Set(map[string]Want{
			"good": {Spec: spec("good", 3, true)}, "bad": {Spec: spec("bad", 1, true)},
			"lost": {Spec: spec("lost", 1, true), Fault: "port 1 is not here"},
		})
		expect("good", Report{"good", 3, "running", ""})
		expect("bad", Report{"bad", 1, "error", "no room"})
		expect("lost", Report{"lost", 1, "error", "port 1 is not here"})
		driver.locked(func() {
			if _, ok := driver.machines["old"]; ok {
				t.Error("a machine that is not wanted is still there")
			}
		})
		calls := driver.count()
		<-time.After(300 * time.Second)
		if tries := driver.count() - calls; tries < 8 || tries > 20 {
			t.Errorf("%d tries in five minutes", tries)
		}
		driver.locked(func() { driver.fails["bad"] = false })
		<-time.After(longest + time.Second)
		expect("bad", Report{"bad", 1, "running", ""})
		driver.end("good")
		<-time.After(2 * look)
		expect("good", Report{"good", 3, "running", ""})
		w.Set(map[string]Want{"good": {Spec: spec("good", 4, false)}})
		expect("good", Report{"good", 4, "stopped", ""})
	})
}

func TestADriverThatIsNotHere(t *testing.T) {
	told := map[string]Report{}
	w := NewWorker([]compute.Driver{newFake()}, func(r Report) { told[r.ID] = r }, slog.New(slog.DiscardHandler))
	s := spec("x", 1, true)
	s.Driver = "qemu"
	w.Set(map[string]Want{"x": {Spec: s}})
	if err := w.round(context.Background()); err != nil {
		t.Fatal(err)
	}
	if want := (Report{"x", 1, "error", "driver qemu is not here"}); told["x"] != want {
		t.Errorf("%+v", told["x"])
	}
}
