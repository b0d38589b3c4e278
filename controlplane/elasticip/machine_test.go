// SPDX-License-Identifier: Apache-2.0

package elasticip

import "testing"

func TestMachine(t *testing.T) {
	if err := machine.Verify("recompile"); err != nil {
		t.Fatal(err)
	}
	broken := machine
	broken.Rows = broken.Rows[:2] // nothing is deleted any more
	if err := broken.Verify("recompile"); err == nil {
		t.Error("a machine without an end passes")
	}
}
