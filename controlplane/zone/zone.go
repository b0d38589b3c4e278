// SPDX-License-Identifier: Apache-2.0

// Package zone puts the control plane of one zone together: it founds the zone
// in its state folder, joins the orchestrators to each other, to the store, the
// agents and the API, and runs them. It decides nothing about any of them. Start
// at New.
package zone

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	capi "cairn/cloud/api"
	"cairn/controlplane/antiaffinity"
	"cairn/controlplane/api"
	"cairn/controlplane/dist"
	"cairn/controlplane/elasticip"
	"cairn/controlplane/eventlog"
	"cairn/controlplane/explain"
	"cairn/controlplane/hypervisor"
	"cairn/controlplane/instance"
	"cairn/controlplane/loadbalancer"
	"cairn/controlplane/operation"
	"cairn/controlplane/pki"
	"cairn/controlplane/pool"
	"cairn/controlplane/privatenetwork"
	"cairn/controlplane/program"
	"cairn/controlplane/replica"
	"cairn/controlplane/reversedns"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/sshkey"
	"cairn/controlplane/store"
	"cairn/controlplane/tenant"
	"cairn/controlplane/traffic"
)

// Config of a zone's control plane.
type Config struct {
	PublicURL string        // where clients reach the API
	Window    time.Duration // for how long usage is added up; 0: an hour
	Log       *slog.Logger
}

// Zone is a control plane that can run.
type Zone struct {
	Name string

	folder    Folder
	log       *slog.Logger
	store     *store.Store
	root      *store.RootKey
	gate      *operation.Gate
	instances *instance.Instances
	elastics  *elasticip.Elastics
	pools     *pool.Pools
	balancers *loadbalancer.Balancers
	worker    *program.Worker
	agents    *dist.Server
	events    *eventlog.Log
	traffic   *traffic.Traffic
	handler   http.Handler
}

// New joins the parts of the zone that s holds, and brings what an earlier life
// left half done into a state from which Run goes on.
func New(ctx context.Context, f Folder, s *store.Store, cfg Config) (*Zone, error) {
	zone, err := s.Zone(ctx)
	if err != nil {
		return nil, err
	}
	z := &Zone{Name: zone.Name, folder: f, store: s, log: cfg.Log}
	if z.root, err = store.LoadRootKey(f.rootKey()); err != nil {
		return nil, err
	}
	z.joinNouns()
	if err := z.instances.Recover(ctx); err != nil {
		return nil, err
	}
	if err := z.joinTraffic(cfg.Window); err != nil {
		return nil, err
	}
	if err := z.joinAgents(); err != nil {
		return nil, err
	}
	return z, z.joinAPI(cfg.PublicURL)
}

// joinNouns makes the orchestrators and tells them of each other.
func (z *Zone) joinNouns() {
	s, log := z.store, z.log
	z.gate = operation.New(s, log, securitygroup.Noun, privatenetwork.Noun)
	z.instances = instance.New(s, z.gate)
	z.elastics = elasticip.New(s, z.gate, log)
	z.instances.Elastics, z.instances.Root = z.elastics, z.root
	z.pools = pool.New(s, z.gate, z.instances)
	z.worker = program.NewWorker(program.Config{
		Tasks: s.Tasks(), Owner: "cairnd", Actions: z.pools.Actions(), Done: z.pools.Done, Log: log,
	})
	z.gate.Register(loadbalancer.Nouns...)
	z.balancers = loadbalancer.New(s, z.gate, log)
	z.pools.Follower, z.pools.Wake, z.balancers.Drained = z.balancers, z.worker.Wake, z.pools.Drained
}

// joinAgents makes the agents' server; what hosts are and report goes to the
// orchestrators.
func (z *Zone) joinAgents() error {
	issuer, err := z.folder.issuer(z.Name)
	if err != nil {
		return err
	}
	hypervisors := hypervisor.New(z.store, z.log)
	hypervisors.Changed = func(tx *store.Tx, found []store.Doc[store.HypervisorDoc]) error {
		return errors.Join(z.balancers.HostsChanged(tx, found), z.elastics.HostsChanged(tx, found))
	}
	reported := func(ctx context.Context, host string, reports []dist.Report) error {
		return errors.Join(z.balancers.Reported(ctx, host, reports), z.elastics.Reported(ctx, host, reports), z.instances.Report(ctx, host, reports))
	}
	z.agents, err = dist.New(dist.Config{
		Traffic: z.traffic, Store: z.store, Settler: z.gate, Log: z.log, Ledger: filepath.Join(z.folder.State, "ledger"),
		Desk:   &pki.Desk{Issuer: issuer, Registry: hypervisors.Registry(), Now: time.Now},
		Events: hypervisor.Agents{Hypervisors: hypervisors, Reported: reported},
	})
	if err != nil {
		return err
	}
	z.gate.Waiting, z.gate.Compacted = z.agents.Waiting, z.agents.Compact
	return nil
}

// joinTraffic opens the log of flows and usage.
func (z *Zone) joinTraffic(window time.Duration) (err error) {
	if z.events, err = eventlog.Open(eventlog.Config{Folder: filepath.Join(z.folder.State, "events"), Log: z.log}); err != nil {
		return err
	}
	z.traffic, err = traffic.New(traffic.Config{
		Zone: z.Name, Events: z.events, File: filepath.Join(z.folder.State, "usage.json"), Window: window, Log: z.log,
		Snapshot: func() replica.Snapshot { return z.agents.Snapshot() },
	})
	return err
}

// joinAPI offers the operations that have a handler.
func (z *Zone) joinAPI(publicURL string) (err error) {
	s, g := z.store, z.gate
	handlers := api.Merge(api.Catalogue(z.Name, publicURL), g.Handlers(),
		sshkey.Handlers(s, g), antiaffinity.Handlers(s, g), securitygroup.Handlers(s, g), z.instances.Handlers(), z.pools.Handlers(),
		z.balancers.Handlers(), privatenetwork.Handlers(s, g), z.elastics.Handlers(), reversedns.Handlers(s, g),
		z.traffic.Handlers(), explain.Explainer{Zone: z.Name, Snapshot: z.agents.Snapshot}.Handlers())
	var served []capi.Operation
	for _, o := range capi.Operations {
		if handlers[o.ID] != nil {
			served = append(served, o)
		}
	}
	z.handler, err = api.New(api.Config{
		Operations: served, Handlers: handlers, Keys: tenant.Keys{Store: s, Root: z.root},
		Answers: g, Waiter: g, Audit: g.Audit, Zone: z.Name, PublicURL: publicURL, Logger: z.log,
	})
	return err
}

// Run serves clients, and agents if they have a listener, until ctx ends; then
// it lets requests in work finish.
func (z *Zone) Run(ctx context.Context, clients, agents net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return z.gate.Run(ctx) })
	group.Go(func() error { return z.store.Poll(ctx) })
	group.Go(func() error { z.worker.Run(ctx); return nil })
	group.Go(func() error { return z.agents.Run(ctx) })
	group.Go(func() error { return z.balancers.Run(ctx) })
	group.Go(func() error { return z.elastics.Run(ctx) })
	group.Go(func() error { z.traffic.Run(ctx); return nil })
	group.Go(func() error { z.events.Run(ctx); return z.events.Close() })
	if agents != nil {
		group.Go(func() error { return z.agents.Serve(ctx, agents) })
	}
	group.Go(func() error { return serve(ctx, clients, z.handler) })
	return group.Wait()
}
