// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cairn/cloud"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/store"
	"cairn/controlplane/tenant"
	"cairn/controlplane/zone"
)

// publicGroup are the commands on groups of networks that the rules of every
// organisation may name.
func publicGroup(f *zone.Folder) *cobra.Command {
	group := &cobra.Command{Use: "public-group", Short: "networks that security groups may name"}
	var description string
	set := &cobra.Command{
		Use: "set NAME CIDR...", Short: "make a public group, or give one other networks",
		Args: cobra.MinimumNArgs(2),
		RunE: in(f, func(cmd *cobra.Command, s *store.Store, args []string) error {
			return securitygroup.SetPublic(cmd.Context(), s, args[0], description, args[1:])
		}),
	}
	set.Flags().StringVar(&description, "description", "", "what customers read beside the name")
	remove := &cobra.Command{
		Use: "remove NAME", Short: "remove a public group: rules that name it admit nobody",
		Args: cobra.ExactArgs(1),
		RunE: in(f, func(cmd *cobra.Command, s *store.Store, args []string) error {
			return securitygroup.RemovePublic(cmd.Context(), s, args[0])
		}),
	}
	list := &cobra.Command{
		Use: "list", Short: "list the public groups", Args: cobra.NoArgs,
		RunE: in(f, func(cmd *cobra.Command, s *store.Store, _ []string) error {
			var all []cloud.SecurityGroup
			err := s.Read(cmd.Context(), func(tx *store.Tx) (err error) { all, err = securitygroup.Public(tx); return err })
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, g := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\n", g.Name, strings.Join(g.ExternalSources, " "), g.Description)
			}
			if err != nil {
				return err
			}
			return w.Flush()
		}),
	}
	group.AddCommand(set, remove, list)
	return group
}

// smtp are the commands on who may send mail: new organisations may not.
func smtp(f *zone.Folder) *cobra.Command {
	group := &cobra.Command{Use: "smtp", Short: "organisations whose instances may connect to TCP port 25"}
	permit := &cobra.Command{
		Use: "permit ORGANIZATION", Short: "let an organisation send mail (name or id)", Args: cobra.ExactArgs(1),
		RunE: in(f, func(cmd *cobra.Command, s *store.Store, args []string) error {
			return tenant.PermitSMTP(cmd.Context(), s, args[0])
		}),
	}
	block := &cobra.Command{
		Use: "block ORGANIZATION", Short: "take the permit back: mail connections end with their next packet", Args: cobra.ExactArgs(1),
		RunE: in(f, func(cmd *cobra.Command, s *store.Store, args []string) error {
			return tenant.BlockSMTP(cmd.Context(), s, args[0])
		}),
	}
	list := &cobra.Command{
		Use: "list", Short: "list the organisations that may send mail", Args: cobra.NoArgs,
		RunE: in(f, func(cmd *cobra.Command, s *store.Store, _ []string) error {
			var names []string
			err := s.Read(cmd.Context(), func(tx *store.Tx) (err error) { names, err = tenant.SMTPPermits(tx); return err })
			for _, name := range names {
				fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			return err
		}),
	}
	group.AddCommand(permit, block, list)
	return group
}

// in opens the store of a state folder for a command.
func in(f *zone.Folder, run func(*cobra.Command, *store.Store, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		s, err := f.Open(cmd.Context())
		if err != nil {
			return err
		}
		defer s.Close()
		return run(cmd, s, args)
	}
}
