// SPDX-License-Identifier: Apache-2.0

// Package fsm holds state machines that are data: states that carry the effects
// to produce when they are entered (a Moore machine), and a pure Next. It owns
// the shape of a machine, the verifier that every shipped machine must pass,
// and a bounded exhaustive search of a machine against an executor that
// repeats, crashes and comes late. It never performs an effect, keeps no clock
// and imports the standard library only, so that it can be taken out and used
// elsewhere.
//
// Start at Machine; Verify says what a sound machine is; Explore says what
// becomes of it in a bad world.
package fsm

import (
	"slices"
	"strings"
)

// State names a state of a machine.
type State string

// Event names something that happens to a machine.
type Event string

// Effect is work to be done on entering a state: data, never a function.
type Effect struct {
	Name string   // which executor
	Args []string // its arguments

	// Idempotent states that doing it twice is doing it once. An effect of a
	// transient state must be, for it is repeated after a crash.
	Idempotent bool
}

// String prints an effect as name(arg, arg).
func (e Effect) String() string {
	if len(e.Args) == 0 {
		return e.Name
	}
	return e.Name + "(" + strings.Join(e.Args, ", ") + ")"
}

// Kind says how long a machine may stay in a state.
type Kind uint8

// The kinds of states.
const (
	Transient Kind = iota // on its way: left by an event of its own, or by the timeout
	Resting               // stays until somebody asks for something
	Terminal              // never left
)

func (k Kind) String() string {
	return [...]string{"transient", "resting", "terminal"}[k]
}

// Verdict says what became of an event. Its zero value is what the verifier
// finds: an event that nobody thought of.
type Verdict uint8

// The verdicts.
const (
	Undefined Verdict = iota
	Handled           // the state named in the edge is entered, its effects are due
	Refused           // answered 409 to who asked, with the reason
	Ignored           // nothing to do: late, repeated, or under way already
)

func (v Verdict) String() string {
	return [...]string{"undefined", "handled", "refused", "ignored"}[v]
}

// Edge says what an event does in a state. Make it with To, Refuse or Ignore.
type Edge struct {
	Verdict Verdict
	To      State  // if handled; may be the same state, whose effects are then due again
	Reason  string // if refused
}

// To enters a state.
func To(s State) Edge { return Edge{Verdict: Handled, To: s} }

// Refuse says no, and why.
func Refuse(reason string) Edge { return Edge{Verdict: Refused, Reason: reason} }

// Ignore drops the event.
func Ignore() Edge { return Edge{Verdict: Ignored} }

// Row is a state: its kind, its effects, and what each event does in it.
type Row struct {
	State   State
	Kind    Kind
	Effects []Effect
	On      map[Event]Edge
}

// Machine is a state machine. It is read-only once made, and safe for
// concurrent use.
type Machine struct {
	Name    string
	Initial State
	Events  []Event // the alphabet; each must be declared in each row
	Timeout Event   // the event of the clock: every transient state handles it
	Delete  Event   // the event that starts the way to a terminal state
	Rows    []Row   // in the order in which they are printed
}

// Result is what an event does.
type Result struct {
	Verdict Verdict
	State   State    // the state after the event, also when nothing happened
	Effects []Effect // due now; nil unless handled
	Reason  string   // if refused
}

// Next says what e does in s. It is pure: the caller commits the new state and
// the effects together, and only then has anything happened.
func (m *Machine) Next(s State, e Event) Result {
	row := m.row(s)
	if row == nil {
		return Result{State: s}
	}
	edge := row.On[e]
	r := Result{Verdict: edge.Verdict, State: s, Reason: edge.Reason}
	if edge.Verdict == Handled {
		r.State = edge.To
		r.Effects = m.Effects(edge.To)
	}
	return r
}

// Effects returns what is due on entering s.
func (m *Machine) Effects(s State) []Effect {
	if row := m.row(s); row != nil {
		return slices.Clone(row.Effects)
	}
	return nil
}

// Kind returns the kind of s, and whether the machine has such a state.
func (m *Machine) Kind(s State) (Kind, bool) {
	if row := m.row(s); row != nil {
		return row.Kind, true
	}
	return 0, false
}

// row is a linear search: machines have about ten states.
func (m *Machine) row(s State) *Row {
	for i := range m.Rows {
		if m.Rows[i].State == s {
			return &m.Rows[i]
		}
	}
	return nil
}
