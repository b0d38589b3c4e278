// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Program is a tree and how far it is.
type Program struct {
	Tree     Node
	Progress Progress
}

// Progress holds a mark for each leaf and wait that has been reached, by path.
// What it does not hold has not begun.
type Progress map[string]Mark

// Mark is how far one leaf or wait is.
type Mark struct {
	Status    Status    `json:"status"`
	Attempts  int       `json:"attempts,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"` // of the next attempt
	Deadline  time.Time `json:"deadline,omitzero"`  // after which there is none
	Error     string    `json:"error,omitempty"`    // of the last attempt
}

// Status of a leaf, a wait or a whole tree. The zero value is Ready.
type Status uint8

// The statuses. Those from StatusDone on are final.
const (
	StatusReady   Status = iota // may begin, or begin again
	StatusRunning               // dispatched, no result yet
	StatusWaiting               // for its event
	StatusDone
	StatusFailed
	StatusCancelled
)

var statusNames = [...]string{"ready", "running", "waiting", "done", "failed", "cancelled"}

func (s Status) String() string { return statusNames[s] }

// settled says whether nothing will happen to it any more.
func (s Status) settled() bool { return s >= StatusDone }

// MarshalText writes the status as a word, so that a row of the store can be read.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Status) UnmarshalText(b []byte) error {
	for i, name := range statusNames {
		if name == string(b) {
			*s = Status(i)
			return nil
		}
	}
	return fmt.Errorf("unknown status %q", b)
}

// Dispatch is a leaf to be begun now.
type Dispatch struct {
	Path    string
	Attempt int // from 1
	Leaf    Leaf
	Until   time.Time // when this attempt is out of time
}

// Result is how an attempt ended. One of another attempt than the one under way
// is dropped.
type Result struct {
	Path      string
	Attempt   int
	Error     string // empty: success
	Permanent bool   // another attempt would end the same way
}

// Input is what has happened since the last step.
type Input struct {
	Now       time.Time
	Salt      string // spreads the retries of different tasks; a task's id
	Results   []Result
	Events    []Event // all that the task has got
	Cancelled bool
	Deadline  time.Time // of the task; zero: none
}

// Next says what to wait for after a step.
type Next struct {
	Done    bool
	Outcome Outcome   // if done
	Running int       // leaves under way, those dispatched by this step included
	Wake    time.Time // when to step again though nothing has happened; zero: never
}

// Step takes what has happened into account and says what to begin. It is pure:
// it changes no argument, and the same arguments give the same result. Whoever
// begins the dispatches writes the returned progress down first.
func Step(p Program, in Input) (Program, []Dispatch, Next) {
	w := record(p, in)
	status, message := w.node(p.Tree, "", false)
	next := Next{Running: w.running, Wake: w.wake}
	if status.settled() {
		next = Next{Done: true, Outcome: outcome(status, message)}
	}
	return Program{Tree: p.Tree, Progress: w.progress}, w.dispatches, next
}

// Record enters results and begins nothing: what is left to do when no further
// leaf is to be begun by this worker.
func Record(p Program, in Input) Program {
	return Program{Tree: p.Tree, Progress: record(p, in).progress}
}

func record(p Program, in Input) *walk {
	w := &walk{in: in, progress: maps.Clone(p.Progress)}
	if w.progress == nil {
		w.progress = Progress{}
	}
	for _, r := range in.Results {
		w.settle(p.Tree, r)
	}
	return w
}

// Recover makes the leaves that were under way ready again: whoever ran them is
// gone. Attempts already begun stay counted.
func Recover(p Program) Program {
	progress := make(Progress, len(p.Progress))
	for path, m := range p.Progress {
		if m.Status == StatusRunning {
			m.Status = StatusReady
		}
		progress[path] = m
	}
	return Program{Tree: p.Tree, Progress: progress}
}

func outcome(s Status, message string) Outcome {
	switch s {
	case StatusDone:
		return Outcome{State: Succeeded}
	case StatusCancelled:
		return Outcome{State: Cancelled}
	}
	return Outcome{State: Failed, Message: message}
}

// walk is one step over the tree.
type walk struct {
	in         Input
	progress   Progress
	dispatches []Dispatch
	running    int
	wake       time.Time
}

// node carries a node on and returns its status, which is settled or
// StatusRunning, and the message of a failure. What is shielded goes on after a
// cancel and after the task's deadline.
func (w *walk) node(n Node, path string, shielded bool) (Status, string) {
	switch {
	case n.Leaf != nil:
		return w.leaf(*n.Leaf, path, shielded)
	case n.Wait != nil:
		return w.wait(*n.Wait, path, shielded)
	case n.Try != nil:
		return w.try(*n.Try, path, shielded)
	case n.Par != nil:
		return w.par(n.Par, path, shielded)
	}
	for i, child := range n.Seq {
		if s, message := w.node(child, join(path, strconv.Itoa(i)), shielded); s != StatusDone {
			return s, message
		}
	}
	return StatusDone, ""
}

func (w *walk) par(nodes []Node, path string, shielded bool) (Status, string) {
	all := StatusDone
	var messages []string
	for i, child := range nodes {
		s, message := w.node(child, join(path, strconv.Itoa(i)), shielded)
		switch {
		case s == StatusFailed:
			messages = append(messages, message)
			if all == StatusDone {
				all = s
			}
		case !s.settled():
			all = StatusRunning
		case s == StatusCancelled && all.settled():
			all = s
		}
	}
	if n := len(messages); n > 3 {
		messages = append(messages[:3], fmt.Sprintf("and %d more", n-3))
	}
	return all, strings.Join(messages, "; ")
}

func (w *walk) try(t Try, path string, shielded bool) (Status, string) {
	s, message := w.node(t.Body, join(path, "body"), shielded)
	if !s.settled() {
		return s, ""
	}
	if s == StatusFailed && t.Rescue != nil {
		switch rs, rm := w.node(*t.Rescue, join(path, "rescue"), true); {
		case !rs.settled():
			return rs, ""
		case rs == StatusFailed:
			message += "; rescue: " + rm
		case t.Recover:
			s, message = StatusDone, ""
		}
	}
	if t.Finally != nil {
		switch fs, fm := w.node(*t.Finally, join(path, "finally"), true); {
		case !fs.settled():
			return fs, ""
		case fs == StatusFailed && s == StatusDone:
			s, message = StatusFailed, "finally: "+fm
		case fs == StatusFailed:
			message += "; finally: " + fm
		}
	}
	return s, message
}

func (w *walk) leaf(l Leaf, path string, shielded bool) (Status, string) {
	m := w.progress[path]
	switch {
	case m.Status == StatusRunning:
		w.running++
		return StatusRunning, ""
	case m.Status.settled():
		return m.Status, m.Error
	case w.stopped(&m, shielded), w.late(&m, l.Action):
		w.progress[path] = m
		return m.Status, m.Error
	case w.in.Now.Before(m.NotBefore):
		w.wakeAt(m.NotBefore)
		return StatusRunning, ""
	}
	m.Status, m.NotBefore = StatusRunning, time.Time{}
	if m.Attempts++; m.Deadline.IsZero() && l.Within > 0 {
		m.Deadline = w.in.Now.Add(l.Within)
	}
	w.progress[path] = m
	timeout := l.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	until := w.in.Now.Add(timeout)
	if !m.Deadline.IsZero() && m.Deadline.Before(until) {
		until = m.Deadline
	}
	w.dispatches = append(w.dispatches, Dispatch{Path: path, Attempt: m.Attempts, Leaf: l, Until: until})
	w.running++
	return StatusRunning, ""
}

func (w *walk) wait(n Wait, path string, shielded bool) (Status, string) {
	m := w.progress[path]
	if m.Status.settled() {
		return m.Status, m.Error
	}
	if m.Status == StatusReady {
		m.Status, m.Deadline = StatusWaiting, w.in.Now.Add(n.Within)
	}
	w.hear(n, &m)
	if !m.Status.settled() && !w.stopped(&m, shielded) && !w.late(&m, "wait for "+n.Event) {
		w.progress[path] = m
		w.wakeAt(m.Deadline)
		return StatusRunning, ""
	}
	w.progress[path] = m
	return m.Status, m.Error
}

// hear looks for the first event that ends a wait.
func (w *walk) hear(n Wait, m *Mark) {
	for _, e := range w.in.Events {
		if e.Name == n.Event {
			m.Status = StatusDone
			return
		}
		if slices.Contains(n.Fail, e.Name) {
			m.Status, m.Error = StatusFailed, e.Name
			if e.Detail != "" {
				m.Error = e.Detail
			}
			return
		}
	}
}

// stopped ends what has not begun when the whole task is to end.
func (w *walk) stopped(m *Mark, shielded bool) bool {
	switch {
	case shielded:
		return false
	case w.in.Cancelled:
		m.Status = StatusCancelled
	case !w.in.Deadline.IsZero() && !w.in.Now.Before(w.in.Deadline):
		m.Status, m.Error = StatusFailed, lastWords("deadline of the task", m.Error)
	default:
		return false
	}
	return true
}

// late ends what is past its own deadline.
func (w *walk) late(m *Mark, what string) bool {
	if m.Deadline.IsZero() || w.in.Now.Before(m.Deadline) {
		return false
	}
	m.Status, m.Error = StatusFailed, lastWords(what+": deadline", m.Error)
	return true
}

func lastWords(why, last string) string {
	if last == "" {
		return why
	}
	return why + ", last: " + last
}

func (w *walk) wakeAt(t time.Time) {
	if w.wake.IsZero() || t.Before(w.wake) {
		w.wake = t
	}
}

// settle enters a result: done, failed, or ready for another attempt.
func (w *walk) settle(tree Node, r Result) {
	m, ok := w.progress[r.Path]
	leaf := find(tree, r.Path)
	if !ok || leaf == nil || m.Status != StatusRunning || m.Attempts != r.Attempt {
		return
	}
	if r.Error == "" {
		w.progress[r.Path] = Mark{Status: StatusDone, Attempts: m.Attempts}
		return
	}
	m.Error = leaf.Action + ": " + r.Error
	m.Status = StatusFailed
	if !r.Permanent && (leaf.Retries < 0 || m.Attempts <= leaf.Retries) {
		at := w.in.Now.Add(backoff(*leaf, m.Attempts, w.in.Salt+r.Path))
		if m.Deadline.IsZero() || at.Before(m.Deadline) {
			m.Status, m.NotBefore = StatusReady, at
		}
	}
	w.progress[r.Path] = m
}

// backoff doubles from attempt to attempt, less up to a quarter, which is drawn
// from the salt: those who failed together do not come back together.
func backoff(l Leaf, attempt int, salt string) time.Duration {
	d := l.Backoff
	if d == 0 {
		d = DefaultBackoff
	}
	for i := 1; i < attempt && d < MaxBackoff; i++ {
		d *= 2
	}
	d = min(d, MaxBackoff)
	h := fnv.New32a()
	fmt.Fprintf(h, "%s#%d", salt, attempt)
	return d - d/4*time.Duration(h.Sum32()%1024)/1024
}
