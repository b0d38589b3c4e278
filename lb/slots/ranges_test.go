// SPDX-License-Identifier: Apache-2.0

package slots_test

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"cairn/lb/slots"
)

func TestRanges(t *testing.T) {
	r, err := slots.NewRanges(1024)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := r.Alloc(256)
	b, _ := r.Alloc(512)
	c, _ := r.Alloc(256)
	if a != 0 || b != 512 || c != 256 {
		t.Errorf("got %d, %d, %d", a, b, c)
	}
	if _, err := r.Alloc(256); !errors.Is(err, slots.ErrFull) {
		t.Errorf("from a full map: %v", err)
	}
	for _, base := range []uint32{a, b, c} {
		if err := r.Free(base); err != nil {
			t.Error(err)
		}
	}
	if base, err := r.Alloc(1024); base != 0 || err != nil {
		t.Errorf("the whole map again: %d, %v", base, err)
	}
	for _, base := range []uint32{1, 256, 4096} {
		if r.Free(base) == nil {
			t.Errorf("freed %d, which was not taken", base)
		}
	}
	for _, bad := range [][2]uint32{{0, 0}, {0, 3}, {128, 256}, {1024, 256}, {0, 2048}, {0, 256}} {
		if r.Reserve(bad[0], bad[1]) == nil {
			t.Errorf("reserved %v", bad)
		}
	}
	if _, err := r.Alloc(300); err == nil {
		t.Error("allocated 300")
	}
	if _, err := slots.NewRanges(1000); err == nil {
		t.Error("made a map of 1000")
	}
}

// Any sequence: ranges never overlap, lie at multiples of their size, and a map
// with everything freed is one range again. An allocation fails only when no
// aligned range of that size is free.
func TestRangesAnySequence(t *testing.T) {
	const capacity = 4096
	rapid.Check(t, func(t *rapid.T) {
		r, _ := slots.NewRanges(capacity)
		var taken [capacity]bool
		used := map[uint32]uint32{}
		fits := func(base, size uint32) bool {
			for _, x := range taken[base : base+size] {
				if x {
					return false
				}
			}
			return true
		}
		mark := func(base, size uint32, to bool) {
			for i := range taken[base : base+size] {
				taken[base+uint32(i)] = to
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"alloc": func(t *rapid.T) {
				size := uint32(1) << rapid.IntRange(6, 12).Draw(t, "order")
				base, err := r.Alloc(size)
				if err != nil {
					for at := uint32(0); at < capacity; at += size {
						if fits(at, size) {
							t.Fatalf("%v, but %d at %d is free", err, size, at)
						}
					}
					return
				}
				if base%size != 0 || !fits(base, size) {
					t.Fatalf("got %d at %d", size, base)
				}
				mark(base, size, true)
				used[base] = size
			},
			"reserve": func(t *rapid.T) {
				size := uint32(1) << rapid.IntRange(6, 12).Draw(t, "order")
				base := size * rapid.Uint32Range(0, capacity/size-1).Draw(t, "index")
				err := r.Reserve(base, size)
				if free := fits(base, size); free != (err == nil) {
					t.Fatalf("reserve %d at %d, free %v: %v", size, base, free, err)
				}
				if err == nil {
					mark(base, size, true)
					used[base] = size
				}
			},
			"free": func(t *rapid.T) {
				for base, size := range used {
					if err := r.Free(base); err != nil {
						t.Fatal(err)
					}
					mark(base, size, false)
					delete(used, base)
					return
				}
			},
			"": func(t *rapid.T) {
				var sum uint32
				for _, size := range used {
					sum += size
				}
				if r.Used() != sum {
					t.Fatalf("%d used, want %d", r.Used(), sum)
				}
			},
		})
		for base := range used {
			if err := r.Free(base); err != nil {
				t.Fatal(err)
			}
		}
		if base, err := r.Alloc(capacity); base != 0 || err != nil {
			t.Fatalf("everything is free, and yet: %d, %v", base, err)
		}
	})
}
