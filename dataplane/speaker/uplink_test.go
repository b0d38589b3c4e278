// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"net/netip"
	"testing"
)

func TestFacing(t *testing.T) {
	devices := []device{
		{"mgmt", []netip.Prefix{prefix("10.65.0.3/24")}},
		{"uplink", []netip.Prefix{prefix("fe80::1/64"), prefix("10.64.0.3/31"), prefix("2001:db8::3/64")}},
		{"spare", []netip.Prefix{prefix("10.64.0.0/16")}},
	}
	peer := netip.MustParseAddr("10.64.0.2")
	for _, name := range []string{"", "uplink"} {
		u, err := facing(devices, name, peer)
		if err != nil || u.Name != "uplink" || u.Address.String() != "10.64.0.3" || u.Address6.String() != "2001:db8::3" {
			t.Errorf("facing(%q) = %+v, %v", name, u, err)
		}
	}
	if u, err := facing(devices, "mgmt", peer); err == nil {
		t.Errorf("mgmt does not face %s, got %+v", peer, u)
	}
	if u, err := facing(devices[:1], "", peer); err == nil {
		t.Errorf("nothing faces %s, got %+v", peer, u)
	}
	if u, err := facing(devices[:2], "", netip.MustParseAddr("10.64.0.3")); err == nil {
		t.Errorf("the host is its own peer: %+v", u)
	}
}
