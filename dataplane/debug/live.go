// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// The verbs that follow packets: drops --watch, capture, trace, why.

// watchDrops prints drops as they happen, until ctx ends.
func (c *client) watchDrops(cmd *cobra.Command, f DropFilter) error {
	q := url.Values{"reason": {f.Reason}}
	if f.Port != 0 {
		q.Set("port", fmt.Sprint(f.Port))
	}
	out := cmd.OutOrStdout()
	begun := false
	return follow(cmd.Context(), c, "/drops/watch?"+q.Encode(), func(e DropEvent) error {
		if c.json {
			return json.NewEncoder(out).Encode(e)
		}
		if !begun {
			begun = true
			fmt.Fprintf(out, "%-15s %6s %-3s %-18s %-24s %s\n", "TIME", "PORT", "DIR", "REASON", "RULE", "PACKET")
		}
		if p := e.Packet; p != nil {
			rule := "-"
			if p.Rule != 0 {
				rule = ruleName(p.Rule, p.Origin)
			}
			fmt.Fprintf(out, "%-15s %6d %-3s %-18s %-24s %s\n",
				p.At.Format("15:04:05.000000"), p.Port, p.Direction, p.Reason, rule, p.Summary())
		}
		if l := e.Loss; l != nil && *l != (Loss{}) {
			fmt.Fprintf(out, "(%d events lost, %d more than their ports' rate)\n", l.Lost, l.Muted)
		}
		return nil
	})
}

type captureFlags struct {
	port     uint32
	count    int
	duration time.Duration
	file     string
	bytes    int
}

func (c *client) capture() *cobra.Command {
	var f captureFlags
	cmd := &cobra.Command{
		Use: "capture --port P", Short: "The frames of a port, with what became of each",
		Long: "The frames of a port as they come to it, from the instance as it sent them, with what became of each:\n" +
			"a line for each, or with -w a pcapng file whose packet comments say verdict, reason and rule.",
		Example: "  cairn debug capture --port 12 --count 20\n  cairn debug capture --port 12 --duration 10s -w port12.pcapng",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case f.port == 0:
				return errors.New("--port names no port; `cairn debug ports` lists them")
			case f.count < 0:
				return fmt.Errorf("--count %d is less than none", f.count)
			case f.bytes < 14 || f.bytes > 1536:
				return fmt.Errorf("--bytes %d is not between 14 and 1536", f.bytes)
			}
			return c.captureTo(cmd, f)
		},
	}
	cmd.Flags().Uint32Var(&f.port, "port", 0, "the port's number")
	cmd.Flags().IntVar(&f.count, "count", 0, "end after so many frames; 0: never")
	cmd.Flags().DurationVar(&f.duration, "duration", 0, "end after this time; 0: never")
	cmd.Flags().StringVarP(&f.file, "write", "w", "", "write a pcapng file; - for the standard output")
	cmd.Flags().IntVar(&f.bytes, "bytes", 262, "how much of each frame")
	return cmd
}

func (c *client) captureTo(cmd *cobra.Command, f captureFlags) (err error) {
	ctx := cmd.Context()
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	out, notes := cmd.OutOrStdout(), cmd.ErrOrStderr()
	var file *pcapng
	if f.file != "" {
		to := out
		if f.file != "-" {
			opened, err := os.Create(f.file)
			if err != nil {
				return fmt.Errorf("-w: %w", err)
			}
			defer func() { err = errors.Join(err, opened.Close()) }()
			to = opened
		}
		if file, err = newPcapng(to, fmt.Sprintf("port%d", f.port), f.bytes); err != nil {
			return fmt.Errorf("-w: %w", err)
		}
	}
	n := 0
	q := url.Values{"port": {fmt.Sprint(f.port)}, "bytes": {fmt.Sprint(f.bytes)}}
	err = follow(ctx, c, "/capture?"+q.Encode(), func(e CaptureEvent) error {
		if l := e.Loss; l != nil && l.Lost > 0 {
			fmt.Fprintf(notes, "(%d frames lost)\n", l.Lost)
		}
		if e.Frame == nil {
			return nil
		}
		if err := c.showFrame(out, file, *e.Frame, e); err != nil {
			return err
		}
		if n++; n == f.count {
			return io.EOF
		}
		return nil
	})
	if file != nil && err == nil {
		fmt.Fprintf(notes, "%d frames\n", n)
	}
	return err
}

func (c *client) showFrame(out io.Writer, file *pcapng, f CapturedFrame, e CaptureEvent) error {
	switch {
	case file != nil:
		return file.packet(f.At, f.Bytes, f.Length, f.Direction == "in", f.Verdict())
	case c.json:
		return json.NewEncoder(out).Encode(e)
	}
	_, err := fmt.Fprintf(out, "%s %s\n    %s, %d bytes\n", f.At.Format("15:04:05.000000"), f.Verdict(), DescribeFrame(f.Bytes), f.Length)
	return err
}

func (c *client) trace() *cobra.Command {
	var port uint32
	var in, out bool
	var flags string
	cmd := &cobra.Command{
		Use: "trace --port P [--in|--out] PACKET", Short: "What would become of a packet, without sending it",
		Long: "Follows a packet through the programs and the live maps of this host, and changes nothing: no flow, no counter.\n" +
			"A packet is written as " + TupleUsage + ",\nas it comes to the host: towards a service it is for the VIP.",
		Example: "  cairn debug trace --port 12 --in tcp 192.0.2.7:40000 198.51.100.5:22\n" +
			"  cairn debug trace --port 12 --out udp 198.51.100.5:5000 9.9.9.9:53 --json\n" +
			"  cairn debug trace --port 12 --in icmp 8/0 192.0.2.7 198.51.100.5",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case port == 0:
				return errors.New("--port names no port; `cairn debug ports` lists them")
			case in && out:
				return errors.New("--in and --out exclude each other")
			}
			tuple, err := ParseTuple(args)
			if err != nil {
				return err
			}
			if _, err := ParseFlags(flags); err != nil {
				return fmt.Errorf("--flags: %w", err)
			}
			q := tuple.query()
			q.Set("port", fmt.Sprint(port))
			q.Set("flags", flags)
			if out {
				q.Set("out", "1")
			}
			return show(c, cmd, "/trace?"+q.Encode(), printTrace)
		},
	}
	cmd.Flags().Uint32Var(&port, "port", 0, "the port's number")
	cmd.Flags().BoolVar(&in, "in", false, "it comes to the port (as without --out)")
	cmd.Flags().BoolVar(&out, "out", false, "the port's instance sends it")
	cmd.Flags().StringVar(&flags, "flags", "S", "of TCP, as letters: S, A, F, R, P, U")
	return cmd
}

func (c *client) why() *cobra.Command {
	var port uint32
	cmd := &cobra.Command{
		Use: "why PACKET", Short: "Why a flow lives, or why its first packet is refused",
		Long: "Tells which rule has admitted a flow that lives at a port here, and what the port's policy says to a first packet\n" +
			"of it: by which rule it is admitted, or which rules come nearest and in what they differ.\n" +
			"A packet is written as the port's instance has it: " + TupleUsage + ".",
		Example: "  cairn debug why tcp 192.0.2.7:40000 198.51.100.5:22\n  cairn debug why --port 12 udp 10.0.0.5:5000 10.0.0.6:53",
		RunE: func(cmd *cobra.Command, args []string) error {
			tuple, err := ParseTuple(args)
			if err != nil {
				return err
			}
			q := tuple.query()
			if port != 0 {
				q.Set("port", fmt.Sprint(port))
			}
			return show(c, cmd, "/why?"+q.Encode(), printWhy)
		},
	}
	cmd.Flags().Uint32Var(&port, "port", 0, "the port's number; without it the one that has an address of the packet")
	return cmd
}
