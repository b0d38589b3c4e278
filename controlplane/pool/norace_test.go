// SPDX-License-Identifier: Apache-2.0

//go:build !race

package pool

// stride is which commits are crash points in this build: every one.
const stride = 1
