// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// Rates of a service, or of one of its backends, between two looks: a second's worth.
type Rates struct {
	Service uint32  `json:"service"`
	VIP     string  `json:"vip"`
	Backend uint32  `json:"backend,omitempty"` // 0: the service
	Packets float64 `json:"packets"`
	Bits    float64 `json:"bits"`
	Opened  float64 `json:"opened"` // SYNs
	Refused float64 `json:"refused"`
	Resets  float64 `json:"resets"`
	Again   float64 `json:"retransmits"`
	Live    uint64  `json:"live"` // now
}

// Top is one look.
type Top struct {
	Time  time.Time     `json:"time"`
	Over  time.Duration `json:"over_ns"`
	Rates []Rates       `json:"rates"`
}

func (c *client) top() *cobra.Command {
	var interval time.Duration
	var count int
	cmd := &cobra.Command{
		Use: "top", Short: "What each VIP and backend carries now", Args: cobra.NoArgs,
		Long: "Rates of each service and its backends, each interval, until Ctrl-C; those with most packets first.\n" +
			"Connections, RSTs and retransmissions are counted by the hosts of backends, all else by LB nodes.",
		Example: "  cairn debug top\n  cairn debug top --interval 5s --count 12 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond || count < 0 {
				return errors.New("--interval is at least 100ms, --count not negative")
			}
			return c.looks(cmd, interval, count)
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "between two looks")
	cmd.Flags().IntVar(&count, "count", 0, "looks to take, 0: until Ctrl-C")
	return cmd
}

// looks prints count of them, or until the context ends, which is no error.
func (c *client) looks(cmd *cobra.Command, interval time.Duration, count int) error {
	var before, now []Service
	if err := c.ask(cmd.Context(), "/nlb", &before); err != nil {
		return err
	}
	last := time.Now()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for n := 0; count == 0 || n < count; n++ {
		select {
		case <-cmd.Context().Done():
			return nil
		case <-ticker.C:
		}
		now = nil
		if err := c.ask(cmd.Context(), "/nlb", &now); err != nil {
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		}
		at := time.Now()
		t := Top{Time: at, Over: at.Sub(last), Rates: RatesOf(before, now, at.Sub(last))}
		if c.json {
			if err := printJSON(cmd.OutOrStdout(), t); err != nil {
				return err
			}
		} else {
			printTop(cmd.OutOrStdout(), t)
		}
		before, last = now, at
	}
	return nil
}

// RatesOf what was counted between two looks. Services with most packets come first,
// each before its backends. Who was not there before has no rate yet, and who counts
// less than before (its host came up anew) has none either.
func RatesOf(before, now []Service, over time.Duration) []Rates {
	was := map[uint32]Service{}
	for _, s := range before {
		was[s.ID] = s
	}
	groups := [][]Rates{}
	for _, s := range now {
		old, ok := was[s.ID]
		if !ok {
			old = s
		}
		backends := map[uint32]Backend{}
		for _, b := range old.Backends {
			backends[b.ID] = b
		}
		total := rates(old.Traffic, s.Traffic, Connections{}, Connections{}, over)
		group := []Rates{}
		for _, b := range s.Backends {
			o, ok := backends[b.ID]
			if !ok {
				o = b
			}
			r := rates(o.Traffic, b.Traffic, o.Connections, b.Connections, over)
			r.Service, r.VIP, r.Backend = s.ID, s.VIP, b.ID
			total.Refused, total.Resets, total.Again = total.Refused+r.Refused, total.Resets+r.Resets, total.Again+r.Again
			total.Live += r.Live
			group = append(group, r)
		}
		total.Service, total.VIP = s.ID, s.VIP
		groups = append(groups, append([]Rates{total}, group...))
	}
	slices.SortStableFunc(groups, func(a, b []Rates) int { return cmp.Compare(b[0].Packets, a[0].Packets) })
	return slices.Concat(groups...)
}

func rates(was, is Traffic, had, has Connections, over time.Duration) Rates {
	return Rates{
		Packets: rate(was.Packets, is.Packets, over), Bits: 8 * rate(was.Bytes, is.Bytes, over),
		Opened: rate(was.Opened, is.Opened, over), Refused: rate(had.Refused, has.Refused, over),
		Resets: rate(had.ResetsIn, has.ResetsIn, over) + rate(had.ResetsOut, has.ResetsOut, over),
		Again:  rate(had.RetransmitsIn, has.RetransmitsIn, over) + rate(had.RetransmitsOut, has.RetransmitsOut, over),
		Live:   has.Live,
	}
}

func rate(was, is uint64, over time.Duration) float64 {
	if is < was || over <= 0 {
		return 0
	}
	return float64(is-was) / over.Seconds()
}

func printTop(w io.Writer, t Top) {
	fmt.Fprintln(w, t.Time.Format(time.TimeOnly))
	grid(w, func(row func(...any)) {
		row("SERVICE", "VIP", "BACKEND", "PACKETS/S", "MBIT/S", "SYN/S", "LIVE", "REFUSED/S", "RST/S", "AGAIN/S")
		for _, r := range t.Rates {
			service, vip, backend := fmt.Sprint(r.Service), r.VIP, ""
			if r.Backend != 0 {
				service, vip, backend = "", "", fmt.Sprint(r.Backend)
			}
			row(service, vip, backend, fmt.Sprintf("%.0f", r.Packets), fmt.Sprintf("%.3f", r.Bits/1e6), fmt.Sprintf("%.0f", r.Opened), r.Live,
				fmt.Sprintf("%.0f", r.Refused), fmt.Sprintf("%.0f", r.Resets), fmt.Sprintf("%.0f", r.Again))
		}
	})
}
