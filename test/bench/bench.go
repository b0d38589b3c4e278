// SPDX-License-Identifier: Apache-2.0

// Package bench owns how programs are timed: a driver program that restores the
// frame and varies its flow in front of every run of the program under test,
// floors of the same driver, and tables of ratios with their bars. The
// benchmarks themselves are commands in folders below. Start at Driver.
package bench

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// How often: enough runs that the lower quartile is not an accident.
const (
	Runs    = 25
	Packets = 50_000 // of a run
)

// Shape of the frames of a run: flow n has the 4 bytes at AddressAt raised by n
// mod Addresses, and the port at PortAt by n / Addresses mod Ports.
type Shape struct {
	Frame     []byte // from the Ethernet header on
	Head      int    // how much of it is restored, at most 128
	AddressAt int
	Addresses uint32
	PortAt    int
	Ports     uint32
	InTurn    bool // every frame another flow; else flows at random
	Note      [4]uint32
}

// Figure of some runs, in ns a packet.
type Figure struct {
	Min, P25, Median float64
}

func (f Figure) String() string {
	return fmt.Sprintf("%7.1f %7.1f %7.1f", f.Min, f.P25, f.Median)
}

// Ratio of two figures' lower quartiles.
func Ratio(f, to Figure) float64 { return f.P25 / to.P25 }

// headFast is how much of a frame the XDP driver restores: HEAD_FAST. Of a shape
// with HeadMax it restores that.
const headFast = 64

// HeadMax is the most of a frame that is restored.
const HeadMax = len(driveShape{}.Head)

// Driver holds the driver's programs and maps.
type Driver struct{ objects driveObjects }

// NewDriver loads the driver. Its end is Close.
func NewDriver() (*Driver, error) {
	var d Driver
	if err := loadDriveObjects(&d.objects, nil); err != nil {
		return nil, fmt.Errorf("load the driver: %+v", err)
	}
	return &d, nil
}

// Close lets go of the driver.
func (d *Driver) Close() error { return d.objects.Close() }

// Floor gives the empty program of a type (SchedCLS or XDP).
func (d *Driver) Floor(t ebpf.ProgramType) *ebpf.Program {
	if t == ebpf.XDP {
		return d.objects.FloorXdp
	}
	return d.objects.FloorTc
}

// Case is a program and the frames to time it on.
type Case struct {
	Program *ebpf.Program
	Shape   Shape
	Want    uint32 // the answer in the last frame of each run
}

// Time runs each case Runs times on Packets packets, after one run that is not
// counted. The cases take turns, so that what else the machine does meets all
// of them.
func (d *Driver) Time(cases ...Case) ([]Figure, error) {
	ns := make([][]float64, len(cases))
	for run := range Runs + 1 {
		for i, c := range cases {
			took, err := d.run(c, Packets)
			if err != nil {
				return nil, fmt.Errorf("case %d, run %d: %w", i+1, run, err)
			}
			if run > 0 {
				ns[i] = append(ns[i], float64(took)/float64(time.Nanosecond))
			}
		}
	}
	figures := make([]Figure, len(cases))
	for i := range cases {
		figures[i] = figureOf(ns[i])
	}
	return figures, nil
}

// Visit runs a case once over the given number of frames, so that its tables
// know them.
func (d *Driver) Visit(c Case, frames int) error {
	for frames > 0 {
		n := min(frames, 1<<16)
		if _, err := d.run(c, n); err != nil {
			return err
		}
		frames -= n
	}
	return nil
}

// run gives the time of one frame.
func (d *Driver) run(c Case, frames int) (time.Duration, error) {
	drive, err := d.prepare(c.Program, c.Shape)
	if err != nil {
		return 0, err
	}
	answer, took, err := drive.Benchmark(c.Shape.Frame, frames, nil)
	if err != nil {
		return 0, err
	}
	if answer != c.Want {
		return 0, fmt.Errorf("the program answers %d, not %d", int32(answer), int32(c.Want))
	}
	var missed uint64
	if err := d.objects.Missed.Lookup(uint32(0), &missed); err != nil || missed != 0 {
		return 0, errors.Join(fmt.Errorf("%d tail calls fell through", missed), err)
	}
	return took, nil
}

func figureOf(ns []float64) Figure {
	slices.Sort(ns)
	return Figure{Min: ns[0], P25: ns[len(ns)/4], Median: ns[len(ns)/2]}
}

func (d *Driver) prepare(p *ebpf.Program, s Shape) (*ebpf.Program, error) {
	array, drive := d.objects.UnderTestTc, d.objects.DriveTc
	if p.Type() == ebpf.XDP {
		array, drive = d.objects.UnderTestXdp, d.objects.DriveXdp
	}
	shape := driveShape{
		Whole: uint32(len(s.Frame)), Length: uint32(s.Head), AddressAt: uint32(s.AddressAt), Addresses: s.Addresses,
		PortAt: uint32(s.PortAt), Ports: s.Ports, Note: s.Note,
	}
	if p.Type() == ebpf.XDP && s.Head < headFast {
		return nil, fmt.Errorf("frame of %d bytes: the driver of XDP restores %d", len(s.Frame), headFast)
	}
	if s.Head > len(shape.Head) || s.Head > len(s.Frame) || s.AddressAt+4 > s.Head || s.PortAt+2 > s.Head {
		return nil, fmt.Errorf("frame of %d bytes, %d of them restored: the driver cannot vary it", len(s.Frame), s.Head)
	}
	copy(shape.Head[:], s.Frame[:s.Head])
	shape.Address = be32(s.Frame[s.AddressAt:])
	shape.Port = uint32(s.Frame[s.PortAt])<<8 | uint32(s.Frame[s.PortAt+1])
	if s.InTurn {
		shape.InTurn = 1
	}
	return drive, errors.Join(
		array.Put(uint32(0), p), d.objects.Shapes.Put(uint32(0), &shape), d.objects.Missed.Put(uint32(0), uint64(0)))
}

// Seek has frames in turn go on with a flow.
func (d *Driver) Seek(flow uint64) error { return d.objects.Made.Put(uint32(0), flow) }

func be32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}
