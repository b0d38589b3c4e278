// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// Up to AllAnnounce LB nodes every one of them announces every VIP; in a larger
// zone a VIP has announcers of its own, since routers carry a limited number of
// equal paths and every node would hold every tenant's slots.
const (
	AllAnnounce = 16
	announcers  = 8
)

// isNode reports whether a hypervisor is an LB node. Whether it is alive does
// not count: what a node holds must not change when it is merely silent.
func isNode(h store.HypervisorDoc) bool { return h.Joined && h.HasRole(store.RoleLB) }

func (c *Compiler) lbNodes() []*replica.Host {
	if c.nodes == nil {
		c.nodes = []*replica.Host{}
		for h := range c.snap.Hosts() {
			if isNode(h.Body) {
				c.nodes = append(c.nodes, h)
			}
		}
	}
	return c.nodes
}

// announcersOf a VIP, by rank: rendezvous hashing of VIP and host, so that the
// ranks of different VIPs spread over the nodes and a node that comes or goes
// moves no other. Draining nodes come last: rank 0 is the one that never
// withdraws by itself.
func (c *Compiler) announcersOf(vip netip.Addr) []uint32 {
	if ranked, ok := c.ranked[vip]; ok {
		return slices.Clone(ranked)
	}
	nodes := c.lbNodes()
	weight := make(map[uint32]uint64, len(nodes))
	for _, h := range nodes {
		sum := sha256.Sum256([]byte(vip.String() + "\x00" + string(h.ID)))
		weight[h.Body.Number] = binary.LittleEndian.Uint64(sum[:])
	}
	ranked := slices.Clone(nodes)
	slices.SortFunc(ranked, func(a, b *replica.Host) int {
		switch {
		case a.Body.Draining != b.Body.Draining:
			if b.Body.Draining {
				return -1
			}
			return 1
		case weight[a.Body.Number] > weight[b.Body.Number]:
			return -1
		}
		return 1
	})
	if len(ranked) > AllAnnounce {
		ranked = spread(ranked, announcers)
	}
	numbers := make([]uint32, len(ranked))
	for i, h := range ranked {
		numbers[i] = h.Body.Number
	}
	c.ranked[vip] = numbers
	return slices.Clone(numbers)
}

// spread takes n of the ranked hosts: each round one of every failure domain,
// the best ones first.
func spread(ranked []*replica.Host, n int) []*replica.Host {
	var taken []*replica.Host
	for left := ranked; len(taken) < n && len(left) > 0; {
		used := map[string]bool{}
		var rest []*replica.Host
		for _, h := range left {
			if len(taken) < n && !used[h.Body.FailureDomain] {
				used[h.Body.FailureDomain] = true
				taken = append(taken, h)
			} else {
				rest = append(rest, h)
			}
		}
		left = rest
	}
	return taken
}

func (c *Compiler) vip(id cloud.ID) []Placed {
	b, ok := c.snap.Balancer(id)
	if !ok || !b.Body.VIP.IsValid() {
		return nil
	}
	served := false
	for s := range c.snap.ServicesOf(id) {
		served = served || serves(s.Body)
	}
	ranked := c.announcersOf(b.Body.VIP)
	if !served || len(ranked) == 0 {
		return nil
	}
	return []Placed{{Hosts: sorted(ranked), Item: wire.Announcement{
		Prefix: netip.PrefixFrom(b.Body.VIP, b.Body.VIP.BitLen()), Service: true, Announcers: ranked,
	}}}
}

func serves(d store.ServiceDoc) bool { return d.State != cloud.ServiceDeleting && d.VIP.IsValid() }

func sorted(numbers []uint32) []uint32 {
	out := slices.Clone(numbers)
	slices.Sort(out)
	return slices.Compact(out)
}

// service makes all that a service is, for its announcers and for the hosts of
// its backends: those look up the other owner of a slot by themselves.
func (c *Compiler) service(id cloud.ID) ([]Placed, error) {
	s, ok := c.snap.Service(id)
	if !ok || !serves(s.Body) {
		return nil, nil
	}
	d := s.Body
	protocol, ok := protocols[d.Protocol]
	if !ok {
		return nil, fmt.Errorf("protocol %q is not known", d.Protocol)
	}
	holders := c.announcersOf(d.VIP)
	type live struct {
		store.BackendDoc
		at *replica.Instance
	}
	var backends []live
	for _, b := range d.Backends {
		if i, ok := c.placed(b.Instance); ok && replica.Public(i.Body) && d.AddressAt(i.Body).IsValid() {
			backends = append(backends, live{b, i})
			holders = append(holders, i.Body.HostNumber)
		}
	}
	holders = sorted(holders)
	items := []Placed{{Hosts: holders, Item: wire.Service{
		ID: d.Number, VIP: d.VIP, Port: d.Port, Protocol: protocol, SourceHash: d.Strategy == cloud.SourceHash,
		Panic: d.Panic, Seed: d.Seed, SlotsGeneration: d.SlotsGeneration, ConnectionLimit: uint32(d.ConnectionLimit),
		SourceRate: uint32(d.SourceRate), QUIC: d.QUIC, Rotating: d.Rotating, PrevSeed: d.PrevSeed,
	}}}
	if s.Slots != nil {
		items = append(items, Placed{Hosts: holders, Generation: d.SlotsGeneration, Item: wire.Slots{
			Service: d.Number, Generation: d.SlotsGeneration, Table: s.Slots,
		}})
	}
	for _, b := range backends {
		mac, err := macOf(b.at.Body)
		if err != nil {
			return nil, err
		}
		items = append(items, Placed{Hosts: holders, Generation: b.Generation, Item: wire.Backend{
			ID: b.Number, Service: d.Number, Host: b.at.Body.HostNumber, Port: b.at.Body.Port, MAC: mac,
			Address: d.AddressAt(b.at.Body), TargetPort: d.TargetPort,
			Draining: b.State == store.BackendDraining, Unhealthy: b.Verdict == store.VerdictFailure,
		}})
		items = append(items, Placed{
			Hosts: []uint32{b.at.Body.HostNumber}, Generation: b.Generation,
			Item: checkOf(d, b.BackendDoc, d.AddressAt(b.at.Body)),
		})
	}
	return items, nil
}

// checkOf a backend: what the contract says, a server name for https alone.
func checkOf(d store.ServiceDoc, b store.BackendDoc, address netip.Addr) wire.Check {
	h := d.Healthcheck.WithDefaults(d.TargetPort)
	check := wire.Check{
		Service: d.Number, Backend: b.Number, Mode: string(h.Mode), Address: address, Port: h.Port,
		Interval: time.Duration(h.Interval) * time.Second, Timeout: time.Duration(h.Timeout) * time.Second,
		Retries: uint32(h.Retries), Generation: b.Generation,
	}
	if h.Mode != cloud.CheckTCP {
		check.URI = h.URI
	}
	if h.Mode == cloud.CheckHTTPS {
		check.TLSSNI = h.TLSSNI
	}
	return check
}
