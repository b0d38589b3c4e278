// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"embed"
	"fmt"
	"io/fs"
)

//go:embed tables
var files embed.FS

// Tables of verdicts, by the name of their file. They say in our words what the
// documents of this and of other firewalls promise.
func Tables() (map[string][]Step, error) {
	all := map[string][]Step{}
	err := fs.WalkDir(files, "tables", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		if all[path], err = Parse(string(text)); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
	return all, err
}
