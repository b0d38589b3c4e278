// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"cairn/cloud/wire"
)

func rule(id uint32, change func(*wire.Rule)) wire.Rule {
	r := wire.Rule{ID: id, Protocol: 6, PortMin: 80, PortMax: 80, ICMPType: -1, ICMPCode: -1, Peer: netip.MustParsePrefix("192.0.2.0/24"), Origin: "web/r-" + fmt.Sprint(id)}
	change(&r)
	return r
}

var policy = &wire.Policy{ID: 1, Rules: []wire.Rule{
	rule(1, func(*wire.Rule) {}),
	rule(2, func(r *wire.Rule) { r.Peer, r.PeerGroup = netip.Prefix{}, 7; r.PortMin, r.PortMax = 5000, 6000 }),
	rule(3, func(r *wire.Rule) { r.Protocol, r.ICMPType, r.ICMPCode = 1, 8, -1; r.PortMin, r.PortMax = 0, 0 }),
	rule(4, func(r *wire.Rule) { r.Direction, r.PortMin, r.PortMax = wire.Egress, 1, 65535 }),
	rule(5, func(r *wire.Rule) { r.Protocol, r.Peer = 0, netip.MustParsePrefix("2001:db8::/32") }),
}}

func in(protocol uint8, match uint16, peer string, groups ...uint32) Question {
	return Question{Protocol: protocol, Match: match, Peer: netip.MustParseAddr(peer), Groups: groups}
}

func out(q Question) Question { q.Direction = wire.Egress; return q }

func TestJudge(t *testing.T) {
	public := wire.Port{ID: 1}
	for _, c := range []struct {
		name   string
		port   wire.Port
		policy *wire.Policy
		q      Question
		want   Reason
		rule   uint32
	}{
		{"the rule's own packet", public, policy, in(6, 80, "192.0.2.9"), ByRule, 1},
		{"mapped into IPv6", public, policy, in(6, 80, "::ffff:192.0.2.9"), ByRule, 1},
		{"another port", public, policy, in(6, 81, "192.0.2.9"), PolicyIn, 0},
		{"another peer", public, policy, in(6, 80, "192.0.3.9"), PolicyIn, 0},
		{"a member", public, policy, in(6, 6000, "198.51.100.1", 6, 7), ByRule, 2},
		{"no member", public, policy, in(6, 6000, "198.51.100.1", 6), PolicyIn, 0},
		{"echo", public, policy, in(1, 8<<8|3, "192.0.2.1"), ByRule, 3},
		{"echo reply", public, policy, in(1, 0, "192.0.2.1"), PolicyIn, 0},
		{"any protocol", public, policy, in(132, 0, "2001:db8::1"), ByRule, 5},
		{"out", public, policy, out(in(6, 443, "192.0.2.1")), ByRule, 4},
		{"out elsewhere", public, policy, out(in(6, 443, "192.0.3.1")), PolicyOut, 0},
		{"a fragment", public, policy, Question{Protocol: 6, Fragment: true, Peer: netip.MustParseAddr("192.0.2.1")}, PolicyIn, 0},
		{"a fragment out", public, policy, Question{Direction: wire.Egress, Protocol: 6, Fragment: true, Peer: netip.MustParseAddr("192.0.2.1")}, ByRule, 4},
		{"mail", public, policy, out(in(6, 25, "192.0.2.1")), SMTP, 0},
		{"mail that may", wire.Port{Flags: wire.PortSMTP}, policy, out(in(6, 25, "192.0.2.1")), ByRule, 4},
		{"mail comes in", public, policy, in(6, 25, "192.0.2.1"), PolicyIn, 0},
		{"no egress rule", public, &wire.Policy{Rules: policy.Rules[:1]}, out(in(17, 53, "9.9.9.9")), NoEgress, 0},
		{"no policy", public, nil, in(6, 80, "192.0.2.9"), NoPolicy, 0},
		{"private", wire.Port{Network: 5}, nil, in(6, 80, "10.0.0.1"), NoFirewall, 0},
		{"private with a firewall", wire.Port{Network: 5, Flags: wire.PortFirewall}, policy, in(6, 81, "10.0.0.1"), PolicyIn, 0},
	} {
		v := Judge(c.port, c.policy, c.q)
		if v.Reason != c.want || v.Rule.ID != c.rule || v.Admitted == slices.Contains([]Reason{PolicyIn, PolicyOut, NoPolicy, SMTP}, c.want) {
			t.Errorf("%s: %+v, want %s by rule %d", c.name, v, c.want, c.rule)
		}
	}
}

func TestNearest(t *testing.T) {
	var got strings.Builder
	for _, near := range Nearest(policy, in(6, 81, "192.0.2.9", 9), 3) {
		got.WriteString(RuleName(near.Rule) + ": " + Describe(near.Rule) + "\n")
		for _, d := range near.Differs {
			got.WriteString("  " + d.String() + "\n")
		}
	}
	const want = `rule 1 (r-1 of security group web): ingress tcp port 80 from 192.0.2.0/24
  port: the rule has 80, the packet 81
rule 5 (r-5 of security group web): ingress all from 2001:db8::/32
  peer: the rule has 2001:db8::/32, the packet 192.0.2.9 of groups 9
rule 3 (r-3 of security group web): ingress icmp type 8 any code from 192.0.2.0/24
  protocol: the rule has icmp, the packet tcp
`
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
	if near := Nearest(nil, in(6, 1, "192.0.2.1"), 3); near != nil {
		t.Errorf("without a policy %v", near)
	}
}

func TestProtocolNames(t *testing.T) {
	for p := range 256 {
		got, err := ParseProtocol(ProtocolName(uint8(p)))
		if err != nil || got != uint8(p) {
			t.Errorf("protocol %d: %d, %v", p, got, err)
		}
	}
	for _, bad := range []string{"", "sctp?", "256", "-1"} {
		if _, err := ParseProtocol(bad); err == nil {
			t.Errorf("protocol %q was read", bad)
		}
	}
}
