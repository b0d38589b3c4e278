// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"math/rand/v2"
)

// Lines is the memory that a choice among so many backends touches, and nothing
// beside it: for each packet one of 4 M words, the record of 32 bytes that it
// names, and a counter of that. What it costs beyond the floor is this
// machine's, whatever the program is like.
func (d *Driver) Lines(s Shape, backends int) (Case, error) {
	const batch = 1 << 16
	words := d.objects.Words
	random := rand.New(rand.NewPCG(1, 2))
	keys, values := make([]uint32, batch), make([]uint64, batch)
	for from := uint32(0); from < words.MaxEntries(); from += batch {
		for i := range keys {
			keys[i], values[i] = from+uint32(i), uint64(random.IntN(backends))
		}
		if _, err := words.BatchUpdate(keys, values, nil); err != nil {
			return Case{}, fmt.Errorf("fill the words: %w", err)
		}
	}
	return Case{Program: d.objects.LinesXdp, Shape: s, Want: xdpTX}, nil
}

const xdpTX = 3
