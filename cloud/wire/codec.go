// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"net/netip"
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
			ConnectionLimit: v.ConnectionLimit, SourceRate: v.SourceRate, Quic: v.QUIC, Rotating: v.Rotating, PrevSeed: v.PrevSeed,
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
