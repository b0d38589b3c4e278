// SPDX-License-Identifier: Apache-2.0

package flowlog

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// The words have room on the disk before anything is stored in them: later there
// may be none.
func TestTheLedgerHasItsRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	for _, left := range []string{"", "of another version"} {
		if err := os.WriteFile(path, []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := reserve(f); err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if blocks := info.Sys().(*syscall.Stat_t).Blocks; info.Size() != 8*words || blocks == 0 {
			t.Errorf("after %q: %d bytes in %d blocks", left, info.Size(), blocks)
		}
	}
}
