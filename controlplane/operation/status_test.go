// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/controlplane/fsm"
	"cairn/controlplane/store"
)

// TestFailedWhenAccepted: what cannot be had is an operation that has failed,
// with the object's id, and nobody is told.
func TestFailedWhenAccepted(t *testing.T) {
	b := newBench(t)
	b.join()
	op := b.mustCreate(func(p *Plan) { p.Failed = &Outcome{Reason: cloud.ReasonUnavailable, Message: "no room"} })
	if op.State != cloud.OperationFailure || op.Reference == nil {
		t.Errorf("answer %+v", op)
	}
	b.want(op.ID, cloud.OperationFailure, cloud.ReasonUnavailable, "no room")
	if len(b.told) > 0 {
		t.Errorf("told %v", b.told)
	}
}

// TestByStatus: acknowledgements are told to a noun that ends its operations
// itself, and end none; a refusal and the deadline do.
func TestByStatus(t *testing.T) {
	b := newBench(t)
	b.join()
	var told []fsm.Event
	b.Register(Noun{Kind: store.KindLoadBalancer, ByStatus: true, Settle: func(_ *store.Tx, _ store.Operation, e fsm.Event, _ Outcome) error {
		told = append(told, e)
		return nil
	}})
	settled := func(op *cloud.Operation, o Outcome) {
		if err := b.Settled(t.Context(), op.ID, o); err != nil {
			t.Fatal(err)
		}
	}
	first := b.mustCreate(func(p *Plan) { p.Waiting = "hv1 to start it" })
	settled(first, Outcome{OK: true})
	b.want(first.ID, cloud.OperationPending, "", "hv1 to start it")
	b.pass(2 * time.Minute)
	if err := b.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.want(first.ID, cloud.OperationTimeout, cloud.ReasonUnavailable, "waiting for hv1 to start it")
	settled(first, Outcome{OK: true}) // late
	second := b.mustCreate(nil)
	settled(second, Outcome{Reason: cloud.ReasonFault, Message: "hv1: slots: full"})
	b.want(second.ID, cloud.OperationFailure, cloud.ReasonFault, "slots: full")
	if want := []fsm.Event{Acked, Deadline, Acked, Nacked}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	done := b.mustCreate(func(p *Plan) { p.Done = true })
	b.want(done.ID, cloud.OperationSuccess, "", "")
}
