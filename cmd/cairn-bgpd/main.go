// SPDX-License-Identifier: Apache-2.0

// Command cairn-bgpd is the BGP and BFD speaker of a hypervisor. It announces
// what the agent wants announced as long as its own test of the dataplane
// passes, with the agent alive or not. It owns the sessions with the routers
// and nothing of the dataplane. Start at dataplane/speaker.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"cairn/dataplane/speaker"
	"cairn/lb/bgp"
)

type options struct {
	state, pins, socket, file, uplink, password string
	localAS, peerAS                             uint
	listen                                      uint
	routerID                                    netip.Addr
	peers                                       []netip.Addr
	bfd, passive, ttlSecurity, json             bool
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("cairn-bgpd", flag.ContinueOnError)
	f.StringVar(&o.state, "state", "/var/lib/cairn/bgpd", "folder for the speaker's own copy of the announcements")
	f.StringVar(&o.pins, "pins", "/sys/fs/bpf/cairn", "folder of the dataplane's pins")
	f.StringVar(&o.socket, "socket", "/run/cairn/bgpd.sock", "unix socket that tells the status")
	f.StringVar(&o.file, "announcements", "/var/lib/cairn/agent/announcements.json", "file that the agent writes")
	f.StringVar(&o.uplink, "uplink", "", "device towards the routers (default: the one in the first peer's subnet)")
	f.UintVar(&o.localAS, "local-as", 65001, "own AS number")
	f.UintVar(&o.peerAS, "peer-as", 65000, "AS number of the routers")
	f.TextVar(&o.routerID, "router-id", netip.Addr{}, "own router id (default: the uplink's address)")
	f.Func("peer", "address of a router; may be given several times", func(s string) error {
		a, err := netip.ParseAddr(s)
		o.peers = append(o.peers, a)
		return err
	})
	f.BoolVar(&o.bfd, "bfd", false, "run BFD with the routers, 100 ms × 3")
	f.BoolVar(&o.passive, "passive", false, "wait for the routers to connect")
	f.UintVar(&o.listen, "listen", 179, "TCP port to wait on, with --passive")
	f.BoolVar(&o.ttlSecurity, "ttl-security", false, "send with TTL 255 and refuse less (RFC 5082)")
	f.StringVar(&o.password, "password-file", "", "file with the TCP MD5 password of the sessions (RFC 2385)")
	f.BoolVar(&o.json, "json", false, "log as JSON")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if len(o.peers) == 0 {
		return o, errors.New("no --peer given")
	}
	return o, nil
}

func (o options) config(u speaker.Uplink) (bgp.Config, error) {
	c := bgp.Config{
		LocalAS: uint32(o.localAS), RouterID: o.routerID, LocalAddress: u.Address, LocalAddress6: u.Address6,
	}
	if !c.RouterID.IsValid() {
		c.RouterID = u.Address
	}
	if o.passive {
		c.ListenPort = uint16(o.listen)
	}
	var password []byte
	if o.password != "" {
		var err error
		if password, err = os.ReadFile(o.password); err != nil {
			return c, fmt.Errorf("read the password: %w", err)
		}
	}
	for _, p := range o.peers {
		c.Peers = append(c.Peers, bgp.Peer{
			Address: p, AS: uint32(o.peerAS), BFD: o.bfd, Passive: o.passive, TTLSecurity: o.ttlSecurity,
			Password: string(trimNewline(password)),
		})
	}
	return c, nil
}

func trimNewline(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b
}

func run(ctx context.Context, o options, log *slog.Logger) error {
	for _, folder := range []string{o.state, filepath.Dir(o.socket)} {
		if err := os.MkdirAll(folder, 0o750); err != nil {
			return err
		}
	}
	uplink, err := speaker.FindUplink(o.uplink, o.peers[0])
	if err != nil {
		return err
	}
	config, err := o.config(uplink)
	if err != nil {
		return err
	}
	sessions, err := bgp.Start(config, log)
	if err != nil {
		return err
	}
	defer sessions.Stop() // withdraws everything
	s := speaker.New(speaker.Config{File: o.file, State: o.state, Log: log}, speaker.NewPins(o.pins, uplink.Name), sessions)
	log.Info("speaking", "uplink", uplink.Name, "address", uplink.Address, "peers", o.peers)
	serving := make(chan struct{})
	go func() {
		defer close(serving)
		if err := s.Serve(ctx, o.socket); err != nil {
			log.Error("nobody can ask for the status", "err", err) // no reason to withdraw anything
		}
	}()
	s.Run(ctx)
	<-serving
	return nil
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cairn-bgpd:", err)
		os.Exit(2)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if o.json {
		log = slog.New(slog.NewJSONHandler(os.Stderr, nil))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, o, log); err != nil {
		log.Error("stop", "err", err)
		os.Exit(1)
	}
}
