// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/dataplane/host"
)

var errEnough = errors.New("enough")

// watched is what the programs are asked for now.
func watched(t *testing.T, h *host.Host) (w bpf.Watch) {
	t.Helper()
	must(t, h.Maps.Watch.Lookup(uint32(0), &w))
	return w
}

func TestCaptureAndDropsEndWithWhoAsked(t *testing.T) {
	b := newBench(t)
	h := b.open()
	b.in("cbpf-hv", func() { must(t, h.AttachPort(b.cp5, port5)) })
	programMaps(t, h, b.cp5, false)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	knock := func() {
		if conn, err := b.dial("cbpf-rtr", "tcp", vip); err == nil {
			conn.Close()
		}
	}
	var got *host.Frame
	err := h.Capture(ctx, port5, 60, func(f *host.Frame, lost uint64) error {
		if f == nil {
			if err := h.Capture(ctx, port5, 60, nil); !errors.Is(err, host.ErrCaptured) {
				t.Errorf("a second capture: %v", err)
			}
			go knock()
			return nil
		}
		if f.Reason != bpf.ReasonPolicyIn {
			return nil
		}
		got = f
		return errEnough
	})
	if !errors.Is(err, errEnough) || got == nil {
		t.Fatalf("captured %v, %v", got, err)
	}
	if got.Direction != bpf.DirectionIn || got.Service != service7 || len(got.Bytes) != 60 || got.Length < 60 || time.Since(got.At) > time.Minute {
		t.Errorf("frame %+v", got)
	}
	var event bpf.Event
	err = h.Drops(ctx, host.DropFilter{Port: port5, Reason: bpf.ReasonPolicyIn}, func(e *bpf.Event, _ host.EventLoss) error {
		if e == nil {
			if w := watched(t, h); w.DropsPort != port5 || w.DropsUntil == 0 {
				t.Errorf("asked for %+v", w)
			}
			go knock()
			return nil
		}
		event = *e
		return errEnough
	})
	if !errors.Is(err, errEnough) || event.Port != port5 {
		t.Errorf("drop %+v, %v", event, err)
	}
	if w := watched(t, h); w.DropsUntil != 0 || w.FramesUntil != 0 {
		t.Errorf("left on: %+v", w)
	}
}

// The twins run over the pinned maps of a host, and of devices that are there.
func TestTwinsOfAHost(t *testing.T) {
	b := newBench(t)
	h := b.open()
	b.in("cbpf-hv", func() { must(t, h.AttachPort(b.cp5, port5)) })
	programMaps(t, h, b.cp5, true)
	twins, err := h.LoadTwins()
	must(t, err)
	defer twins.Close()
	p := packet.UDP(vmAddr+":1", "192.0.2.1:2").MACs(vmMAC, gwMAC).Bytes()
	before, err := h.PortStats(port5)
	must(t, err)
	counted := reasons(t, h)[bpf.ReasonToUplink]
	var run host.TwinRun
	b.in("cbpf-hv", func() { run, err = twins.Run("vm_in", p, host.TwinContext{Ifindex: uint32(b.cp5)}) })
	must(t, err)
	if len(run.Steps) == 0 || bpf.Reason(run.Steps[len(run.Steps)-1].Reason) != bpf.ReasonToUplink || run.Took > time.Second {
		t.Errorf("run %+v", run)
	}
	after, err := h.PortStats(port5)
	must(t, err)
	if after.PacketsOut != before.PacketsOut || reasons(t, h)[bpf.ReasonToUplink] != counted {
		t.Errorf("counted %+v, before %+v", after, before)
	}
	if _, err := twins.Run("ct_sweep", p, host.TwinContext{}); err == nil {
		t.Error("the sweep has a twin")
	}
}
