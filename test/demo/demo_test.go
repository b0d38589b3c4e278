// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"cairn/dataplane/debug"
)

func TestSummaryDecidesByFunctionAlone(t *testing.T) {
	for _, c := range []struct {
		name   string
		checks []bool
		bars   []bool
		ok     bool
		prints string
	}{
		{"all kept", []bool{true, true}, []bool{true}, true, "2 of 2 promises of function kept, 1 of 1 bars of speed met;"},
		{"one broken", []bool{true, false}, []bool{true}, false, "✗ promise"},
		{"a missed bar is said, and changes nothing", []bool{true}, []bool{false}, true, "0 of 1 bars of speed met (a missed bar does not change the exit status)"},
		{"nothing was verified", nil, nil, false, "0 of 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			r := newReport(&out)
			for _, ok := range c.checks {
				r.check(ok, "promise")
			}
			for _, met := range c.bars {
				r.barOf(met, "speed", "1 s", "≤ 2 s")
			}
			if got := r.summary(); got != c.ok {
				t.Errorf("summary says %t, want %t", got, c.ok)
			}
			if !strings.Contains(out.String(), c.prints) {
				t.Errorf("summary lacks %q:\n%s", c.prints, out.String())
			}
		})
	}
}

func TestQuantile(t *testing.T) {
	var hundred []time.Duration
	for i := 100; i > 0; i-- {
		hundred = append(hundred, time.Duration(i))
	}
	for _, c := range []struct {
		all     []time.Duration
		percent int
		want    time.Duration
	}{
		{hundred, 50, 50}, {hundred, 90, 90}, {hundred, 100, 100},
		{hundred[:3], 50, 99}, {hundred[:1], 50, 100}, {nil, 90, 0},
	} {
		if got := quantile(c.all, c.percent); got != c.want {
			t.Errorf("quantile %d of %d values is %d, want %d", c.percent, len(c.all), got, c.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("quantile reordered its input")
	}
}

func TestLatestWithinIgnoresOtherRounds(t *testing.T) {
	rounds := []debug.Round{{ProgrammedNS: 10}, {ProgrammedNS: 20}, {ProgrammedNS: 30}, {ProgrammedNS: 40}}
	if at, ok := latestWithin(rounds, 15, 35); !ok || at != 30 {
		t.Errorf("latest within 15 and 35 is %d, %t", at, ok)
	}
	if _, ok := latestWithin(rounds, 41, 50); ok {
		t.Error("a round was found where there is none")
	}
}

func TestDurationsForPeople(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1234 * time.Microsecond: "1.2 ms", 345 * time.Millisecond: "345 ms", 2 * time.Second: "2.0 s", 75 * time.Second: "75 s",
	} {
		if got := took(d); got != want {
			t.Errorf("%d ns prints as %q, want %q", d, got, want)
		}
	}
}
