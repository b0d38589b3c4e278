// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"fmt"
	"strings"
)

// Markdown prints the machine as a table: a line a state, a column an event.
func (m *Machine) Markdown() string {
	var b strings.Builder
	b.WriteString("| state | kind | effects |")
	for _, e := range m.Events {
		fmt.Fprintf(&b, " %s |", e)
	}
	b.WriteString("\n|" + strings.Repeat("---|", 3+len(m.Events)) + "\n")
	for _, row := range m.Rows {
		fmt.Fprintf(&b, "| %s | %s | %s |", row.State, row.Kind, joinEffects(row.Effects))
		for _, e := range m.Events {
			fmt.Fprintf(&b, " %s |", row.On[e])
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Dot prints the machine for Graphviz. Refused and ignored events are left out.
func (m *Machine) Dot() string {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %q {\n\trankdir=LR\n\t\"\" [shape=point]\n\t\"\" -> %q\n", m.Name, m.Initial)
	shape := [...]string{Transient: "ellipse", Resting: "box", Terminal: "doublecircle"}
	for _, row := range m.Rows {
		label := string(row.State)
		if len(row.Effects) > 0 {
			label += "\n" + joinEffects(row.Effects)
		}
		fmt.Fprintf(&b, "\t%q [shape=%s,label=%q]\n", row.State, shape[row.Kind], label)
	}
	for _, row := range m.Rows {
		for _, e := range m.Events {
			if edge := row.On[e]; edge.Verdict == Handled {
				fmt.Fprintf(&b, "\t%q -> %q [label=%q]\n", row.State, edge.To, e)
			}
		}
	}
	b.WriteString("}\n")
	return b.String()
}

// String prints an edge as it stands in the table.
func (e Edge) String() string {
	switch e.Verdict {
	case Handled:
		return "→ " + string(e.To)
	case Refused:
		return "409 " + e.Reason
	case Ignored:
		return "–"
	}
	return "?"
}

func joinEffects(effects []Effect) string {
	words := make([]string, len(effects))
	for i, e := range effects {
		words[i] = e.String()
	}
	return strings.Join(words, ", ")
}
