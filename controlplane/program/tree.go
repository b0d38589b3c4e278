// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Node is a part of a program; at most one of its fields is set. The empty node
// has nothing to do and succeeds.
type Node struct {
	Leaf *Leaf  `json:"leaf,omitempty"`
	Wait *Wait  `json:"wait,omitempty"`
	Try  *Try   `json:"try,omitempty"`
	Seq  []Node `json:"seq,omitempty"` // one after the other; ends at the first failure
	Par  []Node `json:"par,omitempty"` // all at once; a failure stops no sibling
}

// Leaf is one action. Leaves hand nothing to each other: what one finds out and
// another needs, belongs into the store.
type Leaf struct {
	Action string          `json:"action"`
	Args   json.RawMessage `json:"args,omitempty"`

	Timeout time.Duration `json:"timeout,omitempty"` // of one attempt; DefaultTimeout if zero
	Within  time.Duration `json:"within,omitempty"`  // of all attempts, from the first one; zero: no limit
	Retries int           `json:"retries,omitempty"` // after the first attempt; negative: for ever
	Backoff time.Duration `json:"backoff,omitempty"` // before the first retry, then doubled; DefaultBackoff if zero
}

// Defaults and bounds of a leaf. A backoff of a minute is as long as anybody
// wants to wait for a host that has come back.
const (
	DefaultTimeout = time.Minute
	DefaultBackoff = 250 * time.Millisecond
	MaxBackoff     = time.Minute
)

// Wait waits for an event that comes, or has come, to the task.
type Wait struct {
	Event  string        `json:"event"`          // success
	Fail   []string      `json:"fail,omitempty"` // failure, with the event's detail as the message
	Within time.Duration `json:"within"`         // from when the wait is reached; must be set
}

// Try guards a body. Rescue begins when the body has failed and every leaf of
// it has settled; a body that was cut short by a cancel is not rescued. Finally
// comes last, always. Neither is stopped by a cancel or by the task's deadline.
type Try struct {
	Body    Node  `json:"body"`
	Rescue  *Node `json:"rescue,omitempty"`
	Finally *Node `json:"finally,omitempty"`

	// Recover makes a rescue that succeeds a success of the whole. Without it
	// a rescue cleans up and the failure stays a failure.
	Recover bool `json:"recover,omitempty"`
}

// Do makes a leaf out of an action and its arguments, which must encode to JSON.
func Do(action string, args any) Node {
	return Leaf{Action: action}.With(args)
}

// With makes a node of the leaf with these arguments, nil for none. It panics
// if they do not encode to JSON: that is a mistake in the source.
func (l Leaf) With(args any) Node {
	if args != nil {
		b, err := json.Marshal(args)
		if err != nil {
			panic(fmt.Sprintf("program: encode arguments of %s: %v", l.Action, err))
		}
		l.Args = b
	}
	return Node{Leaf: &l}
}

// Seq runs nodes one after the other.
func Seq(nodes ...Node) Node { return Node{Seq: nodes} }

// Par runs nodes at once.
func Par(nodes ...Node) Node { return Node{Par: nodes} }

// Rescue runs rescue if body fails; the failure stays one.
func Rescue(body, rescue Node) Node { return Node{Try: &Try{Body: body, Rescue: &rescue}} }

// Finally runs last after body, whatever became of it.
func Finally(body, last Node) Node { return Node{Try: &Try{Body: body, Finally: &last}} }

// WaitFor waits for one event.
func WaitFor(event string, within time.Duration, fail ...string) Node {
	return Node{Wait: &Wait{Event: event, Fail: fail, Within: within}}
}

// Encode gives the form that a Task carries.
func (n Node) Encode() ([]byte, error) {
	b, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("encode program: %w", err)
	}
	return b, nil
}

// Decode reads what Encode wrote.
func Decode(b []byte) (Node, error) {
	var n Node
	if err := json.Unmarshal(b, &n); err != nil {
		return Node{}, fmt.Errorf("decode program: %w", err)
	}
	return n, nil
}

// Check finds what is wrong with a program: nodes that are two things, leaves
// without a known action, waits without an end. known may be nil.
func (n Node) Check(known func(action string) bool) error {
	var faults []error
	n.check("", known, &faults)
	return errors.Join(faults...)
}

func (n Node) check(path string, known func(string) bool, faults *[]error) {
	complain := func(format string, args ...any) {
		*faults = append(*faults, fmt.Errorf("program at %q: "+format, append([]any{path}, args...)...))
	}
	kinds := 0
	for _, set := range []bool{n.Leaf != nil, n.Wait != nil, n.Try != nil, n.Seq != nil, n.Par != nil} {
		if set {
			kinds++
		}
	}
	if kinds > 1 {
		complain("a node that is %d things", kinds)
	}
	if l := n.Leaf; l != nil {
		if l.Action == "" || known != nil && !known(l.Action) {
			complain("unknown action %q", l.Action)
		}
		if l.Timeout < 0 || l.Within < 0 || l.Backoff < 0 {
			complain("negative duration")
		}
	}
	if w := n.Wait; w != nil && (w.Event == "" || w.Within <= 0) {
		complain("a wait needs an event and an end")
	}
	n.children(path, func(child Node, at string) { child.check(at, known, faults) })
}

// children calls f for each child with its path. A path is the way down from
// the root, and the key of a leaf's mark.
func (n Node) children(path string, f func(child Node, path string)) {
	for i, c := range n.Seq {
		f(c, join(path, strconv.Itoa(i)))
	}
	for i, c := range n.Par {
		f(c, join(path, strconv.Itoa(i)))
	}
	if n.Try == nil {
		return
	}
	f(n.Try.Body, join(path, "body"))
	if n.Try.Rescue != nil {
		f(*n.Try.Rescue, join(path, "rescue"))
	}
	if n.Try.Finally != nil {
		f(*n.Try.Finally, join(path, "finally"))
	}
}

func join(path, step string) string {
	if path == "" {
		return step
	}
	return path + "/" + step
}

// find returns the leaf at a path, nil if there is none.
func find(n Node, path string) *Leaf {
	if path == "" {
		return n.Leaf
	}
	step, rest, _ := strings.Cut(path, "/")
	var found *Leaf
	n.children("", func(child Node, at string) {
		if at == step {
			found = find(child, rest)
		}
	})
	return found
}

// encodeProgress and decodeProgress give the form that a Task carries.
func encodeProgress(p Progress) ([]byte, error) { return json.Marshal(p) }

func decodeProgress(b []byte) (Progress, error) {
	p := Progress{}
	if len(b) == 0 {
		return p, nil
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("decode progress: %w", err)
	}
	return p, nil
}
