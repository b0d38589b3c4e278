// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"

	"cairn/dataplane/nlb"
)

// minMTU is what full-size packets of instances need on the uplink.
const minMTU = 1500 + nlb.Overhead

func (a *Agent) checkMTU() error {
	mtu, _ := a.senses.Uplink()
	if mtu >= minMTU {
		return nil
	}
	if a.cfg.MTUCheck {
		return fmt.Errorf("uplink %s has MTU %d: packets of 1500 bytes need %d", a.cfg.Uplink, mtu, minMTU)
	}
	a.log.Warn("uplink too small for the encapsulation of packets of 1500 bytes", "mtu", mtu, "needed", minMTU)
	return nil
}

// repairOverlay makes the device of the private networks when it is not there.
// While it cannot be made, they end at this host; all else goes on.
func (a *Agent) repairOverlay() {
	again, err := a.host.RepairOverlay()
	switch {
	case err != nil && !a.overlayLost:
		a.log.Error("private networks end at this host", "error", err)
	case again:
		a.log.Warn("the device of the private networks was made anew")
	}
	a.overlayLost = err != nil
}
