// SPDX-License-Identifier: Apache-2.0

// Command cairnd is the control plane of one zone. Its commands work on the
// state folder, and may be used while the daemon runs.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cairn/cloud"
	"cairn/controlplane/hypervisor"
	"cairn/controlplane/store"
	"cairn/controlplane/zone"
)

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "cairnd:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var f zone.Folder
	root := &cobra.Command{
		Use: "cairnd", Short: "the control plane of one zone",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&f.State, "state", "", "state folder")
	root.PersistentFlags().StringVar(&f.Database, "database", "", "postgres:// URL, or path of an SQLite file (default STATE/cairn.db)")
	hv := &cobra.Command{Use: "hypervisor", Short: "the hypervisors of the zone"}
	hv.AddCommand(hypervisorAdd(&f), hypervisorList(&f))
	pool := &cobra.Command{Use: "pool", Short: "the addresses of the zone"}
	pool.AddCommand(poolAdd(&f))
	root.AddCommand(initialise(&f), run(&f), hv, pool, publicGroup(&f), smtp(&f), seeds(&f))
	return root
}

func initialise(f *zone.Folder) *cobra.Command {
	wanted := zone.Founding{Pools: map[string]*[]string{}}
	cmd := &cobra.Command{
		Use: "init", Short: "make the zone, its first organisation and that one's key, printed as JSON",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := f.Found(cmd.Context(), wanted)
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), map[string]any{"key": key.Key, "secret": key.Secret, "organization": key.Org})
		},
	}
	cmd.Flags().StringVar(&wanted.Zone, "zone", cloud.DefaultZone, "name of the zone")
	cmd.Flags().StringVar(&wanted.Organisation, "organization", "default", "name of the first organisation")
	for _, p := range []struct{ kind, flag, usage string }{
		{store.AddressInstance, "instance-pool", "prefix for instances' public addresses"},
		{store.AddressInstance6, "instance-pool6", "IPv6 prefix for instances' public addresses"},
		{store.AddressVIP, "vip-pool", "prefix for load balancers' addresses"},
		{store.AddressVIP6, "vip6-pool", "IPv6 prefix for load balancers' addresses"},
		{store.AddressElastic, "elastic-pool", "prefix for elastic IPs"},
		{store.AddressElastic6, "elastic6-pool", "IPv6 prefix for elastic IPs, each of which is a /96 of it"},
	} {
		wanted.Pools[p.kind] = cmd.Flags().StringSlice(p.flag, nil, p.usage)
	}
	return cmd
}

func poolAdd(f *zone.Folder) *cobra.Command {
	return &cobra.Command{
		Use: "add " + strings.Join(store.AddressKinds, "|") + " PREFIX...", Short: "add prefixes that addresses are taken from",
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.AddPools(cmd.Context(), args[0], args[1:])
		},
	}
}

func hypervisorAdd(f *zone.Folder) *cobra.Command {
	var domain string
	cmd := &cobra.Command{
		Use: "add NAME", Short: "add a hypervisor, or let one join anew, and print its token",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := f.Admit(cmd.Context(), args[0], domain)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), token)
			return nil
		},
	}
	cmd.Flags().StringVar(&domain, "failure-domain", "", "what fails together, such as a rack")
	return cmd
}

func hypervisorList(f *zone.Folder) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list the hypervisors", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.Open(cmd.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			all, err := hypervisor.New(s, slog.Default()).List(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tNUMBER\tDOMAIN\tSTATE\tENDPOINT\tROLES")
			for _, h := range all {
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%v\n", h.Name, h.Number, h.FailureDomain, h.Index().State, h.Endpoint, h.Roles)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
