// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"errors"
	"testing"
	"time"

	"cairn/dataplane/host"
	"cairn/dataplane/maps"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const shapedFrame = 1000 // bytes

// A port's limit is an entry like others: put, read back, found again, changed
// and lifted. What is sent meanwhile tells whether it is in force.
func TestAPortIsLimited(t *testing.T) {
	b := newBench(t)
	h := b.open()
	k, err := maps.NewKernel(h)
	must(t, err)
	defer k.Close()
	limit := func(rate uint64) maps.Entry {
		return maps.Make(maps.Shaper, port5, maps.Limit{Device: uint32(b.cp5), Rate: rate})
	}
	listed := func() (got []maps.Entry) {
		must(t, k.Load(maps.Shaper, func(e maps.Entry) { got = append(got, e) }))
		return got
	}
	const many = 1500
	if got, _ := b.burst(many); got != many {
		t.Fatalf("without a limit %d of %d frames arrived", got, many)
	}
	b.in("cbpf-hv", func() {
		must(t, h.AttachPort(b.cp5, port5))
		if got := listed(); len(got) != 0 {
			t.Errorf("a new port has limits %v", got)
		}
		for _, rate := range []uint64{5 << 30, 2_000_000, 1_000_000} {
			must(t, k.Put(limit(rate), ""))
			if got, ok, err := k.Get(limit(rate)); got != limit(rate).Value || !ok || err != nil {
				t.Errorf("read back %v %t %v, want %s", got, ok, err, limit(rate))
			}
			if got := listed(); len(got) != 1 || got[0] != limit(rate) {
				t.Errorf("found %v, want %s", got, limit(rate))
			}
		}
		must(t, h.DetachPort(port5)) // the guard lets nothing of the test's through
	})
	got, took := b.burst(many)
	// A bucket of 256 KiB, 256 KiB that wait for it, and what it fills by meanwhile.
	most := 2*256<<10/shapedFrame + int(took.Seconds()*1_000_000/shapedFrame) + 1
	if least := 256 << 10 / shapedFrame; got < least || got > most {
		t.Errorf("of a burst of %d frames %d arrived in %s, want %d to %d", many, got, took, least, most)
	}
	b.in("cbpf-hv", func() {
		must(t, k.Delete(limit(1_000_000)))
		must(t, k.Delete(limit(1_000_000))) // nothing to delete is no error
		if rates, err := host.Shapers(); err != nil || len(rates) != 0 {
			t.Errorf("limits are left: %v, %v", rates, err)
		}
	})
	if got, _ := b.burst(many); got != many {
		t.Errorf("with the limit lifted %d of %d frames arrived", got, many)
	}
}

// burst sends frames out of port 5's device at once, and counts what its
// instance gets until nothing has come for a fifth of a second.
func (b *bench) burst(n int) (got int, took time.Duration) {
	b.Helper()
	const protocol = 0x88b5 // IEEE 802, for local experiments
	be := int(protocol>>8 | protocol&0xff<<8)
	socket := func(ns, device string) (fd int) {
		b.in(ns, func() {
			var err error
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, be)
			must(b.T, err)
			at, err := netlink.LinkByName(device)
			must(b.T, err)
			must(b.T, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(be), Ifindex: at.Attrs().Index}))
		})
		return fd
	}
	in, out := socket("cbpf-vm", "eth0"), socket("cbpf-hv", "cp5")
	defer unix.Close(in)
	defer unix.Close(out)
	must(b.T, unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	must(b.T, unix.SetsockoptInt(out, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20))
	must(b.T, unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}))
	frame := make([]byte, shapedFrame)
	copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, protocol >> 8, protocol & 0xff})
	begin := time.Now()
	for range n {
		if err := unix.Send(out, frame, 0); err != nil && !errors.Is(err, unix.ENOBUFS) {
			b.Fatalf("send: %v", err)
		}
	}
	buffer := make([]byte, 2*shapedFrame)
	for {
		if _, err := unix.Read(in, buffer); err != nil {
			return got, time.Since(begin)
		}
		got++
	}
}
