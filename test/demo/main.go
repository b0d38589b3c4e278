// SPDX-License-Identifier: Apache-2.0

// Command demo owns the tour of Cairn: a cloud in network namespaces, built
// through the public API by an unmodified client, traffic through it, what
// breaks it and what does not, and how long things take. It says what it does
// while it does it, and ends with what it verified. It knows nothing of Cairn
// but what the API, the agents' sockets and the router show, and it leaves
// nothing behind unless asked to. Start at tour in demo.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"cairn/test/lab"
)

// Exit statuses besides 0.
const (
	failed      = 1
	misused     = 2
	interrupted = 130
)

// name of the demo's lab: prefix of its namespaces, and for `cairn lab --name`.
const name = "demo"

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	keep := flags.Bool("keep", false, "leave the cloud running at the end")
	router := flags.String("router", lab.BIRD, "what the router runs: bird or frr")
	bin := flags.String("bin", "", "folder of the built commands (default: where this one is)")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil || flags.NArg() > 0 {
		return misused
	}
	if *bin == "" {
		self, err := os.Executable()
		if err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			return failed
		}
		*bin = filepath.Dir(self)
	}
	// One at a time: two would end each other's cloud. An abstract socket is
	// gone with its process, however that ends.
	alone, err := net.Listen("unix", "@cairn-demo")
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: another one is running on this machine")
		return failed
	}
	defer alone.Close()

	// A reader that went away is an interruption like any other, not a death
	// that leaves namespaces behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	d := &demo{
		report: newReport(os.Stdout), keep: *keep,
		cfg: lab.Config{Name: name, Router: *router, Bin: *bin},
	}
	return d.run(ctx)
}
