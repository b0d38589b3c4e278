// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/store"
	agentv1 "cairn/proto/agent/v1"
)

func TestResumeIsCounted(t *testing.T) {
	b := newBench(t)
	a := b.join("hv1").connect()
	b.inStep(a)
	for n := range 10 {
		b.group(n+1, 80)
		b.instance(n+1, a, n+1)
	}
	b.inStep(a)
	a.look()

	a.cut()
	a.connect()
	b.inStep(a)
	if c := a.look(); c != (counts{}) {
		t.Errorf("nothing happened, and it got %+v", c)
	}

	a.cut()
	for n := range 10 {
		b.group(n+1, 80, 443)
	}
	a.connect()
	b.inStep(a)
	if c := a.look(); c.snapshots != 0 || c.got != 10 || c.gone != 0 {
		t.Errorf("10 changes, and it got %+v", c)
	}

	a.cut()
	b.deleted(1, 2, 3)
	a.connect()
	b.inStep(a)
	if c := a.look(); c.snapshots != 0 || c.got != 0 || c.gone != 3*4 {
		t.Errorf("3 instances with port, announcement and policy are gone, and it got %+v", c)
	}
	if a.unnamed > 0 {
		t.Errorf("%d tombstones came without their intent", a.unnamed)
	}

	a.cut()
	b.group(5, 22)
	b.server.Compact(store.Revision(b.revision()))
	b.eventually("compaction", func() bool {
		b.server.Compact(store.Revision(b.revision()))
		b.server.shelf.mu.RLock()
		defer b.server.shelf.mu.RUnlock()
		return b.server.shelf.floor == b.revision()
	})
	a.connect()
	b.inStep(a)
	if c := a.look(); c.snapshots != 1 || c.got != 0 {
		t.Errorf("below the compacted revision it got %+v", c)
	}
}

func TestNewEpochIsASnapshot(t *testing.T) {
	b := newBench(t)
	a := b.join("hv1").connect()
	b.inStep(a)
	a.cut()
	a.look()
	b.restart(func() {
		if _, err := b.store.TakeOver(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	a.connect()
	b.inStep(a)
	if c := a.look(); c.snapshots != 1 {
		t.Errorf("got %+v", c)
	}
	if a.epoch != 2 {
		t.Errorf("epoch %d", a.epoch)
	}
}

// TestRestartRemembersWhatWasTold: what went while the control plane was away is
// removed by tombstones that name their operation. Without the ledger it takes
// a snapshot.
func TestRestartRemembersWhatWasTold(t *testing.T) {
	for _, remembers := range []bool{true, false} {
		t.Run(fmt.Sprintf("ledger %t", remembers), func(t *testing.T) {
			b := newBench(t)
			if !remembers {
				b.stop()
				b.ledger = ""
				b.serve()
			}
			a := b.join("hv1").connect()
			b.inStep(a)
			b.group(1, 80)
			b.instance(1, a, 1)
			b.instance(2, a, 1)
			b.inStep(a)
			a.cut()
			a.look()
			var op cloud.ID
			b.restart(func() { op = b.deleted(1, 2) })
			if _, ended := b.outcome(op); ended {
				t.Error("the operation ended before the agent came")
			}
			a.connect()
			b.inStep(a)
			c := a.look()
			if remembers && (c.snapshots != 0 || c.gone != 2*3+1 || a.unnamed != 0) {
				t.Errorf("got %+v, %d tombstones without intent", c, a.unnamed)
			}
			if !remembers && c.snapshots != 1 {
				t.Errorf("got %+v", c)
			}
			b.eventually("the operation ends", func() bool { o, _ := b.outcome(op); return o.OK })
		})
	}
}

func TestOperationsWaitForAgents(t *testing.T) {
	b := newBench(t)
	a1, a2, a3 := b.join("hv1").connect(), b.join("hv2").connect(), b.join("hv3").connect()
	b.inStep(a1, a2, a3)
	b.group(1, 80)
	b.instance(1, a1, 1)
	b.instance(2, a2, 1)
	b.inStep(a1, a2, a3)

	empty := b.group(9, 80)
	b.eventually("an operation that concerns nobody ends", func() bool { o, _ := b.outcome(empty); return o.OK })

	var op cloud.ID
	a2.stopped(func() {
		op = b.group(1, 80, 443)
		b.eventually("the operation waits for hv2 alone", func() bool { return b.server.Waiting(op) == "hv2" })
		quick := b.instance(3, a3, 9)
		b.eventually("others do not wait for hv2", func() bool { o, _ := b.outcome(quick); return o.OK })
		if o, ended := b.outcome(op); ended {
			t.Errorf("ended while hv2 stands still: %+v", o)
		}
	})
	began := time.Now()
	b.eventually("the operation ends", func() bool { o, _ := b.outcome(op); return o.OK })
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %s", took)
	}
	if at := b.server.Programmed(op); at != 42 {
		t.Errorf("programmed at %d", at)
	}
}

func TestRefusalFailsItsOperation(t *testing.T) {
	b := newBench(t)
	a := b.join("hv1").connect()
	b.inStep(a)
	for n := range 2 {
		b.group(n+1, 80)
		b.instance(n+1, a, n+1)
	}
	b.inStep(a)
	a.mu.Lock()
	a.refuses[policy(1)] = "replace rules: no space left"
	a.mu.Unlock()
	bad, good := b.group(1, 81), b.group(2, 81)
	b.eventually("both end", func() bool {
		_, one := b.outcome(bad)
		_, other := b.outcome(good)
		return one && other
	})
	if o, _ := b.outcome(bad); o.OK || o.Reason != cloud.ReasonFault || o.Message != "hv1: policy/1: replace rules: no space left" {
		t.Errorf("refused: %+v", o)
	}
	if o, _ := b.outcome(good); !o.OK {
		t.Errorf("not refused: %+v", o)
	}
	if all := b.server.Sessions(); len(all) != 1 || len(all[0].Refused) != 1 || all[0].Refused[policy(1)] == "" {
		t.Errorf("sessions %+v", all)
	}
	a.mu.Lock()
	clear(a.refuses)
	a.mu.Unlock()
	b.group(1, 82)
	b.inStep(a)
	if all := b.server.Sessions(); len(all[0].Refused) != 0 || !all[0].InStep {
		t.Errorf("mended: %+v", all)
	}
}

func TestSilence(t *testing.T) {
	b := newBench(t)
	agents := []*agent{b.join("hv1").connect(), b.join("hv2").connect(), b.join("hv3").connect()}
	b.inStep(agents...)
	b.group(1, 80)
	for n, a := range agents {
		b.instance(n+1, a, 1)
	}
	b.inStep(agents...)
	heard := func(what string) func() bool {
		return func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.notices) > 0 && b.notices[len(b.notices)-1] == what
		}
	}
	var loose, tight cloud.ID
	agents[2].stopped(func() {
		loose = b.group(1, 80, 443)
		tight = b.commit(true, func(tx *store.Tx, op cloud.ID) error { return putGroup(tx, op, 1, 443) })
		b.eventually("both wait for hv3", func() bool {
			return b.server.Waiting(loose) == "hv3" && b.server.Waiting(tight) == "hv3"
		})
		b.eventually("nothing more of it is on its way", func() bool { return b.quietFor("hv3") > time.Second/4 })
		b.offset.Add(int64(leaseGrace + leaseLife))
		b.eventually("hv3 is lost", heard("hv3 lost"))
		b.eventually("what loosens does not wait", func() bool { o, _ := b.outcome(loose); return o.OK })
		if o, _ := b.outcome(loose); !strings.HasPrefix(o.Message, "hv3, silent since ") {
			t.Errorf("message %q", o.Message)
		}
		if o, ended := b.outcome(tight); ended || !strings.HasPrefix(b.server.Waiting(tight), "hv3, silent since ") {
			t.Errorf("what tightens: %+v, waiting for %q", o, b.server.Waiting(tight))
		}
	})
	b.eventually("hv3 is back", heard("hv3 alive, uplink down false"))
	b.eventually("what tightens ends", func() bool { o, _ := b.outcome(tight); return o.OK })
	agents[0].mu.Lock()
	agents[0].down = true
	agents[0].mu.Unlock()
	b.eventually("hv1 says that its uplink is down", heard("hv1 alive, uplink down true"))
}

// TestReachability: who has no stream and answers no LB node is lost at once,
// and is back when both are. The stream alone costs nothing before its lease.
func TestReachability(t *testing.T) {
	b := newBench(t)
	agents := []*agent{b.join("hv1").connect(), b.join("hv2").connect(), b.join("hv3").connect()}
	b.inStep(agents...)
	say := func(state string) {
		for _, a := range agents[:2] {
			a.mu.Lock()
			a.reports = append(a.reports, &agentv1.Report{Kind: agentv1.Kind_KIND_HOST, Key: "3", State: state})
			a.mu.Unlock()
		}
		b.eventually(state+" is heard", func() bool {
			b.server.leaseMu.Lock()
			defer b.server.leaseMu.Unlock()
			answers, said := b.server.leases["hv1"].sees[3]
			other := b.server.leases["hv2"].sees[3]
			return said && answers == (state == "reached") && other == answers
		})
	}
	last := func() string {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, n := range slices.Backward(b.notices) {
			if strings.HasPrefix(n, "hv3 ") {
				return n
			}
		}
		return ""
	}
	stays := func(what, want string) {
		t.Helper()
		<-time.After(3 * leaseTick)
		if got := last(); got != want {
			t.Errorf("%s: %s", what, got)
		}
	}
	const here, gone = "hv3 alive, uplink down false", "hv3 lost"
	b.eventually(here, func() bool { return last() == here })
	say("missed")
	stays("missed, with a stream", here)
	say("reached")
	agents[2].cut()
	stays("reached, without a stream", here)
	begin := time.Now()
	say("missed")
	b.eventually(gone, func() bool { return last() == gone })
	if took := time.Since(begin); took > leaseLife/2 {
		t.Errorf("lost after %s", took)
	}
	agents[2].connect()
	b.inStep(agents...)
	stays("back, and missed", gone)
	say("reached")
	b.eventually(here, func() bool { return last() == here })
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.reports {
		if r.Kind == wire.KindHost {
			t.Errorf("handed on: %+v", r)
		}
	}
}

// quietFor is how long nothing was heard of an agent.
func (b *bench) quietFor(name string) time.Duration {
	b.server.leaseMu.Lock()
	defer b.server.leaseMu.Unlock()
	return b.now().Sub(b.server.leases[name].last)
}

// TestMostAreSilent: when most leases end together nobody is declared lost.
func TestMostAreSilent(t *testing.T) {
	b := newBench(t)
	agents := []*agent{b.join("hv1").connect(), b.join("hv2").connect(), b.join("hv3").connect()}
	b.inStep(agents...)
	agents[1].stopped(func() {
		agents[2].stopped(func() {
			b.eventually("nothing more of theirs is on its way", func() bool { return b.quietFor("hv2") > time.Second/4 && b.quietFor("hv3") > time.Second/4 })
			b.offset.Add(int64(leaseGrace + leaseLife))
			b.eventually("the server sees it", func() bool { return b.quietFor("hv1") < time.Second })
			<-time.After(3 * leaseTick)
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, n := range b.notices {
				if strings.HasSuffix(n, "lost") {
					t.Error(n)
				}
			}
		})
	})
}

func TestSlowAgentGetsTheLatestAndSlowsNobody(t *testing.T) {
	b := newBench(t)
	slow, quick := b.join("hv1").connect(), b.join("hv2").connect()
	b.inStep(slow, quick)
	b.group(1, 80)
	b.instance(1, slow, 1)
	b.instance(2, quick, 1)
	b.inStep(slow, quick)
	slow.look()
	quick.look()
	const changes = 60
	slow.stopped(func() {
		for n := range changes {
			b.group(1, uint16(n+1))
			b.inStep(quick)
		}
	})
	b.inStep(slow)
	s, q := slow.look(), quick.look()
	if q.deltas != changes {
		t.Errorf("the quick one got %d deltas of %d", q.deltas, changes)
	}
	if s.deltas > maxUnacked+1 || s.deltas < 2 || s.got != s.deltas {
		t.Errorf("the slow one got %+v", s)
	}
}

func TestAuditFindsWhatWasLost(t *testing.T) {
	b := newBench(t)
	b.stop()
	b.gap = 50 * time.Millisecond
	b.serve()
	a := b.join("hv1").connect()
	b.inStep(a)
	b.group(1, 80)
	b.instance(1, a, 1)
	b.inStep(a)
	if n := b.server.Stats.Mismatches.Load(); n != 0 {
		t.Errorf("%d mismatches before anything was lost", n)
	}
	a.mu.Lock()
	delete(a.items, policy(1))
	a.mu.Unlock()
	b.eventually("what was lost is there again", func() bool { return a.holds(policy(1)) })
	b.inStep(a)
}

func TestIdleAgentsRevisionMovesOn(t *testing.T) {
	b := newBench(t)
	b.stop()
	b.gap = 50 * time.Millisecond
	b.serve()
	a := b.join("hv1").connect()
	b.inStep(a)
	a.look()
	b.group(1, 80) // concerns nobody
	b.eventually("the revision moves on", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.revision == b.revision()
	})
	if c := a.look(); c.got != 0 || c.snapshots != 0 || c.deltas == 0 {
		t.Errorf("got %+v", c)
	}
}

func TestReportsArriveOnceTheyAreTaken(t *testing.T) {
	b := newBench(t)
	b.mu.Lock()
	b.deaf = 2
	b.mu.Unlock()
	a := b.join("hv1").connect()
	b.inStep(a)
	a.mu.Lock()
	a.reports = []*agentv1.Report{{Kind: agentv1.Kind_KIND_INSTANCE, Key: "i", Generation: 3, State: "running"}, {Kind: 99, Key: "of the future"}}
	a.mu.Unlock()
	want := Report{Kind: wire.KindInstance, Key: "i", Generation: 3, State: "running"}
	b.eventually("the report arrives", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.reports) == 1 && b.reports[0] == want
	})
}

func TestLargeSnapshotComesInFrames(t *testing.T) {
	b := newBench(t)
	a := b.join("hv1", store.RoleLB)
	a.connect()
	b.inStep(a)
	a.cut()
	a.look()
	const services = 20
	b.commit(false, func(tx *store.Tx, op cloud.ID) error {
		var all []error
		for n := range services {
			id := cloud.ID(fmt.Sprintf("service-%d", n))
			doc := store.Doc[store.ServiceDoc]{ID: id, Org: "org"}
			doc.Body.ID, doc.Body.Name, doc.Body.Number, doc.Body.SlotsGeneration = id, string(id), uint32(n+1), 1
			doc.Body.LoadBalancer, doc.Body.Protocol, doc.Body.Port, doc.Body.TargetPort = "lb", cloud.TCP, uint16(n+1), 80
			doc.Body.VIP = mustAddr("203.0.113.1")
			all = append(all, store.Put(tx, op, doc), tx.PutSlots(store.Slots{Service: id, Generation: 1, Cells: make([]byte, 8*wire.MaxSlots)}))
		}
		return errors.Join(all...)
	})
	a.connect()
	b.inStep(a)
	if c := a.look(); c.got != 2*services || c.deltas != 1 {
		t.Errorf("got %+v", c)
	}
	if a.largest > maxFrame || a.largest < maxFrame/2 {
		t.Errorf("the largest frame has %d bytes", a.largest)
	}
	a.cut()
	a.items, a.epoch, a.revision = map[wire.Key]string{}, 0, 0
	a.connect()
	b.inStep(a)
	if c := a.look(); c.snapshots != 1 || c.got != 0 {
		t.Errorf("from scratch it got %+v", c)
	}
}

func TestNewerStreamTakesOver(t *testing.T) {
	b := newBench(t)
	a := b.join("hv1").connect()
	b.inStep(a)
	first := a.ended
	twin := &agent{bench: b, name: a.name, leaf: a.leaf, items: map[wire.Key]string{}, intents: map[string]int{}, refuses: map[wire.Key]string{}}
	twin.connect()
	select {
	case <-first:
	case <-time.After(20 * time.Second):
		t.Fatal("the older stream goes on")
	}
	b.inStep(twin)
}

// TestHundredAgents: a change reaches those who hold the item, and its operation
// ends with the last of them.
func TestHundredAgents(t *testing.T) {
	b := newBench(t)
	agents := make([]*agent, 100)
	for n := range agents {
		agents[n] = b.join(fmt.Sprintf("hv%d", n+1)).connect()
	}
	b.inStep(agents...)
	b.group(1, 80)
	b.commit(false, func(tx *store.Tx, op cloud.ID) error {
		var all []error
		for n, a := range agents {
			all = append(all, putInstance(tx, op, n+1, numberOf(a.name), 1))
		}
		return errors.Join(all...)
	})
	b.inStep(agents...)
	var slowest time.Duration
	for n := range 20 {
		began := time.Now()
		op := b.group(1, 80, uint16(1000+n))
		b.eventually("the operation ends", func() bool { o, _ := b.outcome(op); return o.OK })
		slowest = max(slowest, time.Since(began))
	}
	t.Logf("a rule on 100 agents, the slowest of 20: %s", slowest)
	b.inStep(agents...)
	if n := b.server.Stats.Snapshots.Load(); n != uint64(len(agents)) {
		t.Errorf("%d snapshots for %d agents", n, len(agents))
	}
	b.restart(func() {})
	for _, a := range agents {
		<-a.ended
		a.look()
		a.connect()
	}
	b.inStep(agents...)
	if n := b.server.Stats.Snapshots.Load(); n != 0 {
		t.Errorf("%d snapshots after a restart in which nothing changed", n)
	}
}
