// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "cairn/proto/agent/v1"
)

var decoders = map[Kind]func([]byte) (Item, error){
	KindHost:         decodeHost,
	KindClass:        decodeClass,
	KindMember:       decodeMember,
	KindPolicy:       decodePolicy,
	KindInstance:     decodeInstance,
	KindPort:         decodePort,
	KindBackend:      decodeBackend,
	KindSlots:        decodeSlots,
	KindService:      decodeService,
	KindCheck:        decodeCheck,
	KindAnnouncement: decodeAnnouncement,
	KindNetwork:      decodeNetwork,
	KindNeighbour:    decodeNeighbour,
}

func decodeHost(b []byte) (Item, error) {
	var m agentv1.Host
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	h := Host{ID: d.id("id", m.Id), Name: m.Name, Endpoint: d.addr("endpoint", m.Endpoint), MTU: m.Mtu}
	return h, d.err
}

func decodeClass(b []byte) (Item, error) {
	var m agentv1.Class
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	c := Class{ID: d.id("id", m.Id), Groups: m.Groups}
	if !slices.IsSorted(c.Groups) {
		d.fail("groups: not ascending")
	}
	return c, d.err
}

func decodeMember(b []byte) (Item, error) {
	var m agentv1.Member
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	v := Member{Scope: m.Scope, Address: d.addr("address", m.Address), Class: d.id("class", m.Class)}
	return v, d.err
}

func decodePolicy(b []byte) (Item, error) {
	var m agentv1.Policy
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	p := Policy{ID: d.id("id", m.Id)}
	var count [2]int
	for i, r := range m.Rules {
		rule := decodeRule(&d, i, r)
		p.Rules = append(p.Rules, rule)
		count[rule.Direction]++
	}
	if max(count[0], count[1]) > MaxRules {
		d.fail("rules: more than %d a direction", MaxRules)
	}
	return p, d.err
}

func decodeRule(d *decoding, i int, r *agentv1.Rule) Rule {
	at := func(field string) string { return fmt.Sprintf("rules[%d].%s", i, field) }
	rule := Rule{
		ID: d.id(at("id"), r.Id), Protocol: d.protocol(r.Protocol), PeerGroup: r.PeerGroup,
		PortMin: d.port(at("port_min"), r.PortMin, true), PortMax: d.port(at("port_max"), r.PortMax, true),
		ICMPType: int16(r.IcmpType), ICMPCode: int16(r.IcmpCode),
		Sources: d.prefixes(at("sources"), r.Sources), Keep: r.Keep, Origin: r.Origin,
	}
	if len(r.Origin) > MaxOrigin {
		d.fail("%s: %d bytes are more than %d", at("origin"), len(r.Origin), MaxOrigin)
	}
	if r.Egress {
		rule.Direction = Egress
	}
	if r.PeerGroup == 0 {
		rule.Peer = d.prefix(at("peer"), r.PeerAddress, r.PeerBits)
	}
	if rule.PortMin > rule.PortMax {
		d.fail("%s: %d-%d is no range", at("port_min"), rule.PortMin, rule.PortMax)
	}
	for _, v := range []int32{r.IcmpType, r.IcmpCode} {
		if v < -1 || v > math.MaxUint8 {
			d.fail("%s: %d is neither -1 nor a byte", at("icmp"), v)
		}
	}
	return rule
}

func decodeInstance(b []byte) (Item, error) {
	var m agentv1.Instance
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	if m.Id == "" || m.Driver == "" {
		d.fail("id and driver must be set")
	}
	v := Instance{
		ID: m.Id, Name: m.Name, Driver: m.Driver, Command: m.Command, UserData: m.UserData,
		Port: m.Port, Running: m.Running, Generation: m.Generation, Zone: m.Zone,
		Networks: m.Networks, Type: m.Type, SSHKeys: m.SshKeys,
	}
	if len(m.PublicAddress) > 0 {
		v.PublicAddress = d.addr("public_address", m.PublicAddress)
	}
	return v, d.err
}

func decodePort(b []byte) (Item, error) {
	var m agentv1.Port
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	p := Port{
		ID: d.id("id", m.Id), Instance: m.Instance, MAC: d.mac("mac", m.Mac), Addresses: d.addrs("addresses", m.Addresses),
		Policy: m.Policy, MTU: m.Mtu, Flags: PortFlag(m.Flags), Network: m.Network,
		Allowed: d.prefixes("allowed", m.Allowed), Active: d.prefixes("active", m.Active),
		RateFrom: m.RateFrom, RateTo: m.RateTo, Flows: m.Flows, Established: time.Duration(m.EstablishedS) * time.Second,
	}
	if p.Network > MaxVNI {
		d.fail("network: %d is no network", p.Network)
	}
	return p, d.err
}

func decodeBackend(b []byte) (Item, error) {
	var m agentv1.Backend
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	v := Backend{
		ID: d.id("id", m.Id), Service: d.id("service", m.Service), Host: d.id("host", m.Host), Port: d.id("port", m.Port),
		MAC: d.mac("mac", m.Mac), Address: d.addr("address", m.Address), TargetPort: d.port("target_port", m.TargetPort, false),
		Draining: m.Draining, Unhealthy: m.Unhealthy,
	}
	return v, d.err
}

func decodeSlots(b []byte) (Item, error) {
	var m agentv1.Slots
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	n := len(m.Table) / 8
	if len(m.Table)%8 != 0 || n&(n-1) != 0 || n > MaxSlots {
		d.fail("table: %d bytes are no table", len(m.Table))
	}
	v := Slots{Service: d.id("service", m.Service), Generation: m.Generation, Table: m.Table}
	return v, d.err
}

func decodeService(b []byte) (Item, error) {
	var m agentv1.Service
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	v := Service{
		ID: d.id("id", m.Id), VIP: d.addr("vip", m.Vip), Port: d.port("port", m.Port, false), Protocol: d.protocol(m.Protocol),
		SourceHash: m.SourceHash, Panic: m.Panic, Seed: m.Seed, SlotsGeneration: m.SlotsGeneration,
		ConnectionLimit: m.ConnectionLimit, SourceRate: m.SourceRate, QUIC: m.Quic, Rotating: m.Rotating, PrevSeed: m.PrevSeed,
	}
	return v, d.err
}

func decodeCheck(b []byte) (Item, error) {
	var m agentv1.Check
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	if m.IntervalMs == 0 || m.TimeoutMs == 0 {
		d.fail("interval and timeout must be set")
	}
	v := Check{
		Service: m.Service, Backend: m.Backend, Elastic: m.Elastic, CheckedPort: m.CheckedPort, Mode: m.Mode,
		Address: d.addr("address", m.Address), Port: d.port("port", m.Port, false),
		Interval: time.Duration(m.IntervalMs) * time.Millisecond, Timeout: time.Duration(m.TimeoutMs) * time.Millisecond,
		Retries: m.Retries, URI: m.Uri, Generation: m.Generation,
		TLSSNI: m.TlsSni, TLSSkipVerify: m.TlsSkipVerify, StrikesOK: m.StrikesOk,
	}
	if v.Elastic != 0 {
		d.id("checked_port", v.CheckedPort)
	} else {
		d.id("service", v.Service)
		d.id("backend", v.Backend)
	}
	if v.Mode != "tcp" && v.Mode != "http" && v.Mode != "https" {
		d.fail("mode: %q is none of tcp, http, https", v.Mode)
	}
	return v, d.err
}

func decodeAnnouncement(b []byte) (Item, error) {
	var m agentv1.Announcement
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	v := Announcement{
		Prefix: d.prefix("prefix", m.Address, m.Bits), Communities: m.Communities, Service: m.Service, Announcers: m.Announcers,
	}
	return v, d.err
}

func decodeNetwork(b []byte) (Item, error) {
	var m agentv1.Network
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	v := Network{
		VNI: d.vni("vni", m.Vni), ID: m.Id, MTU: m.Mtu, Hosts: m.Hosts, BroadcastRate: m.BroadcastRate, Snooping: m.Snooping,
	}
	if !slices.IsSorted(v.Hosts) {
		d.fail("hosts: not ascending")
	}
	if l := m.Lease; l != nil {
		v.Lease = &Lease{
			Server: d.addr("lease.server", l.Server), Bits: uint8(l.Bits),
			Start: d.addr("lease.start", l.Start), End: d.addr("lease.end", l.End),
			Routers: d.addrs("lease.routers", l.Routers), DNSServers: d.addrs("lease.dns_servers", l.DnsServers),
			NTPServers: d.addrs("lease.ntp_servers", l.NtpServers), DomainSearch: l.DomainSearch,
		}
		if l.Bits > uint32(v.Lease.Server.BitLen()) {
			d.fail("lease.bits: %d is longer than an address", l.Bits)
		}
	}
	return v, d.err
}

func decodeNeighbour(b []byte) (Item, error) {
	var m agentv1.Neighbour
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var d decoding
	v := Neighbour{
		VNI: d.vni("vni", m.Vni), Port: d.id("port", m.Port), Host: d.id("host", m.Host), MAC: d.mac("mac", m.Mac),
		Addresses: d.addrs("addresses", m.Addresses), Name: m.Name,
	}
	return v, d.err
}
