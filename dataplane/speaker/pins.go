// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"net/netip"

	"cairn/dataplane/announce"
	"cairn/dataplane/host"
)

// Pins is the dataplane as its pins show it: no agent is needed, and CAP_BPF is
// enough.
type Pins struct {
	prober *host.Prober
	port   uint16 // of the next probe, less its base
}

// NewPins looks at the dataplane below a folder of pins, on a device.
func NewPins(pins, uplink string) *Pins { return &Pins{prober: host.NewProber(pins, uplink)} }

// Link passes if the uplink's programs are attached.
func (p *Pins) Link() error { return p.prober.Link() }

// Probe sends one packet through the uplink's program. Each has another source
// port, so that in time all slots are met.
func (p *Pins) Probe(vip netip.Addr, s announce.Service) error {
	const base, count = 1024, 60000
	p.port = (p.port + 1) % count
	return p.prober.VIP(netip.AddrPortFrom(vip, s.Port), s.Protocol, base+p.port)
}

// Port passes if the port's programs are attached to a device that exists.
func (p *Pins) Port(id uint32) error { return p.prober.Port(id) }
