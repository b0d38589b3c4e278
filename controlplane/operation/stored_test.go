// SPDX-License-Identifier: Apache-2.0

package operation

import "testing"

func TestStoredMachine(t *testing.T) {
	machine := StoredMachine("noun")
	if err := machine.Verify("recompile"); err != nil {
		t.Fatal(err)
	}
	machine.Rows = machine.Rows[:2] // nothing is deleted any more
	if err := machine.Verify("recompile"); err == nil {
		t.Error("a machine without an end passes")
	}
}
