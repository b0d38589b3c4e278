// SPDX-License-Identifier: Apache-2.0

// Package kernel puts scenarios to the real programs: it loads the objects into
// the kernel, writes their maps with the agent's own code, runs frames through
// them, lets time pass, and reads back what they remember. Play compares all of
// it with the model. It attaches nothing and owns no judgement. Start at Load,
// then Play.
package kernel

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	own "cairn/dataplane/maps"
	"cairn/dataplane/port"
	"cairn/test/model/firewall"
	"cairn/test/model/scenario"
)

// Device of every test run.
const loopback = 1

// Kernel is the programs with their maps.
type Kernel struct {
	progs map[string]*ebpf.Program
	maps  map[string]*ebpf.Map
	inner map[string]map[firewall.PortID]*ebpf.Map // of arrays of maps, by name
	specs *bpf.Specs

	image   *own.Image
	classes port.Classes
	numbers classNumbers
	reasons map[bpf.Reason]uint64
	passed  time.Duration // that flows were made older by

	Seen map[firewall.Reason]int // of packets since Load
}

// sizes of maps that are large in the field.
var sizes = map[string]uint32{
	"slots": 16, "backends": 16, "backend_stat": 1, "backend_conn": 16, "svc": 16, "svc_stat": 16, "nexthops": 16,
	"port_cfg": 16, "ct_est": 16, "ct_new": 16, "ct_swept": 16, "rule_stats": 256, "vtep_seen": 16, "vtep_errors": 16, "pace": 16, "told": 16,
}

// untouched maps are written by nobody here.
var untouched = map[string]bool{"reasons": true, "vip_bits": true, "cfg": true, "scratch": true}

// Load objects. uplink_in finds its note in skb->cb, because a test run has no
// metadata for it.
func Load(specs *bpf.Specs) (*Kernel, error) {
	if err := specs.Uplink.Variables["note_in_cb"].Set(true); err != nil {
		return nil, fmt.Errorf("set note_in_cb: %w", err)
	}
	for _, spec := range []*ebpf.CollectionSpec{specs.Uplink, specs.Port} {
		for name, m := range spec.Maps {
			if size, ok := sizes[name]; ok {
				m.MaxEntries = size
			}
		}
	}
	uplink, err := ebpf.NewCollection(specs.Uplink)
	if err != nil {
		return nil, fmt.Errorf("load the uplink object: %w", err)
	}
	shared := maps.Clone(uplink.Maps)
	maps.DeleteFunc(shared, func(name string, _ *ebpf.Map) bool {
		return name[0] == '.' || specs.Port.Maps[name] == nil
	})
	ports, err := ebpf.NewCollectionWithOptions(specs.Port, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		uplink.Close()
		return nil, fmt.Errorf("load the port object: %w", err)
	}
	k := &Kernel{progs: uplink.Programs, maps: uplink.Maps, specs: specs, Seen: map[firewall.Reason]int{}, inner: map[string]map[firewall.PortID]*ebpf.Map{}}
	maps.Copy(k.progs, ports.Programs)
	for name, m := range ports.Maps {
		if k.maps[name] == nil {
			k.maps[name] = m
		}
	}
	if err := k.makeInner(); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

func (k *Kernel) makeInner() error {
	for name, m := range k.maps {
		if m.Type() != ebpf.ArrayOfMaps {
			continue
		}
		k.inner[name] = map[firewall.PortID]*ebpf.Map{}
		for _, id := range scenario.Ports {
			inner, err := ebpf.NewMap(k.specs.Uplink.Maps[name].InnerMap)
			if err != nil {
				return fmt.Errorf("make %s of port %d: %w", name, id, err)
			}
			k.inner[name][id] = inner
			if err := m.Put(uint32(id), inner); err != nil {
				return fmt.Errorf("put %s of port %d: %w", name, id, err)
			}
		}
	}
	return nil
}

// Close frees programs and maps.
func (k *Kernel) Close() {
	for _, p := range k.progs {
		_ = p.Close()
	}
	for _, m := range k.maps {
		_ = m.Close()
	}
	for _, of := range k.inner {
		for _, m := range of {
			_ = m.Close()
		}
	}
}

// Begin the world anew, whatever was before.
func (k *Kernel) Begin() error {
	var errs []error
	for name, m := range k.maps {
		if name[0] != '.' && !untouched[name] {
			errs = append(errs, empty(m))
		}
	}
	for _, of := range k.inner {
		for _, m := range of {
			errs = append(errs, empty(m))
		}
	}
	k.image, k.classes, k.numbers = own.NewImage(), port.Classes{}, classNumbers{}
	errs = append(errs, k.populate())
	var err error
	k.reasons, err = k.counts()
	return errors.Join(append(errs, err)...)
}

// empty deletes a hash's entries and zeroes an array's.
func empty(m *ebpf.Map) error {
	switch m.Type() {
	case ebpf.Hash, ebpf.LPMTrie, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LRUCPUHash:
		for {
			key := make([]byte, m.KeySize())
			if err := m.NextKey(nil, &key); err != nil {
				if errors.Is(err, ebpf.ErrKeyNotExist) {
					return nil
				}
				return err
			}
			if err := m.Delete(key); err != nil {
				return err
			}
		}
	case ebpf.Array:
		zero := make([]byte, m.ValueSize())
		for i := range m.MaxEntries() {
			if err := m.Put(i, zero); err != nil {
				return err
			}
		}
	case ebpf.PerCPUArray:
		zero := make([][]byte, ebpf.MustPossibleCPU())
		for i := range zero {
			zero[i] = make([]byte, m.ValueSize())
		}
		for i := range m.MaxEntries() {
			if err := m.Put(i, zero); err != nil {
				return err
			}
		}
	}
	return nil
}
