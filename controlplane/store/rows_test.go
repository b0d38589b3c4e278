// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/controlplane/program"

	"pgregory.net/rapid"
)

func testOperations(t *testing.T, s *Store, clock *clock) {
	g := group("a")
	op := Operation{ID: cloud.NewID(), Org: org, Command: "create-anti-affinity-group", Subject: g.Ref(), Shown: g.Ref(),
		State: cloud.OperationPending, Generation: 1, Created: clock.now(), Deadline: clock.now().Add(time.Minute), Detail: "{}"}
	rev := write(t, s, func(tx *Tx) error { return errors.Join(tx.AddOperation(op), Put(tx, op.ID, g)) })
	read(t, s, func(tx *Tx) error {
		got, err := tx.Operation(org, op.ID)
		if err != nil {
			return err
		}
		want := op
		want.Revision = rev
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if _, err := tx.Operation("another", op.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("operation of another organisation: %v", err)
		}
		if p, _ := tx.Pending(Ref{}); len(p) != 1 {
			t.Errorf("pending: %v", p)
		}
		if p, _ := tx.Pending(group("x").Ref()); len(p) != 0 {
			t.Errorf("pending on another resource: %v", p)
		}
		if o, _ := tx.Overdue(); len(o) != 0 {
			t.Errorf("overdue too soon: %v", o)
		}
		changes, err := tx.ChangesOf(op.ID)
		if len(changes) != 1 || changes[0].Revision != rev {
			t.Errorf("changes of the operation: %v", changes)
		}
		return err
	})
	clock.pass(time.Minute)
	write(t, s, func(tx *Tx) error {
		if o, err := tx.Overdue(); err != nil || len(o) != 1 {
			t.Errorf("overdue: %v %v", o, err)
		}
		first, err := tx.FinishOperation(op.ID, cloud.OperationTimeout, cloud.ReasonUnavailable, "waiting for hv3")
		second, err2 := tx.FinishOperation(op.ID, cloud.OperationSuccess, "", "")
		if !first || second {
			t.Errorf("ended by the first call %v, by the second %v", first, second)
		}
		return errors.Join(err, err2)
	})
	read(t, s, func(tx *Tx) error {
		got, err := tx.Operation(org, op.ID)
		if got.State != cloud.OperationTimeout || got.Message != "waiting for hv3" || !got.Finished.Equal(clock.now()) {
			t.Errorf("ended as %+v", got)
		}
		return err
	})
}

func testAudit(t *testing.T, s *Store, clock *clock) {
	from := clock.now()
	for i := range 4 {
		write(t, s, func(tx *Tx) error { return tx.Audit(org, fmt.Sprintf(`{"n":%d}`, i)) })
		clock.pass(time.Second)
	}
	read(t, s, func(tx *Tx) error {
		events, err := tx.Audited(org, from, clock.now())
		if len(events) != 4 || events[3].Event != `{"n":3}` {
			t.Errorf("events: %v", events)
		}
		return err
	})
	for _, forgery := range []string{
		`UPDATE audit SET event = '{"n":9}' WHERE seq = 2`,
		`DELETE FROM audit WHERE seq = 3`,
	} {
		write(t, s, func(tx *Tx) error { _, err := tx.exec(forgery); return err })
		err := s.Read(t.Context(), func(tx *Tx) error { _, err := tx.Audited(org, from, clock.now()); return err })
		if err == nil || !strings.Contains(err.Error(), "chain is broken") {
			t.Errorf("after %s: %v", forgery, err)
		}
	}
}

func testAnswers(t *testing.T, s *Store, clock *clock) {
	first := Answer{Signature: "sig", Arrived: clock.now(), Expires: clock.now().Add(10 * time.Minute), Status: 200, Body: []byte("1")}
	second := first
	second.Body = []byte("2")
	write(t, s, func(tx *Tx) error { return tx.AddAnswer(first) })
	write(t, s, func(tx *Tx) error { return tx.AddAnswer(second) })
	read(t, s, func(tx *Tx) error {
		got, err := tx.Answer("sig")
		if err != nil || string(got.Body) != "1" || !got.Arrived.Equal(first.Arrived) || got.Status != 200 {
			t.Errorf("got %+v %v", got, err)
		}
		return nil
	})
	clock.pass(10*time.Minute + time.Nanosecond)
	read(t, s, func(tx *Tx) error {
		if _, err := tx.Answer("sig"); !errors.Is(err, ErrNotFound) {
			t.Errorf("an expired answer: %v", err)
		}
		return nil
	})
}

func testSecrets(t *testing.T, s *Store, clock *clock) {
	root, err := CreateRootKey(filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := CreateRootKey(filepath.Join(t.TempDir(), "other.key"))
	if err != nil {
		t.Fatal(err)
	}
	k := APIKey{Key: "EXO1", Org: org, Name: "first", Secret: "very secret"}
	write(t, s, func(tx *Tx) error {
		return errors.Join(tx.AddOrganization(Organization{org, "acme"}), tx.AddAPIKey(root, k))
	})
	read(t, s, func(tx *Tx) error {
		got, err := tx.APIKey(root, "EXO1")
		if got != k {
			t.Errorf("got %+v", got)
		}
		if _, err := tx.APIKey(other, "EXO1"); err == nil {
			t.Error("opened with another root key")
		}
		if _, err := tx.APIKey(root, "EXO2"); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown key: %v", err)
		}
		var sealed []byte
		if err := tx.queryRow([]any{&sealed}, `SELECT secret FROM apikey`); err != nil || bytes.Contains(sealed, []byte("secret")) {
			t.Errorf("stored as %q %v", sealed, err)
		}
		return err
	})

	spend := func(hash string) (name string, err error) {
		_, err = s.Write(t.Context(), func(tx *Tx) (err error) { name, err = tx.SpendToken(hash); return err })
		return name, err
	}
	add := func(hash string) {
		write(t, s, func(tx *Tx) error { return tx.AddToken("hv1", hash, clock.now().Add(time.Hour)) })
	}
	add("h1")
	if name, err := spend("h1"); name != "hv1" || err != nil {
		t.Errorf("spend: %q %v", name, err)
	}
	_, err = spend("h1")
	wantErr(t, err, ErrNotFound)
	add("h2")
	add("h3") // voids h2
	_, err = spend("h2")
	wantErr(t, err, ErrNotFound)
	clock.pass(time.Hour)
	_, err = spend("h3")
	wantErr(t, err, ErrNotFound)

	write(t, s, func(tx *Tx) error {
		return errors.Join(
			tx.AddCertificate(Certificate{Serial: "1", Name: "hv1", NotAfter: clock.now()}),
			tx.AddCertificate(Certificate{Serial: "2", Name: "hv1", NotAfter: clock.now()}),
			tx.RevokeCertificates("hv1", "2"))
	})
	read(t, s, func(tx *Tx) error {
		one, err1 := tx.Certificate("1")
		two, err2 := tx.Certificate("2")
		if !one.Revoked || two.Revoked || !two.NotAfter.Equal(clock.now()) {
			t.Errorf("certificates: %+v %+v", one, two)
		}
		return errors.Join(err1, err2)
	})
}

func testSlotsAndIntents(t *testing.T, s *Store, _ *clock) {
	table := Slots{Service: "svc", Generation: 3, Phase: 1, Cells: []byte{1, 0, 0, 0, 2, 0, 0, 0}}
	write(t, s, func(tx *Tx) error {
		return errors.Join(
			tx.PutSlots(Slots{Service: "svc", Generation: 2, Cells: []byte{9}}), tx.PutSlots(table),
			tx.AddIntent(Intent{"op", "port", 2}), tx.AddIntent(Intent{"op", "port", 4}), tx.AddIntent(Intent{"op", "backend", 6}))
	})
	read(t, s, func(tx *Tx) error {
		got, err := tx.Slots("svc")
		if fmt.Sprint(got) != fmt.Sprint(table) {
			t.Errorf("slots: %+v", got)
		}
		intents, err2 := tx.Intents("op")
		if fmt.Sprint(intents) != "[{op backend 6} {op port 6}]" {
			t.Errorf("intents: %v", intents)
		}
		return errors.Join(err, err2)
	})
	write(t, s, func(tx *Tx) error { return tx.DeleteSlots("svc") })
	read(t, s, func(tx *Tx) error {
		if _, err := tx.Slots("svc"); !errors.Is(err, ErrNotFound) {
			t.Errorf("deleted slots: %v", err)
		}
		return nil
	})
}

func allocate(t *testing.T, s *Store, kind, owner string) (n uint32) {
	t.Helper()
	write(t, s, func(tx *Tx) (err error) { n, err = tx.Allocate(kind, owner); return err })
	return n
}

func testNumbers(t *testing.T, s *Store, clock *clock) {
	for want, owner := range []string{"a", "b", "c"} {
		if n := allocate(t, s, NumberPort, owner); n != uint32(want+1) {
			t.Fatalf("%s got %d", owner, n)
		}
	}
	if n := allocate(t, s, NumberPort, "b"); n != 2 {
		t.Errorf("b holds 2 and got %d", n)
	}
	if n := allocate(t, s, NumberGroup, "b"); n != 1 {
		t.Errorf("another kind starts at %d", n)
	}
	free := func(owner string) { write(t, s, func(tx *Tx) error { return tx.Free(NumberPort, owner) }) }
	free("a")
	free("b")
	if n := allocate(t, s, NumberPort, "d"); n != 4 {
		t.Errorf("d got %d while 1 and 2 rest", n)
	}
	if n := allocate(t, s, NumberPort, "a"); n != 1 {
		t.Errorf("a came back and got %d", n)
	}
	free("a")
	clock.pass(Rest - time.Nanosecond)
	if n := allocate(t, s, NumberPort, "e"); n != 5 && n != 2 {
		t.Errorf("e got %d", n)
	}
	clock.pass(time.Nanosecond)
	if n := allocate(t, s, NumberPort, "f"); n != 1 && n != 2 {
		t.Errorf("f got %d after the rest of 1", n)
	}
	read(t, s, func(tx *Tx) error {
		if _, err := tx.Number(NumberPort, "b"); !errors.Is(err, ErrNotFound) {
			t.Errorf("b holds nothing: %v", err)
		}
		_, err := tx.Number(NumberPort, "c")
		return err
	})
}

// TestNumbersAgainstModel plays random allocations, frees and pauses against a
// list.
func TestNumbersAgainstModel(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "cairn.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	clock := newClock()
	s.clock = clock.now
	run := 0
	rapid.Check(t, func(r *rapid.T) {
		run++
		kind := fmt.Sprint("kind ", run)
		type held struct {
			owner string
			freed time.Time
		}
		var model []held // number - 1
		for range rapid.IntRange(1, 25).Draw(r, "steps") {
			owner := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(r, "owner")
			at := -1
			for i, h := range model {
				if h.owner == owner {
					at = i
				}
			}
			switch rapid.IntRange(0, 2).Draw(r, "what") {
			case 0:
				for i, h := range model {
					if at < 0 && !h.freed.IsZero() && clock.now().Sub(h.freed) >= Rest {
						at = i
					}
				}
				if at < 0 {
					at, model = len(model), append(model, held{})
				}
				model[at] = held{owner: owner}
				if n := allocate(t, s, kind, owner); n != uint32(at+1) {
					r.Fatalf("%s got %d, the model says %d", owner, n, at+1)
				}
			case 1:
				if at >= 0 && model[at].freed.IsZero() {
					model[at].freed = clock.now()
				}
				write(t, s, func(tx *Tx) error { return tx.Free(kind, owner) })
			case 2:
				clock.pass(time.Duration(rapid.IntRange(1, 11).Draw(r, "minutes")) * time.Minute)
			}
		}
	})
}

func testAddresses(t *testing.T, s *Store, clock *clock) {
	pool := func(kind, prefix string) error {
		_, err := s.Write(t.Context(), func(tx *Tx) error { return tx.AddPool(kind, netip.MustParsePrefix(prefix)) })
		return err
	}
	if err := errors.Join(pool(AddressInstance, "198.51.100.0/29"), pool(AddressVIP, "203.0.113.8/31"),
		pool(AddressVIP, "203.0.113.8/31"), pool(AddressVIP, "203.0.113.0/30")); err != nil {
		t.Fatal(err)
	}
	wantErr(t, pool(AddressVIP, "198.51.100.4/30"), ErrExists)
	if err := pool(AddressVIP, "203.0.113.1/24"); err == nil {
		t.Error("a prefix with host bits was taken")
	}
	get := func(kind, owner string) (a netip.Addr, err error) {
		_, err = s.Write(t.Context(), func(tx *Tx) (err error) { a, err = tx.AllocateAddress(kind, owner); return err })
		return a, err
	}
	for i, want := range []string{"198.51.100.2", "198.51.100.3", "198.51.100.4", "198.51.100.5", "198.51.100.6"} {
		if a, err := get(AddressInstance, fmt.Sprint(i)); err != nil || a.String() != want {
			t.Fatalf("instance %d got %v %v, want %s", i, a, err, want)
		}
	}
	_, err := get(AddressInstance, "one more")
	var exhausted *ExhaustedError
	if !errors.As(err, &exhausted) || !strings.Contains(err.Error(), "198.51.100.0/29") {
		t.Errorf("exhausted: %v", err)
	}
	for i, want := range []string{"203.0.113.8", "203.0.113.9", "203.0.113.1", "203.0.113.2"} {
		if a, err := get(AddressVIP, fmt.Sprint(i)); err != nil || a.String() != want {
			t.Fatalf("vip %d got %v %v, want %s", i, a, err, want)
		}
	}
	write(t, s, func(tx *Tx) error { return tx.FreeAddress(AddressInstance, "1") })
	if _, err := get(AddressInstance, "one more"); err == nil {
		t.Error("an address was given away before its rest was over")
	}
	clock.pass(Rest)
	if a, err := get(AddressInstance, "one more"); err != nil || a.String() != "198.51.100.3" {
		t.Errorf("after the rest: %v %v", a, err)
	}
	read(t, s, func(tx *Tx) error {
		all, err := tx.Allocations()
		if len(all) != 9 || all[1] != (Allocation{"instance", "198.51.100.3", "one more"}) {
			t.Errorf("held: %v", all)
		}
		return err
	})
}

func testTasks(t *testing.T, s *Store, clock *clock) {
	tasks := s.Tasks()
	ctx := t.Context()
	insert := func(id, subject string) {
		write(t, s, func(tx *Tx) error {
			return tx.Inbox().Insert(ctx, program.Task{ID: id, Operation: "op", Subject: subject, Program: []byte(`{}`)})
		})
	}
	claim := func(owner string) []program.Task {
		t.Helper()
		got, err := tasks.Claim(ctx, owner, clock.now(), 10*time.Second, 10)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	insert("t1", "instance/1")
	insert("t2", "instance/1")
	insert("t3", "")
	insert("t1", "instance/9") // there already
	before := s.Commits()
	got := claim("a")
	if len(got) != 2 || got[0].ID != "t1" || got[1].ID != "t3" || got[0].Claim != 1 || got[0].Subject != "instance/1" {
		t.Fatalf("claimed %+v", got)
	}
	if more := claim("b"); len(more) != 0 {
		t.Errorf("claimed twice: %+v", more)
	}
	if n := s.Commits() - before; n != 1 {
		t.Errorf("two looks made %d commits, want 1", n)
	}
	t1, t3 := got[0], got[1]

	write(t, s, func(tx *Tx) error {
		for range 2 {
			if n, err := tx.Inbox().Signal(ctx, "instance/1", program.Event{Name: "running/1"}); n != 2 || err != nil {
				t.Errorf("signal: %d %v", n, err)
			}
		}
		return nil
	})
	signals, err := tasks.Extend(ctx, t1, clock.now().Add(20*time.Second))
	if err != nil || len(signals.Events) != 1 || signals.Events[0].Name != "running/1" {
		t.Errorf("extend: %+v %v", signals, err)
	}
	// What came meanwhile is not slept through.
	t1.Progress, t1.NotBefore = []byte(`{"a":1}`), clock.now().Add(time.Hour)
	if err := tasks.Save(ctx, t1, true); err != nil {
		t.Fatal(err)
	}
	wantErr(t, tasks.Save(ctx, t1, false), program.ErrLost)
	got = claim("b")
	if len(got) != 1 || string(got[0].Progress) != `{"a":1}` || got[0].Claim != 2 || len(got[0].Events) != 1 {
		t.Fatalf("claimed %+v", got)
	}
	_, err = tasks.Extend(ctx, t1, clock.now())
	wantErr(t, err, program.ErrLost)

	// A lease that ran out is taken over, with the claim raised.
	clock.pass(11 * time.Second)
	got = claim("c")
	if len(got) != 2 || got[0].ID != "t1" || got[0].Claim != 3 || got[0].Attempts != 3 {
		t.Fatalf("after the leases ran out: %+v", got)
	}
	wantErr(t, tasks.Finish(ctx, t3, program.Outcome{State: program.Succeeded}), program.ErrLost)
	if err := tasks.Free(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	got = claim("c")
	write(t, s, func(tx *Tx) error {
		if n, err := tx.Inbox().Cancel(ctx, "instance/1"); n != 2 || err != nil {
			t.Errorf("cancel: %d %v", n, err)
		}
		return nil
	})
	if err := tasks.Finish(ctx, got[0], program.Outcome{State: program.Failed, Message: "no"}); err != nil {
		t.Fatal(err)
	}
	next := claim("c")
	if len(next) != 1 || next[0].ID != "t2" || !next[0].Cancelled {
		t.Errorf("the next of the subject: %+v", next)
	}
	read(t, s, func(tx *Tx) error {
		ended, err := tx.TaskOutcomes("op")
		if len(ended) != 1 || ended[0].Outcome != (program.Outcome{State: program.Failed, Message: "no"}) {
			t.Errorf("ended: %+v", ended)
		}
		return err
	})
}

func testSweep(t *testing.T, s *Store, clock *clock) {
	op := Operation{ID: "op", Org: org, State: cloud.OperationPending, Created: clock.now(), Detail: "{}"}
	pending := op
	pending.ID = "pending"
	write(t, s, func(tx *Tx) error {
		return errors.Join(tx.AddOperation(op), tx.AddOperation(pending), tx.AddIntent(Intent{"op", "port", 1}),
			tx.AddAnswer(Answer{Signature: "sig", Arrived: clock.now(), Expires: clock.now().Add(time.Minute), Status: 200, Body: []byte("x")}))
	})
	write(t, s, func(tx *Tx) error {
		_, err := tx.FinishOperation("op", cloud.OperationSuccess, "", "")
		return err
	})
	before := s.Commits()
	write(t, s, func(tx *Tx) error { return tx.Sweep(time.Hour) })
	if s.Commits() != before {
		t.Error("a sweep of nothing was committed")
	}
	clock.pass(2 * time.Hour)
	write(t, s, func(tx *Tx) error { return tx.Sweep(time.Hour) })
	read(t, s, func(tx *Tx) error {
		if _, err := tx.Operation("", "op"); !errors.Is(err, ErrNotFound) {
			t.Errorf("the old operation: %v", err)
		}
		if i, _ := tx.Intents("op"); len(i) != 0 {
			t.Errorf("its intents: %v", i)
		}
		var answers int
		if err := tx.queryRow([]any{&answers}, `SELECT COUNT(*) FROM answer`); err != nil || answers != 0 {
			t.Errorf("answers left: %d %v", answers, err)
		}
		_, err := tx.Operation("", "pending")
		return err
	})
}
