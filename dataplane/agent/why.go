// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"cairn/bpf"
	"cairn/cloud/firewall"
	"cairn/cloud/wire"
	"cairn/dataplane/debug"
	"cairn/dataplane/host"
	"cairn/dataplane/maps"
	"cairn/dataplane/table"
	"cairn/dataplane/trace"
)

// nearestRules are named to who asks why a packet is refused.
const nearestRules = 3

// Why implements debug.Source. A flow that lives is told as the maps have it; what
// the policy says is worked out from the policy itself.
func (a *Agent) Why(r debug.WhyRequest) (debug.Why, error) {
	view := a.table.View()
	port, out, err := portOfTuple(view, r)
	if err != nil {
		return debug.Why{}, err
	}
	y := debug.Why{Tuple: r.Tuple, Port: port.ID, Direction: "in", Policy: port.Policy}
	if out {
		y.Direction = "out"
	}
	a.mu.Lock()
	y.Revision = a.programmed.Revision
	if value, ok := a.loop.Image().Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(port.ID)}); ok {
		cfg := maps.As[bpf.PortCfg](value)
		y.Programmed, y.Generation = cfg.PolicyIn, cfg.Generation
	}
	a.mu.Unlock()
	if y.Flow, err = a.flowing(port.ID, keyOf(r.Tuple, out)); err != nil {
		return y, err
	}
	judge(view, port, &y, out)
	return y, nil
}

// portOfTuple finds the port that has one of the packet's addresses, and whether
// it is the sender.
func portOfTuple(view table.View, r debug.WhyRequest) (found wire.Port, out bool, err error) {
	src, dst := r.Tuple.Src.Addr(), r.Tuple.Dst.Addr()
	has := func(p wire.Port, ip netip.Addr) bool {
		within := func(e netip.Prefix) bool { return e.Contains(ip) }
		return slices.Contains(p.Addresses, ip) || slices.ContainsFunc(p.Allowed, within)
	}
	var all []wire.Port
	for p := range table.All[wire.Port](view) {
		if (r.Port == 0 && (has(p, src) || has(p, dst))) || p.ID == r.Port {
			all = append(all, p)
		}
	}
	switch {
	case len(all) == 0 && r.Port != 0:
		return found, false, fmt.Errorf("--port %d is not on this host", r.Port)
	case len(all) == 0:
		return found, false, fmt.Errorf("no port of this host has %s or %s: name one with --port", src, dst)
	case len(all) > 1:
		return found, false, fmt.Errorf("%d ports of this host have %s or %s: name one with --port", len(all), src, dst)
	}
	found = all[0]
	// Of addresses that a guest gave itself nobody knows whose they are.
	return found, has(found, src) || (found.Network != 0 && !has(found, dst) && len(found.Addresses) == 0), nil
}

// keyOf the flow that a packet belongs to, as conntrack.h has it.
func keyOf(t debug.Tuple, out bool) bpf.CtKey {
	src, dst := t.Src.Port(), t.Dst.Port()
	if firewall.IsICMP(t.Protocol) {
		src, dst = t.Match(), t.Match() // an echo's own number is not known: flowing looks past it
	}
	key := bpf.CtKey{
		Peer: bpf.IP16(t.Src.Addr()), Own: bpf.IP16(t.Dst.Addr()), PeerPort: bpf.BE16(src), OwnPort: bpf.BE16(dst), Proto: t.Protocol,
	}
	if out {
		key.Peer, key.Own, key.PeerPort, key.OwnPort = key.Own, key.Peer, key.OwnPort, key.PeerPort
	}
	return key
}

// flowing is the live flow of a key, nil if there is none. Of pings the latest
// between the two addresses counts, since people do not know their numbers.
func (a *Agent) flowing(port uint32, key bpf.CtKey) (*debug.Flowing, error) {
	flows, err := a.host.Flows(port)
	if err != nil {
		return nil, nil // a port that is not attached has no flows
	}
	defer flows.Close()
	now := uint64(monotonic())
	var found *bpf.Ct
	var confirmed bool
	if firewall.IsICMP(key.Proto) {
		err = flows.Each(func(k bpf.CtKey, f bpf.Ct) {
			if k.Proto == key.Proto && k.Peer == key.Peer && k.Own == key.Own && (found == nil || found.Seen < f.Seen) {
				found, key = &f, k
			}
		})
		if err != nil {
			return nil, fmt.Errorf("read flows of port %d: %w", port, err)
		}
		confirmed = found != nil && flows.Confirmed.Lookup(key, &bpf.Ct{}) == nil
	} else if f, ok := flows.Lookup(key); ok {
		found, confirmed = &f, flows.Confirmed.Lookup(key, &bpf.Ct{}) == nil
	}
	if found == nil || isOver(key, *found, now) {
		return nil, nil
	}
	return a.describe(key, *found, confirmed), nil
}

func (a *Agent) describe(key bpf.CtKey, f bpf.Ct, confirmed bool) *debug.Flowing {
	seen := host.TimeOf(f.Seen)
	d := &debug.Flowing{
		State: trace.State(f.State), Confirmed: confirmed, Begun: directionName(uint32(f.Direction)),
		Host: f.Flags&bpf.CtHost != 0, Keep: f.Flags&bpf.CtKeep != 0, Generation: f.Generation,
		Created: host.TimeOf(f.Created), Seen: seen, Expires: seen.Add(lifetime(key.Proto, f)).Round(time.Millisecond),
		Packets: f.Packets, Bytes: f.Bytes, Service: f.Service, Backend: f.Backend, Revision: a.rounds.at(int64(f.Created)),
	}
	if f.Service != 0 {
		d.VIP = netip.AddrPortFrom(f.Vip.Addr(), bpf.BE16(f.VipPort)).String()
	}
	rule, known := (&rules{a: a}).get(f.Rule)
	d.Rule = debug.Rule{ID: f.Rule}
	switch {
	case known:
		d.Rule = ruleOf(rule)
	case f.Rule != 0:
		d.Rule.Text = "it is in no policy any more"
	}
	return d
}

func ruleOf(r wire.Rule) debug.Rule {
	return debug.Rule{ID: r.ID, Origin: r.Origin, Text: firewall.Describe(r)}
}

// judge says what the policy, as it is wanted now, makes of a first packet.
func judge(view table.View, port wire.Port, y *debug.Why, out bool) {
	q := firewall.Question{Protocol: y.Tuple.Protocol, Match: y.Tuple.Match(), Peer: y.Tuple.Src.Addr()}
	if out {
		q.Direction, q.Peer = wire.Egress, y.Tuple.Dst.Addr()
	}
	if !firewall.HasPorts(q.Protocol) && !firewall.IsICMP(q.Protocol) {
		q.Match = 0
	}
	member := wire.Member{Scope: port.Network, Address: q.Peer}
	if m, ok := table.Get[wire.Member](view, member.Key().ID); ok {
		class, _ := table.Get[wire.Class](view, fmt.Sprint(m.Class))
		q.Groups = class.Groups
	}
	var policy *wire.Policy
	if p, ok := table.Get[wire.Policy](view, fmt.Sprint(port.Policy)); ok && port.Policy != 0 {
		policy = &p
	}
	v := firewall.Judge(port, policy, q)
	y.Admitted, y.Reason, y.Text = v.Admitted, string(v.Reason), v.Reason.Text()
	if v.Reason == firewall.ByRule {
		rule := ruleOf(v.Rule)
		y.Rule = &rule
	}
	if v.Admitted {
		return
	}
	for _, n := range firewall.Nearest(policy, q, nearestRules) {
		near := debug.Near{Rule: ruleOf(n.Rule), Differs: []string{}}
		for _, d := range n.Differs {
			near.Differs = append(near.Differs, d.String())
		}
		y.Nearest = append(y.Nearest, near)
	}
}
