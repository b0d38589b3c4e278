// SPDX-License-Identifier: Apache-2.0

package meter

import (
	"slices"
	"time"
)

// State of a meter, to be kept.
type State struct {
	Window time.Duration `json:"window"`
	Until  time.Time     `json:"until"`
	Blind  time.Time     `json:"blind,omitzero"`
	Lives  []life        `json:"lives"` // those of an interface in their order
	Ended  []Usage       `json:"ended,omitempty"`
}

// State is a copy of what the meter knows.
func (m *Meter) State() State {
	s := State{Window: m.window, Until: m.until, Blind: m.blind, Lives: make([]life, 0, len(m.lives))}
	for _, lives := range m.lives {
		for _, l := range lives {
			one := *l
			one.Marks = slices.Clone(l.Marks)
			s.Lives = append(s.Lives, one)
		}
	}
	for _, u := range m.ended {
		s.Ended = append(s.Ended, *u)
	}
	return s
}

// Restore makes the meter that a state is of. With another length of windows
// those that are open end where the next one of the new length begins.
func Restore(s State, window, grace time.Duration) *Meter {
	m := &Meter{window: window, grace: grace, until: s.Until.UTC(), blind: s.Blind, lives: map[key][]*life{}, ended: map[sumKey]*Usage{}}
	if s.Window != window {
		m.until = s.Until.UTC().Truncate(window)
		if m.until.Before(s.Until) {
			m.until = m.until.Add(window)
		}
	}
	for _, l := range s.Lives {
		if s.Window != window && len(l.Marks) > 0 {
			last := l.Marks[len(l.Marks)-1]
			last.Window = m.windowOf(last.At)
			l.Marks = []mark{last}
		}
		k := key{l.Resource, l.Port}
		m.lives[k] = append(m.lives[k], &l)
	}
	for _, u := range s.Ended {
		start := u.Start
		if s.Window != window {
			start = m.windowOf(start)
		}
		m.add(m.ended, u.Resource, u.Org, start, u.Counters)
	}
	return m
}
