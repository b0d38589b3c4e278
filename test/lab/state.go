// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// folder is where labs live, one folder each.
const folder = "/run/cairn/lab"

const pinFolder = "/sys/fs/bpf"

// A name becomes part of namespace, file and socket names.
var nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,23}$`)

// state is what a lab writes down, before it makes what it describes. It holds
// the first key of the API, so it is readable to its owner alone.
type state struct {
	Name        string        `json:"name"`
	Created     time.Time     `json:"created"`
	Owner       *process      `json:"owner,omitempty"` // a test: when it is gone the lab is stale
	Hypervisors int           `json:"hypervisors"`
	Clients     int           `json:"clients"`
	Roles       []string      `json:"roles"` // of each hypervisor, "compute,lb"
	Router      string        `json:"router"`
	Bin         string        `json:"bin,omitempty"`
	Namespaces  []string      `json:"namespaces"`
	Pins        string        `json:"pins"`
	Daemons     []daemonState `json:"daemons"`
	Listen      string        `json:"listen,omitempty"` // of the API, in the root namespace
	Credentials Credentials   `json:"credentials"`
	Took        []Took        `json:"took,omitempty"`
}

// Credentials is what `cairnd init` made.
type Credentials struct {
	Key          string `json:"key"`
	Secret       string `json:"secret"`
	Organization string `json:"organization"`
}

// Took is a step of Up and its duration.
type Took struct {
	Step string        `json:"step"`
	Time time.Duration `json:"nanoseconds"`
}

type daemonState struct {
	Name      string   `json:"name"` // cairnd, hv1/agent, hv1/bgpd, router/bird
	Namespace string   `json:"namespace"`
	Argv      []string `json:"argv"`
	Log       string   `json:"log"`
	After     string   `json:"after,omitempty"`    // a socket that has to be there before it starts
	Inherits  bool     `json:"inherits,omitempty"` // the API's socket as descriptor 3
	Process   process  `json:"process"`
}

func labFolder(name string) string { return filepath.Join(folder, name) }
func statePath(name string) string { return filepath.Join(labFolder(name), "state.json") }

func checkName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("lab name %q: want a lower-case letter, then letters, digits and dashes, 24 at most", name)
	}
	return nil
}

// save replaces the file in one step.
func (s *state) save() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := statePath(s.Name)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// load returns an error that is os.ErrNotExist when there is no such lab.
func load(name string) (*state, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(statePath(name))
	if err != nil {
		return nil, err
	}
	s := new(state)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read %s: %w", statePath(name), err)
	}
	return s, nil
}

// Names lists the labs of this machine, those half made or half gone included.
func Names() ([]string, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && checkName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// stale tells whether the test that made the lab is gone.
func (s *state) stale() bool { return s.Owner != nil && !s.Owner.alive() }
