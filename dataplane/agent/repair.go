// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/dataplane/debug"
)

// repairRequest is for the loop, which alone writes to the maps.
type repairRequest struct{ done chan repaired }

type repaired struct {
	debug.Repair
	err error
}

// Repair implements debug.Source.
func (a *Agent) Repair(ctx context.Context) (debug.Repair, error) {
	r := repairRequest{make(chan repaired, 1)}
	select {
	case a.repairs <- r:
	case <-ctx.Done():
		return debug.Repair{}, fmt.Errorf("repair: %w", ctx.Err())
	}
	select {
	case done := <-r.done:
		return done.Repair, done.err
	case <-ctx.Done():
		return debug.Repair{}, fmt.Errorf("repair: %w", ctx.Err())
	}
}

// repair runs in the loop: it finds what differs, does a round over everything,
// and looks again.
func (a *Agent) repair(r repairRequest) time.Time {
	out := repaired{Repair: debug.Repair{Mended: []string{}}}
	before, err := a.Diff()
	if err == nil {
		a.audit()
		a.mu.Lock()
		a.loop.Anew()
		a.mu.Unlock()
	}
	next := a.round()
	left, again := a.Diff()
	out.Left, out.err = left, errors.Join(err, again)
	out.Mended = append(out.Mended, without("missing ", before.Missing, left.Missing)...)
	out.Mended = append(out.Mended, without("foreign ", before.Foreign, left.Foreign)...)
	r.done <- out
	return next
}

// without lists those that are not left.
func without(prefix string, all, left []string) (gone []string) {
	there := map[string]bool{}
	for _, line := range left {
		there[line] = true
	}
	for _, line := range all {
		if !there[line] {
			gone = append(gone, prefix+line)
		}
	}
	return gone
}
