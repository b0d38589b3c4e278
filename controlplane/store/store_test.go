// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cloud"
)

// suite is what both databases must pass.
var suite = []struct {
	name string
	test func(*testing.T, *Store, *clock)
}{
	{"resources", testResources},
	{"names", testNames},
	{"references", testReferences},
	{"revisions", testRevisions},
	{"page", testChangesNeverSplitACommit},
	{"compaction", testCompaction},
	{"fencing", testFencing},
	{"operations", testOperations},
	{"audit", testAudit},
	{"answers", testAnswers},
	{"secrets", testSecrets},
	{"slots", testSlotsAndIntents},
	{"numbers", testNumbers},
	{"addresses", testAddresses},
	{"leases", testLeases},
	{"pools", testPoolKinds},
	{"networks", testVNIs},
	{"tasks", testTasks},
	{"sweep", testSweep},
}

func TestSQLite(t *testing.T) {
	for _, c := range suite {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			clock := newClock()
			s, err := Open(t.Context(), filepath.Join(t.TempDir(), "a file?.db"), WithClock(clock.now))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			if _, err := s.Init(t.Context(), "ch-gva-2", nil); err != nil {
				t.Fatal(err)
			}
			c.test(t, s, clock)
		})
	}
}

// clock is set by tests.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

const org = cloud.ID("0c000000-0000-4000-8000-000000000001")

func group(name string) Doc[AntiAffinityDoc] {
	id := cloud.NewID()
	return Doc[AntiAffinityDoc]{ID: id, Org: org, Generation: 1,
		Body: AntiAffinityDoc{cloud.AntiAffinityGroup{ID: id, Name: name}}}
}

func write(t *testing.T, s *Store, fn func(*Tx) error) Revision {
	t.Helper()
	rev, err := s.Write(t.Context(), fn)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func read(t *testing.T, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.Read(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func testResources(t *testing.T, s *Store, _ *clock) {
	a, b := group("a"), group("b")
	rev := write(t, s, func(tx *Tx) error {
		if err := errors.Join(Put(tx, "", a), Put(tx, "", b)); err != nil {
			return err
		}
		// Reads in the transaction see what it holds back.
		all, err := List[AntiAffinityDoc](tx, org)
		if err != nil || len(all) != 2 || all[0].Body.Name != "a" {
			t.Errorf("inside: %v %v", all, err)
		}
		_, err = Get[AntiAffinityDoc](tx, org, a.ID)
		return err
	})
	if rev != 1 {
		t.Fatalf("revision %d, want 1", rev)
	}
	read(t, s, func(tx *Tx) error {
		got, err := Get[AntiAffinityDoc](tx, org, a.ID)
		if err != nil {
			return err
		}
		if got.Revision != 1 || got.Body.Name != "a" || got.Generation != 1 {
			t.Errorf("got %+v", got)
		}
		_, err = Get[AntiAffinityDoc](tx, "0c000000-0000-4000-8000-000000000002", a.ID)
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("another organisation: %v", err)
		}
		a = got
		return nil
	})
	// A document that was never stored as read, and one that was changed since.
	_, err := s.Write(t.Context(), func(tx *Tx) error { return Put(tx, "", b) })
	wantErr(t, err, ErrStale)
	if rev := write(t, s, func(tx *Tx) error { return Put(tx, "", a) }); rev != 0 {
		t.Errorf("an equal document took revision %d", rev)
	}
	old := a
	a.Body.Description = "changed"
	if rev := write(t, s, func(tx *Tx) error { return Put(tx, "", a) }); rev != 2 {
		t.Errorf("revision %d, want 2", rev)
	}
	old.Body.Description = "from an old read"
	_, err = s.Write(t.Context(), func(tx *Tx) error { return Put(tx, "", old) })
	wantErr(t, err, ErrStale)

	// What fails leaves nothing, and takes no revision.
	_, err = s.Write(t.Context(), func(tx *Tx) error {
		return errors.Join(Put(tx, "", group("c")), tx.AddIntent(Intent{"op", "port", 1}), ErrExists)
	})
	wantErr(t, err, ErrExists)
	rev = write(t, s, func(tx *Tx) error { return tx.Delete("", a.Ref()) })
	if rev != 3 {
		t.Errorf("revision %d, want 3", rev)
	}
	read(t, s, func(tx *Tx) error {
		all, err := List[AntiAffinityDoc](tx, org)
		if len(all) != 1 || all[0].ID != b.ID {
			t.Errorf("left: %v", all)
		}
		if intents, _ := tx.Intents("op"); len(intents) != 0 {
			t.Errorf("intents of a failed transaction: %v", intents)
		}
		return err
	})
	// Made and deleted in one transaction: it never was.
	rev = write(t, s, func(tx *Tx) error {
		c := group("c")
		return errors.Join(Put(tx, "", c), tx.Delete("", c.Ref()))
	})
	if rev != 0 {
		t.Errorf("revision %d for nothing", rev)
	}
	if err := s.Read(t.Context(), func(tx *Tx) error { return Put(tx, "", group("d")) }); err == nil {
		t.Error("a read transaction wrote")
	}
	if _, err := s.Write(t.Context(), func(tx *Tx) error {
		_, err := s.Write(tx.Context(), func(*Tx) error { return nil })
		return err
	}); err == nil {
		t.Error("a write inside a write was begun")
	}
}

func testNames(t *testing.T, s *Store, _ *clock) {
	a := group("a")
	write(t, s, func(tx *Tx) error { return Put(tx, "", a) })
	_, err := s.Write(t.Context(), func(tx *Tx) error { return Put(tx, "", group("a")) })
	wantErr(t, err, ErrExists)
	_, err = s.Write(t.Context(), func(tx *Tx) error {
		return errors.Join(Put(tx, "", group("b")), Put(tx, "", group("b")))
	})
	wantErr(t, err, ErrExists)
	other := group("a")
	other.Org = "0c000000-0000-4000-8000-000000000002"
	write(t, s, func(tx *Tx) error { return Put(tx, "", other) })
	// The name is free in the transaction that deletes its holder.
	write(t, s, func(tx *Tx) error {
		if err := tx.Delete("", a.Ref()); err != nil {
			return err
		}
		return Put(tx, "", group("a"))
	})
	read(t, s, func(tx *Tx) error {
		d, err := Named[AntiAffinityDoc](tx, org, "a")
		if err == nil && d.ID == a.ID {
			t.Error("the deleted group is found by its name")
		}
		return err
	})
}

func testReferences(t *testing.T, s *Store, _ *clock) {
	a, b := group("a"), group("b")
	web := Doc[InstanceDoc]{ID: cloud.NewID(), Org: org, Body: InstanceDoc{Instance: cloud.Instance{
		Name: "web", AntiAffinityGroups: []cloud.Ref{{ID: a.ID}, {ID: b.ID}}}}}
	write(t, s, func(tx *Tx) error { return errors.Join(Put(tx, "", a), Put(tx, "", b), Put(tx, "", web)) })
	_, err := s.Write(t.Context(), func(tx *Tx) error { return tx.Delete("", a.Ref()) })
	var used *InUseError
	if !errors.As(err, &used) || len(used.Users) != 1 || used.Users[0] != web.Ref() || !strings.Contains(err.Error(), string(web.ID)) {
		t.Fatalf("delete in use: %v", err)
	}
	// An instance that leaves a group lets it go, and keeps the other one.
	write(t, s, func(tx *Tx) error {
		d, err := Get[InstanceDoc](tx, org, web.ID)
		d.Body.AntiAffinityGroups = []cloud.Ref{{ID: b.ID}}
		return errors.Join(err, Put(tx, "", d))
	})
	write(t, s, func(tx *Tx) error { return tx.Delete("", a.Ref()) })
	_, err = s.Write(t.Context(), func(tx *Tx) error { return tx.Delete("", b.Ref()) })
	if !errors.As(err, &used) {
		t.Fatalf("delete in use: %v", err)
	}
	write(t, s, func(tx *Tx) error { return tx.Delete("", web.Ref()) })
	write(t, s, func(tx *Tx) error { return tx.Delete("", b.Ref()) })
	read(t, s, func(tx *Tx) error {
		var n int
		err := tx.queryRow([]any{&n}, `SELECT COUNT(*) FROM reference`)
		if n != 0 {
			t.Errorf("%d references left", n)
		}
		return err
	})
}

func TestClassOwner(t *testing.T) {
	ab, ba := []cloud.Ref{{ID: "a"}, {ID: "b"}}, []cloud.Ref{{ID: "b"}, {ID: "a"}, {ID: "b"}}
	if ClassOwner(ab) != ClassOwner(ba) || ClassOwner(ab) == ClassOwner(ab[:1]) || ClassOwner(nil) == "" {
		t.Errorf("owners: %q %q %q %q", ClassOwner(ab), ClassOwner(ba), ClassOwner(ab[:1]), ClassOwner(nil))
	}
}

// testRevisions: with writers at work at the same time, revisions have no gap,
// nobody who follows the log misses one, and each write is found at the
// revision it was told.
func testRevisions(t *testing.T, s *Store, _ *clock) {
	const writers, each = 6, 25
	var mu sync.Mutex
	told := map[Revision]string{}
	seen := make(chan []Change, 1)
	go func() { seen <- follow(t, s, writers*each) }()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				name := fmt.Sprintf("%d-%d", w, i)
				rev, err := s.Write(t.Context(), func(tx *Tx) error {
					if i%5 == 4 {
						_, err := tx.Allocate(NumberRule, name)
						return errors.Join(err, Put(tx, "", group(name)))
					}
					return Put(tx, "", group(name))
				})
				if err != nil {
					t.Errorf("write %s: %v", name, err)
					return
				}
				mu.Lock()
				if other, ok := told[rev]; ok {
					t.Errorf("revision %d was given to %s and %s", rev, other, name)
				}
				told[rev] = name
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	changes := <-seen
	if len(changes) != writers*each {
		t.Fatalf("%d changes seen, want %d", len(changes), writers*each)
	}
	read(t, s, func(tx *Tx) error {
		for i, c := range changes {
			if c.Revision != Revision(i+1) {
				t.Fatalf("change %d has revision %d", i, c.Revision)
			}
			d, err := Get[AntiAffinityDoc](tx, "", cloud.ID(c.ID))
			if err != nil {
				return err
			}
			if d.Body.Name != told[c.Revision] {
				t.Errorf("revision %d is %s, its writer was told it was %s", c.Revision, d.Body.Name, told[c.Revision])
			}
		}
		return nil
	})
}

// follow reads the log as a replica does, from hint to hint, until it has seen
// want changes or lost its patience.
func follow(t *testing.T, s *Store, want int) (all []Change) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	hint, stop := s.Subscribe()
	defer stop()
	var at Revision
	for len(all) < want {
		var page []Change
		if err := s.Read(ctx, func(tx *Tx) (err error) { page, err = tx.Changes(at, 7); return err }); err != nil {
			t.Errorf("follow: %v", err)
			return all
		}
		all = append(all, page...)
		if len(page) > 0 {
			at = page[len(page)-1].Revision
			continue
		}
		select {
		case <-hint:
		case <-ctx.Done():
			t.Errorf("no hint after revision %d", at)
			return all
		}
	}
	return all
}

func testChangesNeverSplitACommit(t *testing.T, s *Store, _ *clock) {
	for range 3 {
		write(t, s, func(tx *Tx) error {
			var errs []error
			for range 4 {
				errs = append(errs, Put(tx, "op", group(string(cloud.NewID()))))
			}
			return errors.Join(errs...)
		})
	}
	read(t, s, func(tx *Tx) error {
		page, err := tx.Changes(0, 6)
		if len(page) != 8 || page[7].Revision != 2 || page[7].Seq != 3 || page[0].Operation != "op" {
			t.Errorf("page of 6: %d entries, %+v", len(page), page)
		}
		return err
	})
}

func testCompaction(t *testing.T, s *Store, _ *clock) {
	for i := range 5 {
		write(t, s, func(tx *Tx) error { return Put(tx, "", group(fmt.Sprint(i))) })
	}
	write(t, s, func(tx *Tx) error { return tx.Compact(3) })
	read(t, s, func(tx *Tx) error {
		_, err := tx.Changes(2, 10)
		if !errors.Is(err, ErrCompacted) {
			t.Errorf("changes after 2: %v", err)
		}
		page, err := tx.Changes(3, 10)
		if len(page) != 2 {
			t.Errorf("changes after 3: %v", page)
		}
		return err
	})
}

func testFencing(t *testing.T, s *Store, _ *clock) {
	old, err := s.Zone(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.TakeOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, s, func(tx *Tx) error { return Put(tx, "", group("a")) })
	s.zoneMu.Lock()
	s.zone.Epoch = old.Epoch // as a process that has not heard of it
	s.zoneMu.Unlock()
	_, err = s.Write(t.Context(), func(tx *Tx) error { return Put(tx, "", group("b")) })
	wantErr(t, err, ErrFenced)
	if _, err := s.Init(t.Context(), "de-muc-1", nil); !errors.Is(err, ErrExists) {
		t.Errorf("a second zone: %v", err)
	}
}

func TestHintsOfAnotherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cairn.db")
	a, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.Init(t.Context(), "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	b, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	hint, stop := b.Subscribe()
	defer stop()
	go b.Poll(ctx)
	write(t, a, func(tx *Tx) error { return Put(tx, "", group("a")) })
	select {
	case <-hint:
	case <-ctx.Done():
		t.Fatal("no hint of what the other one wrote")
	}
}

// TestBusyWriterFailsFast: somebody sits on the lock; writes say so in time,
// reads go on.
func TestBusyWriterFailsFast(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cairn.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Init(t.Context(), "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	s.patience = 100 * time.Millisecond
	inside, release, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		s.Write(context.Background(), func(*Tx) error { close(inside); <-release; return nil })
	}()
	<-inside
	start := time.Now()
	_, err = s.Write(t.Context(), func(tx *Tx) error { return nil })
	wantErr(t, err, ErrBusy)
	if took := time.Since(start); took > waitForWriter {
		t.Errorf("it took %v to say busy", took)
	}
	read(t, s, func(tx *Tx) error { _, err := tx.Revision(); return err })
	close(release)
	<-done
}

func TestOpenWithoutZone(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "cairn.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Write(t.Context(), func(tx *Tx) error { return Put(tx, "", group("a")) })
	wantErr(t, err, ErrNoZone)
	_, err = s.Zone(t.Context())
	wantErr(t, err, ErrNoZone)
}

func TestRootKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if _, err := CreateRootKey(path); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateRootKey(path); !errors.Is(err, ErrExists) {
		t.Errorf("a second key over the first: %v", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v %v", fi.Mode(), err)
	}
	if _, err := LoadRootKey(path); err != nil {
		t.Error(err)
	}
	os.WriteFile(path, []byte("00\n"), 0o600)
	if _, err := LoadRootKey(path); err == nil {
		t.Error("a short key was loaded")
	}
}
