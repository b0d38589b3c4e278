// SPDX-License-Identifier: Apache-2.0

package firewall

// Reason is why a packet left, in the words that the programs count by. None
// means "go on".
type Reason string

// Reasons.
const (
	None Reason = ""

	// Done as meant.
	ToPort           Reason = "to_port"
	ToPortTranslated Reason = "to_port_translated"
	ToUplink         Reason = "to_uplink"
	ToDoor           Reason = "to_door"
	Punted           Reason = "punted" // to the agent
	TooBigAnswered   Reason = "too_big_answered"

	// Left to the host's stack.
	PassNotIP    Reason = "pass_not_ip"
	PassHost     Reason = "pass_host"
	PassOtherMAC Reason = "pass_other_mac"

	// Not a packet anybody takes.
	Malformed       Reason = "malformed"
	NotIP           Reason = "not_ip"
	NotAllowed      Reason = "fragment"
	Protocol        Reason = "protocol"
	Oversize        Reason = "oversize"
	HopsSpent       Reason = "ttl"
	BadSource       Reason = "bad_source"
	BadDestination  Reason = "bad_destination"
	Extensions      Reason = "extensions"
	FragmentEarly   Reason = "fragment_early"
	FragmentOverlap Reason = "fragment_overlap"
	FragmentShort   Reason = "fragment_short"
	FragmentHoles   Reason = "fragment_holes"
	FragmentRate    Reason = "fragment_rate"
	TCPFlags        Reason = "tcp_flags"

	// Ports.
	NoPort        Reason = "no_port"
	NoPolicy      Reason = "no_policy"
	PolicyIn      Reason = "policy_in"
	PolicyOut     Reason = "policy_out"
	SpoofedMAC    Reason = "spoofed_mac"
	SpoofedIP     Reason = "spoofed_ip"
	HostAddress   Reason = "host_address"
	NoDoorFlow    Reason = "no_door_flow"
	InvalidRST    Reason = "ct_invalid_rst"
	NoSYN         Reason = "ct_no_syn"
	ICMPUnmatched Reason = "icmp_unmatched"
	ICMPTooSmall  Reason = "icmp_too_small"
	ICMPRedirect  Reason = "icmp_redirect"
	SMTP          Reason = "smtp"
	RogueRA       Reason = "rogue_ra"
	RogueDHCP     Reason = "rogue_dhcp"
	RogueDHCP6    Reason = "rogue_dhcp6"
	SpoofedND     Reason = "spoofed_nd"
	NDIgnored     Reason = "nd_ignored"

	// The door.
	DoorProtocol Reason = "door_protocol"
	DoorNoFlow   Reason = "door_no_flow"
	DoorNobody   Reason = "door_nobody"
)
