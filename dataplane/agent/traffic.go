// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"path/filepath"

	"cairn/dataplane/flowlog"
)

// flowLedger is the file that counts what became of flows, in the state folder.
const flowLedger = "flowlog"

// openTraffic begins to tell the control plane of packets. Without it all else
// goes on.
func (a *Agent) openTraffic() {
	listen := func() (flowlog.Events, error) {
		events, err := a.host.Events()
		if err == nil {
			a.unlisten = events.Close
		}
		return events, err
	}
	log, err := flowlog.New(flowlog.Config{Host: a.host, Ledger: filepath.Join(a.cfg.State, flowLedger), Log: a.log}, listen)
	if err != nil {
		a.log.Error("the control plane is not told of flows and usage", "error", err)
		return
	}
	a.traffic = log
	a.host.OnDetach(log.Detached)
}

func (a *Agent) closeTraffic() {
	if a.traffic == nil {
		return
	}
	a.unlisten()
	_ = a.traffic.Close() // it counts, and nobody comes after it
}
