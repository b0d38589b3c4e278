// SPDX-License-Identifier: Apache-2.0

//go:build program

package mutant

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/test/model/kernel"
	"cairn/test/model/scenario"
)

// patience with a mutant: so long the fuzzer may search for it.
const patience = 90 * time.Second

// TestMutantsAreFound is the negative control of the tables and the fuzzer.
// MUTANTS=all looks at all of them, lines of name:WORD at those whose names
// contain one of the words, and else it looks at the smoke.
func TestMutantsAreFound(t *testing.T) {
	sources, err := Open("../../../bpf")
	if err != nil {
		t.Fatal(err)
	}
	mutants := Smoke()
	switch asked := os.Getenv("MUTANTS"); {
	case asked == "all":
		mutants = All()
	case strings.HasPrefix(asked, "name:"):
		mutants = named(strings.Split(strings.TrimPrefix(asked, "name:"), "\nname:"))
	}
	if len(mutants) == 0 {
		t.Fatal("no mutant has such a name")
	}
	killed := 0
	for _, m := range mutants {
		begin := time.Now()
		how, err := find(sources, m, t.TempDir())
		switch {
		case err != nil:
			t.Errorf("%s: %v", m.Name, err)
		case how == "":
			t.Errorf("survived %s: %s", time.Since(begin).Round(time.Second), m.Name)
		default:
			killed++
			t.Logf("%3d killed after %4.1f s by %s: %s", killed, time.Since(begin).Seconds(), how, m.Name)
		}
	}
	t.Logf("mutants killed: %d/%d", killed, len(mutants))
}

func named(words []string) []Mutant {
	return slices.DeleteFunc(All(), func(m Mutant) bool {
		return !slices.ContainsFunc(words, func(word string) bool { return strings.Contains(m.Name, word) })
	})
}

// find the fault: by which table, or by which sequence of the fuzzer. Empty if
// it was not found.
func find(sources *Sources, m Mutant, folder string) (string, error) {
	specs, err := sources.Build(m, folder)
	if err != nil {
		return "", err
	}
	k, err := kernel.Load(specs)
	if err != nil {
		return "", err
	}
	defer k.Close()
	tables, err := scenario.Tables()
	if err != nil {
		return "", err
	}
	var d *kernel.Difference
	for file, steps := range tables {
		if err := k.Play(kernel.Of(steps)); errors.As(err, &d) {
			return fmt.Sprintf("%s:%d", file, d.Steps[len(d.Steps)-1].Line), nil
		} else if err != nil {
			return "", err
		}
	}
	until := time.Now().Add(patience)
	for seed := uint64(1); time.Now().Before(until); seed++ {
		if err := k.Play(kernel.Made(seed)); errors.As(err, &d) {
			return fmt.Sprintf("SEED=%d", seed), nil
		} else if err != nil {
			return "", err
		}
	}
	return "", nil
}
