// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func network(mask, start, end string) *PrivateNetwork {
	addr := func(s string) netip.Addr {
		if s == "" {
			return netip.Addr{}
		}
		return netip.MustParseAddr(s)
	}
	return &PrivateNetwork{Netmask: addr(mask), StartIP: addr(start), EndIP: addr(end)}
}

func TestPrivateNetworkValidate(t *testing.T) {
	for _, c := range []struct{ mask, start, end, want string }{
		{"", "", "", ""},
		{"255.255.255.0", "10.0.0.10", "10.0.0.20", ""},
		{"255.255.255.0", "10.0.0.10", "10.0.0.10", ""},
		{"255.0.0.0", "10.0.0.1", "10.255.255.250", ""},
		{"255.255.255.252", "10.0.0.1", "10.0.0.1", ""},
		{"255.255.255.0", "10.0.0.20", "10.0.0.10", "end-ip"},
		{"255.255.255.0", "10.0.0.10", "10.0.1.10", "end-ip"},
		{"255.255.255.0", "10.0.0.10", "", "end-ip"},
		{"", "10.0.0.10", "10.0.0.20", "netmask"},
		{"255.255.255.0", "", "", "start-ip end-ip"},
		{"255.0.255.0", "10.0.0.10", "10.0.0.20", "netmask"},
		{"0.255.255.255", "10.0.0.10", "10.0.0.20", "netmask"},
		{"255.255.255.255", "10.0.0.10", "10.0.0.10", "netmask"},
		{"0.0.0.0", "10.0.0.10", "10.0.0.10", "netmask"},
		{"255.255.255.0", "fd00::1", "fd00::2", "start-ip"},
	} {
		if got := faultsOf(network(c.mask, c.start, c.end)); got != c.want {
			t.Errorf("%s %s-%s: faults %q, want %q", c.mask, c.start, c.end, got, c.want)
		}
	}
}

// TestServerIsNobodys: of every network the server is the last address before the
// broadcast one, and instances get neither, nor the network's own.
func TestServerIsNobodys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		length := rapid.IntRange(minNetworkBits, maxNetworkBits).Draw(t, "bits")
		start := address4(rapid.Uint32().Draw(t, "start"))
		p := netip.PrefixFrom(start, length).Masked()
		mask := address4(^uint32(0) << (32 - length))
		n := &PrivateNetwork{Netmask: mask, StartIP: start, EndIP: start}
		if faults := n.Validate(); faults != nil || n.Prefix() != p {
			t.Fatalf("%s/%s is %s: %v", start, mask, n.Prefix(), faults)
		}
		server := n.Server()
		broadcast := server.Next()
		if !p.Contains(server) || !p.Contains(broadcast) || p.Contains(broadcast.Next()) && broadcast.Next().IsValid() {
			t.Fatalf("server of %s is %s", p, server)
		}
		for _, a := range []netip.Addr{p.Addr(), server, broadcast} {
			if n.Usable(a) {
				t.Fatalf("%s of %s is usable", a, p)
			}
		}
		if !n.Usable(p.Addr().Next()) || !n.Usable(server.Prev()) {
			t.Fatalf("the first or the last of %s is not usable", p)
		}
	})
}

func TestNetworkOptions(t *testing.T) {
	long := strings.Repeat("a.", 62) + "example"
	for _, c := range []struct {
		options NetworkOptions
		want    string
	}{
		{NetworkOptions{Routers: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, DomainSearch: []string{"example.net", "a.b.c."}}, ""},
		{NetworkOptions{DNSServers: []netip.Addr{netip.MustParseAddr("fd00::1")}}, "options.dns-servers[0]"},
		{NetworkOptions{NTPServers: []netip.Addr{{}}}, "options.ntp-servers[0]"},
		{NetworkOptions{DomainSearch: []string{"a..b"}}, "options.domain-search[0]"},
		{NetworkOptions{DomainSearch: []string{long}}, ""},
		{NetworkOptions{DomainSearch: []string{long, long}}, "options.domain-search"},
	} {
		if got := faultsOf(&PrivateNetwork{Options: &c.options}); got != c.want {
			t.Errorf("%+v: faults %q, want %q", c.options, got, c.want)
		}
	}
	for _, empty := range []*NetworkOptions{nil, {}} {
		if !empty.Empty() {
			t.Errorf("%+v is not empty", empty)
		}
	}
}

func TestAllowedAddresses(t *testing.T) {
	r := AttachToNetworkRequest{AllowedAddresses: []string{"10.0.0.1", "10.1.2.3/16", "fd00::1", "0.0.0.0/0"}}
	allowed, faults := r.Allowed()
	if faults != nil || len(allowed) != 4 || allowed[0].String() != "10.0.0.1/32" || allowed[1].String() != "10.1.0.0/16" || allowed[2].Bits() != 128 {
		t.Errorf("%v %v", allowed, faults)
	}
	for _, bad := range []string{"", "x", "10.0.0.0/33", "fe80::1%eth0", "224.0.0.1", "::ffff:10.0.0.1"} {
		if got := faultsOf(&AttachToNetworkRequest{AllowedAddresses: []string{bad}}); got != "allowed-addresses[0]" {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

func TestElasticHealthcheck(t *testing.T) {
	if got := (ElasticHealthcheck{Mode: CheckTCP, Port: 80}).WithDefaults(); got != (ElasticHealthcheck{Mode: CheckTCP, Port: 80, Interval: 10, Timeout: 2, StrikesOK: 2, StrikesFail: 3}) {
		t.Errorf("%+v", got)
	}
	for _, r := range []Validator{&CreateElasticIPRequest{Healthcheck: &ElasticHealthcheck{Timeout: 11}}, &UpdateElasticIPRequest{Healthcheck: &ElasticHealthcheck{Interval: 5, Timeout: 6}}} {
		if got := faultsOf(r); got != "healthcheck.timeout" {
			t.Error(got)
		}
	}
	if got := faultsOf(&CreateElasticIPRequest{}); got != "" {
		t.Error(got)
	}
}

func TestValidDomain(t *testing.T) {
	for _, good := range []string{"a", "example.net", "example.net.", "_dmarc.Example.net", "a-b.c1", strings.Repeat("a", 63)} {
		if !ValidDomain(good) {
			t.Errorf("%q is refused", good)
		}
	}
	for _, bad := range []string{"", ".", "a..b", "-a", "a-", "a b", "é", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "aa"} {
		if ValidDomain(bad) {
			t.Errorf("%q passes", bad)
		}
	}
}

// TestWhatMustBeThere: of an instance's row the labels are, even when empty; of a
// network and an elastic IP they are not.
func TestWhatMustBeThere(t *testing.T) {
	for _, c := range []struct {
		noun any
		want bool
	}{{(&Instance{}).Row(), true}, {Instance{}, true}, {PrivateNetwork{Labels: Labels{}}, false}, {ElasticIP{Labels: Labels{}}, false}} {
		text, err := json.Marshal(c.noun)
		if err != nil || strings.Contains(string(text), `"labels":{}`) != c.want {
			t.Errorf("%T: %s, %v", c.noun, text, err)
		}
	}
	if text, err := json.Marshal(PrivateNetwork{}); err != nil || string(text) != `{"id":"","name":"","vni":0}` {
		t.Errorf("%s, %v", text, err)
	}
}
