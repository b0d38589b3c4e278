// SPDX-License-Identifier: Apache-2.0

// Package tasktest holds what tests of programs need: a store of tasks in
// memory, and the checks that every store of tasks must pass. It is imported by
// tests only. Start at Run, which says in examples what program.Tasks and
// program.Inbox promise.
package tasktest

import (
	"context"
	"slices"
	"sync"
	"time"

	"cairn/controlplane/program"
)

// Memory is a store of tasks in memory. The zero value is empty.
type Memory struct {
	// Hook, if set, is asked before and after each call of program.Tasks takes
	// effect. An error before means that nothing was done, one after that it
	// was done and nobody heard.
	Hook func(call string, after bool) error

	mu    sync.Mutex
	tasks []program.Task // by Seq
}

var (
	_ program.Tasks = (*Memory)(nil)
	_ program.Inbox = (*Memory)(nil)
)

// All returns all tasks as they stand, in order of insertion.
func (m *Memory) All() []program.Task {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.tasks)
}

func (m *Memory) call(name string, f func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Hook == nil {
		return f()
	}
	if err := m.Hook(name, false); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return m.Hook(name, true)
}

// Claim implements program.Tasks.
func (m *Memory) Claim(_ context.Context, owner string, now time.Time, lease time.Duration, limit int) (claimed []program.Task, err error) {
	err = m.call("claim", func() error {
		busy := map[string]bool{}
		for i := range m.tasks {
			t := &m.tasks[i]
			if t.Finished {
				continue
			}
			older := t.Subject != "" && busy[t.Subject]
			busy[t.Subject] = true
			free := t.LeaseOwner == "" || t.LeaseUntil.Before(now)
			if older || !free || t.NotBefore.After(now) || len(claimed) == limit {
				continue
			}
			t.Claim++
			t.Attempts++
			t.LeaseOwner, t.LeaseUntil = owner, now.Add(lease)
			claimed = append(claimed, copyOf(*t))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return claimed, nil
}

// held finds the row of a claim that still stands.
func (m *Memory) held(t program.Task) (*program.Task, error) {
	for i := range m.tasks {
		if row := &m.tasks[i]; row.ID == t.ID && row.Claim == t.Claim && row.LeaseOwner != "" && !row.Finished {
			return row, nil
		}
	}
	return nil, program.ErrLost
}

// Extend implements program.Tasks.
func (m *Memory) Extend(_ context.Context, t program.Task, until time.Time) (s program.Signals, err error) {
	err = m.call("extend", func() error {
		row, err := m.held(t)
		if err != nil {
			return err
		}
		row.LeaseUntil = until
		s = program.Signals{Cancelled: row.Cancelled, Events: slices.Clone(row.Events)}
		return nil
	})
	return s, err
}

// Save implements program.Tasks.
func (m *Memory) Save(_ context.Context, t program.Task, release bool) error {
	return m.call("save", func() error {
		row, err := m.held(t)
		if err != nil {
			return err
		}
		row.Progress = slices.Clone(t.Progress)
		if release {
			row.LeaseOwner, row.LeaseUntil, row.NotBefore = "", time.Time{}, t.NotBefore
			if row.Cancelled != t.Cancelled || len(row.Events) != len(t.Events) {
				row.NotBefore = time.Time{}
			}
		}
		return nil
	})
}

// Finish implements program.Tasks.
func (m *Memory) Finish(_ context.Context, t program.Task, o program.Outcome) error {
	return m.call("finish", func() error {
		row, err := m.held(t)
		if err != nil {
			return err
		}
		row.Progress = slices.Clone(t.Progress)
		row.Finished, row.Outcome = true, o
		row.LeaseOwner, row.LeaseUntil = "", time.Time{}
		return nil
	})
}

// Free implements program.Tasks.
func (m *Memory) Free(_ context.Context, owner string) error {
	return m.call("free", func() error {
		for i := range m.tasks {
			if t := &m.tasks[i]; t.LeaseOwner == owner {
				t.LeaseOwner, t.LeaseUntil = "", time.Time{}
			}
		}
		return nil
	})
}

// Insert implements program.Inbox.
func (m *Memory) Insert(_ context.Context, t program.Task) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.ContainsFunc(m.tasks, func(row program.Task) bool { return row.ID == t.ID }) {
		return nil
	}
	m.tasks = append(m.tasks, program.Task{ID: t.ID, Operation: t.Operation, Subject: t.Subject,
		Seq: int64(len(m.tasks) + 1), Program: slices.Clone(t.Program), NotBefore: t.NotBefore, Deadline: t.Deadline})
	return nil
}

// Signal implements program.Inbox.
func (m *Memory) Signal(_ context.Context, subject string, e program.Event) (int, error) {
	return m.each(subject, func(t *program.Task) {
		if !slices.ContainsFunc(t.Events, func(had program.Event) bool { return had.Name == e.Name }) {
			t.Events = append(t.Events, e)
		}
	})
}

// Cancel implements program.Inbox.
func (m *Memory) Cancel(_ context.Context, subject string) (int, error) {
	return m.each(subject, func(t *program.Task) { t.Cancelled = true })
}

func (m *Memory) each(subject string, f func(*program.Task)) (n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.tasks {
		if t := &m.tasks[i]; t.Subject == subject && !t.Finished {
			f(t)
			t.NotBefore = time.Time{}
			n++
		}
	}
	return n, nil
}

func copyOf(t program.Task) program.Task {
	t.Events = slices.Clone(t.Events)
	t.Progress = slices.Clone(t.Progress)
	return t
}
