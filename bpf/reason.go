// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"sync"
)

// Reason is why a packet left a program; the index in the map reasons. The
// list is in include/reason.h.
type Reason = uplinkReason

// String is the enumerator's name in lower case, without its prefix:
// "policy_in".
func (r uplinkReason) String() string {
	if name, ok := reasonNames()[r]; ok {
		return name
	}
	return fmt.Sprintf("reason_%d", uint32(r))
}

// Reasons lists every reason a program can count, by number.
func Reasons() []Reason {
	var all []Reason
	for r := range uplinkReasonREASON_MAX {
		if _, ok := reasonNames()[r]; ok && r != uplinkReasonREASON_NONE {
			all = append(all, r)
		}
	}
	return all
}

// IsDrop tells whether a packet that left for this reason is gone.
func (r uplinkReason) IsDrop() bool { return r >= uplinkReasonREASON_MALFORMED }

var reasonNames = sync.OnceValue(func() map[Reason]string {
	names := map[Reason]string{}
	for n, name := range enumNames("reason", "REASON_") {
		if Reason(n) != uplinkReasonREASON_MAX {
			names[Reason(n)] = name
		}
	}
	return names
})

// The reasons by name.
const (
	ReasonNone             = uplinkReasonREASON_NONE
	ReasonPassNotInet      = uplinkReasonREASON_PASS_NOT_INET
	ReasonPassHost         = uplinkReasonREASON_PASS_HOST
	ReasonPassOtherVNI     = uplinkReasonREASON_PASS_OTHER_VNI
	ReasonPassUnderlay     = uplinkReasonREASON_PASS_UNDERLAY
	ReasonToOwner          = uplinkReasonREASON_TO_OWNER
	ReasonTTLAnswered      = uplinkReasonREASON_TTL_ANSWERED
	ReasonPassOtherMAC     = uplinkReasonREASON_PASS_OTHER_MAC
	ReasonSent             = uplinkReasonREASON_SENT
	ReasonForwarded        = uplinkReasonREASON_FORWARDED
	ReasonDelivered        = uplinkReasonREASON_DELIVERED
	ReasonEchoed           = uplinkReasonREASON_ECHOED
	ReasonProbed           = uplinkReasonREASON_PROBED
	ReasonToPort           = uplinkReasonREASON_TO_PORT
	ReasonToUplink         = uplinkReasonREASON_TO_UPLINK
	ReasonToDoor           = uplinkReasonREASON_TO_DOOR
	ReasonARPAnswered      = uplinkReasonREASON_ARP_ANSWERED
	ReasonGuardAdmitted    = uplinkReasonREASON_GUARD_ADMITTED
	ReasonReachAnswered    = uplinkReasonREASON_REACH_ANSWERED
	ReasonReached          = uplinkReasonREASON_REACHED
	ReasonToPortTranslated = uplinkReasonREASON_TO_PORT_TRANSLATED
	ReasonRefused          = uplinkReasonREASON_REFUSED
	ReasonMalformed        = uplinkReasonREASON_MALFORMED
	ReasonNotIP            = uplinkReasonREASON_NOT_IP
	ReasonFragment         = uplinkReasonREASON_FRAGMENT
	ReasonProtocol         = uplinkReasonREASON_PROTOCOL
	ReasonOversize         = uplinkReasonREASON_OVERSIZE
	ReasonTTL              = uplinkReasonREASON_TTL
	ReasonBadSource        = uplinkReasonREASON_BAD_SOURCE
	ReasonNoChecksum       = uplinkReasonREASON_NO_CHECKSUM
	ReasonBadDestination   = uplinkReasonREASON_BAD_DESTINATION
	ReasonUnknownEndpoint  = uplinkReasonREASON_UNKNOWN_ENDPOINT
	ReasonNoService        = uplinkReasonREASON_NO_SERVICE
	ReasonStaleService     = uplinkReasonREASON_STALE_SERVICE
	ReasonNoSlot           = uplinkReasonREASON_NO_SLOT
	ReasonNoBackend        = uplinkReasonREASON_NO_BACKEND
	ReasonNoNexthop        = uplinkReasonREASON_NO_NEXTHOP
	ReasonNoLocal          = uplinkReasonREASON_NO_LOCAL
	ReasonDraining         = uplinkReasonREASON_DRAINING
	ReasonVIPICMP          = uplinkReasonREASON_VIP_ICMP
	ReasonNoHeadroom       = uplinkReasonREASON_NO_HEADROOM
	ReasonNoMeta           = uplinkReasonREASON_NO_META
	ReasonHops             = uplinkReasonREASON_HOPS
	ReasonNoPort           = uplinkReasonREASON_NO_PORT
	ReasonNoPolicy         = uplinkReasonREASON_NO_POLICY
	ReasonPolicyIn         = uplinkReasonREASON_POLICY_IN
	ReasonPolicyOut        = uplinkReasonREASON_POLICY_OUT
	ReasonSpoofedMAC       = uplinkReasonREASON_SPOOFED_MAC
	ReasonSpoofedIP        = uplinkReasonREASON_SPOOFED_IP
	ReasonSpoofedARP       = uplinkReasonREASON_SPOOFED_ARP
	ReasonARPIgnored       = uplinkReasonREASON_ARP_IGNORED
	ReasonHostAddress      = uplinkReasonREASON_HOST_ADDRESS
	ReasonNoCt             = uplinkReasonREASON_NO_CT
	ReasonCtFull           = uplinkReasonREASON_CT_FULL
	ReasonCtCollision      = uplinkReasonREASON_CT_COLLISION
	ReasonNoDoorFlow       = uplinkReasonREASON_NO_DOOR_FLOW
	ReasonGuard            = uplinkReasonREASON_GUARD
	ReasonNoConfig         = uplinkReasonREASON_NO_CONFIG
	ReasonCopied           = uplinkReasonREASON_COPIED
	ReasonUnknownMAC       = uplinkReasonREASON_UNKNOWN_MAC
	ReasonBumRate          = uplinkReasonREASON_BUM_RATE
	ReasonCopyFailed       = uplinkReasonREASON_COPY_FAILED
	ReasonOverlayLB        = uplinkReasonREASON_OVERLAY_LB
	ReasonWrongHost        = uplinkReasonREASON_WRONG_HOST
	ReasonPuntRate         = uplinkReasonREASON_PUNT_RATE
	ReasonToServer         = uplinkReasonREASON_TO_SERVER
	ReasonPassNotIP        = uplinkReasonREASON_PASS_NOT_IP
	ReasonCtQuota          = uplinkReasonREASON_CT_QUOTA
	ReasonNDAnswered       = uplinkReasonREASON_ND_ANSWERED
	ReasonPunted           = uplinkReasonREASON_PUNTED
	ReasonTooBigAnswered   = uplinkReasonREASON_TOO_BIG_ANSWERED
	ReasonToTunnel         = uplinkReasonREASON_TO_TUNNEL
	ReasonFlooded          = uplinkReasonREASON_FLOODED
	ReasonExtensions       = uplinkReasonREASON_EXTENSIONS
	ReasonFragmentEarly    = uplinkReasonREASON_FRAGMENT_EARLY
	ReasonFragmentOverlap  = uplinkReasonREASON_FRAGMENT_OVERLAP
	ReasonFragmentShort    = uplinkReasonREASON_FRAGMENT_SHORT
	ReasonFragmentHoles    = uplinkReasonREASON_FRAGMENT_HOLES
	ReasonFragmentRate     = uplinkReasonREASON_FRAGMENT_RATE
	ReasonTCPFlags         = uplinkReasonREASON_TCP_FLAGS
	ReasonVLAN             = uplinkReasonREASON_VLAN
	ReasonNoNetwork        = uplinkReasonREASON_NO_NETWORK
	ReasonPuntLost         = uplinkReasonREASON_PUNT_LOST
	ReasonSpoofedND        = uplinkReasonREASON_SPOOFED_ND
	ReasonNDIgnored        = uplinkReasonREASON_ND_IGNORED
	ReasonRogueRA          = uplinkReasonREASON_ROGUE_RA
	ReasonRogueDHCP        = uplinkReasonREASON_ROGUE_DHCP
	ReasonRogueDHCP6       = uplinkReasonREASON_ROGUE_DHCP6
	ReasonCtInvalidRST     = uplinkReasonREASON_CT_INVALID_RST
	ReasonCtNoSYN          = uplinkReasonREASON_CT_NO_SYN
	ReasonICMPUnmatched    = uplinkReasonREASON_ICMP_UNMATCHED
	ReasonICMPTooSmall     = uplinkReasonREASON_ICMP_TOO_SMALL
	ReasonICMPRedirect     = uplinkReasonREASON_ICMP_REDIRECT
	ReasonSMTP             = uplinkReasonREASON_SMTP
	ReasonDoorProtocol     = uplinkReasonREASON_DOOR_PROTOCOL
	ReasonDoorNoFlow       = uplinkReasonREASON_DOOR_NO_FLOW
	ReasonDoorNobody       = uplinkReasonREASON_DOOR_NOBODY
	ReasonMetadataClosed   = uplinkReasonREASON_METADATA_CLOSED
	ReasonRate             = uplinkReasonREASON_RATE
	ReasonLimit            = uplinkReasonREASON_LIMIT
	ReasonSourceRate       = uplinkReasonREASON_SOURCE_RATE
)
