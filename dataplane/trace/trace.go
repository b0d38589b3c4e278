// SPDX-License-Identifier: Apache-2.0

// Package trace follows a packet through the programs without sending it. It
// makes the frame, runs it through the programs' twins as the host would, one
// hook after the other, and puts the steps into words. It changes nothing: the
// twins read the live maps (dataplane/host). Start at Tracer.Trace.
package trace

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"
	"cairn/dataplane/debug"
	"cairn/dataplane/host"

	"github.com/cilium/ebpf"
)

// idle is how long twins are kept when nobody traces: they hold memory, and take
// a second to load.
const idle = time.Minute

// Tracer traces on one host. It loads the twins when they are first asked for.
type Tracer struct {
	host *host.Host

	mu    sync.Mutex // of a trace, and of the twins
	twins *host.Twins
	end   *time.Timer
}

// New tracer; the host outlives it.
func New(h *host.Host) *Tracer { return &Tracer{host: h} }

// Close frees the twins.
func (t *Tracer) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end != nil {
		t.end.Stop()
	}
	if t.twins != nil {
		t.twins.Close()
		t.twins = nil
	}
}

func (t *Tracer) wake() error {
	if t.twins == nil {
		twins, err := t.host.LoadTwins()
		if err != nil {
			return err
		}
		t.twins = twins
		t.end = time.AfterFunc(idle, t.Close)
	}
	t.end.Reset(idle)
	return nil
}

// Trace follows a packet from where it comes to where it leaves this host.
func (t *Tracer) Trace(r debug.TraceRequest) (debug.Trace, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.wake(); err != nil {
		return debug.Trace{}, err
	}
	j := &journey{t: t, out: debug.Trace{Tuple: r.Tuple, Direction: "in", Steps: []debug.TraceStep{}}}
	if r.Out {
		j.out.Direction = "out"
	}
	if err := j.run(r); err != nil {
		return debug.Trace{}, fmt.Errorf("trace %s at port %d: %w", r.Tuple, r.Port, err)
	}
	return j.out, nil
}

// journey is one packet on its way.
type journey struct {
	t   *Tracer
	out debug.Trace
}

func (j *journey) run(r debug.TraceRequest) error {
	port, err := j.port(r.Port)
	if err != nil {
		return err
	}
	p, err := packetOf(r)
	if err != nil {
		return err
	}
	switch {
	case r.Out:
		return j.fromPort(r.Port, port, p, r.Tuple.Dst.Addr())
	case port.Vni != 0:
		return j.toPrivate(port, p, r.Tuple.Src.Addr())
	}
	return j.toPublic(p, r.Tuple.Src.Addr())
}

func (j *journey) port(id uint32) (cfg bpf.PortCfg, err error) {
	if err := j.t.host.Maps.PortCfg.Lookup(id, &cfg); err != nil || cfg.Ifindex == 0 {
		return cfg, fmt.Errorf("port %d is not on this host", id)
	}
	return cfg, nil
}

// packetOf makes the packet that was asked for.
func packetOf(r debug.TraceRequest) (packet.Packet, error) {
	src, dst := r.Tuple.Src.String(), r.Tuple.Dst.String()
	switch r.Tuple.Protocol {
	case packet.ProtoTCP:
		return packet.TCP(src, dst).Flags(r.Flags), nil
	case packet.ProtoUDP:
		return packet.UDP(src, dst), nil
	case 1, 58:
		p := packet.Ping(r.Tuple.Src.Addr().String(), r.Tuple.Dst.Addr().String(), 1)
		return p.ICMP(r.Tuple.Type, r.Tuple.Code), nil
	}
	return packet.IP(r.Tuple.Src.Addr().String(), r.Tuple.Dst.Addr().String(), r.Tuple.Protocol, make([]byte, 16)), nil
}

func text(mac [6]uint8) string { return net.HardwareAddr(mac[:]).String() }

// fromPort follows a packet that a port sends.
func (j *journey) fromPort(id uint32, port bpf.PortCfg, p packet.Packet, dst netip.Addr) error {
	to := port.GatewayMac
	if port.Vni != 0 {
		var err error
		if to, err = j.neighbour(port.Vni, dst); err != nil {
			return err
		}
	}
	frame := p.MACs(text(port.Mac), text(to)).Bytes()
	return j.hook("vm_in", frame, host.TwinContext{Ifindex: port.Ifindex})
}

// neighbour is the MAC to which a guest would send.
func (j *journey) neighbour(vni uint32, dst netip.Addr) (mac [6]uint8, err error) {
	if dst.IsMulticast() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return [6]uint8{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, nil
	}
	var n bpf.Neigh
	err = j.t.host.Maps.Neigh.Lookup(bpf.NeighKey{Vni: vni, Ip: bpf.IP16(dst)}, &n)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return mac, fmt.Errorf("nobody in network %d is known to have %s: a guest would have to ask for it", vni, dst)
	}
	return n.Mac, err
}

// toPublic follows a packet that comes from the network, or from a port here
// whose address it has.
func (j *journey) toPublic(p packet.Packet, src netip.Addr) error {
	var sender uint32
	if j.t.host.Maps.AddrPort.Lookup(bpf.IP16(src), &sender) == nil {
		port, err := j.port(sender)
		if err != nil {
			return err
		}
		return j.fromPort(sender, port, p, netip.Addr{})
	}
	var c bpf.Cfg
	if err := j.t.host.Maps.Cfg.Lookup(uint32(0), &c); err != nil {
		return err
	}
	const router = "02:00:00:00:00:01" // whoever it is
	frame := p.MACs(router, text(c.UplinkMac)).Bytes()
	run, err := j.step("uplink", frame, host.TwinContext{})
	if err != nil {
		return err
	}
	if run.Action != xdpPass {
		j.end("uplink", run)
		return nil
	}
	ctx := host.TwinContext{Ifindex: c.Uplink}
	if note, rest, ok := noteOf(run.Frame, len(frame)); ok {
		ctx.Cb, run.Frame = note, rest
	}
	return j.hook("uplink_in", run.Frame, ctx)
}

// toPrivate follows a frame from where its sender is.
func (j *journey) toPrivate(port bpf.PortCfg, p packet.Packet, src netip.Addr) error {
	from, err := j.neighbour(port.Vni, src)
	if err != nil {
		return err
	}
	var at bpf.Station
	if err := j.t.host.Maps.Fdb.Lookup(bpf.FdbKey{Vni: port.Vni, Mac: from}, &at); err != nil {
		return fmt.Errorf("nobody knows where %s is", text(from))
	}
	frame := p.MACs(text(from), text(port.Mac)).Bytes()
	if at.Port != 0 {
		sender, err := j.port(at.Port)
		if err != nil {
			return err
		}
		return j.hook("vm_in", frame, host.TwinContext{Ifindex: sender.Ifindex})
	}
	return j.hook("overlay_in", frame, host.TwinContext{Cb: [5]uint32{port.Vni, at.Endpoint}})
}

// hook runs the last program of the way.
func (j *journey) hook(program string, frame []byte, ctx host.TwinContext) error {
	run, err := j.step(program, frame, ctx)
	if err != nil {
		return err
	}
	j.end(program, run)
	return nil
}

func (j *journey) step(program string, frame []byte, ctx host.TwinContext) (host.TwinRun, error) {
	run, err := j.t.twins.Run(program, frame, ctx)
	if err != nil {
		return run, err
	}
	j.out.TookNS += int64(run.Took)
	for _, s := range run.Steps {
		step := debug.TraceStep{
			Program: program, Stage: bpf.Stage(s.Stage).String(), Port: s.Port, Rule: s.Rule, Text: words(s),
		}
		if s.Reason != 0 {
			step.Reason = bpf.Reason(s.Reason).String()
		}
		if s.Rule != 0 {
			j.out.Rule = s.Rule
		} else if bpf.Stage(s.Stage) == bpf.StagePolicy || bpf.Stage(s.Stage) == bpf.StageFlow {
			j.out.Rule = 0 // of the port before
		}
		j.out.Steps = append(j.out.Steps, step)
	}
	return run, nil
}

// noteLength is what uplink leaves in front of a packet.
const noteLength = 16

// noteOf takes the note off a frame, if there is one.
func noteOf(frame []byte, was int) (cb [5]uint32, rest []byte, ok bool) {
	if len(frame) != was+noteLength {
		return cb, frame, false
	}
	for i := range 4 {
		cb[i] = native.Uint32(frame[4*i:])
	}
	return cb, frame[noteLength:], cb[0]&bpf.NotePresent != 0
}
