// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	capi "cairn/cloud/api"
	"cairn/controlplane/antiaffinity"
	"cairn/controlplane/api"
	"cairn/controlplane/dist"
	"cairn/controlplane/elasticip"
	"cairn/controlplane/explain"
	"cairn/controlplane/hypervisor"
	"cairn/controlplane/instance"
	"cairn/controlplane/loadbalancer"
	"cairn/controlplane/operation"
	"cairn/controlplane/pki"
	"cairn/controlplane/pool"
	"cairn/controlplane/privatenetwork"
	"cairn/controlplane/program"
	"cairn/controlplane/reversedns"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/sshkey"
	"cairn/controlplane/store"
	"cairn/controlplane/tenant"
)

// goodbye is how long requests and streams have to end.
const goodbye = 5 * time.Second

type daemon struct {
	folder
	listen, listenAgents, publicURL string
	log                             *slog.Logger
}

func run(f *folder) *cobra.Command {
	d := daemon{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	cmd := &cobra.Command{
		Use: "run", Short: "serve the zone until SIGTERM", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			slog.SetDefault(d.log)
			d.folder = *f
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			cmd.SetContext(ctx)
			return d.run(cmd)
		},
	}
	cmd.Flags().StringVar(&d.listen, "listen", "127.0.0.1:8080", "address of the API, unless a socket is handed over (LISTEN_FDS=1)")
	cmd.Flags().StringVar(&d.listenAgents, "listen-agents", "", "address for agents")
	cmd.Flags().StringVar(&d.publicURL, "public-url", "", "where clients reach the API (default http://LISTEN)")
	return cmd
}

func (d *daemon) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	s, err := d.open(cmd)
	if err != nil {
		return err
	}
	defer s.Close()
	zone, err := s.Zone(ctx)
	if err != nil {
		return err
	}
	root, err := store.LoadRootKey(d.rootKeyPath())
	if err != nil {
		return err
	}
	listener, err := d.listener()
	if err != nil {
		return err
	}
	if d.publicURL == "" {
		d.publicURL = "http://" + listener.Addr().String()
	}
	var forAgents net.Listener
	if d.listenAgents != "" {
		if forAgents, err = net.Listen("tcp", d.listenAgents); err != nil {
			return err
		}
	}

	issuer, err := d.issuer(zone.Name)
	if err != nil {
		return err
	}

	gate := operation.New(s, d.log, securitygroup.Noun, privatenetwork.Noun)
	instances := instance.New(s, gate)
	elastics := elasticip.New(s, gate, d.log)
	instances.Elastics, instances.Root = elastics, root
	pools := pool.New(s, gate, instances)
	worker := program.NewWorker(program.Config{Tasks: s.Tasks(), Owner: "cairnd", Actions: pools.Actions(), Done: pools.Done, Log: d.log})
	gate.Register(loadbalancer.Nouns...)
	balancers := loadbalancer.New(s, gate, d.log)
	pools.Follower, pools.Wake, balancers.Drained = balancers, worker.Wake, pools.Drained
	if err := instances.Recover(ctx); err != nil {
		return err
	}
	hypervisors := hypervisor.New(s, d.log)
	hypervisors.Changed = func(tx *store.Tx, found []store.Doc[store.HypervisorDoc]) error {
		return errors.Join(balancers.HostsChanged(tx, found), elastics.HostsChanged(tx, found))
	}
	agents, err := dist.New(dist.Config{
		Store: s, Settler: gate, Log: d.log, Ledger: filepath.Join(d.state, "ledger"),
		Desk: &pki.Desk{Issuer: issuer, Registry: hypervisors.Registry(), Now: time.Now},
		Events: hypervisor.Agents{Hypervisors: hypervisors, Reported: func(ctx context.Context, host string, reports []dist.Report) error {
			return errors.Join(balancers.Reported(ctx, host, reports), elastics.Reported(ctx, host, reports), instances.Report(ctx, host, reports))
		}},
	})
	if err != nil {
		return err
	}
	gate.Waiting, gate.Compacted = agents.Waiting, agents.Compact
	handlers := api.Merge(api.Catalogue(zone.Name, d.publicURL), gate.Handlers(),
		sshkey.Handlers(s, gate), antiaffinity.Handlers(s, gate), securitygroup.Handlers(s, gate), instances.Handlers(), pools.Handlers(), balancers.Handlers(),
		privatenetwork.Handlers(s, gate), elastics.Handlers(), reversedns.Handlers(s, gate), explain.Explainer{Zone: zone.Name, Snapshot: agents.Snapshot}.Handlers())
	handler, err := api.New(api.Config{
		Operations: served(handlers), Handlers: handlers, Keys: tenant.Keys{Store: s, Root: root},
		Answers: gate, Waiter: gate, Audit: gate.Audit, Zone: zone.Name, PublicURL: d.publicURL, Logger: d.log,
	})
	if err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return gate.Run(ctx) })
	group.Go(func() error { return s.Poll(ctx) })
	group.Go(func() error { worker.Run(ctx); return nil })
	group.Go(func() error { return agents.Run(ctx) })
	group.Go(func() error { return balancers.Run(ctx) })
	group.Go(func() error { return elastics.Run(ctx) })
	if forAgents != nil {
		group.Go(func() error { return agents.Serve(ctx, forAgents) })
	}
	group.Go(func() error { return serve(ctx, listener, handler) })
	d.log.Info("serving", "zone", zone.Name, "listen", listener.Addr(), "public_url", d.publicURL)
	err = group.Wait()
	d.log.Info("stopped", "commits", s.Commits())
	return err
}

// served are the operations that have a handler.
func served(handlers api.Handlers) []capi.Operation {
	var some []capi.Operation
	for _, o := range capi.Operations {
		if handlers[o.ID] != nil {
			some = append(some, o)
		}
	}
	return some
}

// lock keeps a second daemon off the state folder.
func (d *daemon) lock() (unlock func(), err error) {
	if d.state == "" {
		return nil, errors.New("--state is required")
	}
	f, err := os.OpenFile(filepath.Join(d.state, "cairnd.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: another cairnd runs on it: %w", d.state, err)
	}
	return func() { f.Close() }, nil
}

// listener is the socket that was handed over, so that a restart refuses no
// connection, or a new one.
func (d *daemon) listener() (net.Listener, error) {
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if pid := os.Getenv("LISTEN_PID"); n == 0 || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return net.Listen("tcp", d.listen)
	}
	const first = 3 // as the convention has it
	l, err := net.FileListener(os.NewFile(first, "api"))
	if err != nil {
		return nil, fmt.Errorf("take over the socket: %w", err)
	}
	return l, nil
}

// serve answers until ctx ends, then lets requests in work finish.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		stopped <- server.Shutdown(last)
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}
