// SPDX-License-Identifier: Apache-2.0

package program

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Call is one attempt at a leaf, as its action sees it.
type Call struct {
	Task      string
	Operation string
	Subject   string
	Path      string // of the leaf; with Task, the same for every attempt
	Attempt   int
	Args      json.RawMessage
}

// Action does what a leaf means. It may be called again with equal arguments,
// after a success too, and must then end the same way. When ctx ends it returns
// soon: one that does not is left behind, and may still be at work when the next
// attempt begins.
type Action func(ctx context.Context, c Call) error

// Permanent marks an error that another attempt would not cure.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Config is what a Worker is made of.
type Config struct {
	Tasks   Tasks
	Owner   string // names this worker in leases
	Actions map[string]Action

	// Done, if set, is told how a task ends, before the store is. It may be
	// told again after a crash; on an error it is told again later.
	Done func(ctx context.Context, t Task, o Outcome) error

	Lease time.Duration // default 9 s; renewed at a third of it
	Poll  time.Duration // default 500 ms
	Grace time.Duration // for actions that overstay; default 5 s
	Limit int           // tasks at once; default 64
	Log   *slog.Logger
}

// Worker runs the tasks of a store. Any number of them may work on one store.
type Worker struct {
	Config
	look chan struct{} // for Run: claim now

	mu   sync.Mutex
	runs map[*run]struct{}
}

// NewWorker makes a worker; Run starts it.
func NewWorker(c Config) *Worker {
	c.Lease = defaultTo(c.Lease, 9*time.Second)
	c.Poll = defaultTo(c.Poll, 500*time.Millisecond)
	c.Grace = defaultTo(c.Grace, 5*time.Second)
	c.Limit = defaultTo(c.Limit, 64)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Worker{Config: c, look: make(chan struct{}, 1), runs: map[*run]struct{}{}}
}

func defaultTo[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Wake hints that a task may be ready, or that something may have come for one
// under way, so that it is found at once and not at the next poll or heartbeat.
// It never blocks.
func (w *Worker) Wake() {
	knock(w.look)
	w.mu.Lock()
	defer w.mu.Unlock()
	for r := range w.runs {
		knock(r.news)
	}
}

func knock(door chan struct{}) {
	select {
	case door <- struct{}{}:
	default:
	}
}

// Run works until ctx ends, then gives its tasks back and returns. Leaves under
// way are told by their context and begun again by whoever takes the task.
func (w *Worker) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	poll := time.NewTicker(w.Poll)
	defer poll.Stop()
	slots := make(chan struct{}, w.Limit)
	if err := w.Tasks.Free(ctx, w.Owner); err != nil && ctx.Err() == nil {
		w.Log.Error("free the predecessor's tasks", "err", err)
	}
	for {
		if free := w.Limit - len(slots); free > 0 {
			tasks, err := w.Tasks.Claim(ctx, w.Owner, time.Now(), w.Lease, free)
			if err != nil && ctx.Err() == nil {
				w.Log.Error("claim tasks", "err", err)
			}
			for _, t := range tasks {
				slots <- struct{}{}
				all.Go(func() {
					w.drive(ctx, t)
					<-slots
					knock(w.look) // the next task of the subject may go on
				})
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		case <-w.look:
		}
	}
}

// run is one held task.
type run struct {
	*Worker
	task     Task
	program  Program
	results  chan Result
	inFlight int
	news     chan struct{} // something may have come
}

// drive works on a task until it ends, sleeps, or is lost.
func (w *Worker) drive(ctx context.Context, t Task) {
	r := &run{Worker: w, task: t, news: make(chan struct{}, 1)}
	w.mu.Lock()
	w.runs[r] = struct{}{}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.runs, r)
		w.mu.Unlock()
	}()
	var err error
	if r.program, err = decodeTask(t); err != nil {
		err = r.finish(ctx, Outcome{State: Failed, Message: err.Error()})
	} else {
		err = r.loop(ctx)
	}
	if err != nil && ctx.Err() == nil {
		w.Log.Warn("task dropped", "task", t.ID, "subject", t.Subject, "err", err)
	}
}

func decodeTask(t Task) (p Program, err error) {
	if p.Tree, err = Decode(t.Program); err != nil {
		return p, err
	}
	if p.Progress, err = decodeProgress(t.Progress); err != nil {
		return p, err
	}
	return Recover(p), p.Tree.Check(nil)
}

// loop steps, writes down, begins what is due and waits for something to
// happen. When it returns, the context of its leaves has ended, too.
func (r *run) loop(ctx context.Context) error {
	leaves, stop := context.WithCancel(ctx)
	defer stop()
	// Room for every leaf: one that is left behind never blocks on its result.
	r.results = make(chan Result, 1+count(r.program.Tree))
	heartbeat := time.NewTicker(r.Lease / 3)
	defer heartbeat.Stop()
	var results []Result
	for {
		now := time.Now()
		in := Input{Now: now, Salt: r.task.ID, Results: results,
			Events: r.task.Events, Cancelled: r.task.Cancelled, Deadline: r.task.Deadline}
		p, dispatches, next := Step(r.program, in)
		r.program = p
		var err error
		if r.task.Progress, err = encodeProgress(p.Progress); err != nil {
			return fmt.Errorf("encode progress: %w", err)
		}
		if next.Done {
			return r.finish(ctx, next.Outcome)
		}
		if next.Running == 0 {
			r.task.NotBefore = next.Wake
			return r.save(ctx, true)
		}
		if len(results) > 0 || len(dispatches) > 0 {
			if err := r.save(ctx, false); err != nil {
				return err
			}
		}
		for _, d := range dispatches {
			r.begin(leaves, d)
		}
		if results, err = r.await(ctx, heartbeat.C, next.Wake); err != nil {
			return err
		}
	}
}

// await returns when there are results, news from the store, or wake has come.
func (r *run) await(ctx context.Context, heartbeat <-chan time.Time, wake time.Time) ([]Result, error) {
	var alarm <-chan time.Time
	if !wake.IsZero() {
		timer := time.NewTimer(time.Until(wake))
		defer timer.Stop()
		alarm = timer.C
	}
	select {
	case <-ctx.Done():
		return nil, r.giveBack(ctx)
	case result := <-r.results:
		if ctx.Err() != nil {
			// An error may come of nothing but our own end: it does not count.
			r.results <- result
			return nil, r.giveBack(ctx)
		}
		return r.drain(result), nil
	case <-alarm:
		return nil, nil
	case <-heartbeat:
	case <-r.news:
	}
	return nil, r.extend(ctx)
}

// extend renews the lease and fetches what has come.
func (r *run) extend(ctx context.Context) error {
	s, err := r.Tasks.Extend(ctx, r.task, time.Now().Add(r.Lease))
	if err != nil {
		return err
	}
	r.task.Cancelled, r.task.Events = s.Cancelled, s.Events
	return nil
}

// save writes the task down. A store that is busy is asked again for a while;
// then the task is dropped, and taken up again when its lease has run out.
func (r *run) save(ctx context.Context, release bool) error {
	pause := 50 * time.Millisecond
	for {
		err := r.Tasks.Save(ctx, r.task, release)
		if err == nil || errors.Is(err, ErrLost) || pause > r.Lease/3 {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
			pause *= 2
		}
	}
}

func (r *run) drain(first Result) []Result {
	results := []Result{first}
	r.inFlight--
	for {
		select {
		case next := <-r.results:
			results = append(results, next)
			r.inFlight--
		default:
			return results
		}
	}
}

// giveBack ends the work on a task because this worker ends: successes that
// still come within the grace are kept, the other leaves are begun again by the
// next worker. Should the store refuse, the lease runs out by itself.
func (r *run) giveBack(ctx context.Context) error {
	timer := time.NewTimer(r.Grace)
	defer timer.Stop()
	for late := false; r.inFlight > 0 && !late; {
		select {
		case result := <-r.results:
			if r.inFlight--; result.Error == "" {
				r.program = Record(r.program, Input{Now: time.Now(), Results: []Result{result}})
			}
		case <-timer.C:
			late = true
		}
	}
	return fmt.Errorf("give %s back: %w", r.task.ID, errors.Join(context.Cause(ctx), r.saveBack(ctx)))
}

func (r *run) saveBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Grace)
	defer cancel()
	progress, err := encodeProgress(Recover(r.program).Progress)
	if err != nil {
		return err
	}
	r.task.Progress, r.task.NotBefore = progress, time.Time{}
	return r.Tasks.Save(ctx, r.task, true)
}

// begin starts an attempt in a goroutine of its own. Its result comes when the
// action returns, or a grace after its time is up.
func (r *run) begin(ctx context.Context, d Dispatch) {
	r.inFlight++
	call := Call{Task: r.task.ID, Operation: r.task.Operation, Subject: r.task.Subject,
		Path: d.Path, Attempt: d.Attempt, Args: d.Leaf.Args}
	action, known := r.Actions[d.Leaf.Action]
	done := make(chan error, 1)
	go func() {
		if !known {
			done <- Permanent(errors.New("no such action"))
			return
		}
		limited, cancel := context.WithDeadline(ctx, d.Until)
		defer cancel()
		done <- r.protect(limited, action, call)
	}()
	go func() {
		overstayed := time.NewTimer(time.Until(d.Until) + r.Grace)
		defer overstayed.Stop()
		result := Result{Path: d.Path, Attempt: d.Attempt}
		select {
		case err := <-done:
			if err != nil {
				result.Error = err.Error()
				result.Permanent = errors.As(err, new(permanent))
			}
		case <-overstayed.C:
			result.Error = "no answer in time"
		}
		r.results <- result
	}()
}

// protect turns a panic of an action into its failure: one bad object does not
// take the others down.
func (r *run) protect(ctx context.Context, a Action, c Call) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return a(ctx, c)
}

// finish tells Done, then the store. What Done refuses is told again after a
// pause: the task sleeps with everything settled.
func (r *run) finish(ctx context.Context, o Outcome) error {
	if r.Done != nil {
		if err := r.Done(ctx, r.task, o); err != nil {
			r.task.NotBefore = time.Now().Add(backoff(Leaf{}, r.task.Attempts, r.task.ID))
			return errors.Join(fmt.Errorf("tell the end of %s: %w", r.task.ID, err), r.Tasks.Save(ctx, r.task, true))
		}
	}
	return r.Tasks.Finish(ctx, r.task, o)
}

func count(n Node) int {
	total := 1
	n.children("", func(child Node, _ string) { total += count(child) })
	return total
}
