// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/dataplane/host"
)

// A VM behind a VIP reaches itself through it, over real devices and a router; and what
// is counted of that connection holds over a restart and an upgrade of the programs.
func TestVMReachesItselfThroughItsVIP(t *testing.T) {
	b := newBench(t)
	h := b.open()
	b.in("cbpf-hv", func() { must(t, h.AttachPort(b.cp5, port5)) })
	programMaps(t, h, b.cp5, true)
	self := netip.MustParsePrefix(vmAddr + "/32") // the group knows the VM by its own address
	must(t, h.Maps.Cidr.Put(bpf.CidrKey{Bits: bpf.PrefixBits(self, 32), Policy: 1, Ip: bpf.IP16(self.Addr())}, uint32(1)))
	clients := b.serve(vmAddr + ":8080")

	conn, err := b.dial("cbpf-vm", "tcp", vip)
	if err != nil {
		t.Fatalf("%v; reasons %v", err, reasons(t, h))
	}
	b.mustEcho(conn, "hello")
	b.mustEcho(conn, strings.Repeat("0123456789abcdef", 16<<10))
	if got := <-clients; !strings.HasPrefix(got, "169.254.169.252:") {
		t.Errorf("the VM sees itself at %s", got)
	}
	if s, err := h.ConnStat(backend12); err != nil || s.Opened != 1 || s.Closed != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	l, err := h.Latency(service7)
	total := uint64(0)
	for _, n := range l.Count {
		total += n
	}
	if err != nil || total != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	b.survivesRestart(conn)
	b.closesOnce(h, conn.Close)
	must(t, h.KeepLatency(map[uint32]bool{service7: true}))
	if l, _ := h.Latency(service7); l.Sum == 0 && l.Count[0] == 0 {
		t.Error("a service that is there has lost its latencies")
	}
	must(t, h.KeepLatency(nil))
	if l, err := h.Latency(service7); err != nil || l != (bpf.Latency{}) {
		t.Errorf("a service that is gone has %+v, %v", l, err)
	}
}

// closesOnce ends the only connection and waits until it counts as closed.
func (b *bench) closesOnce(h *host.Host, end func() error) {
	b.Helper()
	must(b, end())
	for deadline := time.Now().Add(5 * time.Second); ; {
		s, err := h.ConnStat(backend12)
		if err == nil && s.Opened == 1 && s.Closed == 1 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("the connection does not count as closed: %+v, %v", s, err)
		}
		<-time.After(time.Millisecond)
	}
}
