// SPDX-License-Identifier: Apache-2.0

package fsm_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"cairn/controlplane/fsm"
)

func Example() {
	m := balancer()
	r := m.Next("running", "update")
	fmt.Println(r.Verdict, r.State, r.Effects)
	r = m.Next("deleting", "update")
	fmt.Println(r.Verdict, r.State, r.Reason)
	fmt.Println(m.Verify("announce", "withdraw"))
	fmt.Println(m.Verify("announce"))
	// Output:
	// handled updating [announce]
	// refused deleting busy
	// <nil>
	// machine balancer: state deleting: effect withdraw has no executor
}

func ExampleModel_Explore() {
	for _, fence := range []fsm.Fence{fsm.Unfenced, fsm.AtApply} {
		report, err := model(balancer(), fence).Explore()
		fmt.Println(fence, report.Bad > 0, err)
	}
	// Output:
	// unfenced true <nil>
	// fenced at apply false <nil>
}

func ExampleMachine_Markdown() {
	m := balancer()
	m.Rows = m.Rows[4:]
	fmt.Print(m.Markdown())
	// Output:
	// | state | kind | effects | acked | nacked | update | delete | deadline |
	// |---|---|---|---|---|---|---|---|
	// | deleting | transient | withdraw | → deleted | – | 409 busy | – | → deleting |
	// | deleted | terminal |  | – | – | 409 gone | – | – |
}

// Every rule of Verify is broken once, in a machine that is sound otherwise.
func TestVerifyFindsEachFault(t *testing.T) {
	row := func(m *fsm.Machine, s fsm.State) *fsm.Row {
		for i := range m.Rows {
			if m.Rows[i].State == s {
				return &m.Rows[i]
			}
		}
		panic(s)
	}
	cases := []struct {
		fault string
		plant func(m *fsm.Machine)
		says  string
	}{
		{"none", func(m *fsm.Machine) {}, ""},
		{"undeclared event", func(m *fsm.Machine) { delete(row(m, "error").On, "nacked") }, "state error: event nacked is undefined"},
		{"event outside the alphabet", func(m *fsm.Machine) { row(m, "error").On["explode"] = fsm.Ignore() }, "event explode is not in the alphabet"},
		{"edge into nothing", func(m *fsm.Machine) { row(m, "error").On["acked"] = fsm.To("heaven") }, `leads to "heaven"`},
		{"double state", func(m *fsm.Machine) { m.Rows = append(m.Rows, m.Rows[0]) }, "state creating is there twice"},
		{"double event", func(m *fsm.Machine) { m.Events = append(m.Events, "acked") }, "event acked is listed twice"},
		{"no initial state", func(m *fsm.Machine) { m.Initial = "limbo" }, `initial state "limbo" is no state`},
		{"no timeout", func(m *fsm.Machine) { m.Timeout = "bell" }, `event "bell" is not in the alphabet`},
		{"refusal without a reason", func(m *fsm.Machine) { row(m, "deleting").On["update"] = fsm.Refuse("") }, "refused without a reason"},
		{"unreachable state", func(m *fsm.Machine) {
			row(m, "running").On["update"] = fsm.Ignore()
		}, "state updating cannot be reached"},
		{"no way to the end", func(m *fsm.Machine) { row(m, "deleting").On["acked"] = fsm.Ignore() }, "state deleting: no terminal state can be reached"},
		{"no rest", func(m *fsm.Machine) {
			for _, e := range []fsm.Event{"acked", "nacked", "deadline"} {
				row(m, "creating").On[e] = fsm.To("creating")
			}
			for _, s := range []fsm.State{"running", "updating", "error"} {
				row(m, s).Kind = fsm.Transient
			}
		}, "state creating: comes to rest only by delete"},
		{"transient state without a timeout edge", func(m *fsm.Machine) { row(m, "updating").On["deadline"] = fsm.Ignore() }, "transient state updating does not handle deadline"},
		{"terminal state that is left", func(m *fsm.Machine) { row(m, "deleted").On["update"] = fsm.To("running") }, "terminal state deleted handles update"},
		{"effect without an executor", func(m *fsm.Machine) { row(m, "running").Effects = []fsm.Effect{{Name: "sing"}} }, "state running: effect sing has no executor"},
		{"effect that cannot be repeated", func(m *fsm.Machine) { row(m, "updating").Effects = []fsm.Effect{{Name: "announce"}} }, "state updating: effect announce is not idempotent"},
		{"delete refused", func(m *fsm.Machine) { row(m, "updating").On["delete"] = fsm.Refuse("busy") }, "state updating refuses delete"},
		{"delete ignored", func(m *fsm.Machine) { row(m, "updating").On["delete"] = fsm.Ignore() }, "state updating ignores delete, and can come to rest undeleted"},
	}
	for _, c := range cases {
		t.Run(c.fault, func(t *testing.T) {
			m := balancer()
			c.plant(m)
			err := m.Verify("announce", "withdraw")
			if c.says == "" && err != nil {
				t.Errorf("a sound machine is refused: %v", err)
			}
			if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("want %q, got %v", c.says, err)
			}
		})
	}
}

func TestNextOfWhatIsNotThere(t *testing.T) {
	m := balancer()
	for _, r := range []fsm.Result{m.Next("nowhere", "acked"), m.Next("running", "nothing")} {
		if r.Verdict != fsm.Undefined || r.Effects != nil {
			t.Errorf("got %+v", r)
		}
	}
}

func TestExplore(t *testing.T) {
	leaky := func() *fsm.Machine { // gives up the withdrawal at the deadline
		m := balancer()
		m.Rows[4].On["deadline"] = fsm.To("deleted")
		return m
	}
	deaf := func() *fsm.Machine { // takes an update for done at once
		m := balancer()
		m.Rows[0].On["deadline"] = fsm.To("running")
		m.Rows[0].Effects = nil
		return m
	}
	cases := []struct {
		name    string
		machine *fsm.Machine
		fence   fsm.Fence
		bad     string // "" for none
	}{
		{"sound and fenced", balancer(), fsm.AtApply, ""},
		{"sound, no fence", balancer(), fsm.Unfenced, "announced after deletion"},
		{"sound, fence checked before the work only", balancer(), fsm.CheckFirst, "announced after deletion"},
		{"deletes without waiting", leaky(), fsm.AtApply, "announced after deletion"},
		{"runs without announcing", deaf(), fsm.AtApply, "running, and nothing announced"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r, err := model(c.machine, c.fence).Explore()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d states, %d bad", r.States, r.Bad)
			if c.bad == "" {
				if r.Bad > 0 {
					t.Fatalf("%s by\n%s", r.First[0].Why, strings.Join(r.First[0].Trace, "\n"))
				}
				if r.States < 100 {
					t.Errorf("only %d states: the search did not search", r.States)
				}
				return
			}
			if r.Bad == 0 || r.First[0].Why != c.bad || len(r.First[0].Trace) < 2 {
				t.Errorf("want %q, got %+v", c.bad, r)
			}
		})
	}
}

func TestExploreIsBounded(t *testing.T) {
	m := model(balancer(), fsm.AtApply)
	m.MaxStates = 50
	r, err := m.Explore()
	if !errors.Is(err, fsm.ErrTooLarge) || r.States != 50 {
		t.Errorf("got %d states, %v", r.States, err)
	}
}

func TestDot(t *testing.T) {
	dot := balancer().Dot()
	for _, line := range []string{
		`digraph "balancer" {`,
		`"deleted" [shape=doublecircle,label="deleted"]`,
		`"updating" [shape=ellipse,label="updating\nannounce"]`,
		`"running" -> "updating" [label="update"]`,
	} {
		if !strings.Contains(dot, line) {
			t.Errorf("no line %s in\n%s", line, dot)
		}
	}
}
