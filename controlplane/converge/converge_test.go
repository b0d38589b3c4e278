// SPDX-License-Identifier: Apache-2.0

package converge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/operation"
)

// told collects what a tracker says.
type told struct {
	mu    sync.Mutex
	news  []string
	fails int // so many times it does not listen
}

func (s *told) Settled(_ context.Context, op cloud.ID, o operation.Outcome) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails > 0 {
		s.fails--
		return errors.New("busy")
	}
	s.news = append(s.news, fmt.Sprintf("%s %t %s %s", op, o.OK, o.Reason, o.Message))
	return nil
}

func (s *told) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.news)
}

func run(t *testing.T, fails int, story func(*Tracker, func(want ...string))) {
	synctest.Test(t, func(t *testing.T) {
		listener := &told{fails: fails}
		tracker := New(listener, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		go tracker.Run(ctx)
		for n := range uint32(4) {
			tracker.Known(n, fmt.Sprintf("hv%d", n))
		}
		story(tracker, func(want ...string) {
			t.Helper()
			synctest.Wait()
			if got := listener.lines(); !slices.Equal(got, want) {
				t.Errorf("told %q, want %q", got, want)
			}
		})
		cancel()
		synctest.Wait()
	})
}

var (
	policy = wire.Key{Kind: wire.KindPolicy, ID: "1"}
	other  = wire.Key{Kind: wire.KindPolicy, ID: "2"}
)

func TestSuccessAfterTheLastAcknowledgement(t *testing.T) {
	run(t, 0, func(w *Tracker, told func(...string)) {
		w.Begin(Change{Operation: "a", Revision: 7, Hosts: []uint32{1, 2}, Keys: []wire.Key{policy}})
		w.Acked(1, 7, 100)
		w.Acked(2, 6, 0)
		w.Acked(3, 9, 0)
		told()
		if got := w.Waiting("a"); got != "hv2" {
			t.Errorf("waiting for %q", got)
		}
		w.Acked(2, 8, 150)
		told("a true  ")
		if got := w.Programmed("a"); got != 150 {
			t.Errorf("programmed at %d", got)
		}
		if w.Missing("a") != nil {
			t.Error("still waiting")
		}
	})
}

func TestNobodyConcernedIsSettledAtOnce(t *testing.T) {
	run(t, 0, func(w *Tracker, told func(...string)) {
		w.Begin(Change{Operation: "a", Revision: 7})
		told("a true  ")
	})
}

func TestRefusalSettlesItsKeyAndNoOther(t *testing.T) {
	run(t, 0, func(w *Tracker, told func(...string)) {
		w.Begin(Change{Operation: "a", Revision: 7, Hosts: []uint32{1, 2}, Keys: []wire.Key{policy}},
			Change{Operation: "b", Revision: 7, Hosts: []uint32{1}, Keys: []wire.Key{other}})
		w.Nacked(1, policy, "slots: no space left")
		told("a false fault hv1: policy/1: slots: no space left")
		w.Acked(1, 7, 0)
		w.Acked(2, 7, 0)
		told("a false fault hv1: policy/1: slots: no space left", "b true  ")
	})
}

func TestRefusalByWhoIsNotWaitedFor(t *testing.T) {
	run(t, 0, func(w *Tracker, told func(...string)) {
		w.Begin(Change{Operation: "a", Revision: 7, Hosts: []uint32{2}, Keys: []wire.Key{policy}})
		w.Nacked(1, policy, "old news")
		told()
	})
}

func TestSilentHosts(t *testing.T) {
	since := time.Date(2030, 1, 2, 10, 15, 4, 0, time.UTC)
	run(t, 0, func(w *Tracker, told func(...string)) {
		w.Begin(Change{Operation: "loose", Revision: 7, Hosts: []uint32{1, 3}},
			Change{Operation: "tight", Revision: 7, Hosts: []uint32{1, 3}, Tightens: true})
		w.Acked(1, 7, 0)
		told()
		w.Expired(3, since)
		told("loose true  hv3, silent since 10:15:04")
		if got := w.Waiting("tight"); got != "hv3, silent since 10:15:04" {
			t.Errorf("tight waits for %q", got)
		}
		w.Begin(Change{Operation: "later", Revision: 8, Hosts: []uint32{3}})
		told("loose true  hv3, silent since 10:15:04", "later true  hv3, silent since 10:15:04")
		w.Returned(3)
		w.Begin(Change{Operation: "back", Revision: 9, Hosts: []uint32{3}})
		w.Acked(3, 9, 0)
		got := append([]string(nil), "loose true  hv3, silent since 10:15:04", "later true  hv3, silent since 10:15:04")
		synctest.Wait()
		rest := w.settler.(interface{ lines() []string }).lines()[2:]
		slices.Sort(rest) // one acknowledgement settles both, in no order
		if !slices.Equal(rest, []string{"back true  ", "tight true  "}) {
			t.Errorf("after %q: %q", got, rest)
		}
	})
}

func TestChangesAgainWaitsAgain(t *testing.T) {
	run(t, 0, func(w *Tracker, told func(...string)) {
		w.Begin(Change{Operation: "a", Revision: 7, Hosts: []uint32{1}})
		w.Begin(Change{Operation: "a", Revision: 9, Hosts: []uint32{1, 2}})
		w.Acked(1, 8, 0)
		w.Acked(2, 9, 0)
		told()
		w.Removed(1)
		told("a true  ")
	})
}

func TestCompileFault(t *testing.T) {
	run(t, 0, func(w *Tracker, told func(...string)) {
		w.Begin(Change{Operation: "a", Revision: 7, Hosts: []uint32{1}})
		w.Begin(Change{Operation: "a", Revision: 8, Fault: "65 rules are more than 64"})
		told("a false fault 65 rules are more than 64")
		w.Acked(1, 9, 0)
		told("a false fault 65 rules are more than 64")
	})
}

func TestNewsThatNobodyHeardIsToldAgain(t *testing.T) {
	run(t, 2, func(w *Tracker, told func(...string)) {
		w.Begin(Change{Operation: "a", Revision: 7}, Change{Operation: "b", Revision: 7})
		told()
		time.Sleep(2 * retryAfter) // in the bubble's own time
		told("a true  ", "b true  ")
	})
}
