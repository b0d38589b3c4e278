// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// SampleEvent is one line of a stream of samples: a packet, or what was lost.
type SampleEvent struct {
	Packet *SampledPacket `json:"packet,omitempty"`
	Loss   *Loss          `json:"loss,omitempty"`
}

// SampledPacket is one that this node has given to a backend.
type SampledPacket struct {
	At       time.Time      `json:"at"`
	Service  uint32         `json:"service"`
	Backend  uint32         `json:"backend"`
	Protocol uint8          `json:"protocol"`
	Src      netip.AddrPort `json:"src"`
	Dst      netip.AddrPort `json:"dst"`
	Flags    string         `json:"flags,omitempty"` // of TCP
	Bytes    uint64         `json:"bytes"`
}

func (c *client) samples() *cobra.Command {
	var service uint32
	cmd := &cobra.Command{
		Use: "samples", Short: "Packets of services with the backends they were given to, by chance", Args: cobra.NoArgs,
		Long: "One packet in so many of each service, as the agent's --sample says, until Ctrl-C; and how many were not told because\n" +
			"there were too many. An agent without --sample tells of none.",
		Example: "  cairn debug samples --service 7\n  cairn debug samples --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			begun := false
			return follow(cmd.Context(), c, fmt.Sprintf("/samples/watch?service=%d", service), func(e SampleEvent) error {
				if c.json {
					return json.NewEncoder(out).Encode(e)
				}
				if !begun {
					begun = true
					fmt.Fprintf(out, "%-15s %7s %7s %6s %s\n", "TIME", "SERVICE", "BACKEND", "BYTES", "PACKET")
				}
				if p := e.Packet; p != nil {
					fmt.Fprintf(out, "%-15s %7d %7d %6d %s\n", p.At.Format("15:04:05.000000"), p.Service, p.Backend, p.Bytes,
						DroppedPacket{Protocol: p.Protocol, Src: p.Src, Dst: p.Dst, Flags: p.Flags}.Summary())
				}
				if l := e.Loss; l != nil && *l != (Loss{}) {
					fmt.Fprintf(out, "(%d events lost, %d more than the host's rate)\n", l.Lost, l.Muted)
				}
				return nil
			})
		},
	}
	cmd.Flags().Uint32Var(&service, "service", 0, "of this service alone, by its number (cairn debug nlb)")
	return cmd
}

func samples(source Source) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		stream(w, r, func(ctx context.Context, line func(any) error) error {
			service, err := strconv.ParseUint(r.URL.Query().Get("service"), 10, 32)
			if err != nil {
				return fmt.Errorf("--service %q is no number of a service", r.URL.Query().Get("service"))
			}
			return source.WatchSamples(ctx, uint32(service), func(e SampleEvent) error { return line(e) })
		})
	}
}
