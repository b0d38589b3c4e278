// SPDX-License-Identifier: Apache-2.0

package mutant

import (
	"os"
	"path/filepath"
	"testing"
)

// A mutant that does not fit the sources any more finds nothing.
func TestEveryMutantFitsTheSources(t *testing.T) {
	names := map[string]bool{}
	for _, m := range All() {
		if names[m.Name] {
			t.Errorf("two are called %q", m.Name)
		}
		names[m.Name] = true
		text, err := os.ReadFile(filepath.Join("../../../bpf", m.File))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := m.Apply(string(text)); err != nil {
			t.Error(err)
		}
	}
}
