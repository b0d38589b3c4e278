// SPDX-License-Identifier: Apache-2.0

// Package agent owns the life of a hypervisor's agent: one loop that turns the
// desired tables into map contents, and what runs beside it. It decides nothing
// by itself: each part is a package of its own. Start at Run; loop.go is the
// round, dirty.go what a change touches.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	rdebug "runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/cloud/compute"
	"cairn/cloud/wire"
	"cairn/dataplane/announce"
	"cairn/dataplane/check"
	"cairn/dataplane/debug"
	"cairn/dataplane/dhcp"
	"cairn/dataplane/flowlog"
	"cairn/dataplane/host"
	"cairn/dataplane/instance"
	"cairn/dataplane/maps"
	"cairn/dataplane/metadata"
	"cairn/dataplane/metrics"
	dsync "cairn/dataplane/sync"
	"cairn/dataplane/table"
	"cairn/dataplane/trace"
)

// Version of the agent, as the control plane and people see it.
const Version = "0.1"

// Config of an agent.
type Config struct {
	Name     string
	State    string // folder
	Pins     string // folder on a bpffs
	Uplink   string
	Endpoint netip.Addr
	Control  string // HOST:PORT
	Token    string // to join with
	Socket   string // of the debug service
	Metrics  string // where metrics are served: unix:PATH or a loopback ADDRESS:PORT; none: nowhere
	Door     string // namespace of the host's own services; none: no checks
	Roles    []string
	DNS      []netip.Addr // servers that instances are told of on their public interface
	Drivers  []compute.Driver
	Sizes    map[string]uint32 // of maps, when they are made
	MTUCheck bool              // refuse an uplink without room for the encapsulation
	Sample   uint32            // one packet of a service in so many is told of, when somebody looks; 0: none
	Usage    time.Duration     // between reports of what ports have carried; 0: ten seconds
	Log      *slog.Logger
}

// RoleBalancer is the role of hosts that announce VIPs.
const RoleBalancer = "lb"

// Announcements is the file for the speaker, in the state folder.
const Announcements = "announcements.json"

// Agent is one that runs.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	host     *host.Host
	store    *maps.Kernel
	mark     *mark
	table    *table.Table
	watcher  *table.Watcher
	senses   *Senses
	client   *dsync.Client
	cache    *dsync.Cache
	checks   *check.Checks
	answers  *dhcp.Server     // nil when it could not be opened
	metadata *metadata.Server // the same
	worker   *instance.Worker
	traffic  *flowlog.Log // nil when it could not be opened
	unlisten func()
	started  time.Time
	restarts uint64
	lock     *os.File
	rounds   rounds
	tracer   *trace.Tracer
	repairs  chan repairRequest

	overlayLost bool // of the loop's goroutine: it was said

	mu         sync.Mutex // of the loop and what follows
	loop       *Loop
	programmed table.Mark
	announced  *announce.Set
	repaired   uint64
	flows      uint64
}

// Run takes the host's dataplane over as it is, or brings it up, and keeps it
// as the control plane wants it until ctx ends. Then everything stays in force.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	a := &Agent{cfg: cfg, log: cfg.Log, started: time.Now(), repairs: make(chan repairRequest)}
	defer a.close()
	if err := a.open(); err != nil {
		return fmt.Errorf("start agent %s: %w", cfg.Name, err)
	}
	return a.run(ctx)
}

func (a *Agent) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, part := range []func(context.Context){a.senses.Run, a.client.Run, a.worker.Run, a.collect, a.look, a.keep} {
		group.Go(func() error { part(ctx); return nil })
	}
	if a.answers != nil {
		group.Go(func() error { a.answers.Run(ctx); return nil })
	}
	if a.traffic != nil {
		group.Go(func() error { a.traffic.Run(ctx); return nil })
	}
	if a.metadata != nil {
		group.Go(func() error { a.serveMetadata(ctx); return nil })
	}
	group.Go(func() error {
		a.cache.Run(ctx, cachePause, func(err error) { a.log.Error("desired state not kept on disk", "error", err) })
		return nil
	})
	if a.cfg.Socket != "" {
		group.Go(func() error {
			if err := debug.Serve(ctx, a.cfg.Socket, a); err != nil {
				a.log.Error("nobody can look into this agent", "error", err) // and it goes on all the same
			}
			return nil
		})
	}
	if a.cfg.Metrics != "" {
		group.Go(func() error {
			if err := metrics.Serve(ctx, a.cfg.Metrics, a); err != nil {
				a.log.Error("nobody can read this agent's metrics", "error", err) // the same
			}
			return nil
		})
	}
	rdebug.FreeOSMemory() // objects and their types were parsed, and are not needed again
	a.log.Info("agent runs", "name", a.cfg.Name, "revision", a.table.View().Mark().Revision, "starts", a.restarts)
	err := group.Wait()
	a.log.Info("agent ends, what it programmed stays", "error", err)
	return err
}

// cachePause is between two generations of the cache: each waits for the disk.
const cachePause = 500 * time.Millisecond

// How often the maps are read again to find what somebody else changed, and how
// often what could not be programmed is tried again.
const (
	auditPeriod = 30 * time.Second
	retryPeriod = 2 * time.Second
)

// keep is the loop.
func (a *Agent) keep(ctx context.Context) {
	audit, retry := time.NewTicker(auditPeriod), time.NewTicker(retryPeriod)
	defer audit.Stop()
	defer retry.Stop()
	release := time.NewTimer(time.Hour)
	defer release.Stop()
	for {
		work := a.round
		select {
		case <-ctx.Done():
			return
		case <-a.watcher.Wake():
		case <-a.senses.Wake():
			a.repairOverlay()
		case <-retry.C:
			a.repairOverlay()
			if !a.unsettled() {
				continue
			}
		case <-audit.C:
			a.audit()
		case <-release.C:
			work = a.release
		case r := <-a.repairs:
			work = func() time.Time { return a.repair(r) }
		}
		if next := work(); !next.IsZero() {
			release.Reset(max(time.Until(next), time.Millisecond))
		}
	}
}

func (a *Agent) unsettled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.loop.Unsettled()) > 0
}

func (a *Agent) audit() {
	a.mu.Lock()
	defer a.mu.Unlock()
	differences, err := a.loop.Audit()
	if err != nil {
		a.log.Error("maps not audited", "error", err)
	}
	a.repaired += uint64(len(differences))
	for _, line := range differences {
		a.log.Warn("somebody else changed a map", "entry", line)
	}
}

// concerns tells whether one of the keys is of one of the kinds.
func concerns(changed []wire.Key, kinds ...wire.Kind) bool {
	return slices.ContainsFunc(changed, func(key wire.Key) bool { return slices.Contains(kinds, key.Kind) })
}

// release frees numbers whose grace period has passed. What waits for one of
// them is tried again.
func (a *Agent) release() time.Time {
	a.mu.Lock()
	next := a.loop.Release(time.Now())
	unsettled := len(a.loop.Unsettled()) > 0
	a.mu.Unlock()
	if unsettled {
		return a.round()
	}
	return next
}

// round programs what the tables hold now, tells the control plane, and hands
// the rest of it to those who work on their own.
func (a *Agent) round() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	view := a.table.View()
	changed := a.watcher.Changed(view)
	_, down := a.senses.Uplink()
	a.client.Uplink(down)
	facts := a.facts(view)
	out := a.loop.Round(view, changed, facts, time.Now())
	if out.Held {
		return time.Time{}
	}
	if err := a.mark.raise(a.programmed, out.Mark); err != nil {
		// Without the mark an older state could be taken after a restart: the
		// control plane is not told that this one holds.
		a.log.Error("mark of the maps not written", "error", err)
		return time.Time{}
	}
	programmed := monotonic()
	a.client.Programmed(out.Mark, programmed, out.Faults)
	a.rounds.add(out, programmed)
	for _, f := range out.Faults {
		a.log.Warn("item not programmed", "key", f.Key.String(), "reason", f.Reason)
	}
	for _, s := range out.Steps {
		a.log.Debug("step", "step", s)
	}
	if out.Mark != a.programmed || len(changed) > 0 {
		first := a.programmed == (table.Mark{})
		a.programmed = out.Mark
		a.cache.Offer(view)
		if first || concerns(changed, wire.KindInstance, wire.KindPort) {
			a.worker.Set(instance.Wanted(view))
			a.forgetInstances(view, changed)
		}
		if a.checks != nil && (first || concerns(changed, wire.KindCheck)) {
			a.checks.Set(view)
		}
	}
	if a.answers != nil {
		a.answers.Set(view, facts.Ports.Devices)
	}
	a.announce(view, facts)
	return a.loop.Release(time.Now())
}
