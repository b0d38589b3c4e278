// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"errors"
	"fmt"
	"slices"
)

// Verify checks a machine exhaustively and returns every fault it has, joined,
// or nil. A sound machine:
//
//   - declares each event in each state as handled, refused or ignored, and
//     names no state or event that it does not have;
//   - reaches every state from the initial one;
//   - handles the timeout in every transient state;
//   - can reach a terminal state from everywhere, and a resting or terminal one
//     without being deleted;
//   - never leaves a terminal state;
//   - names for each effect one of the executors, and has only idempotent
//     effects in transient states;
//   - accepts delete in every state that is not terminal: it handles it, or
//     ignores it where every way leads to a terminal state anyway.
func (m *Machine) Verify(executors ...string) error {
	faults := m.verifyShape()
	if len(faults) > 0 {
		// The rest follows edges, and would only repeat that they lead nowhere.
		return m.join(faults)
	}
	faults = append(faults, m.verifyWays()...)
	faults = append(faults, m.verifyEffects(executors)...)
	for _, row := range m.Rows {
		faults = append(faults, m.verifyKind(row)...)
	}
	return m.join(faults)
}

func (m *Machine) join(faults []error) error {
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("machine %s: %w", m.Name, errors.Join(faults...))
}

// verifyShape finds names that are missing, double or lead nowhere.
func (m *Machine) verifyShape() (faults []error) {
	complain := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if m.row(m.Initial) == nil {
		complain("initial state %q is no state", m.Initial)
	}
	for _, e := range []Event{m.Timeout, m.Delete} {
		if !slices.Contains(m.Events, e) {
			complain("event %q is not in the alphabet", e)
		}
	}
	for i, e := range m.Events {
		if slices.Contains(m.Events[:i], e) {
			complain("event %s is listed twice", e)
		}
	}
	for i, row := range m.Rows {
		if slices.ContainsFunc(m.Rows[:i], func(r Row) bool { return r.State == row.State }) {
			complain("state %s is there twice", row.State)
		}
		for _, e := range m.Events {
			edge := row.On[e]
			switch {
			case edge.Verdict == Undefined:
				complain("state %s: event %s is undefined", row.State, e)
			case edge.Verdict == Handled && m.row(edge.To) == nil:
				complain("state %s: event %s leads to %q, which is no state", row.State, e, edge.To)
			case edge.Verdict == Refused && edge.Reason == "":
				complain("state %s: event %s is refused without a reason", row.State, e)
			}
		}
		for _, e := range sortedEvents(row.On) {
			if !slices.Contains(m.Events, e) {
				complain("state %s: event %s is not in the alphabet", row.State, e)
			}
		}
	}
	return faults
}

// verifyWays follows the edges.
func (m *Machine) verifyWays() (faults []error) {
	reached := m.reach(m.Initial, "")
	for _, row := range m.Rows {
		if !reached[row.State] {
			faults = append(faults, fmt.Errorf("state %s cannot be reached", row.State))
		}
		if !m.any(m.reach(row.State, ""), Terminal) {
			faults = append(faults, fmt.Errorf("state %s: no terminal state can be reached", row.State))
		}
		if calm := m.reach(row.State, m.Delete); !m.any(calm, Resting) && !m.any(calm, Terminal) {
			faults = append(faults, fmt.Errorf("state %s: comes to rest only by %s", row.State, m.Delete))
		}
	}
	return faults
}

func (m *Machine) verifyEffects(executors []string) (faults []error) {
	for _, row := range m.Rows {
		for _, e := range row.Effects {
			if !slices.Contains(executors, e.Name) {
				faults = append(faults, fmt.Errorf("state %s: effect %s has no executor", row.State, e))
			}
			if row.Kind == Transient && !e.Idempotent {
				faults = append(faults, fmt.Errorf("state %s: effect %s is not idempotent", row.State, e))
			}
		}
	}
	return faults
}

// verifyKind holds a state to what its kind promises.
func (m *Machine) verifyKind(row Row) (faults []error) {
	if row.Kind == Terminal {
		for _, e := range m.Events {
			if row.On[e].Verdict == Handled {
				faults = append(faults, fmt.Errorf("terminal state %s handles %s", row.State, e))
			}
		}
		return faults
	}
	if row.Kind == Transient && row.On[m.Timeout].Verdict != Handled {
		faults = append(faults, fmt.Errorf("transient state %s does not handle %s", row.State, m.Timeout))
	}
	switch row.On[m.Delete].Verdict {
	case Refused:
		faults = append(faults, fmt.Errorf("state %s refuses %s", row.State, m.Delete))
	case Ignored:
		if m.any(m.reach(row.State, ""), Resting) {
			faults = append(faults, fmt.Errorf("state %s ignores %s, and can come to rest undeleted", row.State, m.Delete))
		}
	}
	return faults
}

// reach returns the states that can be reached from s, s included, without the
// event named.
func (m *Machine) reach(s State, without Event) map[State]bool {
	seen := map[State]bool{s: true}
	for queue := []State{s}; len(queue) > 0; queue = queue[1:] {
		for e, edge := range m.row(queue[0]).On {
			if e != without && edge.Verdict == Handled && !seen[edge.To] {
				seen[edge.To] = true
				queue = append(queue, edge.To)
			}
		}
	}
	return seen
}

func (m *Machine) any(states map[State]bool, k Kind) bool {
	for s := range states {
		if m.row(s).Kind == k {
			return true
		}
	}
	return false
}

func sortedEvents(on map[Event]Edge) []Event {
	events := make([]Event, 0, len(on))
	for e := range on {
		events = append(events, e)
	}
	slices.Sort(events)
	return events
}
