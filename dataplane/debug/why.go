// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"fmt"
	"io"
	"time"
)

// WhyRequest asks about a packet's flow at a port.
type WhyRequest struct {
	Port  uint32 // 0: the one here that has an address of the packet
	Tuple Tuple
}

// Why a flow lives, or why its first packet would not be admitted.
type Why struct {
	Tuple     Tuple    `json:"packet"`
	Port      uint32   `json:"port"`
	Direction string   `json:"direction"` // of the packet at the port
	Flow      *Flowing `json:"flow,omitempty"`

	// Of the first packet of a flow, by the policy as it is wanted.
	Admitted bool   `json:"admitted"`
	Reason   string `json:"reason"`
	Text     string `json:"text"` // the reason in words
	Rule     *Rule  `json:"rule,omitempty"`
	Nearest  []Near `json:"nearest,omitempty"` // rules that almost admit it

	Policy     uint32 `json:"policy"`     // the zone's
	Programmed uint32 `json:"programmed"` // this host's own policy id, 0: none is in force
	Generation uint32 `json:"generation"` // of the port
	Revision   uint64 `json:"revision"`   // of what is programmed
}

// Rule as people know it.
type Rule struct {
	ID     uint32 `json:"id"`
	Origin string `json:"origin,omitempty"` // in the API: GROUP/RULE
	Text   string `json:"text,omitempty"`
}

// Near is a rule that does not admit a packet, and in what it differs.
type Near struct {
	Rule    Rule     `json:"rule"`
	Differs []string `json:"differs"`
}

// Flowing is a flow that lives.
type Flowing struct {
	State      string    `json:"state"`
	Confirmed  bool      `json:"confirmed"` // its initiator has spoken after an answer
	Begun      string    `json:"begun"`     // in, out: by whom
	Rule       Rule      `json:"rule"`      // that admitted it; 0: none was needed
	Host       bool      `json:"host,omitempty"`
	Keep       bool      `json:"keep,omitempty"` // it outlives its rule
	Generation uint32    `json:"generation"`     // the port's when it was last judged
	Created    time.Time `json:"created"`
	Revision   uint64    `json:"revision,omitempty"` // that the maps held then; 0: longer ago than the agent remembers
	Seen       time.Time `json:"seen"`               // its last packet
	Expires    time.Time `json:"expires"`
	Packets    uint64    `json:"packets"`
	Bytes      uint64    `json:"bytes"`
	Service    uint32    `json:"service,omitempty"`
	VIP        string    `json:"vip,omitempty"`
	Backend    uint32    `json:"backend,omitempty"`
}

func printWhy(w io.Writer, y Why) {
	grid(w, func(row func(...any)) {
		row("packet", fmt.Sprintf("%s, %s at port %d", y.Tuple, y.Direction, y.Port))
		if f := y.Flow; f != nil {
			printFlowing(row, y, f)
		} else {
			row("flow", "none lives")
		}
		row("policy", fmt.Sprintf("%d as %d, generation %d, revision %d", y.Policy, y.Programmed, y.Generation, y.Revision))
		row("a first packet", map[bool]string{true: "admitted: ", false: "refused: "}[y.Admitted]+y.Text+" ("+y.Reason+")")
		if y.Rule != nil {
			row("by", ruleName(y.Rule.ID, y.Rule.Origin))
			row("", y.Rule.Text)
		}
		for _, n := range y.Nearest {
			row("nearest", ruleName(n.Rule.ID, n.Rule.Origin))
			row("", n.Rule.Text)
			for _, d := range n.Differs {
				row("", "  "+d)
			}
		}
	})
}

func printFlowing(row func(...any), y Why, f *Flowing) {
	confirmed := ""
	if !f.Confirmed {
		confirmed = ", not confirmed yet"
	}
	row("flow", f.State+confirmed+", begun "+f.Begun)
	switch {
	case f.Host:
		row("admitted", "as one of the host's own services")
	case f.Rule.ID == 0:
		row("admitted", "without a rule: all may leave, or none was needed")
	default:
		row("admitted by", ruleName(f.Rule.ID, f.Rule.Origin))
		if f.Rule.Text != "" {
			row("", f.Rule.Text)
		}
	}
	judged := fmt.Sprintf("at generation %d", f.Generation)
	if f.Generation != y.Generation && !f.Host {
		judged += fmt.Sprintf(", again with its next packet (the port is at %d)", y.Generation)
	}
	row("judged", judged)
	created := f.Created.Format(time.RFC3339Nano)
	if f.Revision != 0 {
		created += fmt.Sprintf(", at revision %d", f.Revision)
	}
	row("created", created)
	row("last packet", f.Seen.Format(time.RFC3339Nano))
	row("expires", f.Expires.Format(time.RFC3339Nano))
	row("counted", fmt.Sprintf("%d packets, %d bytes, both ways", f.Packets, f.Bytes))
	if f.Service != 0 {
		row("service", fmt.Sprintf("%d, as %s, backend %d", f.Service, f.VIP, f.Backend))
	}
}
