// SPDX-License-Identifier: Apache-2.0

package program_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/controlplane/program"
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// played runs a program by hand: no store, no worker, a clock that is set.
type played struct {
	t        testing.TB
	program  program.Program
	in       program.Input
	next     program.Next
	begun    []string // actions, in order, ever
	inFlight map[string]program.Dispatch
}

func play(t testing.TB, tree program.Node) *played {
	t.Helper()
	if err := tree.Check(nil); err != nil {
		t.Fatal(err)
	}
	p := &played{t: t, program: program.Program{Tree: tree}, inFlight: map[string]program.Dispatch{}}
	p.in.Now = epoch
	p.step()
	return p
}

func (p *played) step(results ...program.Result) {
	p.t.Helper()
	p.in.Results = results
	var dispatches []program.Dispatch
	p.program, dispatches, p.next = program.Step(p.program, p.in)
	for _, d := range dispatches {
		p.begun = append(p.begun, d.Leaf.Action)
		p.inFlight[d.Leaf.Action] = d
	}
}

func (p *played) ends(action, err string) {
	p.t.Helper()
	d, ok := p.inFlight[action]
	if !ok {
		p.t.Fatalf("%s is not under way", action)
	}
	delete(p.inFlight, action)
	p.step(program.Result{Path: d.Path, Attempt: d.Attempt, Error: err})
}

func (p *played) after(d time.Duration) {
	p.t.Helper()
	p.in.Now = p.in.Now.Add(d)
	p.step()
}

// running checks what is under way, sorted.
func (p *played) running(want ...string) {
	p.t.Helper()
	var got []string
	for a := range p.inFlight {
		got = append(got, a)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		p.t.Fatalf("under way: %v, want %v", got, want)
	}
}

func (p *played) done(state program.OutcomeState, message string) {
	p.t.Helper()
	if !p.next.Done || p.next.Outcome != (program.Outcome{State: state, Message: message}) {
		p.t.Fatalf("got %+v, want %s %q", p.next, state, message)
	}
}

func do(action string) program.Node { return program.Do(action, nil) }

func Example() {
	tree := program.Rescue(
		program.Seq(
			program.Par(program.Do("disk", map[string]int{"GiB": 10}), program.Do("address", nil)),
			program.WaitFor("running/1", time.Minute, "error/1"),
		),
		program.Do("free", nil),
	)
	p := program.Program{Tree: tree}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	p, dispatches, _ := program.Step(p, program.Input{Now: now})
	var results []program.Result
	for _, d := range dispatches {
		fmt.Println(strings.TrimSpace("begin " + d.Leaf.Action + " " + string(d.Leaf.Args)))
		results = append(results, program.Result{Path: d.Path, Attempt: d.Attempt})
	}
	p, _, next := program.Step(p, program.Input{Now: now, Results: results})
	fmt.Println("wake after", next.Wake.Sub(now))
	events := []program.Event{{Name: "error/1", Detail: "no image"}}
	p, dispatches, _ = program.Step(p, program.Input{Now: now, Events: events})
	fmt.Println("begin", dispatches[0].Leaf.Action)
	results = []program.Result{{Path: dispatches[0].Path, Attempt: 1}}
	_, _, next = program.Step(p, program.Input{Now: now, Events: events, Results: results})
	fmt.Println(next.Outcome.State, next.Outcome.Message)
	// Output:
	// begin disk {"GiB":10}
	// begin address
	// wake after 1m0s
	// begin free
	// failed no image
}

func TestSequenceEndsAtTheFirstFailure(t *testing.T) {
	p := play(t, program.Seq(do("a"), do("b"), do("c")))
	p.running("a")
	p.ends("a", "")
	p.running("b")
	p.ends("b", "no space left")
	p.done(program.Failed, "b: no space left")
}

func TestRescueWaitsForSiblings(t *testing.T) {
	p := play(t, program.Rescue(program.Par(do("a"), program.Seq(do("b"), do("b2")), do("c")), do("clean")))
	p.running("a", "b", "c")
	p.ends("a", "broken")
	p.running("b", "c")
	p.ends("b", "")
	p.running("b2", "c") // siblings go on to their end
	p.ends("c", "")
	p.ends("b2", "torn")
	p.running("clean")
	p.ends("clean", "")
	p.done(program.Failed, "a: broken; b2: torn")
}

func TestRecoverTurnsARescueIntoSuccess(t *testing.T) {
	tree := program.Rescue(do("a"), do("clean"))
	tree.Try.Recover = true
	p := play(t, tree)
	p.ends("a", "broken")
	p.ends("clean", "")
	p.done(program.Succeeded, "")

	p = play(t, tree)
	p.ends("a", "broken")
	p.ends("clean", "worse")
	p.done(program.Failed, "a: broken; rescue: clean: worse")
}

func TestFinally(t *testing.T) {
	p := play(t, program.Finally(do("a"), do("last")))
	p.ends("a", "broken")
	p.ends("last", "")
	p.done(program.Failed, "a: broken")

	p = play(t, program.Finally(do("a"), do("last")))
	p.ends("a", "")
	p.ends("last", "broken")
	p.done(program.Failed, "finally: last: broken")
}

func TestCancel(t *testing.T) {
	p := play(t, program.Finally(program.Rescue(program.Seq(program.Par(do("a"), do("b")), do("c")), do("clean")), do("last")))
	p.in.Cancelled = true
	p.step()
	p.running("a", "b") // what is under way ends by itself
	p.ends("a", "")
	p.ends("b", "")
	p.running("last") // neither c nor a rescue
	p.ends("last", "")
	p.done(program.Cancelled, "")

	p = play(t, program.Rescue(program.Par(do("a"), do("b")), do("clean")))
	p.in.Cancelled = true
	p.ends("a", "broken")
	p.ends("b", "")
	p.running("clean") // it failed before the cancel left anything out
	p.ends("clean", "")
	p.done(program.Failed, "a: broken")

	p = play(t, program.Rescue(program.Seq(do("a"), do("b")), do("clean")))
	p.in.Cancelled = true
	p.ends("a", "")
	p.done(program.Cancelled, "")

	p = play(t, program.WaitFor("x", time.Minute))
	p.in.Cancelled = true
	p.step()
	p.done(program.Cancelled, "")

	p = play(t, program.Rescue(do("a"), program.Seq(do("clean"), do("clean2"))))
	p.ends("a", "broken")
	p.in.Cancelled = true
	p.ends("clean", "")
	p.running("clean2") // a rescue under way is carried through
}

func TestRetries(t *testing.T) {
	p := play(t, program.Leaf{Action: "a", Retries: 2, Backoff: time.Second}.With(nil))
	for attempt := 1; attempt <= 2; attempt++ {
		p.ends("a", "busy")
		p.running()
		delay := p.next.Wake.Sub(p.in.Now)
		full := time.Second << (attempt - 1)
		if delay > full || delay < full*3/4 {
			t.Errorf("retry %d after %v, want about %v", attempt, delay, full)
		}
		p.after(delay - 1)
		p.running()
		p.after(1)
		p.running("a")
	}
	p.ends("a", "busy")
	p.done(program.Failed, "a: busy")
	if len(p.begun) != 3 {
		t.Errorf("begun %v", p.begun)
	}
}

func TestPermanentErrorIsNotRetried(t *testing.T) {
	p := play(t, program.Leaf{Action: "a", Retries: -1}.With(nil))
	p.step(program.Result{Path: "", Attempt: 1, Error: "unheard of", Permanent: true})
	p.done(program.Failed, "a: unheard of")
}

func TestForeignResultsAreDropped(t *testing.T) {
	p := play(t, program.Seq(program.Leaf{Action: "a", Retries: 3}.With(nil), do("b")))
	for _, r := range []program.Result{{Path: "0", Attempt: 2}, {Path: "0", Attempt: 0}, {Path: "1", Attempt: 1}, {Path: "9/body", Attempt: 1}, {Path: "", Attempt: 1}} {
		p.step(r)
		if !slices.Equal(p.begun, []string{"a"}) || p.next.Running != 1 {
			t.Fatalf("%+v was taken for a result: %v", r, p.begun)
		}
	}
}

func TestDeadlines(t *testing.T) {
	// All attempts together.
	p := play(t, program.Leaf{Action: "a", Retries: -1, Within: 3 * time.Second, Timeout: time.Hour, Backoff: time.Second}.With(nil))
	if until := p.inFlight["a"].Until; !until.Equal(epoch.Add(3 * time.Second)) {
		t.Errorf("first attempt until %v", until)
	}
	p.after(2500 * time.Millisecond)
	p.ends("a", "busy") // too late for another one
	p.done(program.Failed, "a: busy")

	// A wait.
	p = play(t, program.WaitFor("up", time.Minute))
	p.after(time.Minute - 1)
	if p.next.Done || !p.next.Wake.Equal(epoch.Add(time.Minute)) {
		t.Errorf("got %+v", p.next)
	}
	p.after(1)
	p.done(program.Failed, "wait for up: deadline")

	// The whole task; rescues still run.
	p = play(t, program.Rescue(program.Seq(do("a"), do("b")), do("clean")))
	p.in.Deadline = epoch.Add(time.Second)
	p.after(time.Second)
	p.running("a")
	p.ends("a", "")
	p.running("clean")
	p.ends("clean", "")
	p.done(program.Failed, "deadline of the task")
}

func TestEvents(t *testing.T) {
	// One that comes before its wait is not lost, one of another name is not it.
	p := play(t, program.Seq(do("a"), program.WaitFor("up/2", time.Minute, "bad/2"), do("b")))
	p.in.Events = []program.Event{{Name: "up/1"}, {Name: "bad/1"}}
	p.ends("a", "")
	p.running()
	p.in.Events = append(p.in.Events, program.Event{Name: "up/2"})
	p.step()
	p.running("b")

	p = play(t, program.WaitFor("up", time.Minute, "bad"))
	p.in.Events = []program.Event{{Name: "bad"}, {Name: "up"}}
	p.step()
	p.done(program.Failed, "bad")
}

func TestManyFailuresAreOneShortMessage(t *testing.T) {
	var nodes []program.Node
	for i := range 9 {
		nodes = append(nodes, do(fmt.Sprint("a", i)))
	}
	p := play(t, program.Par(nodes...))
	for i := range 9 {
		p.ends(fmt.Sprint("a", i), "x")
	}
	p.done(program.Failed, "a0: x; a1: x; a2: x; and 6 more")
}

func TestEmptyNodesSucceed(t *testing.T) {
	for _, n := range []program.Node{{}, program.Seq(), program.Par(), program.Seq(program.Par(), program.Node{})} {
		play(t, n).done(program.Succeeded, "")
	}
}

func TestCheck(t *testing.T) {
	known := func(a string) bool { return a == "a" }
	for _, c := range []struct {
		node program.Node
		says string
	}{
		{do("a"), ""},
		{do("b"), `at "": unknown action "b"`},
		{program.Seq(do("a"), program.Rescue(do("a"), do(""))), `at "1/rescue": unknown action ""`},
		{program.Par(program.WaitFor("x", 0)), `at "0": a wait needs an event and an end`},
		{program.Node{Seq: []program.Node{do("a")}, Par: []program.Node{}}, "a node that is 2 things"},
		{program.Leaf{Action: "a", Within: -1}.With(nil), "negative duration"},
	} {
		err := c.node.Check(known)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("got %v, want %q", err, c.says)
		}
	}
}

// tree draws a program; each leaf has a name of its own.
func tree(t *rapid.T, depth int, leaves *int) program.Node {
	kind := rapid.SampledFrom([]string{"leaf", "leaf", "seq", "par", "try", "wait"}).Draw(t, "kind")
	if depth == 0 && kind != "wait" {
		kind = "leaf"
	}
	switch kind {
	case "seq", "par":
		var nodes []program.Node
		for range rapid.IntRange(0, 3).Draw(t, "children") {
			nodes = append(nodes, tree(t, depth-1, leaves))
		}
		if kind == "seq" {
			return program.Seq(nodes...)
		}
		return program.Par(nodes...)
	case "try":
		try := program.Try{Body: tree(t, depth-1, leaves), Recover: rapid.Bool().Draw(t, "recover")}
		if rapid.Bool().Draw(t, "has rescue") {
			n := tree(t, depth-1, leaves)
			try.Rescue = &n
		}
		if rapid.Bool().Draw(t, "has finally") {
			n := tree(t, depth-1, leaves)
			try.Finally = &n
		}
		return program.Node{Try: &try}
	case "wait":
		return program.WaitFor(fmt.Sprint("e", rapid.IntRange(0, 3).Draw(t, "event")), time.Minute, "bad")
	}
	*leaves++
	return program.Leaf{Action: fmt.Sprint("a", *leaves), Retries: rapid.IntRange(0, 2).Draw(t, "retries"), Backoff: time.Second}.With(nil)
}

// Whatever the tree, the order of results, the crashes and the cancel: the
// program ends, begins nothing twice at once nor after its success, rescues only
// what has settled, and does not change its arguments. A program that goes
// through JSON at every step goes the same way.
func TestAnyProgram(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		leaves := 0
		n := tree(t, 3, &leaves)
		p := program.Program{Tree: n}
		in := program.Input{Now: epoch}
		inFlight := map[string]program.Dispatch{}
		succeeded := map[string]bool{}
		for steps := 0; ; steps++ {
			if steps > 500 {
				t.Fatal("does not end")
			}
			before := clone(t, p)
			q, dispatches, next := program.Step(p, in)
			if !reflect.DeepEqual(clone(t, p), before) {
				t.Fatal("Step changed its argument")
			}
			r, again, _ := program.Step(before, in)
			if !reflect.DeepEqual(clone(t, r), clone(t, q)) || len(again) != len(dispatches) {
				t.Fatal("the program read back goes another way")
			}
			p = q
			for _, d := range dispatches {
				if _, twice := inFlight[d.Path]; twice || succeeded[d.Path] {
					t.Fatalf("%s begun again", d.Path)
				}
				for other := range inFlight {
					if body, ok := strings.CutSuffix(guard(d.Path), "rescue"); ok && strings.HasPrefix(other, body+"body") {
						t.Fatalf("rescue %s begun beside %s", d.Path, other)
					}
				}
				inFlight[d.Path] = d
			}
			if next.Running != len(inFlight) {
				t.Fatalf("%d under way, Step says %d", len(inFlight), next.Running)
			}
			if next.Done {
				if len(inFlight) > 0 {
					t.Fatalf("done beside %v", inFlight)
				}
				return
			}
			in.Results = nil
			switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
			case what == 0:
				in.Cancelled = in.Cancelled || rapid.IntRange(0, 3).Draw(t, "cancel") == 0
			case what == 1:
				p = program.Recover(p)
				clear(inFlight)
			case what == 2:
				name := rapid.SampledFrom([]string{"e0", "e1", "e2", "e3", "bad"}).Draw(t, "event")
				in.Events = append(slices.Clip(in.Events), program.Event{Name: name})
			case len(inFlight) > 0:
				var paths []string
				for path := range inFlight {
					paths = append(paths, path)
				}
				slices.Sort(paths)
				path := rapid.SampledFrom(paths).Draw(t, "ends")
				result := program.Result{Path: path, Attempt: inFlight[path].Attempt}
				if rapid.IntRange(0, 2).Draw(t, "fails") == 0 {
					result.Error = "broken"
				} else {
					succeeded[path] = true
				}
				delete(inFlight, path)
				in.Results = []program.Result{result}
			case next.Wake.IsZero():
				t.Fatal("nothing to wait for")
			default:
				in.Now = next.Wake
			}
		}
	})
}

// guard is the path down to the last rescue in it.
func guard(path string) string {
	i := strings.LastIndex(path, "rescue")
	if i < 0 {
		return ""
	}
	return path[:i+len("rescue")]
}

func clone(t *rapid.T, p program.Program) program.Program {
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var q program.Program
	if err := json.Unmarshal(b, &q); err != nil {
		t.Fatal(err)
	}
	if q.Progress == nil {
		q.Progress = program.Progress{}
	}
	return q
}
