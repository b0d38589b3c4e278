// SPDX-License-Identifier: Apache-2.0

package nlb

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
)

// Services of both families have numbers of one kind, and maps of their own.
func TestServicesOfBothFamilies(t *testing.T) {
	vip6, address6 := netip.MustParseAddr("2001:db8:ee::1"), netip.MustParseAddr("2001:db8:1::5")
	six := service(2, 256, 1)
	six[0] = wire.Backend{ID: 2, Service: 2, Host: 1, Port: 2, Address: address6, TargetPort: 8080}
	six[2] = wire.Service{ID: 2, VIP: vip6, Port: 80, Protocol: 17}
	have := maps.NewImage()
	if failed := program(t, have, Capacities{1024, 8, 8}, append(append(hosts(), service(1, 256, 1)...), six...)...); len(failed) > 0 {
		t.Fatal(failed)
	}
	if !Services(have)[1] || !Services(have)[2] {
		t.Errorf("services: %v", Services(have))
	}
	var got []string
	for e := range have.Served() {
		record, _ := have.Get(maps.ID{Map: maps.Svc, Key: e.Value})
		got = append(got, fmt.Sprintf("%s: %s", printed(e), maps.As[bpf.Svc](record).Vip.Addr()))
	}
	for e := range have.VIPs() {
		got = append(got, e.String())
	}
	for _, m := range []maps.Map{maps.Local} {
		for e := range have.Entries(m) {
			got = append(got, maps.As[bpf.Local](e.Value).Ip.Addr().String())
		}
	}
	want := "vip4 203.0.113.1:80/6: 203.0.113.1\nvip6 [2001:db8:ee::1]:80/17: 2001:db8:ee::1\n" +
		"vipaddr4 203.0.113.1 = 1\nvipaddr6 2001:db8:ee::1 = 1\n2001:db8:1::5"
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	word, mask := bpf.VIPBit(vip6)
	if bits, ok := have.Get(maps.ID{Map: maps.VIPBits, Key: maps.Bytes(word)}); !ok || maps.As[uint64](bits)&mask == 0 {
		t.Error("the filter does not know the VIP of IPv6")
	}
}

func printed(e maps.Entry) string {
	text, _, _ := strings.Cut(e.String(), " = ")
	return text
}

// Nothing could be delivered: the service is refused, others go on.
func TestBackendOfTheOtherFamily(t *testing.T) {
	for name, swap := range map[string]func(items []wire.Item){
		"IPv4 behind a VIP of IPv6": func(items []wire.Item) {
			items[2] = wire.Service{ID: 2, VIP: netip.MustParseAddr("2001:db8:ee::1"), Port: 80, Protocol: 6}
		},
		"IPv6 behind a VIP of IPv4": func(items []wire.Item) {
			items[0] = wire.Backend{ID: 2, Service: 2, Host: 2, Port: 2, Address: netip.MustParseAddr("2001:db8:1::5"), TargetPort: 80}
		},
	} {
		t.Run(name, func(t *testing.T) {
			wrong := service(2, 256, 1)
			swap(wrong)
			have := maps.NewImage()
			failed := program(t, have, Capacities{1024, 8, 8}, append(append(hosts(), service(1, 256, 1)...), wrong...)...)
			if len(failed) != 1 || !strings.Contains(failed["service/2"], "an address of the other family") {
				t.Errorf("refused: %v", failed)
			}
			if got := Services(have); !got[1] || got[2] {
				t.Errorf("services: %v", got)
			}
		})
	}
}
