// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"errors"
	"fmt"
	"slices"
)

// Fence says how an executor is kept from doing work that is out of date.
type Fence uint8

// The fences, from none to the one that holds.
const (
	Unfenced   Fence = iota // whatever is delivered is done, whatever is answered is believed
	CheckFirst              // the generation is compared before the work, and not again
	AtApply                 // the world refuses a generation older than one it has seen
)

func (f Fence) String() string {
	return [...]string{"unfenced", "checked first", "fenced at apply"}[f]
}

// Model is a machine in a bad world: the work of each state it enters is a
// message that may be done twice, done late, done half and again after a crash,
// and overtaken by what came after it. W is the world that the effects change.
//
// Each handled event raises the generation; messages and answers carry the one
// they were made under.
type Model[W comparable] struct {
	Machine *Machine
	World   W                        // at the start
	Apply   func(w W, e Effect) W    // what an effect does; pure
	Replies func(e []Effect) []Event // what an executor may answer when it has done them all
	Fence   Fence

	// External events may come at any time, Budget of them in all. The
	// machine's timeout comes by itself, in transient states, on the same budget.
	External []Event
	Budget   int

	// Bad names what is wrong with a state in a world, whatever is still under
	// way; Quiet the same once nothing is. Empty means nothing; nil is allowed.
	Bad   func(s State, w W) string
	Quiet func(s State, w W) string

	// MaxStates bounds the search; 100,000 if zero.
	MaxStates int
}

// Finding is a bad state and a shortest way into it.
type Finding struct {
	Why   string
	Trace []string
}

// Report is what a search found.
type Report struct {
	States int       // visited
	Bad    int       // of them bad
	First  []Finding // of up to ten, nearest first
}

// ErrTooLarge says that a search was given up at its bound: what it has found
// by then is true, what it has not found may be there.
var ErrTooLarge = errors.New("search bound reached")

// A message is the work of one entered state.
type message struct {
	row   uint8 // index of the state whose effects they are
	gen   uint8
	stage uint8 // waiting, or held with stage-held effects done
}

const (
	waiting uint8 = iota
	held
)

// config is one state of the search. Messages are a set, sorted, packed into a
// string: that makes the config comparable, and lets duplicates fold.
type config[W comparable] struct {
	state    State
	gen      uint8
	left     uint8
	world    W
	mark     uint8 // the newest generation that the world has seen
	messages string
}

type node[W comparable] struct {
	config config[W]
	parent int
	step   string
}

type search[W comparable] struct {
	model *Model[W]
	nodes []node[W]
	seen  map[config[W]]bool
	over  error
}

// Explore visits every state that the model can reach, breadth first. The
// machine should have passed Verify.
func (m Model[W]) Explore() (Report, error) {
	if m.MaxStates == 0 {
		m.MaxStates = 100_000
	}
	if m.Budget > 200 || len(m.Machine.Rows) > 250 || len(m.Machine.Events) > 250 {
		return Report{}, fmt.Errorf("explore %s: %w", m.Machine.Name, ErrTooLarge)
	}
	s := &search[W]{model: &m, seen: map[config[W]]bool{}}
	start := config[W]{state: m.Machine.Initial, left: uint8(m.Budget), world: m.World}
	s.visit(-1, "start in "+string(m.Machine.Initial), s.enter(start))
	var r Report
	for i := 0; i < len(s.nodes) && s.over == nil; i++ {
		if why := s.judge(s.nodes[i].config); why != "" {
			r.Bad++
			if len(r.First) < 10 {
				r.First = append(r.First, Finding{Why: why, Trace: s.trace(i)})
			}
		}
		s.external(i)
		s.deliver(i)
	}
	r.States = len(s.nodes)
	if s.over != nil {
		return r, fmt.Errorf("explore %s after %d states: %w", m.Machine.Name, r.States, s.over)
	}
	return r, nil
}

func (s *search[W]) judge(c config[W]) string {
	if s.model.Bad != nil {
		if why := s.model.Bad(c.state, c.world); why != "" {
			return why
		}
	}
	if s.model.Quiet != nil && c.messages == "" {
		return s.model.Quiet(c.state, c.world)
	}
	return ""
}

// external lets each event come that may come from outside.
func (s *search[W]) external(i int) {
	c := s.nodes[i].config
	if c.left == 0 {
		return
	}
	events := slices.Clone(s.model.External)
	if k, _ := s.model.Machine.Kind(c.state); k == Transient {
		events = append(events, s.model.Machine.Timeout)
	}
	for _, e := range events {
		next := c
		next.left--
		if next, ok := s.step(next, e); ok {
			s.visit(i, string(e), next)
		}
	}
}

// deliver lets each message go each of its ways.
func (s *search[W]) deliver(i int) {
	c := s.nodes[i].config
	for _, msg := range unpack(c.messages) {
		name := fmt.Sprintf("%s/%d", s.model.Machine.Rows[msg.row].State, msg.gen)
		rest := without(c.messages, msg)
		if msg.stage != waiting {
			again := message{row: msg.row, gen: msg.gen}
			next := c
			next.messages = with(rest, again)
			s.visit(i, "crash in "+name, next)
			next.messages = with(c.messages, again)
			s.visit(i, "lease of "+name+" lost, its holder goes on", next)
			s.work(i, c, msg, rest, name)
			continue
		}
		next := c
		if next.messages = rest; s.model.Fence == CheckFirst && msg.gen < c.mark {
			s.visit(i, "drop stale "+name, next)
			continue
		}
		next.messages = with(rest, message{msg.row, msg.gen, held})
		s.visit(i, "take "+name, next)
	}
}

// work does the next effect of a held message.
func (s *search[W]) work(i int, c config[W], msg message, rest, name string) {
	effects := s.model.Machine.Rows[msg.row].Effects
	next := c
	if s.model.Fence == AtApply && msg.gen < c.mark {
		next.messages = rest
		s.visit(i, "refuse stale "+name, next)
		return
	}
	effect := effects[msg.stage-held]
	next.world = s.model.Apply(c.world, effect)
	next.mark = max(c.mark, msg.gen)
	step := fmt.Sprintf("do %s for %s", effect, name)
	if msg.stage++; int(msg.stage-held) < len(effects) {
		next.messages = with(rest, msg)
		s.visit(i, step, next)
		return
	}
	// Done, but neither the machine nor the queue has heard: it comes again.
	next.messages = with(rest, message{row: msg.row, gen: msg.gen})
	s.visit(i, step+", and crash before the answer", next)
	next.messages = rest
	var replies []Event
	if s.model.Replies != nil {
		replies = s.model.Replies(effects)
	}
	if len(replies) == 0 {
		s.visit(i, step, next)
	}
	for _, e := range replies {
		heard := next
		if msg.gen == c.gen {
			heard, _ = s.step(heard, e)
		}
		s.visit(i, fmt.Sprintf("%s, answer %s", step, e), heard)
	}
}

// step gives e to the machine; false if nothing happened.
func (s *search[W]) step(c config[W], e Event) (config[W], bool) {
	r := s.model.Machine.Next(c.state, e)
	if r.Verdict != Handled {
		return c, false
	}
	// Without a fence there are no generations: equal work is the same message.
	if s.model.Fence != Unfenced {
		c.gen++
	}
	if c.gen == 255 {
		s.over = ErrTooLarge
	}
	c.state = r.State
	return s.enter(c), true
}

// enter makes the message of the state that c is in.
func (s *search[W]) enter(c config[W]) config[W] {
	rows := s.model.Machine.Rows
	i := slices.IndexFunc(rows, func(r Row) bool { return r.State == c.state })
	if i >= 0 && len(rows[i].Effects) > 0 {
		c.messages = with(c.messages, message{row: uint8(i), gen: c.gen})
	}
	return c
}

func (s *search[W]) visit(parent int, step string, c config[W]) {
	if s.seen[c] || s.over != nil {
		return
	}
	if len(s.nodes) == s.model.MaxStates {
		s.over = ErrTooLarge
		return
	}
	s.seen[c] = true
	s.nodes = append(s.nodes, node[W]{c, parent, step})
}

func (s *search[W]) trace(i int) (steps []string) {
	for ; i >= 0; i = s.nodes[i].parent {
		steps = append(steps, fmt.Sprintf("%s: %s, %v", s.nodes[i].step, s.nodes[i].config.state, s.nodes[i].config.world))
	}
	slices.Reverse(steps)
	return steps
}

// size of a packed message, bytes.
const size = 3

func unpack(set string) []message {
	msgs := make([]message, 0, len(set)/size)
	for ; set != ""; set = set[size:] {
		msgs = append(msgs, message{set[0], set[1], set[2]})
	}
	return msgs
}

func (m message) pack() string { return string([]byte{m.row, m.gen, m.stage}) }

func with(set string, m message) string {
	p, at := m.pack(), 0
	for ; at < len(set) && set[at:at+size] < p; at += size {
	}
	if at < len(set) && set[at:at+size] == p {
		return set
	}
	return set[:at] + p + set[at:]
}

func without(set string, m message) string {
	p := m.pack()
	for at := 0; at < len(set); at += size {
		if set[at:at+size] == p {
			return set[:at] + set[at+size:]
		}
	}
	return set
}
