// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"strings"
	"testing"

	"cairn/bpf"
	"cairn/dataplane/host"
)

// A guest reaches the metadata service over real devices, in spite of a policy
// that lets it open nothing; the service sees the address that stands for the
// port, and its long answers come back whole.
func TestAGuestAsksTheMetadataService(t *testing.T) {
	b := newBench(t)
	h := b.open()
	b.in("cbpf-hv", func() { must(t, h.AttachPort(b.cp5, port5)) })
	programMaps(t, h, b.cp5, false)
	b.edit(h, func(pc *bpf.PortCfg) { pc.Flags, pc.PolicyOut = 0, 1 })
	at := host.MetadataAddr.String() + ":80"
	askers := b.serveIn(doorNetns, at)
	conn, err := b.dial("cbpf-vm", "tcp", at)
	if err != nil {
		t.Fatalf("%v; reasons %v", err, reasons(t, h))
	}
	b.mustEcho(conn, "who am I?")
	b.mustEcho(conn, strings.Repeat("0123456789abcdef", 16<<10))
	if got := <-askers; !strings.HasPrefix(got, "198.18.0.5:") {
		t.Errorf("the service sees %s", got)
	}
	must(t, conn.Close())

	// The controls: its other ports are shut, and so is every other way out.
	before := reasons(t, h)
	b.serveIn(doorNetns, host.MetadataAddr.String()+":81")
	if _, err := b.dial("cbpf-vm", "tcp", host.MetadataAddr.String()+":81"); err == nil {
		t.Error("another port of the service is open")
	}
	if _, err := b.dial("cbpf-vm", "tcp", clientAddr+":80"); err == nil {
		t.Error("the policy lets it out")
	}
	after := reasons(t, h)
	if after[bpf.ReasonDoorProtocol] == before[bpf.ReasonDoorProtocol] || after[bpf.ReasonPolicyOut] == before[bpf.ReasonPolicyOut] {
		t.Errorf("reasons %v, before %v", after, before)
	}
	// Whoever asks from the service's side gets nowhere.
	if _, err := b.dial(doorNetns, "tcp", "198.18.0.5:22"); err == nil {
		t.Error("the service opens a connection to a guest")
	}
}
