// SPDX-License-Identifier: Apache-2.0

//go:build program

package bench

import (
	"testing"

	"github.com/cilium/ebpf"
)

func TestDriverVariesWhatItSaysAndCallsTheProgram(t *testing.T) {
	d, err := NewDriver()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	frame := make([]byte, 64)
	frame[29] = 255 // the last byte of the address: flow 1 carries over
	s := Shape{Frame: frame, Head: 64, AddressAt: 26, Addresses: 2, PortAt: 34, Ports: 3, InTurn: true}
	for _, p := range []*ebpf.Program{d.Floor(ebpf.SchedCLS), d.Floor(ebpf.XDP)} {
		if err := d.Seek(0); err != nil {
			t.Fatal(err)
		}
		seen := map[[2]byte]bool{}
		for range 6 {
			drive, err := d.prepare(p, s)
			if err != nil {
				t.Fatal(err)
			}
			answer, out, err := drive.Test(frame)
			if err != nil {
				t.Fatal(err)
			}
			if want := map[ebpf.ProgramType]uint32{ebpf.SchedCLS: 0, ebpf.XDP: 3}[p.Type()]; answer != want {
				t.Fatalf("%s: the floor answers %d, not %d: it was not called", p.Type(), answer, want)
			}
			seen[[2]byte{out[28], out[35]}] = true
		}
		if len(seen) != 6 {
			t.Errorf("%s: %d flows of 6 were made: %v", p.Type(), len(seen), seen)
		}
	}
	if _, err := d.Time(Case{Program: d.objects.DriveTc, Shape: s}); err == nil {
		t.Error("a tail call that fell through was timed")
	}
}
