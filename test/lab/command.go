// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// Command is `cairn lab`.
func Command() *cobra.Command {
	root := &cobra.Command{
		Use:   "lab",
		Short: "A whole cloud on this machine, in network namespaces",
		Long: `A whole cloud on this machine, in network namespaces: clients, a router with
BIRD or FRR, hypervisors with the built agents and speakers, and the control
plane, whose API listens on 127.0.0.1. Needs root. Nothing restarts a daemon
that has ended.`,
	}
	root.AddCommand(upCommand(), statusCommand(), downCommand(), environmentCommand(), execCommand())
	return root
}

func nameFlag(c *cobra.Command, name *string) {
	c.Flags().StringVar(name, "name", "lab", "which lab; prefix of its namespaces")
}

func upCommand() *cobra.Command {
	var cfg Config
	var roles []string
	c := &cobra.Command{
		Use: "up", Short: "Bring a lab up and leave it running", Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Bin == "" {
				self, err := os.Executable()
				if err != nil {
					return err
				}
				cfg.Bin = filepath.Dir(self)
			}
			cfg.Roles = roles
			cfg.Progress = func(t Took) { fmt.Fprintf(cmd.ErrOrStderr(), "%-26s %6.2f s\n", t.Step, t.Time.Seconds()) }
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			l, err := Up(ctx, cfg)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), l.Environment())
			return nil
		},
	}
	nameFlag(c, &cfg.Name)
	c.Flags().IntVar(&cfg.Hypervisors, "hypervisors", 3, "how many hypervisors")
	c.Flags().IntVar(&cfg.Clients, "clients", 1, "how many clients")
	c.Flags().StringVar(&cfg.Router, "router", BIRD, "what the router runs: bird or frr")
	c.Flags().StringArrayVar(&roles, "roles", nil, "roles of hypervisor 1, 2, …; once for each (default compute,lb)")
	c.Flags().StringVar(&cfg.Bin, "bin", "", "folder of the built commands (default: where this one is)")
	c.Flags().BoolVar(&cfg.Bare, "bare", false, "network and router only")
	return c
}

func statusCommand() *cobra.Command {
	var name string
	var asJSON bool
	c := &cobra.Command{
		Use: "status", Short: "Show namespaces, daemons, BGP sessions and the API of a lab", Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := Open(name)
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("there is no lab %s", name)
			}
			if err != nil {
				return err
			}
			if err := l.Status().print(cmd.OutOrStdout(), asJSON); err != nil || asJSON {
				return err
			}
			if environment := l.Environment(); environment != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "\n%s", environment)
			}
			return nil
		},
	}
	nameFlag(c, &name)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON, without the secret")
	return c
}

func downCommand() *cobra.Command {
	var name string
	var stale, all bool
	c := &cobra.Command{
		Use: "down", Short: "End a lab and remove all that belongs to it, also a half-made one", Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			if stale {
				return DownStale()
			}
			if !all {
				return Down(name)
			}
			names, err := Names()
			if err != nil {
				return err
			}
			var errs []error
			for _, n := range names {
				errs = append(errs, Down(n))
			}
			return errors.Join(errs...)
		},
	}
	nameFlag(c, &name)
	c.Flags().BoolVar(&stale, "stale", false, "end the labs of tests that were killed instead")
	c.Flags().BoolVar(&all, "all", false, "end every lab of this machine")
	c.MarkFlagsMutuallyExclusive("name", "stale", "all")
	return c
}

func environmentCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "env", Short: "Print the environment of the API's clients, for eval in a shell", Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := Open(name)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), l.Environment())
			return nil
		},
	}
	nameFlag(c, &name)
	return c
}

func execCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "exec MACHINE -- PROGRAM [ARGUMENT...]",
		Short: "Run a program as a machine of the lab: ctl, rtr, cli1, hv1, hv1-i7",
		Long: `Run a program as a machine of the lab: ctl, rtr, cli1, hv1, hv1-i7. Unlike
"ip netns exec" it keeps the mounts, so that hypervisors see their pins.`,
		Args: cobra.MinimumNArgs(2), SilenceUsage: true,
		RunE: func(_ *cobra.Command, args []string) error {
			namespace := name + "-" + args[0]
			if err := checkName(name); err != nil {
				return err
			}
			if !ownNamespace(name).MatchString(namespace) || !namespaceIsThere(namespace) {
				return fmt.Errorf("lab %s has no machine %s", name, args[0])
			}
			program, err := exec.LookPath(args[1])
			if err != nil {
				return err
			}
			return inNamespace(namespace, func() error { return syscall.Exec(program, args[1:], os.Environ()) })
		},
	}
	nameFlag(c, &name)
	return c
}
