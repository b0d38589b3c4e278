// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

const liveFrames = 2 // BPF_F_TEST_XDP_LIVE_FRAMES

// Spray sends packets of an IPv4 shape through a device, as fast as it takes
// them, and tells how long that took. The other end must have LetIn attached.
func (d *Driver) Spray(device int, s Shape, packets uint32) (time.Duration, error) {
	s = s.padded()
	if _, err := d.prepare(d.objects.FloorXdp, s); err != nil {
		return 0, err
	}
	var shape driveShape
	if err := d.objects.Shapes.Lookup(uint32(0), &shape); err != nil {
		return 0, err
	}
	sum, at := payloadSum(s)
	shape.Note = [4]uint32{uint32(device), headerSum(s), sum, at}
	if err := d.objects.Shapes.Put(uint32(0), &shape); err != nil {
		return 0, err
	}
	began := time.Now()
	_, err := d.objects.Spray.Run(&ebpf.RunOptions{Data: s.Frame, Repeat: packets, Flags: liveFrames})
	if err != nil {
		return 0, fmt.Errorf("live frames: %w", err)
	}
	return time.Since(began), nil
}

// padded to what the driver of XDP restores, behind the end of IP, as Ethernet
// pads short frames.
func (s Shape) padded() Shape {
	if short := headFast - len(s.Frame); short > 0 {
		s.Frame = append(slices.Clone(s.Frame), make([]byte, short)...)
	}
	s.Head = max(s.Head, headFast)
	return s
}

// LetIn is the program for the ends of veths that receive.
func (d *Driver) LetIn() *ebpf.Program { return d.objects.LetIn }

// Sink is a program that counts and drops; Sunk is how many so far.
func (d *Driver) Sink() *ebpf.Program { return d.objects.Sink }

// Sunk is how many packets the sink has had.
func (d *Driver) Sunk() (uint64, error) {
	var perCPU []uint64
	err := d.objects.Sunk.Lookup(uint32(0), &perCPU)
	var sum uint64
	for _, n := range perCPU {
		sum += n
	}
	return sum, err
}

// headerSum adds the words of the IPv4 header, in wire order as they lie in
// memory, without its checksum and without the varied address.
func headerSum(s Shape) uint32 {
	var sum uint32
	for at := 14; at < 34; at += 2 {
		if at == 24 || at == s.AddressAt || at == s.AddressAt+2 {
			continue
		}
		sum += uint32(s.Frame[at]) | uint32(s.Frame[at+1])<<8
	}
	return sum
}

// payloadSum adds the words that the checksum of TCP covers, without it and
// without what is varied, and says where it lies. That of UDP is left out.
func payloadSum(s Shape) (sum, at uint32) {
	const ipv4, tcp = 14, 6
	l4 := ipv4 + int(s.Frame[ipv4]&15)*4
	if s.Frame[ipv4+9] != tcp {
		return 0, 0
	}
	at = uint32(l4 + 16)
	end := ipv4 + (int(s.Frame[ipv4+2])<<8 | int(s.Frame[ipv4+3]))
	for i := 26; i < end; i += 2 { // the addresses first
		if (i >= 34 && i < l4) || i == int(at) || i == s.AddressAt || i == s.AddressAt+2 || i == s.PortAt {
			continue
		}
		sum += uint32(s.Frame[i])
		if i+1 < end {
			sum += uint32(s.Frame[i+1]) << 8
		}
	}
	return sum + tcp<<8 + uint32(bits.ReverseBytes16(uint16(end-l4))), at
}

// Sprayed is how many packets of a spray are enough for Rate when each takes
// microseconds: an nftables list does. A run begins and ends with some 20 ms of
// waiting in the kernel, so what takes less needs more of them.
const Sprayed = 20_000

// Rate times sprays of so many packets until it has Runs of them and gives ns a
// packet. Received
// tells how many packets have arrived since it was last asked. A run in which
// some were lost has no rate: it is repeated, and spoilt counts it.
func (d *Driver) Rate(device int, s Shape, packets uint32, before func() error, received func() (uint64, error)) (f Figure, spoilt int, err error) {
	var ns []float64
	for warm := false; len(ns) < Runs; {
		took, got, err := d.sprayOnce(device, s, packets, before, received)
		switch {
		case err != nil:
			return f, spoilt, err
		case got != uint64(packets):
			if spoilt++; spoilt > Runs {
				return f, spoilt, fmt.Errorf("%d of %d packets arrived, and it was so in %d runs", got, packets, spoilt)
			}
		case !warm:
			warm = true
		default:
			ns = append(ns, float64(took)/float64(packets))
		}
	}
	return figureOf(ns), spoilt, nil
}

func (d *Driver) sprayOnce(device int, s Shape, packets uint32, before func() error, received func() (uint64, error)) (time.Duration, uint64, error) {
	if err := before(); err != nil {
		return 0, 0, err
	}
	if _, err := received(); err != nil { // what came before does not count
		return 0, 0, err
	}
	took, err := d.Spray(device, s, packets)
	if err != nil {
		return 0, 0, err
	}
	got, err := settled(packets, received)
	return took, got, err
}

// settled adds up what arrives until all of a spray is there or nothing has come
// for a while.
func settled(packets uint32, received func() (uint64, error)) (uint64, error) {
	var sum uint64
	for quiet := 0; sum < uint64(packets) && quiet < 50; quiet++ {
		got, err := received()
		if err != nil {
			return sum, err
		}
		if got > 0 {
			quiet = 0
		}
		sum += got
		if sum < uint64(packets) {
			<-time.After(time.Millisecond)
		}
	}
	return sum, nil
}
