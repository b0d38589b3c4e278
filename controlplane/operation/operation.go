// SPDX-License-Identifier: Apache-2.0

// Package operation is the gate that every mutation passes. It owns the life of
// an operation: accepted in one transaction together with the resource, the
// change, the tasks, the audit entry and the answer to a retry; followed by
// those who wait; ended once, by the agents' acknowledgement, by a program, or
// by its deadline. It never knows what a mutation means: that is the noun's,
// which registers its machine here.
//
// Start at Accept; then Settled for how operations end, and Run for what
// happens without anybody asking.
package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/controlplane/api"
	"cairn/controlplane/fsm"
	"cairn/controlplane/program"
	"cairn/controlplane/store"
)

// Events that move the machines of all nouns.
const (
	Acked    fsm.Event = "acked"    // the agents hold the change
	Nacked   fsm.Event = "nacked"   // one of them cannot
	Deadline fsm.Event = "deadline" // the operation's time is over
	Update   fsm.Event = "update"
	Delete   fsm.Event = "delete"
)

// How long an operation may take, from its acceptance, by the kind of its
// subject. A pool adds PoolMember for each member it makes or removes.
var deadlines = map[store.Kind]time.Duration{
	store.KindInstance: 5 * time.Minute,
	store.KindPool:     5 * time.Minute,
}

const (
	otherDeadline = time.Minute
	// PoolMember is what each member adds to the deadline of a pool.
	PoolMember = 30 * time.Second
	// PoolDeadline is that of a pool without members.
	PoolDeadline = 5 * time.Minute
)

// Outcome is how the agents took a change, or a program ended.
type Outcome struct {
	OK      bool
	Reason  cloud.Reason // if not OK
	Message string       // of the agent, or what was not waited for
	// Revision is the last of the operation's changes that the agents have
	// acknowledged: one that it makes later is not meant. 0 if it does not matter.
	Revision uint64
}

// Noun is what the gate knows of a kind of resource.
type Noun struct {
	Kind store.Kind
	// ByStatus says that acknowledgements do not end the noun's operations: the
	// noun does it itself with Finish, when what it waits for is reported. Its
	// Settle is told of them all the same.
	ByStatus bool
	// Settle moves the noun's machine with Acked, Nacked or Deadline, in the
	// transaction that ends op. It may be told Acked after Deadline, when what
	// was waited for comes late; op has then ended already. The subject may be
	// gone. May be nil.
	Settle func(tx *store.Tx, op store.Operation, e fsm.Event, o Outcome) error
	// Resume takes up an operation that was pending when the process started.
	// Acknowledgements are waited for and programs go on without it. May be nil.
	Resume func(ctx context.Context, op store.Operation) error
}

// Plan is what a mutation comes to, said by its noun inside the accepting
// transaction.
type Plan struct {
	Subject    store.Ref     // what moves; its kind says whose Settle is called
	Shown      cloud.ID      // the object the client is told of; the subject if empty
	Generation uint64        // of the subject, after the change
	Tightens   bool          // takes away what a silent host may go on admitting
	Deadline   time.Duration // instead of the kind's own
	Detail     any           // for the noun alone, stored as JSON
	Tasks      []program.Task
	Intents    []store.Intent // Operation may be left empty

	Waiting   string   // whom or what the operation waits for, in words
	Done      bool     // nobody has to be waited for: it ends in success at once
	Failed    *Outcome // it cannot be had: the operation is accepted, and ends so at once
	Unchanged bool     // the wish is what is stored already: nothing is written
	UnderWay  cloud.ID // a pending operation that does just this, answered instead
}

// Gate accepts, follows and ends operations.
type Gate struct {
	store *store.Store
	log   *slog.Logger
	nouns map[store.Kind]Noun

	// Waiting says in words whom an operation waits for ("hv3, silent since
	// …"), "" if nobody knows. Set it before Run.
	Waiting func(op cloud.ID) string
	// Compacted is told up to where the change log has been forgotten.
	Compacted func(upTo store.Revision)

	mu      sync.Mutex
	waiters map[cloud.ID]map[chan struct{}]struct{}
	ended   ended
}

// New makes a gate over a store.
func New(s *store.Store, log *slog.Logger, nouns ...Noun) *Gate {
	g := &Gate{store: s, log: log, nouns: map[store.Kind]Noun{}, waiters: map[cloud.ID]map[chan struct{}]struct{}{}}
	g.Register(nouns...)
	return g
}

// Register adds nouns. It must not be called once the gate is in use.
func (g *Gate) Register(nouns ...Noun) {
	for _, n := range nouns {
		g.nouns[n.Kind] = n
	}
}

// Accept runs fn and commits what it wrote together with the operation, its
// tasks and intents, the audit entry and the answer that a retry gets. fn is
// given the id of the operation, to note it with what it puts. It may be
// called more than once, and must only use the transaction.
//
// The answer is the operation: pending, or ended already if nobody has to be
// waited for. A refusal is a *cloud.Error, and nothing was written.
func (g *Gate) Accept(ctx context.Context, c api.Call, fn func(tx *store.Tx, op cloud.ID) (Plan, error)) (*cloud.Operation, error) {
	var answer *cloud.Operation
	var unchanged bool
	_, err := g.store.Write(ctx, func(tx *store.Tx) error {
		id := cloud.NewID()
		plan, err := fn(tx, id)
		if err != nil {
			return err
		}
		if plan.Shown == "" {
			plan.Shown = plan.Subject.ID
		}
		if unchanged = plan.Unchanged; unchanged {
			answer = &cloud.Operation{ID: id, State: cloud.OperationSuccess, Reference: c.Operation.Refer(plan.Shown)}
			return nil
		}
		if answer, err = g.record(tx, c, id, plan); err != nil {
			return err
		}
		return g.note(tx, c, http.StatusOK, answer)
	})
	if err != nil {
		return nil, Refusal(err)
	}
	if unchanged {
		g.ended.add(c.Org, *answer)
	}
	return answer, nil
}

// record writes the operation and what goes with it.
func (g *Gate) record(tx *store.Tx, c api.Call, id cloud.ID, plan Plan) (*cloud.Operation, error) {
	if plan.UnderWay != "" {
		op, err := tx.Operation(c.Org, plan.UnderWay)
		if err != nil {
			return nil, err
		}
		return shape(op), nil
	}
	detail, err := json.Marshal(plan.Detail)
	if err != nil {
		return nil, fmt.Errorf("detail of %s: %w", c.Operation.ID, err)
	}
	now := tx.Now()
	op := store.Operation{
		ID: id, Org: c.Org, Command: c.Operation.ID, Subject: plan.Subject,
		Shown: store.Ref{Kind: store.Kind(c.Operation.Reference), ID: plan.Shown},
		State: cloud.OperationPending, Message: plan.Waiting, Tightens: plan.Tightens, Generation: plan.Generation,
		Created: now, Deadline: now.Add(deadline(plan)), Detail: string(detail),
	}
	if err := tx.AddOperation(op); err != nil {
		return nil, err
	}
	for _, t := range plan.Tasks {
		t.Operation = string(id)
		if err := tx.Inbox().Insert(tx.Context(), t); err != nil {
			return nil, err
		}
	}
	for _, i := range plan.Intents {
		i.Operation = id
		if err := tx.AddIntent(i); err != nil {
			return nil, err
		}
	}
	byStatus := g.nouns[plan.Subject.Kind].ByStatus
	if !plan.Done && plan.Failed == nil && !byStatus {
		if plan.Done, err = nobodyToAsk(tx); err != nil {
			return nil, err
		}
	}
	switch {
	default:
		return shape(op), nil
	case plan.Failed != nil:
		err = g.Finish(tx, id, cloud.OperationFailure, plan.Failed.Reason, plan.Failed.Message)
	case plan.Done && byStatus:
		err = g.Finish(tx, id, cloud.OperationSuccess, "", "")
	case plan.Done:
		err = g.settle(tx, op, Outcome{OK: true})
	}
	if err != nil {
		return nil, err
	}
	if op, err = tx.Operation(c.Org, id); err != nil {
		return nil, err
	}
	return shape(op), nil
}

func deadline(p Plan) time.Duration {
	if p.Deadline > 0 {
		return p.Deadline
	}
	if d, ok := deadlines[p.Subject.Kind]; ok {
		return d
	}
	return otherDeadline
}

// nobodyToAsk says that no hypervisor has ever joined: there is no agent whose
// acknowledgement could be waited for.
func nobodyToAsk(tx *store.Tx) (bool, error) {
	n, err := tx.Count(store.KindHypervisor, store.HypervisorJoined, store.HypervisorUnreachable)
	return n == 0, err
}

// shape is an operation as a client sees it.
func shape(op store.Operation) *cloud.Operation {
	o := &cloud.Operation{ID: op.ID, State: op.State, Reason: op.Reason, Message: op.Message}
	if known := capi.Find(capi.Operations, op.Command); known != nil {
		o.Reference = known.Refer(op.Shown.ID)
	}
	return o
}

// Refusal turns what the store refuses into what a client is told. Anything
// that is no refusal is returned as it is.
func Refusal(err error) error {
	var told *cloud.Error
	var used *store.InUseError
	var exhausted *store.ExhaustedError
	switch {
	case err == nil, errors.As(err, &told):
		return err
	case errors.As(err, &used):
		return cloud.Conflictf("%s", used.Error())
	case errors.As(err, &exhausted):
		return cloud.Conflictf("%s", exhausted.Error())
	case errors.Is(err, store.ErrBusy), errors.Is(err, store.ErrStale):
		return cloud.Unavailablef(time.Second, "the control plane is busy, try again")
	case errors.Is(err, store.ErrExists):
		return cloud.Conflictf("%s", err.Error())
	case errors.Is(err, store.ErrNotFound):
		return cloud.NotFoundf("%s", err.Error())
	}
	return err
}

// Step asks a machine what e does in state. A refusal becomes the contract's
// conflict and names the operation in the way.
func Step(tx *store.Tx, m *fsm.Machine, on store.Ref, state fsm.State, e fsm.Event) (fsm.Result, error) {
	r := m.Next(state, e)
	switch r.Verdict {
	case fsm.Handled, fsm.Ignored:
		return r, nil
	case fsm.Undefined:
		return r, fmt.Errorf("%s %s: machine %s: event %s in state %s is undefined", on.Kind, on.ID, m.Name, e, state)
	}
	pending, err := tx.Pending(on)
	if err != nil {
		return r, err
	}
	if len(pending) > 0 {
		return r, cloud.Busy(string(on.Kind), on.ID, pending[0].ID)
	}
	return r, cloud.Conflictf("%s %s: %s", on.Kind, on.ID, r.Reason)
}

// UnderWay finds a pending operation on a resource that does what command
// asks for; "" if there is none.
func UnderWay(tx *store.Tx, on store.Ref, command string) (cloud.ID, error) {
	pending, err := tx.Pending(on)
	if err != nil {
		return "", err
	}
	for _, op := range pending {
		if op.Command == command {
			return op.ID, nil
		}
	}
	return "", nil
}
