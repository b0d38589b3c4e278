// SPDX-License-Identifier: Apache-2.0

//go:build program

package kernel

import (
	"errors"
	"testing"

	"cairn/bpf"
	"cairn/test/model/scenario"
)

func open(t *testing.T) *Kernel {
	t.Helper()
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		t.Fatal(err)
	}
	k, err := Load(specs)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(k.Close)
	return k
}

func TestTheProgramsAnswerAsTheTablesSay(t *testing.T) {
	k := open(t)
	tables, err := scenario.Tables()
	if err != nil {
		t.Fatal(err)
	}
	for file, steps := range tables {
		var d *Difference
		switch err := k.Play(Of(steps)); {
		case errors.As(err, &d):
			t.Errorf("%s:%d: %s: %s", file, d.Steps[len(d.Steps)-1].Line, d.Steps[len(d.Steps)-1], d.What)
		case err != nil:
			t.Fatalf("%s: %+v", file, err)
		}
	}
}
