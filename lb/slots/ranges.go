// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// ErrFull says that there is no free range of that size left in the map.
var ErrFull = errors.New("no free range of slots")

// Ranges hands out the slots of a map: ranges of a power of two that lie at a
// multiple of their size, by the buddy system. It is not safe for concurrent use.
type Ranges struct {
	capacity uint32
	free     [33][]uint32      // by log2 of the size; bases, sorted
	used     map[uint32]uint32 // base to size
}

// NewRanges makes the ranges of a map of that many slots, a power of two.
func NewRanges(capacity uint32) (*Ranges, error) {
	if !power(capacity) {
		return nil, fmt.Errorf("%d slots are no power of two", capacity)
	}
	r := &Ranges{capacity: capacity, used: map[uint32]uint32{}}
	r.free[order(capacity)] = []uint32{0}
	return r, nil
}

// Alloc takes the lowest free range of size slots out of the smallest that will
// do, and returns its base.
func (r *Ranges) Alloc(size uint32) (uint32, error) {
	if !power(size) {
		return 0, fmt.Errorf("a range of %d slots is no power of two", size)
	}
	for from := order(size); from < len(r.free); from++ {
		if len(r.free[from]) > 0 {
			base := r.free[from][0]
			r.take(from, base, base, size)
			return base, nil
		}
	}
	return 0, ErrFull
}

// Reserve takes a given range, as found in use at start.
func (r *Ranges) Reserve(base, size uint32) error {
	if !power(size) || base&(size-1) != 0 || size > r.capacity || base > r.capacity-size {
		return fmt.Errorf("%d slots at %d are no range of a map of %d", size, base, r.capacity)
	}
	for from := order(size); from < len(r.free); from++ {
		within := base &^ (uint32(1)<<from - 1)
		if slices.Contains(r.free[from], within) {
			r.take(from, within, base, size)
			return nil
		}
	}
	return fmt.Errorf("reserve %d slots at %d: in use", size, base)
}

// take splits the free range at from until base has a range of its own.
func (r *Ranges) take(from int, within, base, size uint32) {
	r.free[from] = without(r.free[from], within)
	for from > order(size) {
		from--
		half := within + uint32(1)<<from
		if base < half {
			r.free[from] = with(r.free[from], half)
		} else {
			r.free[from] = with(r.free[from], within)
			within = half
		}
	}
	r.used[base] = size
}

// Free gives back the range at base, whole.
func (r *Ranges) Free(base uint32) error {
	size, ok := r.used[base]
	if !ok {
		return fmt.Errorf("free slots at %d: no range begins there", base)
	}
	delete(r.used, base)
	o := order(size)
	for size < r.capacity && slices.Contains(r.free[o], base^size) {
		r.free[o] = without(r.free[o], base^size)
		base &^= size
		size *= 2
		o++
	}
	r.free[o] = with(r.free[o], base)
	return nil
}

// Used is how many slots are taken, Capacity how many there are.
func (r *Ranges) Used() uint32 {
	var n uint32
	for _, size := range r.used {
		n += size
	}
	return n
}

// Capacity is the number of slots of the map.
func (r *Ranges) Capacity() uint32 { return r.capacity }

func power(n uint32) bool { return n != 0 && n&(n-1) == 0 }

func order(size uint32) int { return bits.TrailingZeros32(size) }

func with(set []uint32, x uint32) []uint32 {
	i, _ := slices.BinarySearch(set, x)
	return slices.Insert(set, i, x)
}

func without(set []uint32, x uint32) []uint32 {
	i, found := slices.BinarySearch(set, x)
	if !found {
		return set
	}
	return slices.Delete(set, i, i+1)
}
