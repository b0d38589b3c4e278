// SPDX-License-Identifier: Apache-2.0

package tasktest_test

import (
	"testing"

	"cairn/controlplane/program/tasktest"
)

func TestMemory(t *testing.T) {
	tasktest.Run(t, func(*testing.T) tasktest.Store { return &tasktest.Memory{} })
}
