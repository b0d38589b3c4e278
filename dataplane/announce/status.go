// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Status is what a speaker says of itself: one JSON document to whoever
// connects to its socket.
type Status struct {
	Now       time.Time `json:"now"`
	Started   time.Time `json:"started"`
	Revision  uint64    `json:"revision"`         // of the set in force
	Source    string    `json:"source"`           // where that set came from
	Complaint string    `json:"complaint"`        // why a newer file is not in force, empty if none
	Refused   uint64    `json:"refused"`          // files not taken: corrupt, or older than the set in force
	Router    string    `json:"router,omitempty"` // the last refusal of a route, empty if none
	Sessions  []Session `json:"sessions"`
	Announced []Verdict `json:"announced"`
	Withheld  []Verdict `json:"withheld"`
	Probes    Probes    `json:"probes"`
}

// Session is the state of one router's session.
type Session struct {
	Peer        netip.Addr `json:"peer"`
	AS          uint32     `json:"as"`
	State       string     `json:"state"`
	Established bool       `json:"established"`
	Since       time.Time  `json:"since,omitzero"`
	Flaps       uint32     `json:"flaps"`
	Advertised  uint64     `json:"advertised"`
	Rejected    uint64     `json:"rejected"`
	BFD         string     `json:"bfd,omitempty"`
}

// Verdict is what was decided about one wanted prefix, and why.
type Verdict struct {
	Prefix      netip.Prefix `json:"prefix"`
	Origin      Origin       `json:"origin"`
	Rank        int          `json:"rank"`
	Communities []string     `json:"communities,omitempty"`
	Reason      string       `json:"reason"`
}

// Probes counts the self-test's work since the speaker started.
type Probes struct {
	Rounds     uint64 `json:"rounds"`
	Link       Tally  `json:"link"`
	Services   Tally  `json:"services"`
	Ports      Tally  `json:"ports"`
	LastFailed string `json:"last_failed,omitempty"` // the last test that failed, and how
}

// Tally counts tests by outcome.
type Tally struct {
	Passed uint64 `json:"passed"`
	Failed uint64 `json:"failed"`
}

// Query asks the speaker behind a socket for its status.
func Query(ctx context.Context, socket string) (Status, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return Status{}, fmt.Errorf("query speaker: %w", err)
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return Status{}, fmt.Errorf("query speaker: %w", err)
		}
	}
	var s Status
	if err := json.NewDecoder(c).Decode(&s); err != nil {
		return Status{}, fmt.Errorf("query speaker: %w", err)
	}
	return s, nil
}
