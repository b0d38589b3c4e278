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
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// ErrDiffers is the error of `diff` when desired and programmed do not agree.
var ErrDiffers = errors.New("desired and programmed differ")

// client asks an agent.
type client struct {
	socket string
	json   bool
}

// Command is `cairn debug` with its verbs.
func Command() *cobra.Command {
	c := &client{}
	root := &cobra.Command{
		Use: "debug", Short: "Look into a hypervisor's agent over its unix socket",
		Long: "Look into a hypervisor's agent over its unix socket. Works without a control plane.",
	}
	root.PersistentFlags().StringVar(&c.socket, "socket", "/run/cairn/agent.sock", "the agent's unix socket")
	root.PersistentFlags().BoolVar(&c.json, "json", false, "print JSON")
	root.AddCommand(
		verb(c, "status", "How the agent is, and what it holds", "/status", printStatus),
		verb(c, "ports", "The ports of this host's instances", "/ports", printPorts),
		c.nlb(),
		c.diff(),
		c.drops(),
	)
	return root
}

// verb asks for one document and prints it.
func verb[T any](c *client, use, short, path string, print func(io.Writer, T)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return show(c, cmd, path, print) },
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
		Example: "  cairn debug nlb\n  cairn debug nlb 192.0.2.7:40000 203.0.113.1:80/tcp",
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
			return show(c, cmd, "/flow?"+url.Values{"client": args[:1], "vip": args[1:]}.Encode(), printPath)
		},
	}
}

func (c *client) diff() *cobra.Command {
	return &cobra.Command{
		Use: "diff", Short: "Desired against programmed; fails when they differ", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
}

func (c *client) drops() *cobra.Command {
	var all, watch bool
	cmd := &cobra.Command{
		Use: "drops", Short: "Packets by the reason they were dropped for", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
				if !watch {
					return nil
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(time.Second):
				}
			}
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also packets that were not dropped")
	cmd.Flags().BoolVar(&watch, "watch", false, "print what came in addition, each second")
	return cmd
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
	if ctx == nil {
		ctx = context.Background()
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.socket)
	}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return fmt.Errorf("ask agent: %s", strings.TrimSpace(string(text)))
	}
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return fmt.Errorf("ask agent: read answer: %w", err)
	}
	return nil
}
