// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what the demo prints, and what it verified so far.
type report struct {
	out    io.Writer
	begin  time.Time
	steps  int
	checks []check
	bars   []bar
}

// check is a promise of function: one that is not kept fails the demo.
type check struct {
	ok   bool
	what string
}

// bar is a promise of speed. A missed one is said to be missed, and does not
// fail the demo: machines differ, and are busy.
type bar struct {
	met               bool
	what, got, wanted string
}

func newReport(out io.Writer) *report { return &report{out: out, begin: time.Now()} }

func (r *report) printf(format string, args ...any) { fmt.Fprintf(r.out, format, args...) }

// step prints a title and what it is about, does it and prints what it took.
func (r *report) step(title, about string, do func() error) error {
	r.steps++
	r.printf("\n%d. %s\n", r.steps, title)
	for line := range strings.Lines(strings.TrimSpace(about)) {
		r.printf("   %s\n", strings.TrimSpace(line))
	}
	begin := time.Now()
	err := do()
	if err == nil {
		r.printf("   -- %s\n", took(time.Since(begin)))
	}
	return err
}

// did prints one thing that was done and what it took.
func (r *report) did(begin time.Time, format string, args ...any) {
	r.printf("   %-72s %10s\n", fmt.Sprintf(format, args...), took(time.Since(begin)))
}

// say prints a line.
func (r *report) say(format string, args ...any) { r.printf("   "+format+"\n", args...) }

// table prints rows of cells.
func (r *report) table(rows [][]string) {
	t := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, "     "+strings.Join(row, "\t"))
	}
	_ = t.Flush() // the reader went away
}

// check remembers whether a promise of function was kept, and prints it.
func (r *report) check(ok bool, format string, args ...any) {
	c := check{ok, fmt.Sprintf(format, args...)}
	r.checks = append(r.checks, c)
	r.printf("   %s %s\n", tick(ok), c.what)
}

// bar remembers a promise of speed, and prints it.
func (r *report) bar(what string, got, wanted time.Duration) {
	r.barOf(got <= wanted, what, took(got), "≤ "+took(wanted))
}

func (r *report) barOf(met bool, what, got, wanted string) {
	b := bar{met, what, got, wanted}
	r.bars = append(r.bars, b)
	r.printf("   %s %s: %s\n", tick(met), what, b.verdict())
}

func (b bar) verdict() string {
	if b.met {
		return fmt.Sprintf("%s (bar %s)", b.got, b.wanted)
	}
	return fmt.Sprintf("%s, missed (bar %s)", b.got, b.wanted)
}

// summary prints all that was verified, and tells whether the demo succeeded:
// every promise of function was kept, and there was one.
func (r *report) summary() bool {
	r.printf("\nWhat was verified\n")
	kept := 0
	for _, c := range r.checks {
		r.printf("   %s %s\n", tick(c.ok), c.what)
		if c.ok {
			kept++
		}
	}
	met := 0
	if len(r.bars) > 0 {
		r.printf("\nHow fast it was\n")
		for _, b := range r.bars {
			r.printf("   %s %s: %s\n", tick(b.met), b.what, b.verdict())
			if b.met {
				met++
			}
		}
	}
	r.printf("\n%d of %d promises of function kept, %d of %d bars of speed met", kept, len(r.checks), met, len(r.bars))
	if met < len(r.bars) {
		r.printf(" (a missed bar does not change the exit status)")
	}
	r.printf("; %s in all\n", took(time.Since(r.begin)))
	return kept == len(r.checks) && kept > 0
}

func tick(ok bool) string {
	if ok {
		return "✓"
	}
	return "✗"
}

// took prints a duration for people: three digits that mean something.
func took(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}
