// SPDX-License-Identifier: Apache-2.0

// Package e2e owns the stories that go through the whole house: the egoscale
// client at one end, packets at the other, real processes between. It holds
// tests only; story_test.go is the first to read.
package e2e
