// SPDX-License-Identifier: Apache-2.0

package tasktest

import (
	"context"
	"errors"
	"testing"
	"time"

	"cairn/controlplane/program"
)

// Store is both sides of a store of tasks. Over SQL each call of the Inbox is
// wrapped into a transaction of its own by the test.
type Store interface {
	program.Tasks
	program.Inbox
}

// Run checks what a store of tasks promises. open returns an empty one.
func Run(t *testing.T, open func(t *testing.T) Store) {
	for _, c := range []struct {
		name string
		f    func(*check)
	}{
		{"ClaimInOrder", claimInOrder},
		{"ClaimSkipsHeldSleepingFinished", claimSkips},
		{"OneSubjectAtATime", oneSubject},
		{"LostLeaseIsFenced", lostLease},
		{"FreeEndsLeasesOfOneOwner", free},
		{"SignalWakesAndStays", signal},
		{"ReleaseDoesNotSleepThroughNews", releaseNews},
		{"CancelReachesUnfinishedOnly", cancel},
		{"InsertTwiceIsOnce", insertTwice},
		{"FieldsSurvive", fields},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(&check{t, open(t)}) })
	}
}

const lease = 10 * time.Second

// start has no fraction of a second: a store may keep milliseconds only.
var start = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

type check struct {
	*testing.T
	Store
}

func (c *check) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *check) insert(id, subject string) {
	c.Helper()
	c.must(c.Insert(c.Context(), program.Task{ID: id, Subject: subject, Program: []byte(`{}`)}))
}

// claim returns the tasks claimed, and checks their ids.
func (c *check) claim(at time.Duration, owner string, limit int, want ...string) []program.Task {
	c.Helper()
	tasks, err := c.Claim(c.Context(), owner, start.Add(at), lease, limit)
	c.must(err)
	var got []string
	for _, t := range tasks {
		got = append(got, t.ID)
	}
	if len(got) != len(want) {
		c.Fatalf("claimed %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			c.Fatalf("claimed %v, want %v", got, want)
		}
	}
	return tasks
}

func (c *check) lost(what string, err error) {
	c.Helper()
	if !errors.Is(err, program.ErrLost) {
		c.Errorf("%s under a lost lease: %v, want %v", what, err, program.ErrLost)
	}
}

func claimInOrder(c *check) {
	c.insert("b", "")
	c.insert("a", "")
	c.insert("c", "")
	got := c.claim(0, "w", 2, "b", "a")
	if got[0].Seq >= got[1].Seq || got[0].Claim != 1 || got[0].Attempts != 1 || got[0].LeaseOwner != "w" || !got[0].LeaseUntil.Equal(start.Add(lease)) {
		c.Errorf("claimed as %+v", got[0])
	}
	c.claim(0, "w", 2, "c")
}

func claimSkips(c *check) {
	c.insert("held", "")
	c.insert("sleeping", "")
	c.insert("finished", "")
	tasks := c.claim(0, "w", 3, "held", "sleeping", "finished")
	sleeping := tasks[1]
	sleeping.NotBefore = start.Add(5 * time.Second)
	c.must(c.Save(c.Context(), sleeping, true))
	c.must(c.Finish(c.Context(), tasks[2], program.Outcome{State: program.Succeeded}))
	c.claim(4*time.Second, "v", 3)
	c.claim(5*time.Second, "v", 3, "sleeping")
	c.claim(lease+time.Second, "v", 3, "held")
	c.claim(time.Hour, "v", 3, "held", "sleeping")
}

func oneSubject(c *check) {
	c.insert("one", "pool/1")
	c.insert("two", "pool/1")
	c.insert("other", "pool/2")
	tasks := c.claim(0, "w", 9, "one", "other")
	sleeping := tasks[0]
	sleeping.NotBefore = start.Add(time.Minute)
	c.must(c.Save(c.Context(), sleeping, true))
	c.claim(time.Second, "w", 9)
	one := c.claim(time.Minute, "w", 1, "one")[0]
	c.must(c.Finish(c.Context(), one, program.Outcome{State: program.Cancelled}))
	c.claim(time.Minute, "w", 1, "two")
}

func lostLease(c *check) {
	c.insert("t", "")
	old := c.claim(0, "w", 1, "t")[0]
	until := start.Add(8 * time.Second).Add(lease)
	if _, err := c.Extend(c.Context(), old, until); err != nil {
		c.Errorf("extend: %v", err)
	}
	c.claim(lease+time.Second, "v", 1)
	fresh := c.claim(8*time.Second+lease+time.Second, "v", 1, "t")[0]
	if fresh.Claim <= old.Claim || fresh.Attempts != 2 {
		c.Errorf("claimed again as %+v", fresh)
	}
	_, err := c.Extend(c.Context(), old, until.Add(time.Hour))
	c.lost("extend", err)
	old.Progress = []byte(`{"stale":{}}`)
	c.lost("save", c.Save(c.Context(), old, false))
	c.lost("release", c.Save(c.Context(), old, true))
	c.lost("finish", c.Finish(c.Context(), old, program.Outcome{State: program.Failed}))
	c.must(c.Save(c.Context(), fresh, true))
	c.lost("save after release", c.Save(c.Context(), fresh, false))
	last := c.claim(time.Hour, "v", 1, "t")[0]
	if len(last.Progress) != 0 {
		c.Errorf("a lost lease wrote %s", last.Progress)
	}
	c.must(c.Finish(c.Context(), last, program.Outcome{State: program.Succeeded}))
	c.lost("finish again", c.Finish(c.Context(), last, program.Outcome{State: program.Failed}))
}

func free(c *check) {
	c.insert("mine", "")
	mine := c.claim(0, "w", 1, "mine")[0]
	c.insert("other", "")
	c.claim(0, "v", 1, "other")
	c.must(c.Free(c.Context(), "w"))
	c.lost("save after free", c.Save(c.Context(), mine, false))
	c.claim(time.Second, "w", 9, "mine")
}

func signal(c *check) {
	c.insert("t", "vm/1")
	c.insert("next", "vm/1")
	c.insert("other", "vm/2")
	task := c.claim(0, "w", 1, "t")[0]
	task.NotBefore = start.Add(time.Hour)
	c.must(c.Save(c.Context(), task, true))
	for _, e := range []program.Event{{Name: "running/1", Detail: "up"}, {Name: "running/1", Detail: "again"}, {Name: "running/2"}} {
		n, err := c.Signal(c.Context(), "vm/1", e)
		if c.must(err); n != 2 {
			c.Errorf("%d tasks signalled, want 2", n)
		}
	}
	task = c.claim(time.Second, "w", 1, "t")[0]
	want := []program.Event{{Name: "running/1", Detail: "up"}, {Name: "running/2"}}
	if len(task.Events) != 2 || task.Events[0] != want[0] || task.Events[1] != want[1] {
		c.Errorf("events %v, want %v", task.Events, want)
	}
	c.must(c.Finish(c.Context(), task, program.Outcome{State: program.Succeeded}))
	if n, err := c.Signal(c.Context(), "vm/1", program.Event{Name: "late"}); n != 1 || err != nil {
		c.Errorf("signalled %d, %v; want 1", n, err)
	}
	if next := c.claim(time.Second, "w", 1, "next")[0]; len(next.Events) != 3 {
		c.Errorf("the second task of the subject got %v", next.Events)
	}
	if other := c.claim(time.Second, "w", 1, "other")[0]; len(other.Events) != 0 {
		c.Errorf("another subject got %v", other.Events)
	}
}

func releaseNews(c *check) {
	c.insert("event", "vm/1")
	c.insert("cancel", "vm/2")
	tasks := c.claim(0, "w", 2, "event", "cancel")
	_, err := c.Signal(c.Context(), "vm/1", program.Event{Name: "up"})
	c.must(err)
	_, err = c.Cancel(c.Context(), "vm/2")
	c.must(err)
	for _, t := range tasks {
		t.NotBefore = start.Add(time.Hour)
		c.must(c.Save(c.Context(), t, true))
	}
	tasks = c.claim(time.Second, "w", 2, "event", "cancel")
	for _, t := range tasks { // now they have seen it
		t.NotBefore = start.Add(time.Hour)
		c.must(c.Save(c.Context(), t, true))
	}
	c.claim(time.Second, "w", 2)
}

func cancel(c *check) {
	c.insert("done", "vm/1")
	done := c.claim(0, "w", 1, "done")[0]
	c.must(c.Finish(c.Context(), done, program.Outcome{State: program.Succeeded}))
	c.insert("t", "vm/1")
	held := c.claim(0, "w", 1, "t")[0]
	if n, err := c.Cancel(c.Context(), "vm/1"); n != 1 || err != nil {
		c.Errorf("cancelled %d, %v; want 1", n, err)
	}
	s, err := c.Extend(c.Context(), held, start.Add(lease))
	if c.must(err); !s.Cancelled {
		c.Error("a held task is not told of its cancel")
	}
}

func insertTwice(c *check) {
	c.insert("t", "vm/1")
	c.must(c.Insert(c.Context(), program.Task{ID: "t", Subject: "vm/2", Program: []byte(`{"seq":[]}`)}))
	got := c.claim(0, "w", 9, "t")[0]
	if got.Subject != "vm/1" || string(got.Program) != `{}` {
		c.Errorf("inserted over: %+v", got)
	}
}

func fields(c *check) {
	want := program.Task{ID: "t", Operation: "op", Subject: "vm/1", Program: []byte(`{"wait":{"event":"x","within":1}}`),
		NotBefore: start, Deadline: start.Add(time.Hour)}
	c.must(c.Insert(context.Background(), want))
	c.claim(-time.Second, "w", 1)
	got := c.claim(0, "w", 1, "t")[0]
	if got.Operation != want.Operation || got.Subject != want.Subject || string(got.Program) != string(want.Program) ||
		!got.Deadline.Equal(want.Deadline) || got.Cancelled || got.Finished {
		c.Errorf("inserted %+v, got %+v", want, got)
	}
	got.Progress = []byte(`{"":{"status":"waiting"}}`)
	c.must(c.Save(c.Context(), got, false))
	c.must(c.Save(c.Context(), got, true))
	if again := c.claim(2*time.Hour, "w", 1, "t")[0]; string(again.Progress) != string(got.Progress) {
		c.Errorf("progress %s, want %s", again.Progress, got.Progress)
	}
}
