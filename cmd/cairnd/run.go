// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cairn/controlplane/zone"
)

type daemon struct {
	zone.Folder
	listen, listenAgents, publicURL string
	window                          time.Duration
	log                             *slog.Logger
}

func run(f *zone.Folder) *cobra.Command {
	d := daemon{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	cmd := &cobra.Command{
		Use: "run", Short: "serve the zone until SIGTERM", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			slog.SetDefault(d.log)
			d.Folder = *f
			if d.window < time.Second {
				return fmt.Errorf("--usage-window %s is less than a second", d.window)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return d.run(ctx)
		},
	}
	cmd.Flags().StringVar(&d.listen, "listen", "127.0.0.1:8080", "address of the API, unless a socket is handed over (LISTEN_FDS=1)")
	cmd.Flags().StringVar(&d.listenAgents, "listen-agents", "", "address for agents")
	cmd.Flags().DurationVar(&d.window, "usage-window", time.Hour, "for how long usage is added up")
	cmd.Flags().StringVar(&d.publicURL, "public-url", "", "where clients reach the API (default http://LISTEN)")
	return cmd
}

func (d *daemon) run(ctx context.Context) error {
	unlock, err := d.Lock(5 * time.Second)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := d.Open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	clients, err := zone.Listen(d.listen)
	if err != nil {
		return err
	}
	var agents net.Listener
	if d.listenAgents != "" {
		if agents, err = net.Listen("tcp", d.listenAgents); err != nil {
			return err
		}
	}
	if d.publicURL == "" {
		d.publicURL = "http://" + clients.Addr().String()
	}
	z, err := zone.New(ctx, d.Folder, s, zone.Config{PublicURL: d.publicURL, Window: d.window, Log: d.log})
	if err != nil {
		return err
	}
	d.log.Info("serving", "zone", z.Name, "listen", clients.Addr(), "public_url", d.publicURL)
	err = z.Run(ctx, clients, agents)
	d.log.Info("stopped", "commits", s.Commits())
	return err
}
