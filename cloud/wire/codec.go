// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "cairn/proto/agent/v1"
)

// Limits of what an agent accepts and the control plane sends.
const (
	MaxBody   = 1 << 20 // bytes of one encoded item
	MaxRules  = 1024    // rules of a policy and direction: the bits of a bitmap
	MaxOrigin = 128     // bytes of what a rule is in the API
	MaxVNI    = 0xfffffd
	MaxSlots  = 16384
)

var marshal = proto.MarshalOptions{Deterministic: true}

// Encode gives an item's body: the same bytes for equal items.
func Encode(item Item) ([]byte, error) {
	body, err := marshal.Marshal(toProto(item))
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", item.Key(), err)
	}
	if len(body) > MaxBody {
		return nil, fmt.Errorf("encode %s: %d bytes are more than %d", item.Key(), len(body), MaxBody)
	}
	return body, nil
}

// Decode gives the item of a body and refuses whatever no agent could hold. It
// never panics.
func Decode(kind Kind, body []byte) (Item, error) {
	if len(body) > MaxBody {
		return nil, fmt.Errorf("decode %s: %d bytes are more than %d", kind, len(body), MaxBody)
	}
	decode, ok := decoders[kind]
	if !ok {
		return nil, fmt.Errorf("decode %s: not known here", kind)
	}
	item, err := decode(body)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", kind, err)
	}
	return item, nil
}

func toProto(item Item) proto.Message {
	switch v := item.(type) {
	case Host:
		return &agentv1.Host{Id: v.ID, Name: v.Name, Endpoint: v.Endpoint.AsSlice(), Mtu: v.MTU}
	case Class:
		return &agentv1.Class{Id: v.ID, Groups: v.Groups}
	case Member:
		return &agentv1.Member{Scope: v.Scope, Address: v.Address.AsSlice(), Class: v.Class}
	case Policy:
		return policyToProto(v)
	case Instance:
		return &agentv1.Instance{
			Id: v.ID, Name: v.Name, Driver: v.Driver, Command: v.Command, UserData: v.UserData,
			Port: v.Port, Running: v.Running, Generation: v.Generation, Zone: v.Zone,
			Networks: v.Networks, Type: v.Type, SshKeys: v.SSHKeys, PublicAddress: v.PublicAddress.AsSlice(),
		}
	case Port:
		return portToProto(v)
	case Backend:
		return &agentv1.Backend{
			Id: v.ID, Service: v.Service, Host: v.Host, Port: v.Port, Mac: v.MAC[:], Address: v.Address.AsSlice(),
			TargetPort: uint32(v.TargetPort), Draining: v.Draining, Unhealthy: v.Unhealthy,
		}
	case Slots:
		return &agentv1.Slots{Service: v.Service, Generation: v.Generation, Table: v.Table}
	case Service:
		return &agentv1.Service{
			Id: v.ID, Vip: v.VIP.AsSlice(), Port: uint32(v.Port), Protocol: uint32(v.Protocol),
			SourceHash: v.SourceHash, Panic: v.Panic, Seed: v.Seed, SlotsGeneration: v.SlotsGeneration,
		}
	case Check:
		return &agentv1.Check{
			Service: v.Service, Backend: v.Backend, Mode: v.Mode, Address: v.Address.AsSlice(), Port: uint32(v.Port),
			IntervalMs: uint32(v.Interval.Milliseconds()), TimeoutMs: uint32(v.Timeout.Milliseconds()),
			Retries: v.Retries, Uri: v.URI, Generation: v.Generation,
			Elastic: v.Elastic, CheckedPort: v.CheckedPort, TlsSni: v.TLSSNI, TlsSkipVerify: v.TLSSkipVerify,
			StrikesOk: v.StrikesOK,
		}
	case Announcement:
		return &agentv1.Announcement{
			Address: v.Prefix.Addr().AsSlice(), Bits: uint32(v.Prefix.Bits()), Communities: v.Communities,
			Service: v.Service, Announcers: v.Announcers,
		}
	case Network:
		return networkToProto(v)
	case Neighbour:
		return &agentv1.Neighbour{
			Vni: v.VNI, Port: v.Port, Host: v.Host, Mac: v.MAC[:], Addresses: slicesOf(v.Addresses), Name: v.Name,
		}
	}
	panic(fmt.Sprintf("wire: no proto for %T", item)) // a noun without a translation cannot pass the round-trip test
}

func policyToProto(v Policy) proto.Message {
	out := &agentv1.Policy{Id: v.ID}
	for _, r := range v.Rules {
		rule := &agentv1.Rule{
			Id: r.ID, Egress: r.Direction == Egress, Protocol: uint32(r.Protocol),
			PortMin: uint32(r.PortMin), PortMax: uint32(r.PortMax),
			IcmpType: int32(r.ICMPType), IcmpCode: int32(r.ICMPCode), PeerGroup: r.PeerGroup,
			Sources: prefixesToProto(r.Sources), Keep: r.Keep, Origin: r.Origin,
		}
		if r.PeerGroup == 0 {
			rule.PeerAddress, rule.PeerBits = r.Peer.Addr().AsSlice(), uint32(r.Peer.Bits())
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

func portToProto(v Port) proto.Message {
	return &agentv1.Port{
		Id: v.ID, Instance: v.Instance, Mac: v.MAC[:], Addresses: slicesOf(v.Addresses), Policy: v.Policy, Mtu: v.MTU,
		Flags: uint32(v.Flags), Network: v.Network, Allowed: prefixesToProto(v.Allowed), Active: prefixesToProto(v.Active),
		RateFrom: v.RateFrom, RateTo: v.RateTo, Flows: v.Flows, EstablishedS: uint32(v.Established / time.Second),
	}
}

func networkToProto(v Network) proto.Message {
	out := &agentv1.Network{
		Vni: v.VNI, Id: v.ID, Mtu: v.MTU, Hosts: v.Hosts, BroadcastRate: v.BroadcastRate, Snooping: v.Snooping,
	}
	if l := v.Lease; l != nil {
		out.Lease = &agentv1.Lease{
			Server: l.Server.AsSlice(), Bits: uint32(l.Bits), Start: l.Start.AsSlice(), End: l.End.AsSlice(),
			Routers: slicesOf(l.Routers), DnsServers: slicesOf(l.DNSServers), NtpServers: slicesOf(l.NTPServers),
			DomainSearch: l.DomainSearch,
		}
	}
	return out
}

func slicesOf(addrs []netip.Addr) [][]byte {
	var out [][]byte
	for _, a := range addrs {
		out = append(out, a.AsSlice())
	}
	return out
}

func prefixesToProto(prefixes []netip.Prefix) []*agentv1.Prefix {
	var out []*agentv1.Prefix
	for _, p := range prefixes {
		out = append(out, &agentv1.Prefix{Address: p.Addr().AsSlice(), Bits: uint32(p.Bits())})
	}
	return out
}

// decoding collects the first fault of a body, so that a decoder reads as the
// list of its fields.
type decoding struct{ err error }

func (d *decoding) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

func (d *decoding) id(field string, v uint32) uint32 {
	if v == 0 {
		d.fail("%s: 0 is no number", field)
	}
	return v
}

func (d *decoding) addr(field string, b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	if !ok || a.IsUnspecified() {
		d.fail("%s: %d bytes are no address", field, len(b))
	}
	return a
}

func (d *decoding) prefix(field string, b []byte, bits uint32) netip.Prefix {
	a, ok := netip.AddrFromSlice(b)
	if !ok || bits > uint32(a.BitLen()) {
		d.fail("%s: %d bytes / %d is no prefix", field, len(b), bits)
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, int(bits)) // host bits are the control plane's concern: it sends what the API was given
}

func (d *decoding) addrs(field string, list [][]byte) (addrs []netip.Addr) {
	for _, b := range list {
		addrs = append(addrs, d.addr(field, b))
	}
	return addrs
}

func (d *decoding) prefixes(field string, list []*agentv1.Prefix) (prefixes []netip.Prefix) {
	for _, p := range list {
		prefixes = append(prefixes, d.prefix(field, p.GetAddress(), p.GetBits()))
	}
	return prefixes
}

func (d *decoding) vni(field string, v uint32) uint32 {
	if v == 0 || v > MaxVNI {
		d.fail("%s: %d is no network", field, v)
	}
	return v
}

func (d *decoding) mac(field string, b []byte) (mac [6]byte) {
	if len(b) != len(mac) {
		d.fail("%s: %d bytes are no MAC", field, len(b))
		return mac
	}
	return [6]byte(b)
}

func (d *decoding) port(field string, v uint32, zero bool) uint16 {
	if v > math.MaxUint16 || (v == 0 && !zero) {
		d.fail("%s: %d is no port", field, v)
	}
	return uint16(v)
}

func (d *decoding) protocol(v uint32) uint8 {
	if v > math.MaxUint8 {
		d.fail("protocol: %d is no protocol", v)
	}
	return uint8(v)
}

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
