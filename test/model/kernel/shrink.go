// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"slices"

	"cairn/test/model/scenario"
)

// Shrink leaves out of what led to a difference all that it does not need, one
// piece after the other, from halves down to single steps.
func (k *Kernel) Shrink(d *Difference) *Difference {
	for size := len(d.Steps) / 2; size > 0; size /= 2 {
		for at := 0; at+size < len(d.Steps); {
			shorter := slices.Delete(slices.Clone(d.Steps), at, at+size)
			if again := k.differs(shorter); again != nil && len(again.Steps) < len(d.Steps) {
				d = again
			} else {
				at += size
			}
		}
	}
	return d
}

func (k *Kernel) differs(steps []scenario.Step) *Difference {
	var d *Difference
	if errors.As(k.Play(Of(steps)), &d) {
		return d
	}
	return nil
}
