// SPDX-License-Identifier: Apache-2.0

package fsm_test

import "cairn/controlplane/fsm"

// balancer is a load balancer much like the shipped one: small enough to read,
// with all the kinds of states and edges that a machine can have.
func balancer() *fsm.Machine {
	recompile := fsm.Effect{Name: "announce", Idempotent: true}
	withdraw := fsm.Effect{Name: "withdraw", Idempotent: true}
	to, ignore := fsm.To, fsm.Ignore()
	return &fsm.Machine{
		Name:    "balancer",
		Initial: "creating",
		Events:  []fsm.Event{"acked", "nacked", "update", "delete", "deadline"},
		Timeout: "deadline",
		Delete:  "delete",
		Rows: []fsm.Row{
			{State: "creating", Kind: fsm.Transient, Effects: []fsm.Effect{recompile}, On: map[fsm.Event]fsm.Edge{
				"acked": to("running"), "nacked": to("error"), "update": to("creating"), "delete": to("deleting"), "deadline": to("error")}},
			{State: "running", Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
				"acked": ignore, "nacked": ignore, "update": to("updating"), "delete": to("deleting"), "deadline": ignore}},
			{State: "updating", Kind: fsm.Transient, Effects: []fsm.Effect{recompile}, On: map[fsm.Event]fsm.Edge{
				"acked": to("running"), "nacked": to("running"), "update": to("updating"), "delete": to("deleting"), "deadline": to("running")}},
			{State: "error", Kind: fsm.Resting, On: map[fsm.Event]fsm.Edge{
				"acked": to("running"), "nacked": ignore, "update": to("creating"), "delete": to("deleting"), "deadline": ignore}},
			{State: "deleting", Kind: fsm.Transient, Effects: []fsm.Effect{withdraw}, On: map[fsm.Event]fsm.Edge{
				"acked": to("deleted"), "nacked": ignore, "update": fsm.Refuse("busy"), "delete": ignore, "deadline": to("deleting")}},
			{State: "deleted", Kind: fsm.Terminal, On: map[fsm.Event]fsm.Edge{
				"acked": ignore, "nacked": ignore, "update": fsm.Refuse("gone"), "delete": ignore, "deadline": ignore}},
		},
	}
}

// announced is the world of a balancer: is its address on the routers?
type announced bool

func model(m *fsm.Machine, fence fsm.Fence) fsm.Model[announced] {
	return fsm.Model[announced]{
		Machine:  m,
		Fence:    fence,
		External: []fsm.Event{"update", "delete"},
		Budget:   3,
		Apply:    func(_ announced, e fsm.Effect) announced { return e.Name == "announce" },
		Replies:  func([]fsm.Effect) []fsm.Event { return []fsm.Event{"acked", "nacked"} },
		Bad: func(s fsm.State, w announced) string {
			if s == "deleted" && bool(w) {
				return "announced after deletion"
			}
			return ""
		},
		Quiet: func(s fsm.State, w announced) string {
			if s == "running" && !bool(w) {
				return "running, and nothing announced"
			}
			return ""
		},
	}
}
