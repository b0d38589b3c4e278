// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/replica"
)

// IP protocol numbers; any is ours.
var protocols = map[cloud.Protocol]uint8{
	cloud.TCP: 6, cloud.UDP: 17, cloud.ICMP: 1, cloud.ICMPv6: 58,
	cloud.ESP: 50, cloud.AH: 51, cloud.GRE: 47, cloud.IPIP: 4, cloud.All: 0,
}

func (c *Compiler) class(number string) ([]Placed, error) {
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return nil, err
	}
	class, ok := c.snap.Class(uint32(n))
	if !ok {
		return nil, nil
	}
	policy, err := c.policy(class)
	if err != nil {
		return nil, err
	}
	items := []Placed{{Hosts: hostsOf(class), Item: policy}}
	if audience := c.audienceOf(class); len(audience) > 0 {
		items = append(items, Placed{Hosts: audience, Item: wire.Class{ID: class.Number, Groups: c.numbers(class.Groups)}})
	}
	return items, nil
}

func (c *Compiler) numbers(groups []cloud.ID) []uint32 {
	var numbers []uint32
	for _, id := range groups {
		if g, ok := c.snap.Group(id); ok {
			numbers = append(numbers, g.Body.Number)
		}
	}
	slices.Sort(numbers)
	return numbers
}

// policy is the union of the rules of the class's groups.
func (c *Compiler) policy(class *replica.Class) (wire.Policy, error) {
	p := wire.Policy{ID: class.Number}
	for _, id := range class.Groups {
		g, ok := c.snap.Group(id)
		if !ok {
			continue
		}
		for _, rule := range g.Body.Rules {
			r, ok, err := c.rule(g, rule)
			if err != nil {
				return p, fmt.Errorf("rule %s of group %s: %w", rule.ID, g.Body.Name, err)
			}
			if ok {
				p.Rules = append(p.Rules, r)
			}
		}
	}
	slices.SortFunc(p.Rules, func(a, b wire.Rule) int { return int(int64(a.ID) - int64(b.ID)) })
	var count [2]int
	for _, r := range p.Rules {
		count[r.Direction]++
	}
	if most := max(count[0], count[1]); most > wire.MaxRules {
		return p, fmt.Errorf("%d rules in one direction are more than %d", most, wire.MaxRules)
	}
	return p, nil
}

// Policy of a class: what its hosts hold of its groups' rules. False when there
// is no such class.
func (c *Compiler) Policy(number uint32) (wire.Policy, bool, error) {
	class, ok := c.snap.Class(number)
	if !ok {
		return wire.Policy{}, false, nil
	}
	p, err := c.policy(class)
	return p, true, err
}

// GroupNumbers are the numbers of the groups of a class.
func (c *Compiler) GroupNumbers(number uint32) []uint32 {
	class, ok := c.snap.Class(number)
	if !ok {
		return nil
	}
	return c.numbers(class.Groups)
}

// origin says what a rule is in the API. A name that is too long is cut.
func origin(g *replica.Group, rule cloud.SecurityGroupRule) string {
	name := []rune(strings.ReplaceAll(g.Body.Name, "/", "_"))
	for len(string(name))+1+len(rule.ID) > wire.MaxOrigin && len(name) > 0 {
		name = name[:len(name)-1]
	}
	return string(name) + "/" + string(rule.ID)
}

// rule is false for one that admits nothing and denies nothing: an ingress rule
// without peers. One for egress stays: that it exists closes what is open
// without it.
func (c *Compiler) rule(g *replica.Group, rule cloud.SecurityGroupRule) (wire.Rule, bool, error) {
	number, ok := g.Body.RuleNumbers[rule.ID]
	if !ok {
		return wire.Rule{}, false, fmt.Errorf("it has no number")
	}
	protocol, ok := protocols[rule.Protocol]
	if !ok {
		return wire.Rule{}, false, fmt.Errorf("protocol %q is not known", rule.Protocol)
	}
	r := wire.Rule{
		ID: number, Protocol: protocol, ICMPType: -1, ICMPCode: -1, Keep: rule.KeepEstablished, Origin: origin(g, rule),
	}
	if rule.FlowDirection == cloud.Egress {
		r.Direction = wire.Egress
	}
	switch rule.Protocol {
	case cloud.TCP, cloud.UDP:
		r.PortMin, r.PortMax = rule.StartPort, rule.EndPort
	case cloud.ICMP, cloud.ICMPv6:
		if rule.ICMP != nil {
			r.ICMPType, r.ICMPCode = int16(rule.ICMP.Type), int16(rule.ICMP.Code)
		}
	case cloud.All:
		if r.Protocol = rule.ProtocolNumber; r.Protocol == protocols[cloud.TCP] || r.Protocol == protocols[cloud.UDP] {
			r.PortMax = math.MaxUint16
		}
	}
	if rule.SecurityGroup == nil {
		peer, err := netip.ParsePrefix(rule.Network)
		r.Peer = peer
		return r, err == nil, err
	}
	var sources []string
	r.PeerGroup, sources = c.peers(*rule.SecurityGroup)
	for _, s := range sources {
		source, err := netip.ParsePrefix(s)
		if err != nil {
			return r, false, fmt.Errorf("external source of its peer: %w", err)
		}
		r.Sources = append(r.Sources, source)
	}
	return r, r.PeerGroup != nobody || r.Direction == wire.Egress, nil
}

// nobody is a number that no group has.
const nobody = math.MaxUint32

// peers of a rule that names a group: the group's number and its external
// sources. Nobody is in a group that was deleted, nor in the built-in public
// one: its traffic comes through the host's own door and needs no rule.
func (c *Compiler) peers(named cloud.SecurityGroupResource) (number uint32, sources []string) {
	if named.ID != "" {
		if g, ok := c.snap.Group(named.ID); ok {
			return g.Body.Number, g.Body.ExternalSources
		}
	} else if p, ok := c.snap.Public(named.Name); ok {
		return p.Body.Number, p.Body.Sources
	}
	return nobody, nil
}
