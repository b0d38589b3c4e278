// SPDX-License-Identifier: Apache-2.0

package nlb

import (
	"net/netip"
	"testing"

	"cairn/cloud/wire"
	"cairn/dataplane/maps"
)

func TestNodesOfAVIP(t *testing.T) {
	vip := netip.MustParsePrefix("203.0.113.1/32")
	for name, c := range map[string]struct {
		service bool
		hosts   []uint32
		want    string
	}{
		"two":               {true, []uint32{2, 1}, "vip_nodes 203.0.113.1 = host 2 endpoint 10.64.0.3 nexthop 1, host 1"},
		"one without a way": {true, []uint32{1, 3}, "vip_nodes 203.0.113.1 = host 1, host 3 endpoint 10.64.0.5 nexthop 0"},
		"this one alone":    {true, []uint32{1}, ""},
		"others":            {true, []uint32{2, 3}, ""},
		"an instance's":     {false, []uint32{1, 2}, ""},
		"nobody":            {true, nil, ""},
		"more than share":   {true, []uint32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			have := maps.NewImage()
			items := append(hosts(), wire.Host{ID: 3, Endpoint: netip.MustParseAddr("10.64.0.5"), MTU: 1600},
				wire.Announcement{Prefix: vip, Service: c.service, Announcers: c.hosts})
			failed := program(t, have, Capacities{1024, 8, 8}, items...)
			got := ""
			if failed[Nodes(vip.String())] != "" {
				got = "refused"
			}
			for e := range have.Entries(maps.VIPNodes) {
				got += e.String()
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
