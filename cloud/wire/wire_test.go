// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var samples = []Item{
	Host{ID: 1, Name: "hv1", Endpoint: netip.MustParseAddr("10.64.0.1"), MTU: 1600},
	Class{ID: 2, Groups: []uint32{1, 5}},
	Member{Address: netip.MustParseAddr("198.51.100.7"), Class: 2},
	Policy{ID: 2, Rules: []Rule{
		{ID: 1, Protocol: 6, PortMin: 80, PortMax: 81, ICMPType: -1, ICMPCode: -1, Peer: netip.MustParsePrefix("0.0.0.0/0")},
		{ID: 2, Direction: Egress, Protocol: 1, ICMPType: 8, ICMPCode: -1, PeerGroup: 5},
	}},
	Instance{ID: "6f0c", Name: "web-1", Driver: "netns", Command: "echo", UserData: []byte("#!/bin/sh\n"), Port: 3, Running: true, Generation: 4, Zone: "ch-gva-2"},
	Port{ID: 3, Instance: "6f0c", MAC: [6]byte{2, 0xca, 0, 0, 0, 3}, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.7")}, Policy: 2, MTU: 1500},
	Backend{ID: 9, Service: 4, Host: 1, Port: 3, MAC: [6]byte{2, 0xca, 0, 0, 0, 3}, Address: netip.MustParseAddr("198.51.100.7"), TargetPort: 8080, Unhealthy: true},
	Slots{Service: 4, Generation: 7, Table: bytes.Repeat([]byte{9, 0, 0, 0, 0, 0, 0, 0}, 256)},
	Service{ID: 4, VIP: netip.MustParseAddr("203.0.113.1"), Port: 80, Protocol: 6, SourceHash: true, Seed: 99, SlotsGeneration: 7, ConnectionLimit: 200, SourceRate: 1000, QUIC: true, Rotating: true, PrevSeed: 98},
	Check{Service: 4, Backend: 9, Mode: "http", Address: netip.MustParseAddr("198.51.100.7"), Port: 8080, Interval: 5 * time.Second, Timeout: 2 * time.Second, Retries: 1, URI: "/healthz", Generation: 1},
	Policy{ID: 3, Rules: []Rule{{ID: 3, Protocol: 50, ICMPType: -1, ICMPCode: -1, PeerGroup: 5, Keep: true, Origin: "web/5c0f",
		Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}}}},
	Instance{ID: "6f0d", Name: "db-1", Driver: "netns", Networks: []uint32{7, 8}, Type: "standard.small",
		SSHKeys: []string{"ssh-ed25519 AAAA me"}, PublicAddress: netip.MustParseAddr("198.51.100.8")},
	Port{ID: 7, Instance: "6f0d", MAC: [6]byte{2, 0xca, 0, 0, 0, 7}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7")},
		MTU: 1450, Flags: PortFirewall | PortFlowLog, Network: 12, Allowed: []netip.Prefix{netip.MustParsePrefix("10.0.0.100/32")},
		Active: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/96")}, RateFrom: 1e6, RateTo: 2e6, Flows: 65536, Established: time.Minute},
	Check{Elastic: 4, CheckedPort: 9, Mode: "https", Address: netip.MustParseAddr("198.51.100.7"), Port: 443, Interval: 5 * time.Second, Timeout: 2 * time.Second, TLSSNI: "example.net", TLSSkipVerify: true, StrikesOK: 2},
	Network{VNI: 12, ID: "aa-12", MTU: 1450, Hosts: []uint32{1, 3}, BroadcastRate: 100, Snooping: true, Lease: &Lease{
		Server: netip.MustParseAddr("10.0.0.254"), Bits: 24, Start: netip.MustParseAddr("10.0.0.10"), End: netip.MustParseAddr("10.0.0.99"),
		Routers: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, DNSServers: []netip.Addr{netip.MustParseAddr("9.9.9.9")},
		NTPServers: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, DomainSearch: []string{"example.net"},
	}},
	Neighbour{VNI: 12, Port: 7, Host: 1, MAC: [6]byte{2, 0xca, 0, 0, 0, 7}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7")}, Name: "db-1"},
	Announcement{Prefix: netip.MustParsePrefix("203.0.113.1/32"), Communities: []uint32{65000 << 16}, Service: true, Announcers: []uint32{1, 2, 3}},
}

func TestRoundTripOfEveryKind(t *testing.T) {
	seen := map[Kind]bool{}
	for _, item := range samples {
		seen[item.Key().Kind] = true
		body, err := Encode(item)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Encode(item)
		if err != nil || !bytes.Equal(body, again) {
			t.Errorf("%s: two encodings differ", item.Key())
		}
		got, err := Decode(item.Key().Kind, body)
		if err != nil {
			t.Fatalf("%s: %v", item.Key(), err)
		}
		if !reflect.DeepEqual(got, item) {
			t.Errorf("%s:\n got %+v\nwant %+v", item.Key(), got, item)
		}
	}
	for _, kind := range Kinds() {
		if !seen[kind] {
			t.Errorf("%s: no sample", kind)
		}
		if back, err := ParseKind(kind.String()); err != nil || back != kind {
			t.Errorf("ParseKind(%s) = %s, %v", kind, back, err)
		}
	}
}

func TestDecodeRefusesWhatNoAgentCanHold(t *testing.T) {
	for _, bad := range []Item{
		Host{Name: "no number", Endpoint: netip.MustParseAddr("10.64.0.1")},
		Host{ID: 1},
		Class{ID: 1, Groups: []uint32{5, 1}},
		Member{Address: netip.MustParseAddr("198.51.100.7")},
		Policy{ID: 2, Rules: []Rule{{ID: 1, PortMin: 81, PortMax: 80, PeerGroup: 1}}},
		Policy{ID: 2, Rules: []Rule{{ID: 1, ICMPType: 256, PeerGroup: 1}}},
		Policy{ID: 2, Rules: []Rule{{ID: 1, Peer: netip.Prefix{}}}},
		Policy{ID: 2, Rules: make([]Rule, MaxRules+1)},
		Slots{Service: 1, Table: make([]byte, 24)},
		Slots{Service: 1, Table: make([]byte, 7)},
		Check{Service: 1, Backend: 1, Mode: "icmp", Address: netip.MustParseAddr("198.51.100.7"), Port: 1, Interval: time.Second, Timeout: time.Second},
		Backend{ID: 1, Service: 1, Host: 1, Port: 1, Address: netip.MustParseAddr("198.51.100.7")},
		Check{Elastic: 1, Mode: "tcp", Address: netip.MustParseAddr("198.51.100.7"), Port: 1, Interval: time.Second, Timeout: time.Second},
		Check{Mode: "tcp", Address: netip.MustParseAddr("198.51.100.7"), Port: 1, Interval: time.Second, Timeout: time.Second},
		Network{ID: "no number"},
		Network{VNI: MaxVNI + 1},
		Network{VNI: 1, Hosts: []uint32{2, 1}},
		Network{VNI: 1, Lease: &Lease{Bits: 24}},
		Neighbour{VNI: 1, Port: 1},
		Port{ID: 1, Network: MaxVNI + 1},
	} {
		body, err := Encode(bad)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Decode(bad.Key().Kind, body); err == nil {
			t.Errorf("accepted %+v", got)
		}
	}
	if _, err := Decode(kindEnd, nil); err == nil {
		t.Error("accepted an unknown kind")
	}
}

func TestDecodeNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		item := rapid.SampledFrom(samples).Draw(t, "item")
		body, _ := Encode(item)
		for range rapid.IntRange(1, 8).Draw(t, "flips") {
			body[rapid.IntRange(0, len(body)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "by"))
		}
		kind := rapid.SampledFrom(Kinds()).Draw(t, "kind")
		_, _ = Decode(kind, body[:rapid.IntRange(0, len(body)).Draw(t, "len")])
	})
}

func TestDigestForgetsOrderAndWhatWasRemoved(t *testing.T) {
	var forth, back Digest
	bodies := map[Key][]byte{}
	for _, item := range samples {
		bodies[item.Key()], _ = Encode(item)
	}
	for _, item := range samples {
		forth.Add(item.Key(), bodies[item.Key()])
	}
	for i := range samples {
		key := samples[len(samples)-1-i].Key()
		back.Add(key, bodies[key])
		back.Add(key, []byte("x"))
		back.Remove(key, []byte("x"))
	}
	if forth != back || forth.Count != uint64(len(samples)) {
		t.Errorf("%+v and %+v differ", forth, back)
	}
	back.Remove(samples[0].Key(), bodies[samples[0].Key()])
	back.Add(samples[0].Key(), append(bodies[samples[0].Key()], 0))
	if forth == back {
		t.Error("another body gives the same digest")
	}
}
