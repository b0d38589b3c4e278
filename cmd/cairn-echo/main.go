// SPDX-License-Identifier: Apache-2.0

// Command cairn-echo is the workload of the template "echo": it answers HTTP on
// port 80 and UDP and TCP on port 7 with the name of the instance it runs in and
// the address its peer was seen with, and prints one JSON line a request. It
// asks for the addresses of links that are marked for it, as a guest's own
// system would. It owns no state and needs nothing but a kernel. Start at server.go.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"cairn/cloud/compute/guest"
)

func main() {
	hostname, _ := os.Hostname()
	name := flag.String("name", firstOf(os.Getenv("CAIRN_INSTANCE_NAME"), hostname), "what to answer as")
	web := flag.String("http", ":80", "address for HTTP")
	echo := flag.String("echo", ":7", "address for UDP and TCP echo")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	// Standard output is for requests.
	go guest.Run(ctx, slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	s := &server{name: *name, out: os.Stdout}
	if err := s.run(ctx, *web, *echo); err != nil {
		fmt.Fprintln(os.Stderr, "cairn-echo:", err)
		os.Exit(1)
	}
}

func firstOf(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}
