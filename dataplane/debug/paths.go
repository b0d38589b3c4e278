// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// ErrSkewed is the error of `nlb FLOW` when hosts would send the flow to different
// backends.
var ErrSkewed = errors.New("nodes differ")

// NodePath is where a flow goes by one host.
type NodePath struct {
	Socket string `json:"socket"`
	Path   Path   `json:"path"`
	Error  string `json:"error,omitempty"`
}

// Skewed tells whether hosts that answer name different backends for a flow: they
// hold tables of different generations, for the moment or for good. One that names the
// others' former owner as its own is in the middle of a move.
func Skewed(nodes []NodePath) bool {
	var first *Path
	for i := range nodes {
		if nodes[i].Error != "" {
			continue
		}
		if first == nil {
			first = &nodes[i].Path
		}
		if nodes[i].Path.Cur != first.Cur || nodes[i].Path.Slot != first.Slot {
			return true
		}
	}
	return false
}

// paths asks each agent. One that does not answer is shown, and no error.
func (c *client) paths(cmd *cobra.Command, path string) error {
	nodes := []NodePath{}
	for _, socket := range c.sockets {
		one := client{sockets: []string{socket}}
		n := NodePath{Socket: socket}
		if err := one.ask(cmd.Context(), path, &n.Path); err != nil {
			n.Error = err.Error()
		}
		nodes = append(nodes, n)
	}
	if c.json {
		if err := printJSON(cmd.OutOrStdout(), nodes); err != nil {
			return err
		}
	} else {
		printPaths(cmd.OutOrStdout(), nodes)
	}
	if Skewed(nodes) {
		return ErrSkewed
	}
	return nil
}

func printPaths(w io.Writer, nodes []NodePath) {
	grid(w, func(row func(...any)) {
		row("NODE", "SLOT", "GENERATION", "BACKEND", "AT", "ADDRESS", "FORMER", "KNOWN")
		for _, n := range nodes {
			if n.Error != "" {
				row(n.Socket, n.Error)
				continue
			}
			p := n.Path
			row(n.Socket, p.Slot, p.Generation, p.Cur, p.Endpoint, p.Address, p.Prev, p.Known)
		}
	})
	if Skewed(nodes) {
		fmt.Fprintln(w, "nodes differ")
	}
}
