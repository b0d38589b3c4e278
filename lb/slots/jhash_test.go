// SPDX-License-Identifier: Apache-2.0

package slots

import "testing"

// Jenkins published what lookup3 makes of these 30 bytes. The words are the
// text, padded with zeros; the seed makes up for the two bytes of padding, which
// lookup3 does not count.
func TestJhashOfPublishedVectors(t *testing.T) {
	text := []byte("Four score and seven years ago\x00\x00")
	var words []uint32
	for i := 0; i < len(text); i += 4 {
		words = append(words, word(text[i:]))
	}
	for seed, want := range map[uint32]uint32{0: 0x17770551, 1: 0xcd628161} {
		if got := jhash(words, seed-2); got != want {
			t.Errorf("seed %d: %#x, want %#x", seed, got, want)
		}
	}
	if got := jhash(nil, 0); got != 0xdeadbeef {
		t.Errorf("of nothing: %#x", got)
	}
}
