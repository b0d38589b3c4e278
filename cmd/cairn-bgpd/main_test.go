// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/dataplane/speaker"
)

func TestOptions(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := parse(strings.Fields("--peer 10.64.0.0 --peer 10.64.1.0 --local-as 65001 --peer-as 65000 --bfd --password-file " + secret))
	if err != nil {
		t.Fatal(err)
	}
	c, err := o.config(speaker.Uplink{Name: "uplink", Address: netip.MustParseAddr("10.64.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.RouterID.String() != "10.64.0.1" || c.ListenPort != 0 || len(c.Peers) != 2 {
		t.Errorf("config %+v", c)
	}
	for _, p := range c.Peers {
		if !p.BFD || p.Passive || p.Password != "horse" || p.AS != 65000 {
			t.Errorf("peer %+v", p)
		}
	}
	o, err = parse(strings.Fields("--peer 10.64.0.0 --passive --router-id 192.0.2.7"))
	if err != nil {
		t.Fatal(err)
	}
	if c, err = o.config(speaker.Uplink{}); err != nil || c.ListenPort != 179 || c.RouterID.String() != "192.0.2.7" {
		t.Errorf("passive: %+v, %v", c, err)
	}
}

func TestOptionsRefused(t *testing.T) {
	for _, args := range []string{"", "--peer", "--peer nowhere", "--peer 10.64.0.0 --router-id x", "--peer 10.64.0.0 --what"} {
		if _, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
