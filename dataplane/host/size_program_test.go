// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"strings"
	"testing"

	"cairn/bpf"
)

// Who sends an instance more than it takes learns how much that is, over devices
// that compute no checksums: what the answer is written over may be of many
// packets in one, or one whose own checksum was still to come, and nobody may
// write that into the answer.
func TestSizeIsLearnt(t *testing.T) {
	b := newBench(t)
	b.all("cbpf-rtr", []string{"ethtool", "-K", "r0", "tx", "on"})
	h := b.open()
	b.in("cbpf-hv", func() { must(t, h.AttachPort(b.cp5, port5)) })
	programMaps(t, h, b.cp5, true)
	var pc bpf.PortCfg
	must(t, h.Maps.PortCfg.Lookup(port5, &pc))
	pc.Mtu = 1400
	must(t, h.Maps.PortCfg.Put(port5, &pc))
	b.serve(vmAddr + ":8080")
	conn, err := b.dial("cbpf-rtr", "tcp", vmAddr+":8080")
	must(t, err)
	before := reasons(t, h)[bpf.ReasonTooBigAnswered]
	b.mustEcho(conn, strings.Repeat("0123456789abcdef", 4<<10))
	if told := reasons(t, h)[bpf.ReasonTooBigAnswered] - before; told == 0 {
		t.Error("nothing was too large")
	}
}
