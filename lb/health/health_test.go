// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"cairn/lb/health"
)

func ExampleState() {
	var s health.State
	for _, ok := range []bool{false, true, false, false, false, true, true} {
		s = s.Next(ok, 2, health.Rise, true)
		fmt.Print(s.Verdict(), " ")
	}
	fmt.Println()
	// Output:
	// initial success success success failure failure success
}

// Probes are written as letters: + and -, and without a vote p and m.
func TestState(t *testing.T) {
	for _, c := range []struct {
		probes  string
		retries int
		want    health.Verdict
	}{
		{"", 0, health.Initial},
		{"p", 3, health.Success},
		{"-", 0, health.Failure},
		{"-", 1, health.Initial},
		{"--", 1, health.Failure},
		{"+-+-+-", 1, health.Success},
		{"+--", 1, health.Failure},
		{"+--+", 1, health.Failure},
		{"+--+-+", 1, health.Failure},
		{"+--++", 1, health.Success},
		{"+--++-", 1, health.Success},
		{"mmmmmm", 0, health.Initial},
		{"mmmmm-", 3, health.Failure},
		{"pmmmmm", 0, health.Success},
	} {
		var s health.State
		for _, p := range c.probes {
			s = s.Next(p == '+' || p == 'p', c.retries, health.Rise, p == '+' || p == '-')
		}
		if s.Verdict() != c.want {
			t.Errorf("%q with %d retries: %s, want %s", c.probes, c.retries, s.Verdict(), c.want)
		}
	}
}

// Between two intervals only a success counts, and only while it is the first
// verdict that is looked for.
func TestStateBetween(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		retries := rapid.IntRange(0, 5).Draw(t, "retries")
		var s health.State
		for range rapid.IntRange(0, 12).Draw(t, "probes") {
			s = s.Next(rapid.Bool().Draw(t, "ok"), retries, health.Rise, rapid.Bool().Draw(t, "vote"))
		}
		ok := rapid.Bool().Draw(t, "between")
		after := s.Between(ok, retries)
		switch eager := s.Verdict() == health.Initial && s.Failures() <= retries; {
		case eager != s.Eager(retries):
			t.Fatalf("%+v is eager: %t", s, !eager)
		case eager && ok:
			if after.Verdict() != health.Success || after.Failures() != 0 || after.Eager(retries) {
				t.Fatalf("%+v after a success", after)
			}
		case after != s:
			t.Fatalf("%+v became %+v", s, after)
		}
	})
}

// A failure is always preceded by more failures in a row than there are retries,
// the last with a vote; a success by a success; and it takes as many as the check
// says to get away from a failure.
func TestStateAlways(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		retries := rapid.IntRange(0, 5).Draw(t, "retries")
		rise := rapid.IntRange(1, 5).Draw(t, "rise")
		var s health.State
		up, down := 0, 0
		for range rapid.IntRange(1, 60).Draw(t, "probes") {
			ok, vote := rapid.Bool().Draw(t, "ok"), rapid.Bool().Draw(t, "vote")
			before := s.Verdict()
			s = s.Next(ok, retries, rise, vote)
			if ok {
				up, down = up+1, 0
			} else {
				up, down = 0, down+1
			}
			switch after := s.Verdict(); {
			case before == after:
				if before != health.Failure && !ok && vote && down > retries {
					t.Fatalf("%s after %d failures", after, down)
				}
			case after == health.Initial:
				t.Fatal("back to the beginning")
			case after == health.Failure && (ok || !vote || down <= retries):
				t.Fatalf("failure after %d failures, vote %v", down, vote)
			case after == health.Success && (!ok || before == health.Failure && up < rise):
				t.Fatalf("success after %d", up)
			}
		}
	})
}
