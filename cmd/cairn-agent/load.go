// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"cairn/dataplane/load"
)

type loadFlags struct {
	vips, targets int
	pins, device  string
	unload        bool
}

// loadCommand serves a harness: the balancer's program without an agent.
func loadCommand() *cobra.Command {
	var f loadFlags
	c := &cobra.Command{
		Use: "load --pins DIR [--vips N] [--targets M] [--device DEV]", Args: cobra.NoArgs,
		Short: "Load and pin the balancer's program with made-up services, for a harness",
		Long: `Load the program of an LB node with N VIPs of M targets each, TCP and UDP port 80,
and pin it below DIR/v1: maps by their names, programs under progs/, the link
under links/ if a device is given. Needs no agent and no control plane, and ends
at once: what is pinned stays until --unload.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	p := c.Flags()
	p.IntVar(&f.vips, "vips", 1, "how many VIPs, from 203.0.0.0 on")
	p.IntVar(&f.targets, "targets", 100, "how many targets each service has")
	p.StringVar(&f.pins, "pins", "", "folder of the pins, on a bpffs (mounted if there is none)")
	p.StringVar(&f.device, "device", "", "device to attach uplink to (default: none)")
	p.BoolVar(&f.unload, "unload", false, "remove what was loaded into the folder of pins")
	return c
}

func (f *loadFlags) run(cmd *cobra.Command) (err error) {
	if f.pins == "" {
		return errors.New("--pins is needed")
	}
	if f.unload {
		return load.Unload(f.pins)
	}
	begin := time.Now()
	n, err := load.Open(load.Want{VIPs: f.vips, Targets: f.targets, Protocols: []uint8{load.TCP, load.UDP}})
	if err != nil {
		return err
	}
	defer n.Close()
	if err := n.Pin(f.pins); err != nil {
		return err
	}
	if f.device != "" {
		if err := n.Attach(f.pins, f.device); err != nil {
			return errors.Join(err, load.Unload(f.pins))
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%sloaded in %s; pinned below %s/v1\n", n, time.Since(begin).Round(time.Millisecond), f.pins)
	return nil
}
