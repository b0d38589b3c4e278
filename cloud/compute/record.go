// SPDX-License-Identifier: Apache-2.0

package compute

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// record is what the driver writes down of a machine before it makes anything
// of it, so that whatever exists can be found from the folder alone. User data
// is not in it.
type record struct {
	ID         string            `json:"id"`
	Port       uint32            `json:"port"`            // the public one; 0: none
	Links      map[uint32]string `json:"links,omitempty"` // private port → the guest's name of it
	Namespace  string            `json:"namespace"`
	Command    string            `json:"command"`
	Running    bool              `json:"running"`              // wanted
	Process    process           `json:"process"`              // of the workload
	Hash       string            `json:"hash,omitempty"`       // of the Spec fulfilled last; empty while one is in work
	Generation uint64            `json:"generation,omitempty"` // likewise
}

// An id is the name of a folder, so it may not be a path.
var idForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z-]{0,63}$`)

func checkID(id string) error {
	if !idForm.MatchString(id) {
		return fmt.Errorf("machine id %q is not a uuid", id)
	}
	return nil
}

func recordPath(state, id string) string {
	return filepath.Join(machineFolder(state, id), "record.json")
}

// readRecord returns nil without an error when there is no machine.
func readRecord(state, id string) (*record, error) {
	b, err := os.ReadFile(recordPath(state, id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read record of machine %s: %w", id, err)
	}
	return r, nil
}

// writeRecord replaces the record in one step. It does not sync: when power
// fails, everything that the record describes is gone too.
func writeRecord(state string, r *record) error {
	if err := os.MkdirAll(machineFolder(state, r.ID), 0o750); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := recordPath(state, r.ID)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// listIDs names the folders of machines, whatever is in them.
func listIDs(state string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(state, "machines"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && checkID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}
