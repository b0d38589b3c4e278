// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"testing"

	"cairn/bpf"
	"cairn/bpf/packet"
)

// An ICMP error about a tunnel packet of ours is written down against the host
// that it was for, and left to the kernel. Nobody else's counts, and none reaches
// a client.
func TestErrorsAboutTheTunnelAreWrittenDown(t *testing.T) {
	const router = "10.64.9.9"
	sent := packet.UDP(endpoint+":50000", endpoint2+":4789").Payload(make([]byte, 100)).DF()
	for name, c := range map[string]struct {
		p    packet.Packet
		want bpf.VtepError // but for the time; none: it is not ours
	}{
		"too big":        {tooBig(router, endpoint, 1400, sent), bpf.VtepError{Count: 1, From: be32(router), Mtu: 1400, Type: 3, Code: 4}},
		"no way":         {packet.ICMPError(router, endpoint, 3, 1, 0, quote(sent, 28)), bpf.VtepError{Count: 1, From: be32(router), Type: 3, Code: 1}},
		"hops spent":     {packet.ICMPError(router, endpoint, 11, 0, 0, quote(sent, 28)), bpf.VtepError{Count: 1, From: be32(router), Type: 11}},
		"port not there": {packet.ICMPError(endpoint2, endpoint, 3, 3, 0, quote(sent, 1000)), bpf.VtepError{Count: 1, From: be32(endpoint2), Type: 3, Code: 3}},
		"options":        {tooBig(router, endpoint, 1400, sent).Options(options), bpf.VtepError{Count: 1, From: be32(router), Mtu: 1400, Type: 3, Code: 4}},

		"to a stranger":  {p: tooBig(router, endpoint, 1400, sent.To("10.64.0.77:4789"))},
		"from another":   {p: tooBig(router, endpoint, 1400, sent.From("10.64.0.77:1"))},
		"another port":   {p: tooBig(router, endpoint, 1400, sent.To(endpoint2+":53"))},
		"tcp":            {p: tooBig(router, endpoint, 1400, packet.TCP(endpoint+":179", endpoint2+":4789"))},
		"a redirect":     {p: packet.ICMPError(router, endpoint, 5, 1, 0, quote(sent, 28))},
		"a ping":         {p: packet.Ping(router, endpoint, 1)},
		"too short":      {p: packet.ICMPError(router, endpoint, 3, 4, 1400, quote(sent, 27))},
		"for another IP": {p: tooBig(router, addr5, 1400, sent)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			reason := bpf.ReasonPassHost
			if c.want.Count > 0 {
				reason = bpf.ReasonPassUnderlay
			}
			before := now()
			w.expect(moved{reason: 1}, func() {
				in := fromRouter(c.p).Bytes()
				action, out := w.xdp(in)
				if action != xdpPass {
					t.Fatalf("action %d", action)
				}
				w.same("error", out, in)
			})
			var got bpf.VtepError
			must(t, w.maps["vtep_errors"].Lookup(uint32(2), &got))
			if c.want.Count > 0 && (got.Seen < before || got.Seen > now()) {
				t.Errorf("seen at %d, not from %d to now", got.Seen, before)
			}
			if got.Seen = 0; got != c.want {
				t.Errorf("vtep_errors: %+v, want %+v", got, c.want)
			}
		})
	}
}
