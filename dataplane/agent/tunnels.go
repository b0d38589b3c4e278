// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"slices"

	"cairn/cloud/wire"
	"cairn/dataplane/debug"
	"cairn/dataplane/table"
)

// tunnels lists the hosts to which packets of the tunnel met an error on their way.
func (a *Agent) tunnels() []debug.Tunnel {
	var all []debug.Tunnel
	for h := range table.All[wire.Host](a.table.View()) {
		e, ok, err := a.host.TunnelError(h.ID)
		if err != nil {
			a.log.Warn("errors of the tunnel", "error", err)
		}
		if ok {
			all = append(all, debug.Tunnel{Host: h.ID, Endpoint: h.Endpoint, Errors: e.Count, Ago: e.Ago, Last: e.String()})
		}
	}
	slices.SortFunc(all, func(a, b debug.Tunnel) int { return cmp.Compare(a.Host, b.Host) })
	return all
}

// alarm tells the log of tunnels whose errors have become more since seen, which
// holds their counts.
func (a *Agent) alarm(seen map[uint32]uint64) {
	for _, t := range a.tunnels() {
		if t.Errors > seen[t.Host] {
			a.log.Warn("the underlay refuses packets of the tunnel", "host", t.Host, "endpoint", fmt.Sprint(t.Endpoint),
				"errors", t.Errors, "last", t.Last)
		}
		seen[t.Host] = t.Errors
	}
}
