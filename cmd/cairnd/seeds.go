// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"cairn/cloud"
	"cairn/controlplane/loadbalancer"
	"cairn/controlplane/store"
	"cairn/controlplane/zone"
)

// seeds are the commands on the secrets by which flows are spread.
func seeds(f *zone.Folder) *cobra.Command {
	group := &cobra.Command{Use: "seeds", Short: "the secrets by which load balancers spread flows"}
	group.AddCommand(&cobra.Command{
		Use: "rotate [SERVICE-ID...]", Short: "give services another seed, all of them if none is named; flows go on",
		Long: "A rotation takes until the last flow that the new seed would send elsewhere has ended; meanwhile only those slots move\n" +
			"that have to. A service whose slots are moving, or whose seed rotates, is busy: run the command again later.",
		RunE: in(f, func(cmd *cobra.Command, s *store.Store, args []string) error {
			var ids []cloud.ID
			for _, a := range args {
				ids = append(ids, cloud.ID(a))
			}
			rotated, busy, err := loadbalancer.Rotate(cmd.Context(), s, ids...)
			for _, id := range rotated {
				fmt.Fprintln(cmd.OutOrStdout(), id, "rotates")
			}
			for _, id := range busy {
				fmt.Fprintln(cmd.OutOrStdout(), id, "is busy")
			}
			return err
		}),
	})
	return group
}
