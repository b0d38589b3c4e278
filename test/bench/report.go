// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
)

// Report prints figures as they come and keeps the bars for the end.
type Report struct {
	Out  io.Writer
	bars []bar
}

type bar struct {
	what      string
	got, most float64
}

func (b bar) met() bool { return b.got <= b.most }

// Title begins a table.
func (r *Report) Title(format string, args ...any) {
	fmt.Fprintf(r.Out, "\n"+format+"\n", args...)
}

// Line is one row: what was timed, its figure, and the ratio to the floor of
// the same run unless 0.
func (r *Report) Line(what string, f Figure, ratio float64) {
	if ratio == 0 {
		fmt.Fprintf(r.Out, "  %-52s %s\n", what, f)
		return
	}
	fmt.Fprintf(r.Out, "  %-52s %s   %5.2f × floor\n", what, f, ratio)
}

// Note is a line of text.
func (r *Report) Note(format string, args ...any) { fmt.Fprintf(r.Out, "  "+format+"\n", args...) }

// Bar records a ratio that should be at most most.
func (r *Report) Bar(what string, got, most float64) {
	r.bars = append(r.bars, bar{what, got, most})
}

// Close prints the bars, and reports whether all were met.
func (r *Report) Close() bool {
	fmt.Fprintf(r.Out, "\nbars\n")
	all := true
	for _, b := range r.bars {
		verdict := "met"
		if !b.met() {
			verdict, all = "MISSED", false
		}
		fmt.Fprintf(r.Out, "  %-62s %6.2f  at most %5.2f  %s\n", b.what, b.got, b.most, verdict)
	}
	return all
}
