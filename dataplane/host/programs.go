// SPDX-License-Identifier: Apache-2.0

package host

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"cairn/bpf"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Programs by name, and the object each is in.
var (
	uplinkPrograms  = []string{"uplink", "uplink_in"}
	portPrograms    = []string{"vm_in", "vm_guard", "svc_in", "ct_sweep"}
	overlayPrograms = []string{"overlay_in"}
)

// loaded says what loadPrograms found: the record to write once all is attached.
type loaded struct {
	meta  bpf.Meta
	fresh []string // programs that are not pinned yet
}

// loadPrograms opens the pinned programs of each object whose bytes and
// constants are those of last time, and loads the others.
func (h *Host) loadPrograms(specs *bpf.Specs) (loaded, error) {
	h.progs = map[string]*ebpf.Program{}
	var out loaded
	if err := h.Maps.Meta.Lookup(uint32(0), &out.meta); err != nil {
		return out, fmt.Errorf("read meta: %w", err)
	}
	if err := specs.Uplink.Variables["probe_source"].Set(bpf.BE32(SelfTestAddr)); err != nil {
		return out, fmt.Errorf("set probe_source: %w", err)
	}
	uplink, port, overlay := bpf.Objects()
	for _, object := range []struct {
		spec   *ebpf.CollectionSpec
		names  []string
		digest uint64
		have   *uint64
	}{
		{specs.Uplink, uplinkPrograms, digest(uplink, SelfTestAddr.AsSlice()), &out.meta.UplinkDigest},
		{specs.Port, portPrograms, digest(port), &out.meta.PortDigest},
		{specs.Overlay, overlayPrograms, digest(overlay), &out.meta.OverlayDigest},
	} {
		if *object.have == object.digest && h.loadPinned(object.names) {
			continue
		}
		if err := h.loadFresh(object.spec, object.names); err != nil {
			return out, err
		}
		*object.have = object.digest
		out.fresh = append(out.fresh, object.names...)
	}
	return out, h.fillMeta(&out.meta)
}

func digest(parts ...[]byte) uint64 {
	sum := sha256.New()
	for _, p := range parts {
		sum.Write(p)
	}
	return binary.BigEndian.Uint64(sum.Sum(nil))
}

// loadPinned opens all of an object's programs, or none.
func (h *Host) loadPinned(names []string) bool {
	for _, name := range names {
		p, err := ebpf.LoadPinnedProgram(h.pins.progPath(name), nil)
		if err != nil {
			for _, name := range names {
				if p := h.progs[name]; p != nil {
					p.Close()
					delete(h.progs, name)
				}
			}
			return false
		}
		h.progs[name] = p
	}
	return true
}

func (h *Host) loadFresh(spec *ebpf.CollectionSpec, names []string) error {
	shared := map[string]*ebpf.Map{}
	for name, m := range h.Maps.byName() {
		if spec.Maps[name] != nil {
			spec.Maps[name].MaxEntries = (*m).MaxEntries()
			shared[name] = *m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return fmt.Errorf("load programs: %w", refusal(err))
	}
	defer coll.Close()
	for _, name := range names {
		p := coll.DetachProgram(name)
		if p == nil {
			return fmt.Errorf("load programs: the object has no %s", name)
		}
		h.progs[name] = p
	}
	return nil
}

// refusal finds out why the kernel said no: a feature it lacks, else the
// verifier's log.
func refusal(err error) error {
	for _, t := range []ebpf.ProgramType{ebpf.XDP, ebpf.SchedCLS, ebpf.Syscall} {
		if missing := features.HaveProgramType(t); errors.Is(missing, ebpf.ErrNotSupported) {
			return fmt.Errorf("this kernel has no %s programs: %w", t, err)
		}
	}
	for _, need := range []struct {
		t  ebpf.ProgramType
		fn asm.BuiltinFunc
	}{
		{ebpf.XDP, asm.FnXdpAdjustMeta}, {ebpf.SchedCLS, asm.FnRedirectNeigh}, {ebpf.Syscall, asm.FnForEachMapElem},
		{ebpf.SchedCLS, asm.FnLoop}, {ebpf.SchedCLS, asm.FnRingbufReserve},
	} {
		if missing := features.HaveProgramHelper(need.t, need.fn); errors.Is(missing, ebpf.ErrNotSupported) {
			return fmt.Errorf("this kernel has no %s for %s programs: %w", need.fn, need.t, err)
		}
	}
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		return fmt.Errorf("%w\n%+v", err, refused)
	}
	return err
}

func (h *Host) fillMeta(meta *bpf.Meta) error {
	meta.Schema = bpf.Schema
	for name, id := range map[string]*uint32{
		"uplink": &meta.UplinkProg, "uplink_in": &meta.UplinkInProg,
		"vm_in": &meta.VmInProg, "vm_guard": &meta.VmGuardProg, "svc_in": &meta.SvcInProg,
		"overlay_in": &meta.OverlayInProg,
	} {
		info, err := h.progs[name].Info()
		if err != nil {
			return fmt.Errorf("look at program %s: %w", name, err)
		}
		if got, ok := info.ID(); ok {
			*id = uint32(got)
		}
	}
	return nil
}

// pinFresh pins the programs just loaded over the old ones, before they are
// attached: at any moment a link runs the program that is recorded or the one
// that is pinned. Names in a bpffs have no dots.
func (h *Host) pinFresh(l loaded) error {
	for _, name := range l.fresh {
		path := h.pins.progPath(name)
		if err := os.Remove(path + "-new"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
		if err := h.progs[name].Pin(path + "-new"); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
		if err := os.Rename(path+"-new", path); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return nil
}

// settle records the programs that are now in force. Until the record is written
// the next Open loads afresh.
func (h *Host) settle(l loaded) error {
	var now bpf.Meta
	if err := h.Maps.Meta.Lookup(uint32(0), &now); err != nil {
		return fmt.Errorf("read meta: %w", err)
	}
	l.meta.Revision = now.Revision
	if now == l.meta {
		return nil
	}
	if err := h.Maps.Meta.Put(uint32(0), &l.meta); err != nil {
		return fmt.Errorf("write meta: %w", err)
	}
	return nil
}
