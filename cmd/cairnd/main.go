// SPDX-License-Identifier: Apache-2.0

// Command cairnd is the control plane of one zone. Its commands work on the
// state folder, and may be used while the daemon runs.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cairn/cloud"
	"cairn/controlplane/hypervisor"
	"cairn/controlplane/pki"
	"cairn/controlplane/store"
	"cairn/controlplane/tenant"
)

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "cairnd:", err)
		os.Exit(1)
	}
}

// folder is the state folder and the database, which is a file in it unless
// said otherwise.
type folder struct{ state, database string }

func (f folder) open(cmd *cobra.Command) (*store.Store, error) {
	if f.state == "" {
		return nil, errors.New("--state is required")
	}
	if err := os.MkdirAll(f.state, 0o700); err != nil {
		return nil, err
	}
	dsn := f.database
	if dsn == "" {
		dsn = filepath.Join(f.state, "cairn.db")
	}
	return store.Open(cmd.Context(), dsn, store.WithLog(slog.Default()))
}

func (f folder) rootKeyPath() string { return filepath.Join(f.state, "root.key") }

func (f folder) issuer(zone string) (*pki.FileIssuer, error) {
	return pki.Open(filepath.Join(f.state, "pki"), zone, time.Now)
}

func command() *cobra.Command {
	var f folder
	root := &cobra.Command{
		Use: "cairnd", Short: "the control plane of one zone",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&f.state, "state", "", "state folder")
	root.PersistentFlags().StringVar(&f.database, "database", "", "postgres:// URL, or path of an SQLite file (default STATE/cairn.db)")
	hv := &cobra.Command{Use: "hypervisor", Short: "the hypervisors of the zone"}
	hv.AddCommand(hypervisorAdd(&f), hypervisorList(&f))
	pool := &cobra.Command{Use: "pool", Short: "the addresses of the zone"}
	pool.AddCommand(poolAdd(&f))
	root.AddCommand(initialise(&f), run(&f), hv, pool)
	return root
}

func initialise(f *folder) *cobra.Command {
	var zone, organisation string
	pools := map[string]*[]string{}
	cmd := &cobra.Command{
		Use: "init", Short: "make the zone, its first organisation and that one's key, printed as JSON",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			root, err := store.CreateRootKey(f.rootKeyPath())
			if errors.Is(err, store.ErrExists) { // of an init that did not end
				root, err = store.LoadRootKey(f.rootKeyPath())
			}
			if err != nil {
				return err
			}
			if _, err := f.issuer(zone); err != nil {
				return err
			}
			var key store.APIKey
			_, err = s.Init(cmd.Context(), zone, func(tx *store.Tx) (err error) {
				for _, kind := range store.AddressKinds {
					if err := addPools(tx, kind, *pools[kind]); err != nil {
						return err
					}
				}
				key, err = tenant.Found(tx, root, organisation)
				return err
			})
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), map[string]any{"key": key.Key, "secret": key.Secret, "organization": key.Org})
		},
	}
	cmd.Flags().StringVar(&zone, "zone", cloud.DefaultZone, "name of the zone")
	cmd.Flags().StringVar(&organisation, "organization", "default", "name of the first organisation")
	for _, p := range []struct{ kind, flag, usage string }{
		{store.AddressInstance, "instance-pool", "prefix for instances' public addresses"},
		{store.AddressInstance6, "instance-pool6", "IPv6 prefix for instances' public addresses"},
		{store.AddressVIP, "vip-pool", "prefix for load balancers' addresses"},
		{store.AddressElastic, "elastic-pool", "prefix for elastic IPs"},
		{store.AddressElastic6, "elastic6-pool", "IPv6 prefix for elastic IPs, each of which is a /96 of it"},
	} {
		pools[p.kind] = cmd.Flags().StringSlice(p.flag, nil, p.usage)
	}
	return cmd
}

func addPools(tx *store.Tx, kind string, prefixes []string) error {
	for _, text := range prefixes {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		if err := tx.AddPool(kind, prefix); err != nil {
			return err
		}
	}
	return nil
}

func poolAdd(f *folder) *cobra.Command {
	return &cobra.Command{
		Use: "add " + strings.Join(store.AddressKinds, "|") + " PREFIX...", Short: "add prefixes that addresses are taken from",
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(store.AddressKinds, args[0]) {
				return fmt.Errorf("pool %q: expected one of %v", args[0], store.AddressKinds)
			}
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			_, err = s.Write(cmd.Context(), func(tx *store.Tx) error { return addPools(tx, args[0], args[1:]) })
			return err
		},
	}
}

func hypervisorAdd(f *folder) *cobra.Command {
	var domain string
	cmd := &cobra.Command{
		Use: "add NAME", Short: "add a hypervisor, or let one join anew, and print its token",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			zone, err := s.Zone(cmd.Context())
			if err != nil {
				return err
			}
			issuer, err := f.issuer(zone.Name)
			if err != nil {
				return err
			}
			h := hypervisor.New(s, slog.Default())
			if _, err := h.Add(cmd.Context(), args[0], domain); err != nil {
				return err
			}
			desk := pki.Desk{Issuer: issuer, Registry: h.Registry(), Now: time.Now}
			token, err := desk.Token(cmd.Context(), args[0])
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

func hypervisorList(f *folder) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list the hypervisors", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.open(cmd)
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
