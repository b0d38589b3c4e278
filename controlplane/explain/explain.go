// SPDX-License-Identifier: Apache-2.0

// Package explain says what the firewall makes of a flow at an instance, by the
// rules that hypervisors are told: the same question that `cairn debug trace`
// asks a hypervisor, answered from the zone. It changes nothing and asks no
// agent. Start at Handlers.
package explain

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/cloud"
	"cairn/cloud/firewall"
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/compile"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// nearest is how many rules a denial comes with.
const nearest = 3

// Explainer answers by snapshots of the zone.
type Explainer struct {
	Zone     string
	Snapshot func() replica.Snapshot
}

// Handlers of the operation.
func (e Explainer) Handlers() api.Handlers {
	return api.Handlers{"explain-instance": e.explain}
}

func (e Explainer) explain(_ context.Context, c api.Call) (any, error) {
	snap := e.Snapshot()
	if snap.Revision == 0 {
		return nil, cloud.Unavailablef(time.Second, "the zone is being read")
	}
	i, ok := snap.Instance(c.ID("id"))
	if !ok || i.Org != c.Org {
		return nil, cloud.Missing(string(store.KindInstance), c.ID("id"))
	}
	q, err := read(c.Query.Get)
	if err != nil {
		return nil, err
	}
	return Explain(compile.New(snap, e.Zone), snap, i, cloud.ID(c.Query.Get("private-network-id")), q)
}

// read the question out of the query. All faults come at once.
func read(get func(string) string) (firewall.Question, error) {
	var q firewall.Question
	var faults []cloud.FieldError
	if get("direction") == string(cloud.Egress) {
		q.Direction = wire.Egress
	}
	fault := func(field, text string) { faults = append(faults, cloud.Fault(field, "%s", text)) }
	number := func(field string, most uint64) uint16 {
		if get(field) == "" {
			fault(field, "required for this protocol")
			return 0
		}
		n, err := strconv.ParseUint(get(field), 10, 16)
		if err != nil || n > most {
			fault(field, "expected a number <= "+strconv.FormatUint(most, 10))
		}
		return uint16(n)
	}
	var err error
	protocol := get("protocol")
	if protocol == "" {
		protocol = "tcp"
	}
	if q.Protocol, err = firewall.ParseProtocol(protocol); err != nil || q.Protocol == 0 {
		fault("protocol", "expected tcp, udp, icmp, icmpv6, esp, ah, gre, ipip or a number from 1 to 255")
	}
	if q.Peer, err = netip.ParseAddr(get("peer")); err != nil {
		fault("peer", "expected an address")
	}
	switch {
	case firewall.HasPorts(q.Protocol):
		q.Match = number("port", 65535)
	case firewall.IsICMP(q.Protocol):
		q.Match = number("icmp-type", 255) << 8
		if get("icmp-code") != "" {
			q.Match |= number("icmp-code", 255)
		}
	}
	if faults != nil {
		return q, cloud.InvalidFields(faults)
	}
	return q, nil
}

// Explain a question at one interface of an instance: the public one, or that in
// a private network. q.Groups are found here.
func Explain(c *compile.Compiler, snap replica.Snapshot, i *replica.Instance, network cloud.ID, q firewall.Question) (cloud.Explanation, error) {
	port, err := c.Port(i, network)
	if err != nil {
		return cloud.Explanation{}, err
	}
	policy, ok, err := c.Policy(port.Policy)
	if err != nil {
		return cloud.Explanation{}, err
	}
	held := &policy
	if !ok {
		held = nil
	}
	x := explanation{c, snap}
	peers := x.groupsAt(port.Network, q.Peer)
	q.Groups = numbers(peers)
	v := firewall.Judge(port, held, q)
	out := cloud.Explanation{
		Admitted: v.Admitted, Reason: string(v.Reason), Text: v.Reason.Text(), Direction: cloud.FlowDirection(q.Direction.String()),
		Protocol: firewall.ProtocolName(q.Protocol), Match: firewall.MatchName(q.Protocol, q.Match), Peer: q.Peer,
		Revision: uint64(snap.Revision),
	}
	for _, g := range peers {
		out.PeerGroups = append(out.PeerGroups, cloud.SecurityGroupResource{ID: g.ID, Name: g.Body.Name})
	}
	if v.Reason == firewall.ByRule {
		rule := x.rule(port.Policy, v.Rule)
		out.Rule = &rule
	}
	if v.Reason == firewall.PolicyIn || v.Reason == firewall.PolicyOut {
		for _, near := range firewall.Nearest(held, q, nearest) {
			rule := x.rule(port.Policy, near.Rule)
			for _, d := range near.Differs {
				rule.Differs = append(rule.Differs, cloud.RuleDifference{Field: string(d.Field), Rule: d.Rule, Packet: d.Packet})
			}
			out.Nearest = append(out.Nearest, rule)
		}
	}
	return out, nil
}

type explanation struct {
	compiler *compile.Compiler
	snap     replica.Snapshot
}

// groupsAt are the security groups that an address is a member of in a scope.
func (x explanation) groupsAt(scope uint32, peer netip.Addr) []*replica.Group {
	var out []*replica.Group
	peer = peer.Unmap()
	for i := range x.snap.Instances() {
		if !replica.Placed(i.Body) || !slices.Contains(x.snap.Addresses(i.Body), replica.Address{Scope: scope, Address: peer}) {
			continue
		}
		for _, ref := range i.Body.SecurityGroups {
			if g, ok := x.snap.Group(ref.ID); ok {
				out = append(out, g)
			}
		}
	}
	return out
}

func numbers(groups []*replica.Group) []uint32 {
	var out []uint32
	for _, g := range groups {
		out = append(out, g.Body.Number)
	}
	slices.Sort(out)
	return out
}

// rule finds a rule's place in the API: in one of the groups of the class.
func (x explanation) rule(class uint32, r wire.Rule) cloud.ExplainedRule {
	out := cloud.ExplainedRule{Number: r.ID, Text: firewall.Describe(r)}
	if _, id, ok := strings.Cut(r.Origin, "/"); ok {
		out.Rule = cloud.ID(id)
	}
	held, _ := x.snap.Class(class)
	if held == nil {
		return out
	}
	for _, id := range held.Groups {
		if g, ok := x.snap.Group(id); ok && g.Body.RuleNumbers[out.Rule] == r.ID {
			out.SecurityGroup = cloud.SecurityGroupResource{ID: g.ID, Name: g.Body.Name}
		}
	}
	return out
}
