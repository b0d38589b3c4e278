// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"fmt"
	"net/netip"
	"time"

	"cairn/cloud/firewall"
)

// DropFilter says which drops to tell of.
type DropFilter struct {
	Port   uint32 // 0: of all
	Reason string // empty: any
}

// Loss says how much was not told, since the start of a stream.
type Loss struct {
	Lost  uint64 `json:"lost"`            // no room on the way here
	Muted uint64 `json:"muted,omitempty"` // beyond the rate that a port has
}

// DropEvent is one line of a stream of drops: a packet, or what was lost.
type DropEvent struct {
	Packet *DroppedPacket `json:"packet,omitempty"`
	Loss   *Loss          `json:"loss,omitempty"`
}

// DroppedPacket and why.
type DroppedPacket struct {
	At        time.Time      `json:"at"`
	Port      uint32         `json:"port"` // 0: none was known yet
	From      uint32         `json:"from,omitempty"`
	Direction string         `json:"direction"`
	Reason    string         `json:"reason"`
	Rule      uint32         `json:"rule,omitempty"`   // that had admitted its flow
	Origin    string         `json:"origin,omitempty"` // of the rule in the API
	Service   uint32         `json:"service,omitempty"`
	Protocol  uint8          `json:"protocol"`
	Src       netip.AddrPort `json:"src"`
	Dst       netip.AddrPort `json:"dst"`
	Flags     string         `json:"flags,omitempty"` // of TCP
	EtherType uint16         `json:"ether_type"`
	Packets   uint64         `json:"packets"`
	Bytes     uint64         `json:"bytes"`
}

// Summary of the packet in a few words.
func (p DroppedPacket) Summary() string {
	if !p.Src.Addr().IsValid() || (p.Src.Addr().IsUnspecified() && p.Dst.Addr().IsUnspecified() && p.Protocol == 0) {
		if p.EtherType == 0 {
			return "unread"
		}
		return fmt.Sprintf("type %#04x", p.EtherType)
	}
	text := fmt.Sprintf("%s %s > %s", firewall.ProtocolName(p.Protocol), end(p.Protocol, p.Src), end(p.Protocol, p.Dst))
	if p.Flags != "" {
		text += " [" + p.Flags + "]"
	}
	if p.Packets > 1 {
		text += fmt.Sprintf(" × %d", p.Packets)
	}
	return text
}

func end(protocol uint8, a netip.AddrPort) string {
	if firewall.HasPorts(protocol) {
		return a.String()
	}
	return a.Addr().String()
}

// CaptureRequest names the port whose frames are wanted, and how much of each.
type CaptureRequest struct {
	Port  uint32
	Bytes int
}

// CaptureEvent is one line of a capture: a frame, or what was lost.
type CaptureEvent struct {
	Frame *CapturedFrame `json:"frame,omitempty"`
	Loss  *Loss          `json:"loss,omitempty"`
}

// CapturedFrame is a frame as it came to the port, and what became of it.
type CapturedFrame struct {
	At        time.Time `json:"at"`
	Port      uint32    `json:"port"`
	Direction string    `json:"direction"`
	Dropped   bool      `json:"dropped"`
	Reason    string    `json:"reason"`
	Rule      uint32    `json:"rule,omitempty"`
	Origin    string    `json:"origin,omitempty"`
	Service   uint32    `json:"service,omitempty"`
	Length    int       `json:"length"` // of the frame; Bytes may be fewer
	Bytes     []byte    `json:"bytes"`
}

// Verdict on the frame in one line.
func (f CapturedFrame) Verdict() string {
	text := f.Direction + ": passed (" + f.Reason + ")"
	if f.Dropped {
		text = f.Direction + ": dropped (" + f.Reason + ")"
	}
	if f.Rule != 0 {
		text += ", " + ruleName(f.Rule, f.Origin)
	}
	if f.Service != 0 {
		text += fmt.Sprintf(", service %d", f.Service)
	}
	return text
}

// ruleName is the rule as people know it.
func ruleName(id uint32, origin string) string {
	if origin == "" {
		return fmt.Sprintf("rule %d", id)
	}
	return fmt.Sprintf("rule %d (%s)", id, origin)
}
