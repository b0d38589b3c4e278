// SPDX-License-Identifier: Apache-2.0

// Package explain compares what the control plane says of a flow with what the
// programs in the packet's way do with it, on zones and flows made at random.
// It owns nothing but the test.
package explain
