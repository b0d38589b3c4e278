// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/cloud/compute"
)

// How many machines are worked on at once, how often they are looked at, and
// the bounds of the pause after a failure.
const (
	parallel = 4
	look     = time.Second
	backoff  = time.Second
	longest  = 30 * time.Second
)

// Worker does the plans.
type Worker struct {
	drivers map[string]compute.Driver
	tell    func(Report)
	log     *slog.Logger
	wake    chan struct{}

	mu       sync.Mutex
	want     map[string]Want // nil until it is known
	failures map[string]failure
	machines map[string][]compute.Machine
}

type failure struct {
	reason string
	times  int
	until  time.Time // no new try before it
}

// NewWorker over the drivers there are. Tell gets each report, also one that
// says nothing new; it must not block.
func NewWorker(drivers []compute.Driver, tell func(Report), log *slog.Logger) *Worker {
	w := &Worker{
		drivers: map[string]compute.Driver{}, tell: tell, log: log, wake: make(chan struct{}, 1),
		failures: map[string]failure{}, machines: map[string][]compute.Machine{},
	}
	for _, d := range drivers {
		w.drivers[d.Name()] = d
	}
	return w
}

// Drivers names the drivers.
func (w *Worker) Drivers() []string {
	var names []string
	for name := range w.drivers {
		names = append(names, name)
	}
	return names
}

// Set what is wanted from now on.
func (w *Worker) Set(want map[string]Want) {
	w.mu.Lock()
	w.want = want
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Machines by driver, as last seen.
func (w *Worker) Machines() map[string][]compute.Machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.machines)
}

// Run works until ctx ends. A call of a driver that is under way then is waited
// for.
func (w *Worker) Run(ctx context.Context) {
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if err := w.round(ctx); err != nil {
			w.log.Warn("look at machines", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-w.wake:
		}
	}
}

// List asks all drivers.
func (w *Worker) List() (map[string][]compute.Machine, error) {
	have := map[string][]compute.Machine{}
	for name, d := range w.drivers {
		machines, err := d.List()
		if err != nil {
			return nil, fmt.Errorf("list machines of driver %s: %w", name, err)
		}
		have[name] = machines
	}
	return have, nil
}

func (w *Worker) round(ctx context.Context) error {
	w.mu.Lock()
	want := w.want
	w.mu.Unlock()
	if want == nil {
		return nil
	}
	have, err := w.List()
	if err != nil {
		return err
	}
	w.report(want, have)
	var group errgroup.Group
	group.SetLimit(parallel)
	worked := false
	for _, step := range Plan(want, have) {
		if ctx.Err() != nil || w.pausing(step.ID) {
			continue
		}
		worked = true
		group.Go(func() error {
			w.do(step)
			return nil
		})
	}
	_ = group.Wait() // no step returns an error: failures are kept for the reports
	if !worked {
		return nil
	}
	if have, err = w.List(); err != nil {
		return err
	}
	w.report(want, have)
	return nil
}

func (w *Worker) pausing(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Before(w.failures[id].until)
}

func (w *Worker) do(s Step) {
	began := time.Now()
	err := w.call(s)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.failures, s.ID)
		w.log.Info("machine", "step", s.String(), "took", time.Since(began))
		return
	}
	f := w.failures[s.ID]
	f.reason = err.Error()
	f.until = time.Now().Add(min(backoff<<min(f.times, 10), longest))
	f.times++
	w.failures[s.ID] = f
	w.log.Warn("machine", "step", s.String(), "error", err)
}

func (w *Worker) call(s Step) error {
	d, ok := w.drivers[s.Driver]
	if !ok {
		return fmt.Errorf("driver %s is not here", s.Driver)
	}
	if s.Op == Remove {
		return d.Remove(s.ID)
	}
	return d.Ensure(s.Spec)
}

func (w *Worker) report(want map[string]Want, have map[string][]compute.Machine) {
	w.mu.Lock()
	w.machines = have
	reasons := map[string]string{}
	for id, f := range w.failures {
		if _, ok := want[id]; ok {
			reasons[id] = f.reason
		}
	}
	w.mu.Unlock()
	for _, r := range Reports(want, have, reasons) {
		w.tell(r)
	}
}
