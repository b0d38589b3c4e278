// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// A VIP of IPv6 leads to the instances' addresses of IPv6, which are asked there,
// and to none that has no such address.
func TestServiceOfIPv6(t *testing.T) {
	w := newWorld(t)
	b, s := balancer(1), service(1, 1, 1, 2)
	vip6 := netip.MustParseAddr("2001:db8:ee::1")
	b.Body.VIP, s.Body.VIP = vip6, vip6
	with, without := instance(1, 1, 1, 1), instance(2, 1, 1, 1)
	with.Body.Address6 = netip.MustParseAddr("2001:db8:1::5")
	got := text(w.commit("", replica.Rows{
		Hosts: []*replica.Host{host(1, store.RoleCompute, store.RoleLB)}, Balancers: []*replica.Balancer{b},
		Services: []*replica.Service{s}, Instances: []*replica.Instance{with, without}, Groups: []*replica.Group{group(1)},
	}))
	for _, want := range []string{"backend/101", "check/1/101", "service/1", "announcement/2001:db8:ee::1/128"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if strings.Contains(got, "backend/102") || strings.Contains(got, "check/1/102") {
		t.Errorf("a backend without IPv6:\n%s", got)
	}
	placed, err := New(w.replica.Snapshot(), "ch-gva-2").service(s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if all := fmt.Sprintf("%+v", placed); !strings.Contains(all, "2001:db8:1::5") || strings.Contains(all, "198.51.100.1") {
		t.Errorf("items: %s", all)
	}
}
