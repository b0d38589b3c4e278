// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Report prints figures as they come and keeps the bars for the end.
type Report struct {
	Out  io.Writer
	bars []bar
}

type bar struct {
	what  string
	got   float64
	bound float64
	least bool // bound is the least, not the most
}

func (b bar) met() bool {
	if b.least {
		return b.got >= b.bound
	}
	return b.got <= b.bound
}

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

// Bar records a figure that should be at most most.
func (r *Report) Bar(what string, got, most float64) {
	r.bars = append(r.bars, bar{what, got, most, false})
}

// Least records a figure that should be at least least.
func (r *Report) Least(what string, got, least float64) {
	r.bars = append(r.bars, bar{what, got, least, true})
}

// Machine says what it is measured on, and what else that does now: figures of a
// busy machine are to be had again.
func (r *Report) Machine() {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Fprintf(r.Out, "%s, kernel %s, %d cores, load average %s\n", time.Now().UTC().Format("2006-01-02 15:04 MST"),
		strings.TrimSpace(string(release)), runtime.NumCPU(), strings.Join(strings.Fields(string(load))[:3], " "))
}

// Durations are times of single events.
type Durations []time.Duration

// Percentile of them, the smallest that so many in a hundred are not beyond; 0
// without any.
func (d Durations) Percentile(p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(d))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func (d Durations) String() string {
	return fmt.Sprintf("p50 %s p99 %s max %s of %d", short(d.Percentile(50)), short(d.Percentile(99)), short(d.Percentile(100)), len(d))
}

// Rates are figures of which more is better.
type Rates []float64

// Median of them.
func (r Rates) Median() float64 { return r.at(len(r) / 2) }

func (r Rates) at(i int) float64 {
	if len(r) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(r))[i]
}

func (r Rates) String() string {
	return fmt.Sprintf("%7.2f %7.2f %7.2f", r.at(len(r)/4), r.Median(), r.at(len(r)-1))
}

func short(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	return d.Round(100 * time.Microsecond)
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
		bound := "at most "
		if b.least {
			bound = "at least"
		}
		fmt.Fprintf(r.Out, "  %-66s %9.2f  %s %8.2f  %s\n", b.what, b.got, bound, b.bound, verdict)
	}
	return all
}
