// SPDX-License-Identifier: Apache-2.0

// Package conformance drives the HTTP edge with the clients that people have: the
// egoscale SDK, and our own command line. Behind the edge stands a cloud in memory,
// so that what fails here is the contract and nothing else.
//
// It holds tests only. Start at egoscale_test.go; fake_test.go is the cloud.
package conformance
