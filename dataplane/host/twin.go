// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"cairn/bpf"

	"github.com/cilium/ebpf"
)

// Twins are the programs of this host again, made so that they change nothing:
// they read the live maps, and instead of counting, remembering and telling they
// write down their steps. They are attached nowhere.
type Twins struct {
	mu    sync.Mutex // one packet at a time: steps are in one place
	progs map[string]*ebpf.Program
	steps map[string]*ebpf.Map // of each program's object
	colls []*ebpf.Collection
}

// LoadTwins takes as long as loading the programs (a second); who traces keeps
// them for a while. The caller closes them.
func (h *Host) LoadTwins() (*Twins, error) {
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		return nil, fmt.Errorf("load the twins: %w", err)
	}
	if err := errors.Join(specs.Uplink.Variables["note_in_cb"].Set(true), specs.Overlay.Variables["tunnel_in_cb"].Set(true)); err != nil {
		return nil, fmt.Errorf("load the twins: %w", err)
	}
	t := &Twins{progs: map[string]*ebpf.Program{}, steps: map[string]*ebpf.Map{}}
	for _, spec := range []*ebpf.CollectionSpec{specs.Uplink, specs.Port, specs.Overlay} {
		if err := t.load(h, spec); err != nil {
			t.Close()
			return nil, fmt.Errorf("load the twins: %w", refusal(err))
		}
	}
	return t, nil
}

func (t *Twins) load(h *Host, spec *ebpf.CollectionSpec) error {
	if err := spec.Variables["trace"].Set(true); err != nil {
		return err
	}
	shared := map[string]*ebpf.Map{}
	for name, m := range h.Maps.byName() {
		if spec.Maps[name] != nil && !slices.Contains(bpf.OwnMaps, name) {
			spec.Maps[name].MaxEntries = (*m).MaxEntries()
			shared[name] = *m
		}
	}
	// The sweep would delete flows, and what enters a port is not asked about.
	delete(spec.Programs, "ct_sweep")
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return err
	}
	t.colls = append(t.colls, coll)
	for name, p := range coll.Programs {
		t.progs[name], t.steps[name] = p, coll.Maps["trace_steps"]
	}
	return nil
}

// Close frees the twins.
func (t *Twins) Close() {
	for _, c := range t.colls {
		c.Close()
	}
}

// TwinContext is what a program is told beside the frame.
type TwinContext struct {
	Ifindex uint32    // of the device it comes from; 0 for uplink
	Cb      [5]uint32 // uplink_in: the note; overlay_in: network and sender
}

// skb is the beginning of struct __sk_buff.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TcIndex                                  uint32
	Cb                                                                          [5]uint32
}

// TwinRun is what a program would do with a frame.
type TwinRun struct {
	Action uint32
	Frame  []byte // as it would leave
	Steps  []bpf.TraceStep
	Took   time.Duration // in the kernel
}

// Run a frame through a twin.
func (t *Twins) Run(program string, frame []byte, ctx TwinContext) (TwinRun, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	run, err := t.run(program, frame, ctx)
	if err != nil {
		return run, fmt.Errorf("run the twin of %s: %w", program, err)
	}
	return run, nil
}

func (t *Twins) run(program string, frame []byte, ctx TwinContext) (TwinRun, error) {
	prog, steps := t.progs[program], t.steps[program]
	if prog == nil {
		return TwinRun{}, errors.New("there is none")
	}
	if err := steps.Put(uint32(0), make([]byte, steps.ValueSize())); err != nil {
		return TwinRun{}, err
	}
	options := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	if prog.Type() == ebpf.SchedCLS {
		options.Context = &skb{Ifindex: ctx.Ifindex, Cb: ctx.Cb}
	}
	before := time.Now()
	action, err := prog.Run(options)
	if err != nil {
		return TwinRun{}, err
	}
	run := TwinRun{Action: action, Frame: options.DataOut, Took: time.Since(before)}
	var raw []byte
	if err := steps.Lookup(uint32(0), &raw); err != nil {
		return run, err
	}
	var log bpf.TraceLog
	if err := binary.Read(bytes.NewReader(raw), binary.NativeEndian, &log); err != nil {
		return run, err
	}
	for _, s := range log.Step[:min(int(log.Steps), len(log.Step))] {
		run.Steps = append(run.Steps, bpf.TraceStep(s))
	}
	return run, nil
}
