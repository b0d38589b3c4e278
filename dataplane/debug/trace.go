// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"fmt"
	"io"
)

// TraceRequest is a packet to be followed without sending it.
type TraceRequest struct {
	Port  uint32
	Out   bool // the port sends it; else it comes to the port
	Tuple Tuple
	Flags uint8 // of TCP
}

// Trace is what the programs would do with it.
type Trace struct {
	Tuple     Tuple       `json:"packet"`
	Direction string      `json:"direction"`
	Steps     []TraceStep `json:"steps"`
	Verdict   string      `json:"verdict"` // delivered, sent, passed, dropped
	Reason    string      `json:"reason"`
	Port      uint32      `json:"port,omitempty"` // where it was decided
	Rule      uint32      `json:"rule,omitempty"` // that decided
	Origin    string      `json:"origin,omitempty"`
	Text      string      `json:"text,omitempty"` // of the rule
	Frame     string      `json:"frame"`          // as it would leave
	NextHop   string      `json:"next_hop,omitempty"`
	TookNS    int64       `json:"took_ns"` // in the kernel, all programs
}

// TraceStep is one look of one program.
type TraceStep struct {
	Program string `json:"program"`
	Stage   string `json:"stage"`
	Port    uint32 `json:"port,omitempty"`
	Rule    uint32 `json:"rule,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Text    string `json:"text"`
}

func printTrace(w io.Writer, t Trace) {
	fmt.Fprintf(w, "%s, %s\n\n", t.Tuple, t.Direction)
	grid(w, func(row func(...any)) {
		program := ""
		for _, s := range t.Steps {
			name := s.Program
			if name == program {
				name = ""
			}
			program = s.Program
			row(name, s.Stage, s.Text)
		}
	})
	fmt.Fprintln(w)
	grid(w, func(row func(...any)) {
		verdict := t.Verdict + " (" + t.Reason + ")"
		if t.Port != 0 {
			verdict += fmt.Sprintf(" at port %d", t.Port)
		}
		row("verdict", verdict)
		if t.Rule != 0 {
			row("rule", ruleName(t.Rule, t.Origin))
			if t.Text != "" {
				row("", t.Text)
			}
		}
		if t.Verdict != "dropped" {
			row("frame", t.Frame)
		}
		if t.NextHop != "" {
			row("next hop", t.NextHop)
		}
		row("took", fmt.Sprintf("%.1f µs, nothing was changed", float64(t.TookNS)/1000))
	})
}
