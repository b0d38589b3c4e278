// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"cairn/controlplane/store"
)

// TestNothingIsToldBeforeItIsSafe: a revision whose commit the loss of power
// could still take is followed and compiled, and no agent gets to know of it.
func TestNothingIsToldBeforeItIsSafe(t *testing.T) {
	var fails atomic.Bool
	asked := make(chan struct{}, 1)
	b := newBench(t, store.WithFlush(func(string) error {
		if !fails.Load() {
			return nil
		}
		select {
		case asked <- struct{}{}:
		default:
		}
		return errors.New("no such device")
	}))
	a := b.join("hv1").connect()
	b.inStep(a)
	b.group(1, 80)
	b.instance(1, a, 1)
	b.inStep(a)
	safe := b.revision()
	a.look()

	fails.Store(true)
	_, err := b.store.Write(context.Background(), func(tx *store.Tx) error {
		tx.Redoable()
		return putGroup(tx, "", 1, 80, 443)
	})
	if err != nil {
		t.Fatal(err)
	}
	<-asked // by the follower: nobody else asks for this commit
	b.eventually("the replica has it", func() bool { return uint64(b.server.replica.Snapshot().Revision) == safe+1 })
	if all := b.server.Sessions(); all[0].Revision != safe || all[0].Waiting != 0 || all[0].OnTheWay != 0 {
		t.Errorf("told: %+v", all[0])
	}
	if c := a.look(); c != (counts{}) {
		t.Errorf("the agent got %+v", c)
	}
	b.server.shelf.mu.RLock()
	defer b.server.shelf.mu.RUnlock()
	if b.server.shelf.revision != safe {
		t.Errorf("the shelf is at revision %d, %d is safe", b.server.shelf.revision, safe)
	}
}
