// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/cloud"
	"cairn/controlplane/store"
)

// TestPowerLossAfterTheEnd: the end of an operation is the only thing that the
// loss of power takes. The operation is pending then, at the revision that
// accepted it, and the agents' acknowledgements end it again.
func TestPowerLossAfterTheEnd(t *testing.T) {
	b := newBench(t)
	platter := t.TempDir()
	s, err := store.Open(t.Context(), b.path, store.WithClock(b.clock), store.WithFlush(func(log string) error {
		for _, file := range []string{strings.TrimSuffix(log, "-wal"), log} {
			data, err := os.ReadFile(file)
			if err == nil {
				err = os.WriteFile(filepath.Join(platter, filepath.Base(file)), data, 0o600)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	b.store = s
	b.join()
	op := b.mustCreate(nil)
	accepted := b.stored(op.ID)
	if err := b.Settled(t.Context(), op.ID, Outcome{OK: true}); err != nil {
		t.Fatal(err)
	}
	b.want(op.ID, cloud.OperationSuccess, "", "")

	b.path = filepath.Join(platter, filepath.Base(b.path)) // the power comes back
	b.told = nil
	b.Gate = New(b.open(), b.log, b.nouns[store.KindLoadBalancer])
	if got := b.stored(op.ID); got != accepted || got.State != cloud.OperationPending {
		t.Errorf("what is left of it is %+v, want %+v", got, accepted)
	}
	if err := b.Settled(t.Context(), op.ID, Outcome{OK: true}); err != nil {
		t.Fatal(err)
	}
	b.want(op.ID, cloud.OperationSuccess, "", "")
	if len(b.told) != 1 {
		t.Errorf("the noun was told %v", b.told)
	}
}
