// SPDX-License-Identifier: Apache-2.0

// Package firewall owns the meaning of a compiled policy: whether a port admits
// a flow, by which rule, and what the rules that come closest would have needed.
// It gives the answer of the programs in the packet's way without their maps, so
// that both planes explain a verdict in the same words. It is pure and keeps
// nothing. Start at Judge; near.go is for denials.
package firewall

import (
	"net/netip"
	"slices"

	"cairn/cloud/wire"
)

// Question is the first packet of a flow, seen from the port.
type Question struct {
	Direction wire.Direction
	Protocol  uint8
	Match     uint16 // destination port, ICMP type << 8 | code, 0 without ports
	Fragment  bool   // Match is not known
	Peer      netip.Addr
	Groups    []uint32 // of the peer, in the port's scope
}

// Reason is why a verdict is what it is. Denials have the words that the
// programs count them by.
type Reason string

// The reasons.
const (
	ByRule     Reason = "rule"        // a rule admits it
	NoEgress   Reason = "egress_open" // no egress rule exists, so all may leave
	NoFirewall Reason = "no_firewall" // a private port whose network has no security groups
	NoPolicy   Reason = "no_policy"   // the port has no policy, and drops all
	PolicyIn   Reason = "policy_in"   // no ingress rule admits it
	PolicyOut  Reason = "policy_out"  // no egress rule admits it
	SMTP       Reason = "smtp"        // mail from a port that may not send any
)

// Text is the reason as a sentence's end.
func (r Reason) Text() string {
	switch r {
	case ByRule:
		return "a rule admits it"
	case NoEgress:
		return "no egress rule exists, so all may leave"
	case NoFirewall:
		return "the network has no security groups"
	case NoPolicy:
		return "the port has no policy yet, and drops everything"
	case PolicyIn:
		return "no ingress rule admits it"
	case PolicyOut:
		return "no egress rule admits it"
	case SMTP:
		return "mail to TCP port 25 is blocked at this port"
	}
	return string(r)
}

// Verdict on a question. Rule is set when the reason is ByRule.
type Verdict struct {
	Admitted bool
	Reason   Reason
	Rule     wire.Rule
}

const smtpPort = 25

// Judge a question at a port. A port without a policy has nil.
func Judge(port wire.Port, policy *wire.Policy, q Question) Verdict {
	if port.Network != 0 && port.Flags&wire.PortFirewall == 0 {
		return Verdict{Admitted: true, Reason: NoFirewall}
	}
	out := q.Direction == wire.Egress
	if out && q.Protocol == 6 && q.Match == smtpPort && !q.Fragment && port.Network == 0 && port.Flags&wire.PortSMTP == 0 {
		return Verdict{Reason: SMTP}
	}
	if policy == nil {
		return Verdict{Reason: NoPolicy}
	}
	if out && !slices.ContainsFunc(policy.Rules, func(r wire.Rule) bool { return r.Direction == wire.Egress }) {
		return Verdict{Admitted: true, Reason: NoEgress}
	}
	for _, r := range policy.Rules { // ascending by id: the first one decides
		if len(differences(r, q)) == 0 {
			return Verdict{Admitted: true, Reason: ByRule, Rule: r}
		}
	}
	if out {
		return Verdict{Reason: PolicyOut}
	}
	return Verdict{Reason: PolicyIn}
}

// Field of a rule that a packet can differ in.
type Field string

// The fields.
const (
	Direction Field = "direction"
	Protocol  Field = "protocol"
	Port      Field = "port"
	Peer      Field = "peer"
)

// differences are the fields in which a rule does not admit a packet.
func differences(r wire.Rule, q Question) []Field {
	var out []Field
	if r.Direction != q.Direction {
		out = append(out, Direction)
	}
	if r.Protocol != 0 && r.Protocol != q.Protocol {
		out = append(out, Protocol)
	}
	if !admitsPort(r, q) {
		out = append(out, Port)
	}
	if !admitsPeer(r, q) {
		out = append(out, Peer)
	}
	return out
}

// span of the port axis that a rule admits.
func span(r wire.Rule) (from, to uint16) {
	switch r.Protocol {
	case 6, 17:
		return r.PortMin, r.PortMax
	case 1, 58:
		switch {
		case r.ICMPType < 0:
			return 0, 65535
		case r.ICMPCode < 0:
			return uint16(r.ICMPType) << 8, uint16(r.ICMPType)<<8 | 0xff
		}
		at := uint16(r.ICMPType)<<8 | uint16(r.ICMPCode)
		return at, at
	}
	return 0, 65535
}

// admitsPort: what does not tell its port is admitted by rules for all ports.
func admitsPort(r wire.Rule, q Question) bool {
	from, to := span(r)
	if q.Fragment {
		return from <= 1 && to == 65535
	}
	return from <= q.Match && q.Match <= to
}

func admitsPeer(r wire.Rule, q Question) bool {
	peer := q.Peer.Unmap()
	if r.PeerGroup == 0 {
		return r.Peer.Masked().Contains(peer)
	}
	return slices.Contains(q.Groups, r.PeerGroup) ||
		slices.ContainsFunc(r.Sources, func(p netip.Prefix) bool { return p.Masked().Contains(peer) })
}
