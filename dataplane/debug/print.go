// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// grid prints rows in columns.
func grid(w io.Writer, f func(row func(cells ...any))) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	f(func(cells ...any) {
		words := make([]string, len(cells))
		for i, c := range cells {
			words[i] = fmt.Sprint(c)
		}
		fmt.Fprintln(t, strings.Join(words, "\t"))
	})
	_ = t.Flush() // the terminal went away
}

func printStatus(w io.Writer, s Status) {
	control := "connected since " + s.Control.Since.Format(time.RFC3339)
	if !s.Control.Connected {
		control = "not connected since " + s.Control.Since.Format(time.RFC3339)
		if s.Control.Error != "" {
			control += ": " + s.Control.Error
		}
	}
	uplink := "up"
	if s.UplinkDown {
		uplink = "down"
	}
	grid(w, func(row func(...any)) {
		row("agent", s.Name, s.Version)
		row("started", s.Started.Format(time.RFC3339), fmt.Sprintf("%d starts before", s.Restarts))
		row("desired", fmt.Sprintf("revision %d of epoch %d", s.Desired.Revision, s.Desired.Epoch))
		row("programmed", fmt.Sprintf("revision %d of epoch %d", s.Programmed.Revision, s.Programmed.Epoch))
		row("control", control)
		row("uplink", fmt.Sprintf("%s, MTU %d", uplink, s.UplinkMTU))
		row("memory", fmt.Sprintf("%.1f MiB", float64(s.Memory)/(1<<20)))
		row("flows", s.Flows)
		row("refusals", s.Refusals, s.Alarm)
		row("repaired", s.Repaired)
	})
	fmt.Fprintln(w)
	grid(w, func(row func(...any)) {
		row("KIND", "COUNT", "DIGEST")
		for _, kind := range slices.Sorted(maps.Keys(s.Digests)) {
			row(kind, s.Digests[kind].Count, s.Digests[kind].Sum)
		}
	})
	if len(s.Tunnels) > 0 {
		fmt.Fprintln(w)
		grid(w, func(row func(...any)) {
			row("TUNNEL TO", "ERRORS", "LAST", "WHICH SAYS")
			for _, t := range s.Tunnels {
				row(fmt.Sprintf("host %d at %s", t.Host, t.Endpoint), t.Errors, t.Ago.Round(time.Second).String()+" ago", t.Last)
			}
		})
	}
	if len(s.Unsettled) > 0 {
		fmt.Fprintln(w)
		grid(w, func(row func(...any)) {
			row("UNSETTLED", "WHY")
			for _, unit := range slices.Sorted(maps.Keys(s.Unsettled)) {
				row(unit, s.Unsettled[unit])
			}
		})
	}
	fmt.Fprintf(w, "\nprograms %s\nmaps %s\n", ids(s.Programs), ids(s.Maps))
}

func ids(m map[string]uint32) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s=%d", name, m[name]))
	}
	return strings.Join(parts, " ")
}

func printPorts(w io.Writer, ports []Port) {
	grid(w, func(row func(...any)) {
		row("PORT", "INSTANCE", "MACHINE", "ADDRESSES", "MAC", "POLICY", "GENERATION", "DEVICE", "FLOWS", "IN", "OUT", "DROPPED")
		for _, p := range ports {
			policy, device := fmt.Sprintf("%d as %d", p.Policy, p.Programmed), fmt.Sprint(p.Device)
			if p.Programmed == 0 {
				policy = fmt.Sprintf("%d, not in force", p.Policy)
			}
			if !p.Attached {
				device += ", not attached"
			}
			row(p.ID, p.Instance, p.Machine, join(p.Addresses), p.MAC, policy, p.Generation, device, p.Flows,
				traffic(p.Counters.PacketsIn, p.Counters.BytesIn), traffic(p.Counters.PacketsOut, p.Counters.BytesOut), p.Counters.Dropped)
		}
	})
}

// traffic is packets and bytes in one cell.
func traffic(packets, bytes uint64) string { return fmt.Sprintf("%d/%dB", packets, bytes) }

func printRepair(w io.Writer, r Repair) {
	for _, line := range r.Mended {
		fmt.Fprintln(w, "mended\t"+line)
	}
	printDiff(w, r.Left)
}

func join[T any](all []T) string {
	words := make([]string, len(all))
	for i, v := range all {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ",")
}

func printServices(w io.Writer, services []Service) {
	grid(w, func(row func(...any)) {
		row("SERVICE", "VIP", "SLOTS", "GENERATION", "BACKEND", "AT", "ADDRESS", "OWNS", "OWNED", "STATE", "CHECK")
		for _, s := range services {
			name, vip, slots, generation := fmt.Sprint(s.ID), s.VIP, fmt.Sprintf("%d at %d", s.Slots, s.Base), fmt.Sprint(s.Generation)
			if s.Panic {
				name += " (panic)"
			}
			for _, b := range s.Backends {
				row(name, vip, slots, generation, b.ID, b.Endpoint, b.Address, b.Slots, b.Former, b.State, b.Check)
				name, vip, slots, generation = "", "", "", ""
			}
			if len(s.Backends) == 0 {
				row(name, vip, "none")
			}
		}
	})
	fmt.Fprintln(w)
	printCounts(w, services)
}

func printPath(w io.Writer, p Path) {
	known := "no"
	if p.Known {
		known = "yes"
	}
	grid(w, func(row func(...any)) {
		row("flow", fmt.Sprintf("%s to %s, protocol %d", p.Flow.Client, p.Flow.VIP, p.Flow.Protocol))
		row("service", p.Service)
		row("slot", fmt.Sprintf("%d of generation %d, hash %#08x", p.Slot, p.Generation, p.Hash))
		row("backend", fmt.Sprintf("%d at %s, %s", p.Cur, p.Endpoint, p.Address))
		row("former", p.Prev)
		row("known here", known)
	})
}

func printDiff(w io.Writer, d Diff) {
	for _, part := range []struct {
		name  string
		lines []string
	}{{"missing", d.Missing}, {"foreign", d.Foreign}, {"fault", d.Faults}} {
		for _, line := range part.lines {
			fmt.Fprintln(w, part.name+"\t"+line)
		}
	}
	if d.Empty() {
		fmt.Fprintln(w, "desired and programmed agree")
	}
}

func printDrops(w io.Writer, drops []Drop) {
	grid(w, func(row func(...any)) {
		row("REASON", "PACKETS")
		for _, d := range drops {
			row(d.Reason, d.Count)
		}
	})
}
