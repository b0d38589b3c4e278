// SPDX-License-Identifier: Apache-2.0

// Package leak holds the test that nothing of one tenant reaches another: every
// kind of frame, honest and forged, with a tap at every device of the other.
// kinds_lab_test.go is what is sent and where it may arrive.
package leak
