// SPDX-License-Identifier: Apache-2.0

// Command cairn-agent is the agent of one hypervisor. What it programs stays in
// force when it ends, however it ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cairn/cloud/compute"
	"cairn/cloud/join"
	"cairn/dataplane/agent"
	"cairn/dataplane/metrics"
)

type flags struct {
	cfg      agent.Config
	endpoint string
	prefix   string
	echo     string
	dns      []string
	sizes    map[string]int
	verbose  bool
}

func main() {
	// Most of what the agent holds changes rarely: collecting often costs little
	// and keeps it small.
	debug.SetGCPercent(30)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cairn-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use: "cairn-agent", Short: "The agent of one hypervisor", Args: cobra.NoArgs,
		SilenceUsage: true, SilenceErrors: true, Version: agent.Version,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context()) },
	}
	c.AddCommand(loadCommand())
	p := c.Flags()
	p.StringVar(&f.cfg.Name, "name", "", "of this hypervisor, as it was added")
	p.StringVar(&f.cfg.State, "state", "/var/lib/cairn/agent", "folder of credentials, desired state and machines")
	p.StringVar(&f.cfg.Pins, "pins", "/sys/fs/bpf/cairn", "folder of maps, programs and links, on a bpffs")
	p.StringVar(&f.cfg.Uplink, "uplink", "", "device towards the routers")
	p.StringVar(&f.endpoint, "endpoint", "", "tunnel endpoint: an IPv4 address of the uplink")
	p.StringVar(&f.cfg.Control, "control", "", "HOST:PORT of the control plane")
	p.StringVar(&f.cfg.Token, "join", "", "token to join with; not looked at once it has joined")
	p.StringVar(&f.cfg.Socket, "socket", "/run/cairn/agent.sock", "unix socket for cairn debug")
	p.StringVar(&f.cfg.Metrics, "metrics", "", "where Prometheus reads metrics: unix:PATH or a loopback ADDRESS:PORT (default: nowhere)")
	p.StringVar(&f.prefix, "netns-prefix", "", "of the namespaces of machines and of the door (default: the name)")
	p.StringSliceVar(&f.cfg.Roles, "roles", []string{"compute", "lb"}, "of this hypervisor: compute, lb")
	p.StringSliceVar(&f.dns, "dns", nil, "addresses of name servers that instances are told of on their public interface")
	p.StringVar(&f.echo, "echo", "", "program of the workload echo")
	p.BoolVar(&f.cfg.MTUCheck, "mtu-check", false, "refuse an uplink too small for full-size packets of instances")
	p.StringToIntVar(&f.sizes, "map-size", nil, "NAME=ENTRIES of maps that are not there yet")
	p.Uint32Var(&f.cfg.Sample, "sample", 0, "one packet in so many of each service is told of to who asks (cairn debug samples); 0: none")
	p.DurationVar(&f.cfg.Usage, "usage-every", 10*time.Second, "between reports of what ports have carried")
	p.BoolVar(&f.verbose, "verbose", false, "log every step")
	return c
}

func (f *flags) run(ctx context.Context) error {
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	f.cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	slog.SetDefault(f.cfg.Log)
	if err := f.check(); err != nil {
		return err
	}
	f.cfg.Door = f.prefix + "-svc"
	f.cfg.Sizes = map[string]uint32{}
	for name, n := range f.sizes {
		f.cfg.Sizes[name] = uint32(n)
	}
	commands := map[string][]string{}
	if f.echo != "" {
		commands["echo"] = []string{f.echo}
	}
	driver, err := compute.NewNetns(compute.Config{State: f.cfg.State, Prefix: f.prefix, Commands: commands, Log: f.cfg.Log})
	if err != nil {
		return err
	}
	f.cfg.Drivers = []compute.Driver{driver}
	return agent.Run(ctx, f.cfg)
}

func (f *flags) check() (err error) {
	if !join.ValidName(f.cfg.Name) {
		return fmt.Errorf("--name %q is no name of a hypervisor", f.cfg.Name)
	}
	if f.cfg.Usage < 100*time.Millisecond {
		return fmt.Errorf("--usage-every %s is less than a tenth of a second", f.cfg.Usage)
	}
	if f.cfg.Uplink == "" || f.cfg.Control == "" {
		return errors.New("--uplink and --control are needed")
	}
	if f.cfg.Metrics != "" {
		if err := metrics.Check(f.cfg.Metrics); err != nil {
			return fmt.Errorf("--metrics: %w", err)
		}
	}
	if f.cfg.Endpoint, err = netip.ParseAddr(f.endpoint); err != nil {
		return fmt.Errorf("--endpoint: %w", err)
	}
	for _, role := range f.cfg.Roles {
		if role != "compute" && role != agent.RoleBalancer {
			return fmt.Errorf("--roles: %q is neither compute nor lb", role)
		}
	}
	for _, s := range f.dns {
		server, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--dns: %w", err)
		}
		f.cfg.DNS = append(f.cfg.DNS, server)
	}
	if f.prefix == "" {
		f.prefix = f.cfg.Name
	}
	for _, path := range []*string{&f.cfg.State, &f.cfg.Pins, &f.cfg.Socket} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
		if strings.ContainsRune(*path, 0) {
			return fmt.Errorf("%q is no path", *path)
		}
	}
	return os.MkdirAll(filepath.Dir(f.cfg.Socket), 0o755)
}
