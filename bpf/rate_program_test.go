// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// A port sends what its bucket holds and what this fills by meanwhile, whatever
// kind of frame it is. What is refused costs nothing, others pay nothing for it,
// and time fills it again.
func TestPortSendsWithinItsRate(t *testing.T) {
	const rate, burst = 1_000_000, 256 << 10
	kinds := map[string]struct {
		frame []byte
		bytes int // of IP, else of the frame
	}{
		"IP":      {packet.UDP(addr5+":999", "9.9.9.9:53").Payload(make([]byte, 1000)).MACs(mac5, gatewayMAC).Bytes(), 1028},
		"refused": {packet.UDP("9.9.9.9:1", client).Payload(make([]byte, 1000)).MACs(mac5, gatewayMAC).Bytes(), 1028},
		"no IP":   {append(packet.UDP(addr5+":1", client).MACs(mac5, gatewayMAC).Bytes()[:12], append([]byte{0x88, 0xb5}, make([]byte, 1000)...)...), 1014},
	}
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.edit(port5, func(c *bpf.PortCfg) { c.RateFrom = rate })
			fill := func() {
				t.Helper()
				before, begin, n := w.reasons()[bpf.ReasonRate], time.Now(), 2*burst/k.bytes
				for range n {
					w.tc("vm_in", k.frame, skb{})
				}
				most := burst/k.bytes + int(time.Since(begin).Seconds()*rate)/k.bytes + 2
				sent := n - int(w.reasons()[bpf.ReasonRate]-before)
				if sent < burst/k.bytes || sent > most {
					t.Errorf("%d of %d frames went, want %d to %d", sent, n, burst/k.bytes, most)
				}
			}
			fill()
			other := packet.UDP(addr6+":999", "9.9.9.9:53").MACs(mac6, gatewayMAC)
			w.put("ifindex_port", uint32(loopback), port6)
			w.expect(moved{bpf.ReasonToUplink: 1}, func() { w.tc("vm_in", other.Bytes(), skb{}) })
			w.put("ifindex_port", uint32(loopback), port5)
			w.put("pace", port5, &bpf.Pace{Sent: now() - uint64(time.Second)}) // a while later
			fill()
		})
	}
}

// What was used up at a low rate takes long to fill at that rate, and none of it
// holds a port back that has been given a higher one.
func TestHigherRateCountsAtOnce(t *testing.T) {
	w := newWorld(t)
	w.edit(port5, func(c *bpf.PortCfg) { c.RateFrom = 1_000_000_000 })
	w.put("pace", port5, &bpf.Pace{Sent: now() + uint64(time.Minute)}) // 256 KiB at 4 KB/s
	p := packet.UDP(addr5+":999", "9.9.9.9:53").Payload(make([]byte, 1000)).MACs(mac5, gatewayMAC).Bytes()
	until := time.Now().Add(10 * time.Second)
	for w.reasons()[bpf.ReasonToUplink] == 0 {
		if time.Now().After(until) {
			t.Fatalf("nothing goes: %v", w.reasons())
		}
		w.tc("vm_in", p, skb{})
	}
}
