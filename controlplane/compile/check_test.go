// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/store"
)

// What a customer asks for is what a host does, under the contract's defaults;
// what a mode has no use for stays behind.
func TestCheckOfABackend(t *testing.T) {
	address := netip.MustParseAddr("198.51.100.7")
	for name, c := range map[string]struct {
		asked cloud.Healthcheck
		want  wire.Check
	}{
		"nothing": {cloud.Healthcheck{}, wire.Check{Mode: "tcp", Port: 8080, Interval: 10 * time.Second, Timeout: 2 * time.Second, Retries: 1}},
		"tcp": {
			cloud.Healthcheck{Mode: cloud.CheckTCP, Port: 81, Interval: 5, Timeout: 3, Retries: 4, URI: "/up", TLSSNI: "example.net"},
			wire.Check{Mode: "tcp", Port: 81, Interval: 5 * time.Second, Timeout: 3 * time.Second, Retries: 4},
		},
		"http": {
			cloud.Healthcheck{Mode: cloud.CheckHTTP, URI: "/up", TLSSNI: "example.net"},
			wire.Check{Mode: "http", Port: 8080, Interval: 10 * time.Second, Timeout: 2 * time.Second, Retries: 1, URI: "/up"},
		},
		"https": {
			cloud.Healthcheck{Mode: cloud.CheckHTTPS, Port: 443, URI: "/up", TLSSNI: "example.net"},
			wire.Check{Mode: "https", Port: 443, Interval: 10 * time.Second, Timeout: 2 * time.Second, Retries: 1, URI: "/up", TLSSNI: "example.net"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := store.ServiceDoc{Number: 4}
			d.TargetPort, d.Healthcheck = 8080, c.asked
			c.want.Service, c.want.Backend, c.want.Address, c.want.Generation = 4, 9, address, 3
			if got := checkOf(d, store.BackendDoc{Number: 9, Generation: 3}, address); got != c.want {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}
