// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"errors"
	"testing"

	"cairn/bpf"

	"github.com/cilium/ebpf"
)

func TestProgramsLoad(t *testing.T) {
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range []*ebpf.CollectionSpec{specs.Uplink, specs.Port} {
		for name, prog := range spec.Programs {
			t.Run(name, func(t *testing.T) {
				one := spec.Copy()
				one.Programs = map[string]*ebpf.ProgramSpec{name: prog.Copy()}
				coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
				var refused *ebpf.VerifierError
				if errors.As(err, &refused) {
					t.Fatalf("%+v", refused)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer coll.Close()
				t.Log(coll.Programs[name].VerifierLog)
			})
		}
	}
}
