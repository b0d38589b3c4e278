// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"
	"slices"

	"cairn/test/model/frame"
)

// Direction of a packet or a flow, as the port's instance sees it.
type Direction uint8

// Directions.
const (
	In Direction = iota
	Out
)

// question is what the rules of a port are asked about a flow.
type question struct {
	direction Direction
	peer      netip.Addr
	proto     uint8
	match     uint16 // destination port; ICMP: type and code
}

const smtp = 25

// permit a flow. Mail leaves only from ports that may send it, whatever their
// rules say.
func (h *Host) permit(p *Port, q question) (Rule, Reason) {
	if q.direction == Out && q.proto == frame.TCP && q.match == smtp && !p.Mail {
		return Rule{}, SMTP
	}
	return h.judge(p, q)
}

// judge the first packet of a flow. Any rule that admits is enough: there are
// no priorities and no rules that deny. Without any egress rule all may leave.
func (h *Host) judge(p *Port, q question) (Rule, Reason) {
	if len(p.Groups) == 0 {
		return Rule{}, NoPolicy
	}
	rules := h.Rules(p)
	if q.direction == Out && !slices.ContainsFunc(rules, func(r Rule) bool { return r.Egress }) {
		return Rule{}, None
	}
	for _, r := range rules {
		if r.Egress == (q.direction == Out) && h.isPeer(r, q.peer) && r.speaksOf(q.proto, q.match) {
			return r, None
		}
	}
	if q.direction == Out {
		return Rule{}, PolicyOut
	}
	return Rule{}, PolicyIn
}

func (h *Host) isPeer(r Rule, peer netip.Addr) bool {
	if r.PeerGroup == 0 {
		return r.Peer.Contains(peer) // never one of the other family
	}
	g := h.Group(r.PeerGroup)
	if g.Members[peer] {
		return true
	}
	for source := range g.Sources {
		if source.Contains(peer) {
			return true
		}
	}
	return false
}

func (r Rule) speaksOf(proto uint8, match uint16) bool {
	if r.Protocol == 0 {
		return true
	}
	if r.Protocol != proto {
		return false
	}
	switch proto {
	case frame.TCP, frame.UDP:
		return r.From <= match && match <= r.To
	case frame.ICMP, frame.ICMPv6:
		kind, code := int(match>>8), int(match&0xff)
		return r.Type < 0 || r.Type == kind && (r.Code < 0 || r.Code == code)
	}
	return true
}
