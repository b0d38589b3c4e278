// SPDX-License-Identifier: Apache-2.0

// Package converge remembers which operations wait for which agents, and says
// when the waiting is over: every agent concerned has acknowledged the change,
// one has refused it, or the silent ones are no longer waited for. It keeps
// nothing on disk: what waits is built anew from the pending operations and the
// revisions that agents bring. Deadlines are not its business.
//
// Start at Begin, then Acked.
package converge

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/operation"
)

// Settler is told how an operation ended. It may be told again, and late.
type Settler interface {
	Settled(ctx context.Context, op cloud.ID, outcome operation.Outcome) error
}

// Change is one operation's part of what was compiled at a revision.
type Change struct {
	Operation cloud.ID
	Tightens  bool // what it takes away may still be there on a silent host
	Revision  uint64
	Hosts     []uint32   // that have something to do
	Keys      []wire.Key // that it changed: a refusal of one of them is its own
	Fault     string     // it could not be compiled, so no agent can have it
}

// Tracker is the memory. It is safe for concurrent use.
type Tracker struct {
	settler Settler
	log     *slog.Logger

	mu      sync.Mutex
	waits   map[cloud.ID]*wait
	byHost  map[uint32]map[cloud.ID]bool // waits that miss a host
	hosts   map[uint32]host
	settled []settlement // for Run
	wake    chan struct{}
	last    programmed
}

type host struct {
	name   string
	silent time.Time // since; zero while its lease is good
}

type wait struct {
	tightens bool
	keys     map[wire.Key]bool
	missing  map[uint32]uint64 // host -> revision that it has to acknowledge
	excused  []string          // hosts that are not waited for, in words
	moment   int64             // of the last map write so far
	revision uint64            // of the last change
}

type settlement struct {
	op      cloud.ID
	outcome operation.Outcome
}

// New makes an empty tracker.
func New(settler Settler, log *slog.Logger) *Tracker {
	return &Tracker{
		settler: settler, log: log,
		waits: map[cloud.ID]*wait{}, byHost: map[uint32]map[cloud.ID]bool{}, hosts: map[uint32]host{},
		wake: make(chan struct{}, 1),
	}
}

// Begin waits for the hosts of each change; one without hosts is settled at
// once. It must be called before an agent can get to see the change. An
// operation that changes something again waits for that too.
func (t *Tracker) Begin(changes ...Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range changes {
		w := t.waits[c.Operation]
		if w == nil {
			w = &wait{keys: map[wire.Key]bool{}, missing: map[uint32]uint64{}}
			t.waits[c.Operation] = w
		}
		if c.Fault != "" {
			t.settle(c.Operation, operation.Outcome{Reason: cloud.ReasonFault, Message: c.Fault})
			continue
		}
		w.tightens = w.tightens || c.Tightens
		w.revision = max(w.revision, c.Revision)
		for _, key := range c.Keys {
			w.keys[key] = true
		}
		for _, n := range c.Hosts {
			if !w.tightens && !t.hosts[n].silent.IsZero() {
				t.excuse(w, n)
				continue
			}
			w.missing[n] = max(w.missing[n], c.Revision)
			if t.byHost[n] == nil {
				t.byHost[n] = map[cloud.ID]bool{}
			}
			t.byHost[n][c.Operation] = true
		}
		t.check(c.Operation, w)
	}
}

// Acked: the host holds everything up to a revision, or has refused it before.
// Programmed is when it did its last map write, by its monotonic clock; 0 if it
// did not say.
func (t *Tracker) Acked(n uint32, revision uint64, programmed int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for op := range t.byHost[n] {
		w := t.waits[op]
		if w.missing[n] > revision {
			continue
		}
		w.moment = max(w.moment, programmed)
		t.arrive(op, w, n)
		t.check(op, w)
	}
}

// Nacked: the host cannot do what an item asks. Operations that changed the
// item and wait for the host have failed, in the agent's words.
func (t *Tracker) Nacked(n uint32, key wire.Key, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for op := range t.byHost[n] {
		if t.waits[op].keys[key] {
			t.settle(op, operation.Outcome{
				Reason: cloud.ReasonFault, Message: fmt.Sprintf("%s: %s: %s", t.name(n), key, reason),
			})
		}
	}
}

// Known tells a host's name, for messages.
func (t *Tracker) Known(n uint32, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[n]
	h.name = name
	t.hosts[n] = h
}

// Expired: a host's lease is over. What loosens does not wait for it any more;
// what tightens does, since nobody but the host can stop admitting.
func (t *Tracker) Expired(n uint32, since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[n]
	h.silent = since
	t.hosts[n] = h
	for op := range t.byHost[n] {
		if w := t.waits[op]; !w.tightens {
			t.arrive(op, w, n)
			t.excuse(w, n)
			t.check(op, w)
		}
	}
}

// Returned: a host whose lease was over is heard of again.
func (t *Tracker) Returned(n uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[n]
	h.silent = time.Time{}
	t.hosts[n] = h
}

// Removed: a host is no longer part of the zone.
func (t *Tracker) Removed(n uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for op := range t.byHost[n] {
		t.arrive(op, t.waits[op], n)
		t.check(op, t.waits[op])
	}
	delete(t.hosts, n)
}

// Missing lists the hosts that an operation waits for, by name, with what is
// known of their silence: "hv3, silent since 10:15:04".
func (t *Tracker) Missing(op cloud.ID) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.waits[op]
	if w == nil {
		return nil
	}
	var words []string
	for n := range w.missing {
		words = append(words, t.words(n))
	}
	slices.Sort(words)
	return words
}

// Waiting is Missing in one line, empty if there is nobody.
func (t *Tracker) Waiting(op cloud.ID) string { return strings.Join(t.Missing(op), "; ") }

// Programmed says when the last map write of a recently settled operation was
// done, by the monotonic clock of its host; 0 if it is not known.
func (t *Tracker) Programmed(op cloud.ID) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last.at[op]
}

func (t *Tracker) name(n uint32) string { return cmp.Or(t.hosts[n].name, fmt.Sprintf("host %d", n)) }

func (t *Tracker) words(n uint32) string {
	if since := t.hosts[n].silent; !since.IsZero() {
		return fmt.Sprintf("%s, silent since %s", t.name(n), since.UTC().Format("15:04:05"))
	}
	return t.name(n)
}

// arrive ends the waiting of one operation for one host.
func (t *Tracker) arrive(op cloud.ID, w *wait, n uint32) {
	delete(w.missing, n)
	delete(t.byHost[n], op)
}

func (t *Tracker) excuse(w *wait, n uint32) {
	if words := t.words(n); !slices.Contains(w.excused, words) {
		w.excused = append(w.excused, words)
	}
}

func (t *Tracker) check(op cloud.ID, w *wait) {
	if len(w.missing) > 0 {
		return
	}
	slices.Sort(w.excused)
	t.settle(op, operation.Outcome{OK: true, Message: strings.Join(w.excused, "; ")})
}

// settle ends all waiting of an operation and queues the news for Run.
func (t *Tracker) settle(op cloud.ID, outcome operation.Outcome) {
	w := t.waits[op]
	for n := range w.missing {
		delete(t.byHost[n], op)
	}
	delete(t.waits, op)
	t.last.add(op, w.moment)
	outcome.Revision = w.revision
	t.settled = append(t.settled, settlement{op, outcome})
	select {
	case t.wake <- struct{}{}:
	default: // Run has been woken already
	}
}

// retryAfter is how long Run waits when the news could not be delivered.
const retryAfter = 200 * time.Millisecond

// Run tells the settler, in the order in which operations ended, until ctx
// ends.
func (t *Tracker) Run(ctx context.Context) error {
	for {
		t.mu.Lock()
		news := t.settled
		t.settled = nil
		t.mu.Unlock()
		for i, s := range news {
			if err := t.settler.Settled(ctx, s.op, s.outcome); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				t.log.Warn("operation could not be settled", "operation", s.op, "error", err)
				if !t.again(ctx, news[i:]) {
					return nil
				}
				break
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		}
	}
}

// again puts news back in front after a pause; false if ctx has ended.
func (t *Tracker) again(ctx context.Context, news []settlement) bool {
	timer := time.NewTimer(retryAfter)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled = append(slices.Clone(news), t.settled...)
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return true
}

// remembered bounds what is kept of operations that have ended.
const remembered = 4096

// programmed keeps the moments of the operations settled last.
type programmed struct {
	at    map[cloud.ID]int64
	order []cloud.ID
}

func (p *programmed) add(op cloud.ID, at int64) {
	if p.at == nil {
		p.at = map[cloud.ID]int64{}
	}
	if at == 0 {
		return
	}
	if _, ok := p.at[op]; !ok {
		p.order = append(p.order, op)
	}
	p.at[op] = max(p.at[op], at)
	if len(p.order) > remembered {
		delete(p.at, p.order[0])
		p.order = p.order[1:]
	}
}
