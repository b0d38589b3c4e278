// SPDX-License-Identifier: Apache-2.0

package cloud

import "net/netip"

// Explanation answers explain-instance: what the firewall makes of the first
// packet of a flow at an instance, and why.
type Explanation struct {
	Admitted  bool          `json:"admitted" table:"true"`
	Reason    string        `json:"reason" table:"true" doc:"a word: rule, egress_open, no_firewall, policy_in, policy_out, no_policy, smtp"`
	Text      string        `json:"text" table:"true" doc:"the same in a sentence"`
	Direction FlowDirection `json:"direction"`
	Protocol  string        `json:"protocol"`
	Match     string        `json:"match" doc:"port, or ICMP type and code"`
	Peer      netip.Addr    `json:"peer"`
	// PeerGroups are the security groups by which rules may know the peer.
	PeerGroups []SecurityGroupResource `json:"peer-groups,omitempty"`
	Rule       *ExplainedRule          `json:"rule,omitempty" doc:"the rule that admits it"`
	Nearest    []ExplainedRule         `json:"nearest,omitempty" doc:"of a denial: the rules that come closest"`
	Revision   uint64                  `json:"revision" doc:"of the zone that was asked"`
}

// ExplainedRule is a rule of a security group in an explanation.
type ExplainedRule struct {
	Rule          ID                    `json:"rule" doc:"the rule"`
	SecurityGroup SecurityGroupResource `json:"security-group" doc:"its group"`
	Number        uint32                `json:"number" doc:"by which hypervisors know it"`
	Text          string                `json:"text" doc:"what it admits"`
	Differs       []RuleDifference      `json:"differs,omitempty" doc:"where it does not fit"`
}

// RuleDifference says what a rule has in a field and what the packet has.
type RuleDifference struct {
	Field  string `json:"field" enum:"direction,protocol,port,peer"`
	Rule   string `json:"rule"`
	Packet string `json:"packet"`
}
