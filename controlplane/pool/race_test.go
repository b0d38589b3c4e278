// SPDX-License-Identifier: Apache-2.0

//go:build race

package pool

// stride is which commits are crash points in this build. The race detector
// makes a story five times as long, and finds in a few of them what it finds in
// all.
const stride = 9
