// SPDX-License-Identifier: Apache-2.0

// Package health judges whether backends are well. It owns the verdict of a
// check as a pure state machine, the probes that feed it, and a Checker that
// runs many of them. It never decides what a verdict does to traffic, and opens
// no connection but through the dialer it is given, which may lead into another
// network namespace.
//
// Start at State; probe.go is what a probe does, checker.go when.
package health

import (
	"net/netip"
	"time"
)

// Verdict is what is known of a backend. Unknown is not unhealthy.
type Verdict string

// The verdicts, in the words of the public contract but for the first, which
// that does not know.
const (
	Initial Verdict = "initial" // no verdict yet; counts as usable
	Success Verdict = "success"
	Failure Verdict = "failure"
)

// Mode is what a probe does.
type Mode string

// The modes.
const (
	TCP   Mode = "tcp"   // a connection is accepted
	HTTP  Mode = "http"  // a GET is answered by a status of 2xx
	HTTPS Mode = "https" // the same through TLS; its certificate is judged only if Verify says so
)

// Check is what to check, and how often.
type Check struct {
	Mode    Mode
	Address netip.Addr
	Port    uint16
	URI     string // http and https; "/" if empty
	SNI     string // https; the server name to ask for, in TLS and as the request's host
	Verify  bool   // https: the certificate must be SNI's (or the address's), by this machine's roots

	Interval time.Duration // from the start of a probe to the start of the next
	Timeout  time.Duration // of one probe; never more than Interval
	Retries  int           // failures in a row beyond the first that make a Failure
	Rise     int           // successes in a row that end a Failure; Rise if 0
}

// place is the part of a check that says what is checked: when it changes, what
// was found before says nothing any more.
func (c Check) place() Check {
	c.Interval, c.Timeout, c.Retries, c.Rise = 0, 0, 0, 0
	return c
}

// Rise is how many successes in a row it takes to leave Failure where the check
// does not say: one may be a server that comes up and falls down again.
const Rise = 2

// State is what a check has found so far. The zero State is that of a new one.
type State struct {
	verdict   Verdict
	successes int // in a row
	failures  int // in a row
}

// Verdict of the state.
func (s State) Verdict() Verdict {
	if s.verdict == "" {
		return Initial
	}
	return s.verdict
}

// Failures is how many probes in a row have failed up to now.
func (s State) Failures() int { return s.failures }

// Eager says that a check without a verdict is worth a probe before its interval
// is over: a backend that has just come up is found at once. It ends with a
// verdict, or with the failures that would make one if there were a vote.
func (s State) Eager(retries int) bool { return s.Verdict() == Initial && s.failures <= retries }

// Between takes the result of a probe between two intervals into account: one
// success is a verdict. A failure says nothing: unknown is not unhealthy, and
// how long a backend may take is said in intervals.
func (s State) Between(ok bool, retries int) State {
	if !ok || !s.Eager(retries) {
		return s
	}
	return s.Next(true, retries, Rise, true)
}

// Next takes the result of one probe into account. Without a vote the probe may
// make a Success, but never a Failure: a checker of whose probes none has
// succeeded yet may be the one that is cut off. Failures are counted all the
// same, and speak at the first one that comes with a vote. Out of a Failure it
// takes rise successes in a row.
func (s State) Next(ok bool, retries, rise int, vote bool) State {
	if ok {
		s.failures = 0
		if s.successes++; s.Verdict() != Failure || s.successes >= rise {
			s.verdict, s.successes = Success, 0
		}
		return s
	}
	s.successes = 0
	if s.failures++; s.failures > retries && vote {
		s.verdict = Failure
	}
	return s
}
