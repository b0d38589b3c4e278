// SPDX-License-Identifier: Apache-2.0

// Command cairn is the command line: for customers every operation of the public
// API, for network engineers and newcomers the verbs that other packages bring. It
// only wires.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"cairn/cloud/cli"
	"cairn/dataplane/debug"
	"cairn/test/lab"
)

// extra are the verbs that are no customer's: each package that has one hands over a
// command.
var extra = []*cobra.Command{lab.Command(), debug.Command()}

// interrupted is the exit status of a command that a signal ended.
const interrupted = 130

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := cli.New(cli.Options{})
	root.AddCommand(extra...)
	err := root.ExecuteContext(ctx)
	ended := ctx.Err() != nil
	stop()
	if err == nil {
		return
	}
	// A verb that has said everything returns an error without text.
	if text := err.Error(); text != "" && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "cairn:", text)
	}
	if ended {
		os.Exit(interrupted)
	}
	os.Exit(1)
}
