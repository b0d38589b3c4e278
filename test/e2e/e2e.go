// SPDX-License-Identifier: Apache-2.0

// Package e2e owns the stories that go through the whole house: the egoscale
// client at one end, packets at the other, real processes between. It holds
// tests only; story_test.go is the first to read.
//
// A test that begins with t.Parallel waits more than it works and shares the
// machine with others of the lab ring. One that judges times, or that a busy
// machine fails, does not, and has the machine for itself (scripts/test.sh).
package e2e
