// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/json"
	"errors"
	"net/netip"
)

// DefaultSecurityGroup is the name of the group that every organisation has and
// that is used when an instance names none.
const (
	DefaultSecurityGroup            = "default"
	DefaultSecurityGroupDescription = "Default Security Group"
)

// FlowDirection is the side of an instance that a rule concerns.
type FlowDirection string

const (
	Ingress FlowDirection = "ingress"
	Egress  FlowDirection = "egress"
)

// Protocol is the network protocol of a rule or of a service.
type Protocol string

const (
	TCP    Protocol = "tcp"
	UDP    Protocol = "udp"
	ICMP   Protocol = "icmp"
	ICMPv6 Protocol = "icmpv6"
	ESP    Protocol = "esp"
	AH     Protocol = "ah"
	GRE    Protocol = "gre"
	IPIP   Protocol = "ipip"
	All    Protocol = "all"
)

// SecurityGroup is a set of rules and the instances they hold for. Rules and
// sources are absent when empty, and a public group has no id.
type SecurityGroup struct {
	ID              ID                  `json:"id,omitempty" table:"true"`
	Name            string              `json:"name" table:"true"`
	Description     string              `json:"description,omitempty" table:"true"`
	Visibility      string              `json:"visibility,omitempty" enum:"private,public"`
	ExternalSources []string            `json:"external-sources,omitempty"`
	Rules           []SecurityGroupRule `json:"rules,omitempty"`
}

// SecurityGroupRule admits traffic. It cannot be edited, only added and removed,
// and is returned as it was sent: clients find their rule by comparing its fields.
type SecurityGroupRule struct {
	ID            ID                     `json:"id" table:"true"`
	FlowDirection FlowDirection          `json:"flow-direction" enum:"ingress,egress" table:"true"`
	Protocol      Protocol               `json:"protocol" enum:"tcp,udp,icmp,icmpv6,esp,ah,gre,ipip,all" table:"true"`
	Network       string                 `json:"network,omitempty" table:"true"`
	SecurityGroup *SecurityGroupResource `json:"security-group,omitempty" table:"true"`
	StartPort     uint16                 `json:"start-port,omitempty" minimum:"1" maximum:"65535" table:"true"`
	EndPort       uint16                 `json:"end-port,omitempty" minimum:"1" maximum:"65535" table:"true"`
	ICMP          *ICMPMatch             `json:"icmp,omitempty"`
	Description   string                 `json:"description,omitempty" maxLength:"255" table:"true"`

	ProtocolNumber  uint8 `json:"protocol-number,omitempty" minimum:"1" maximum:"255"`
	KeepEstablished bool  `json:"keep-established,omitempty"`
}

// SecurityGroupResource names the peers of a rule: a group of one's own by id, or
// a public one by name.
type SecurityGroupResource struct {
	ID         ID     `json:"id,omitempty"`
	Name       string `json:"name,omitempty" minLength:"1" maxLength:"255"`
	Visibility string `json:"visibility,omitempty" enum:"private,public"`
}

// ICMPAny matches every type or code.
const ICMPAny = -1

// ICMPMatch selects ICMP messages; an absent field is ICMPAny, and 0 is a value.
type ICMPMatch struct {
	Type int `json:"type" required:"false" minimum:"-1" maximum:"254" doc:"-1 is any"`
	Code int `json:"code" required:"false" minimum:"-1" maximum:"254" doc:"-1 is any"`
}

// UnmarshalJSON reads an absent type or code as any.
func (m *ICMPMatch) UnmarshalJSON(b []byte) error {
	type plain ICMPMatch
	p := plain{Type: ICMPAny, Code: ICMPAny}
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	*m = ICMPMatch(p)
	return nil
}

// SecurityGroupList answers list-security-groups.
type SecurityGroupList struct {
	SecurityGroups []SecurityGroup `json:"security-groups"`
}

// CreateSecurityGroupRequest asks for a group without rules.
type CreateSecurityGroupRequest struct {
	Name        string `json:"name" minLength:"1" maxLength:"255" doc:"name of the group"`
	Description string `json:"description,omitempty" maxLength:"255" doc:"description of the group"`
}

// AddRuleRequest asks for one more rule in a group.
type AddRuleRequest struct {
	FlowDirection FlowDirection          `json:"flow-direction" enum:"ingress,egress" doc:"side of the instance"`
	Protocol      Protocol               `json:"protocol" enum:"tcp,udp,icmp,icmpv6,esp,ah,gre,ipip,all" doc:"network protocol"`
	Network       string                 `json:"network,omitempty" doc:"peers by network, in CIDR notation"`
	SecurityGroup *SecurityGroupResource `json:"security-group,omitempty" ref:"security-group" doc:"peers by group"`
	StartPort     uint16                 `json:"start-port,omitempty" minimum:"1" maximum:"65535" doc:"first port"`
	EndPort       uint16                 `json:"end-port,omitempty" minimum:"1" maximum:"65535" doc:"last port"`
	ICMP          *ICMPMatch             `json:"icmp,omitempty" doc:"ICMP messages"`
	Description   string                 `json:"description,omitempty" maxLength:"255" doc:"description of the rule"`

	ProtocolNumber  uint8 `json:"protocol-number,omitempty" minimum:"1" maximum:"255" doc:"with protocol all: only this IP protocol"`
	KeepEstablished bool  `json:"keep-established,omitempty" doc:"flows that the rule has admitted outlive it"`
}

// Rule returns the rule that the request asks for.
func (r *AddRuleRequest) Rule(id ID) SecurityGroupRule {
	return SecurityGroupRule{
		ID: id, FlowDirection: r.FlowDirection, Protocol: r.Protocol, Network: r.Network,
		SecurityGroup: r.SecurityGroup, StartPort: r.StartPort, EndPort: r.EndPort,
		ICMP: r.ICMP, Description: r.Description,
		ProtocolNumber: r.ProtocolNumber, KeepEstablished: r.KeepEstablished,
	}
}

// Validate checks peers, ports and ICMP against the protocol.
func (r *AddRuleRequest) Validate() []FieldError {
	return append(r.validPeers(), r.validMatch()...)
}

func (r *AddRuleRequest) validPeers() []FieldError {
	var faults []FieldError
	switch {
	case r.Network == "" && r.SecurityGroup == nil:
		faults = append(faults, Fault("network", "expected network or security-group"))
	case r.Network != "" && r.SecurityGroup != nil:
		faults = append(faults, Fault("network", "expected network or security-group, not both"))
	}
	if r.Network != "" {
		p, err := parseNetwork(r.Network)
		switch {
		case err != nil:
			faults = append(faults, Fault("network", "%v", err))
		case r.Protocol == ICMP && !p.Addr().Is4():
			faults = append(faults, Fault("network", "expected an IPv4 network for icmp"))
		case r.Protocol == ICMPv6 && p.Addr().Is4():
			faults = append(faults, Fault("network", "expected an IPv6 network for icmpv6"))
		}
	}
	if g := r.SecurityGroup; g != nil {
		switch {
		case g.ID == "" && g.Name == "":
			faults = append(faults, Fault("security-group.id", "expected an id, or the name of a public group"))
		case g.ID == "" && g.Visibility != "public":
			faults = append(faults, Fault("security-group.visibility", "expected public for a group by name"))
		}
	}
	return faults
}

// parseNetwork reads one that packets can come from: an IPv4 address written as an
// IPv6 one is in no packet.
func parseNetwork(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, errors.New("expected a network in CIDR notation")
	case p.Addr().Is4In6():
		return p, errors.New("expected an IPv4 network in its own notation")
	}
	return p, nil
}

func (r *AddRuleRequest) validMatch() []FieldError {
	var faults []FieldError
	switch r.Protocol {
	case TCP, UDP:
		if r.StartPort == 0 {
			faults = append(faults, Fault("start-port", "required for %s", r.Protocol))
		}
		if r.EndPort == 0 {
			faults = append(faults, Fault("end-port", "required for %s", r.Protocol))
		}
		if r.StartPort > r.EndPort && r.EndPort != 0 {
			faults = append(faults, Fault("end-port", "expected a port >= start-port"))
		}
	default:
		if r.StartPort != 0 {
			faults = append(faults, Fault("start-port", "expected for tcp and udp only"))
		}
		if r.EndPort != 0 {
			faults = append(faults, Fault("end-port", "expected for tcp and udp only"))
		}
	}
	if r.ICMP != nil && r.Protocol != ICMP && r.Protocol != ICMPv6 {
		faults = append(faults, Fault("icmp", "expected for icmp and icmpv6 only"))
	}
	if r.ICMP != nil && r.ICMP.Type == ICMPAny && r.ICMP.Code != ICMPAny {
		faults = append(faults, Fault("icmp.code", "expected -1 for a rule of all types"))
	}
	if r.ProtocolNumber != 0 && r.Protocol != All {
		faults = append(faults, Fault("protocol-number", "expected with protocol all only"))
	}
	return faults
}

// ExternalSourceRequest names a network that counts as a member of a group.
type ExternalSourceRequest struct {
	CIDR string `json:"cidr" doc:"a network, in CIDR notation"`
}

// Validate reads the network.
func (r *ExternalSourceRequest) Validate() []FieldError {
	if _, err := parseNetwork(r.CIDR); err != nil {
		return []FieldError{Fault("cidr", "%v", err)}
	}
	return nil
}

// InstanceRequest is the body of operations that name one instance.
type InstanceRequest struct {
	Instance Ref `json:"instance" ref:"instance" doc:"the instance"`
}
