// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

// ErrDiffers is the error of `diff` when desired and programmed do not agree.
var ErrDiffers = errors.New("desired and programmed differ")

// client asks an agent.
type client struct {
	sockets []string
	json    bool
}

// Command is `cairn debug` with its verbs.
func Command() *cobra.Command {
	c := &client{}
	root := &cobra.Command{
		Use: "debug", Short: "Look into a hypervisor's agent over its unix socket",
		Long: "Look into a hypervisor's agent over its unix socket. Works without a control plane.",
	}
	root.PersistentFlags().StringArrayVar(&c.sockets, "socket", []string{"/run/cairn/agent.sock"}, "the agent's unix socket; several for where a flow goes on each")
	root.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		if len(c.sockets) > 1 && (cmd.Name() != "nlb" || len(args) == 0) {
			return errors.New("only `nlb CLIENT:PORT VIP:PORT` asks several agents")
		}
		return nil
	}
	root.PersistentFlags().BoolVar(&c.json, "json", false, "print JSON")
	root.AddCommand(
		verb(c, "status", "How the agent is, and what it holds", "/status", printStatus),
		verb(c, "ports", "The ports of this host's instances", "/ports", printPorts),
		c.nlb(),
		c.top(),
		c.diff(),
		c.drops(),
		c.samples(),
		c.capture(),
		c.trace(),
		c.why(),
	)
	return root
}

// verb asks for one document and prints it.
func verb[T any](c *client, use, short, path string, print func(io.Writer, T)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		Example: "  cairn debug " + use + "\n  cairn debug " + use + " --json",
		RunE:    func(cmd *cobra.Command, _ []string) error { return show(c, cmd, path, print) },
	}
}

func show[T any](c *client, cmd *cobra.Command, path string, print func(io.Writer, T)) error {
	var answer T
	if err := c.ask(cmd.Context(), path, &answer); err != nil {
		return err
	}
	if c.json {
		return printJSON(cmd.OutOrStdout(), answer)
	}
	print(cmd.OutOrStdout(), answer)
	return nil
}

func printJSON(w io.Writer, answer any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(answer)
}

func (c *client) nlb() *cobra.Command {
	return &cobra.Command{
		Use: "nlb [CLIENT:PORT VIP:PORT[/tcp|/udp]]", Short: "The services this host forwards, or where one flow goes",
		Long: "Without a flow: services, their slots and backends, what they carry, and how evenly slots are spread (SKEW: the\n" +
			"largest share over the mean). With one: its slot, that slot's owners, and the generation of the table, by the same\n" +
			"arithmetic as the program's. With several --socket, on each of those hosts: nodes that differ are named.",
		Example: "  cairn debug nlb\n  cairn debug nlb 192.0.2.7:40000 203.0.113.1:80/tcp\n" +
			"  cairn debug nlb 192.0.2.7:40000 203.0.113.1:80 --socket /run/cairn/hv1.sock --socket /run/cairn/hv2.sock",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 0 && len(args) != 2 {
				return errors.New("a flow is two words: CLIENT:PORT VIP:PORT[/PROTOCOL]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return show(c, cmd, "/nlb", printServices)
			}
			if _, err := ParseFlow(args[0], args[1]); err != nil {
				return err
			}
			path := "/flow?" + url.Values{"client": args[:1], "vip": args[1:]}.Encode()
			if len(c.sockets) > 1 {
				return c.paths(cmd, path)
			}
			return show(c, cmd, path, printPath)
		},
	}
}

func (c *client) diff() *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use: "diff", Short: "Desired against programmed; fails when they differ", Args: cobra.NoArgs,
		Example: "  cairn debug diff\n  cairn debug diff --repair",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if repair {
				return c.repair(cmd)
			}
			var d Diff
			if err := c.ask(cmd.Context(), "/diff", &d); err != nil {
				return err
			}
			if c.json {
				if err := printJSON(cmd.OutOrStdout(), d); err != nil {
					return err
				}
			} else {
				printDiff(cmd.OutOrStdout(), d)
			}
			if !d.Empty() {
				return ErrDiffers
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "make the maps as they are wanted now, and tell what was mended")
	return cmd
}

func (c *client) repair(cmd *cobra.Command) error {
	var r Repair
	if err := c.do(cmd.Context(), http.MethodPost, "/repair", &r); err != nil {
		return err
	}
	if c.json {
		if err := printJSON(cmd.OutOrStdout(), r); err != nil {
			return err
		}
	} else {
		printRepair(cmd.OutOrStdout(), r)
	}
	if !r.Left.Empty() {
		return ErrDiffers
	}
	return nil
}

func (c *client) drops() *cobra.Command {
	var all, watch, rate bool
	var f DropFilter
	cmd := &cobra.Command{
		Use: "drops", Short: "Packets by the reason they were dropped for, or each as it happens", Args: cobra.NoArgs,
		Long: "The counters of all reasons since the host came up; with --watch each dropped packet as it happens, until Ctrl-C,\n" +
			"and how many were not told because there were too many.",
		Example: "  cairn debug drops\n  cairn debug drops --rate\n  cairn debug drops --watch --port 12 --reason policy_in --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case watch && (all || rate):
				return errors.New("--watch shows each drop: it goes with neither --all nor --rate")
			case watch:
				return c.watchDrops(cmd, f)
			case f != (DropFilter{}):
				return errors.New("--port and --reason go with --watch")
			}
			return c.countDrops(cmd, all, rate)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also packets that were not dropped")
	cmd.Flags().BoolVar(&rate, "rate", false, "print what came in addition, each second")
	cmd.Flags().BoolVar(&watch, "watch", false, "print each drop as it happens")
	cmd.Flags().Uint32Var(&f.Port, "port", 0, "with --watch: of this port alone")
	cmd.Flags().StringVar(&f.Reason, "reason", "", "with --watch: for this reason alone")
	return cmd
}

func (c *client) countDrops(cmd *cobra.Command, all, rate bool) error {
	before := map[string]uint64{}
	for {
		var drops []Drop
		if err := c.ask(cmd.Context(), "/drops", &drops); err != nil {
			return err
		}
		shown := since(drops, before, all)
		if c.json {
			if err := printJSON(cmd.OutOrStdout(), shown); err != nil {
				return err
			}
		} else {
			printDrops(cmd.OutOrStdout(), shown)
		}
		if !rate {
			return nil
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// since leaves what is to be shown: drops, or all; only what came since before,
// which it brings up to date.
func since(drops []Drop, before map[string]uint64, all bool) []Drop {
	shown := []Drop{}
	for _, d := range drops {
		added := d.Count - before[d.Reason]
		before[d.Reason] = d.Count
		if (d.Drop || all) && added > 0 {
			d.Count = added
			shown = append(shown, d)
		}
	}
	return shown
}

func (c *client) ask(ctx context.Context, path string, answer any) error {
	return c.do(ctx, http.MethodGet, path, answer)
}

// do asks for one document.
func (c *client) do(ctx context.Context, method, path string, answer any) error {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	response, done, err := c.open(ctx, method, path)
	if err != nil {
		return err
	}
	defer done()
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return fmt.Errorf("ask agent: read answer: %w", err)
	}
	return nil
}

// open sends a question; the answer is good, and done lets it go.
func (c *client) open(ctx context.Context, method, path string) (response *http.Response, done func(), err error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.sockets[0])
	}}
	request, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("ask agent: %w", err)
	}
	if response, err = transport.RoundTrip(request); err != nil {
		return nil, nil, fmt.Errorf("ask agent: %w", err)
	}
	body := response.Body
	done = func() {
		body.Close()
		transport.CloseIdleConnections()
	}
	if response.StatusCode != http.StatusOK {
		err := failed(response)
		done()
		return nil, nil, err
	}
	return response, done, nil
}
