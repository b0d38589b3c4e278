// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cairn/cloud/wire"
)

// Near is a rule that does not admit a packet, and why not.
type Near struct {
	Rule    wire.Rule
	Differs []Difference // in the order in which a rule is read
}

// Difference says what a rule has in a field and what the packet has.
type Difference struct {
	Field  Field  `json:"field"`
	Rule   string `json:"rule"`
	Packet string `json:"packet"`
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: the rule has %s, the packet %s", d.Field, d.Rule, d.Packet)
}

// weight of a field: how far a rule that differs in it is from admitting. A
// wrong port or peer is a slip of the pen, another direction another rule.
var weight = map[Field]int{Port: 2, Peer: 3, Protocol: 4, Direction: 5}

// Nearest lists the rules that come closest to admitting a packet, at most n,
// the closest first. Rules that admit it are not among them.
func Nearest(policy *wire.Policy, q Question, n int) []Near {
	if policy == nil {
		return nil
	}
	type candidate struct {
		rule    wire.Rule
		differs []Field
		far     int
	}
	var all []candidate
	for _, r := range policy.Rules {
		c := candidate{rule: r, differs: differences(r, q)}
		if slices.Contains(c.differs, Protocol) { // ports of two protocols do not compare
			c.differs = slices.DeleteFunc(c.differs, func(f Field) bool { return f == Port })
		}
		for _, f := range c.differs {
			c.far += weight[f]
		}
		if c.far > 0 {
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(a.far, b.far) })
	var out []Near
	for _, c := range all[:min(n, len(all))] {
		near := Near{Rule: c.rule}
		for _, f := range c.differs {
			near.Differs = append(near.Differs, difference(f, c.rule, q))
		}
		out = append(out, near)
	}
	return out
}

func difference(f Field, r wire.Rule, q Question) Difference {
	d := Difference{Field: f}
	switch f {
	case Direction:
		d.Rule, d.Packet = r.Direction.String(), q.Direction.String()
	case Protocol:
		d.Rule, d.Packet = ProtocolName(r.Protocol), ProtocolName(q.Protocol)
	case Port:
		d.Rule, d.Packet = Ports(r), MatchName(q.Protocol, q.Match)
		if q.Fragment {
			d.Packet = "none, as a fragment"
		}
	case Peer:
		d.Rule, d.Packet = PeerName(r), q.Peer.Unmap().String()
		if len(q.Groups) > 0 {
			d.Packet += " of " + groups(q.Groups)
		}
	}
	return d
}

func groups(numbers []uint32) string {
	words := make([]string, len(numbers))
	for i, n := range numbers {
		words[i] = strconv.FormatUint(uint64(n), 10)
	}
	return "groups " + strings.Join(words, ",")
}

var protocolNames = map[uint8]string{
	0: "all", 1: "icmp", 4: "ipip", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 51: "ah", 58: "icmpv6",
}

// ProtocolName is a protocol's name in the API, or its number.
func ProtocolName(p uint8) string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

// ParseProtocol is the reverse of ProtocolName.
func ParseProtocol(s string) (uint8, error) {
	for number, name := range protocolNames {
		if name == s {
			return number, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("protocol %q is none of tcp, udp, icmp, icmpv6, esp, ah, gre, ipip and no number up to 255", s)
	}
	return uint8(n), nil
}

// HasPorts tells whether a protocol has ports.
func HasPorts(p uint8) bool { return p == 6 || p == 17 }

// IsICMP tells whether a protocol has types and codes.
func IsICMP(p uint8) bool { return p == 1 || p == 58 }

// MatchName is a packet's port or type and code, in words.
func MatchName(protocol uint8, match uint16) string {
	switch {
	case IsICMP(protocol):
		return fmt.Sprintf("type %d code %d", match>>8, match&0xff)
	case HasPorts(protocol):
		return strconv.Itoa(int(match))
	}
	return "none"
}

// Ports are those of a rule, in words.
func Ports(r wire.Rule) string {
	from, to := span(r)
	switch {
	case IsICMP(r.Protocol) && r.ICMPType >= 0 && r.ICMPCode >= 0:
		return fmt.Sprintf("type %d code %d", r.ICMPType, r.ICMPCode)
	case IsICMP(r.Protocol) && r.ICMPType >= 0:
		return fmt.Sprintf("type %d any code", r.ICMPType)
	case !HasPorts(r.Protocol):
		return "any"
	case from == to:
		return strconv.Itoa(int(from))
	}
	return fmt.Sprintf("%d-%d", from, to)
}

// PeerName is whom a rule admits, in words.
func PeerName(r wire.Rule) string {
	if r.PeerGroup == 0 {
		return r.Peer.String()
	}
	name := fmt.Sprintf("group %d", r.PeerGroup)
	if len(r.Sources) > 0 {
		name += fmt.Sprintf(" and %d sources", len(r.Sources))
	}
	return name
}

// RuleName is a rule in words, with what it is in the API if that is known.
func RuleName(r wire.Rule) string {
	if r.Origin == "" {
		return fmt.Sprintf("rule %d", r.ID)
	}
	group, id, _ := strings.Cut(r.Origin, "/")
	return fmt.Sprintf("rule %d (%s of security group %s)", r.ID, id, group)
}

// Describe what a rule admits.
func Describe(r wire.Rule) string {
	side := "from"
	if r.Direction == wire.Egress {
		side = "to"
	}
	ports := ""
	if HasPorts(r.Protocol) {
		ports = " port " + Ports(r)
	} else if IsICMP(r.Protocol) {
		ports = " " + Ports(r)
	}
	return fmt.Sprintf("%s %s%s %s %s", r.Direction, ProtocolName(r.Protocol), ports, side, PeerName(r))
}
