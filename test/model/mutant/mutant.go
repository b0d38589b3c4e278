// SPDX-License-Identifier: Apache-2.0

// Package mutant keeps the tests of the firewall honest: each mutant is one
// fault in the C of the programs, and tables and fuzzer together have to find
// it. A mutant is a piece of text and what stands there instead; it is made in a
// copy of the sources, which is compiled and loaded beside the real ones. Start
// at All.
package mutant

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cilium/ebpf"

	"cairn/bpf"
)

// Mutant is one fault.
type Mutant struct {
	Name string
	File string // below bpf/
	Old  string // is there exactly once
	New  string
}

// Sources of the programs, and how they are compiled.
type Sources struct {
	Dir   string
	flags []string
}

var generate = regexp.MustCompile(`(?m)^//go:generate .* uplink uplink\.bpf\.c -- (.*)$`)

// Open the folder of the sources. The compiler's flags are those of gen.go.
func Open(dir string) (*Sources, error) {
	text, err := os.ReadFile(filepath.Join(dir, "gen.go"))
	if err != nil {
		return nil, err
	}
	found := generate.FindSubmatch(text)
	if found == nil {
		return nil, fmt.Errorf("%s/gen.go does not say how uplink.bpf.c is compiled", dir)
	}
	var flags []string
	for flag := range strings.FieldsSeq(string(found[1])) {
		if flag != "-Werror" && !strings.HasPrefix(flag, "-ffile-prefix-map") { // a fault may leave something unused
			flags = append(flags, flag)
		}
	}
	return &Sources{dir, flags}, nil
}

// Apply the fault to a text.
func (m Mutant) Apply(text string) (string, error) {
	if n := strings.Count(text, m.Old); n != 1 {
		return "", fmt.Errorf("%s: %q is %d times in %s", m.Name, m.Old, n, m.File)
	}
	return strings.Replace(text, m.Old, m.New, 1), nil
}

// Build the objects with the fault in them, in a folder of the caller's.
func (s *Sources) Build(m Mutant, folder string) (*bpf.Specs, error) {
	if err := os.CopyFS(folder, os.DirFS(s.Dir)); err != nil {
		return nil, err
	}
	file := filepath.Join(folder, m.File)
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	changed, err := m.Apply(string(text))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
		return nil, err
	}
	var specs bpf.Specs
	for name, spec := range map[string]**ebpf.CollectionSpec{"uplink": &specs.Uplink, "port": &specs.Port} {
		if *spec, err = s.compile(folder, name); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	return &specs, nil
}

func (s *Sources) compile(folder, name string) (*ebpf.CollectionSpec, error) {
	args := append([]string{"-g", "-target", "bpfel", "-c", name + ".bpf.c", "-o", name + ".o"}, s.flags...)
	cmd := exec.Command("clang-19", args...)
	cmd.Dir = folder
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("compile %s: %w\n%s", name, err, out.String())
	}
	return ebpf.LoadCollectionSpec(filepath.Join(folder, name+".o"))
}
