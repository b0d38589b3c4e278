// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"

	"cairn/bpf"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Flows are a port's two tables of flows: bpf.CtKey → bpf.Ct. A flow is among
// the new ones until its initiator has spoken after an answer.
type Flows struct {
	Confirmed, New *ebpf.Map
}

// Flows opens a port's flow tables. The caller closes them.
func (h *Host) Flows(port uint32) (*Flows, error) {
	f := &Flows{}
	if err := h.Maps.CtEst.Lookup(port, &f.Confirmed); err != nil {
		return nil, fmt.Errorf("open the flow table of port %d: %w", port, err)
	}
	if err := h.Maps.CtNew.Lookup(port, &f.New); err != nil {
		return nil, errors.Join(fmt.Errorf("open the table of new flows of port %d: %w", port, err), f.Confirmed.Close())
	}
	return f, nil
}

// Close both.
func (f *Flows) Close() error { return errors.Join(f.Confirmed.Close(), f.New.Close()) }

// Lookup a flow in both.
func (f *Flows) Lookup(key bpf.CtKey) (bpf.Ct, bool) {
	var ct bpf.Ct
	if f.Confirmed.Lookup(key, &ct) == nil {
		return ct, true
	}
	return ct, f.New.Lookup(key, &ct) == nil
}

// Each visits the entries of both, aliases and expired ones included. What comes
// or goes meanwhile may be seen or not.
func (f *Flows) Each(visit func(bpf.CtKey, bpf.Ct)) error {
	return errors.Join(eachFlow(f.Confirmed, visit), eachFlow(f.New, visit))
}

// eachFlow reads a table in batches.
func eachFlow(flows *ebpf.Map, visit func(bpf.CtKey, bpf.Ct)) error {
	var cursor ebpf.MapBatchCursor
	keys, values := make([]bpf.CtKey, 1024), make([]bpf.Ct, 1024)
	for {
		n, err := flows.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			visit(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read flows: %w", err)
		}
	}
}

// ensureFlows gives the port its flow tables unless it has them. The kernel waits
// for all readers whenever a table enters its outer map, some 13 ms: the two
// wait at once.
func (h *Host) ensureFlows(port uint32) error {
	var put errgroup.Group
	for _, t := range []struct {
		name  string
		outer *ebpf.Map
		spec  *ebpf.MapSpec
	}{{"ct_new", h.Maps.CtNew, h.ctNew}, {"ct_est", h.Maps.CtEst, h.ctEst}} {
		put.Go(func() error {
			var id ebpf.MapID
			err := t.outer.Lookup(port, &id)
			if err == nil {
				return nil
			}
			if !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("read %s: %w", t.name, err)
			}
			if err := putTable(t.outer, port, t.spec); err != nil {
				return fmt.Errorf("write %s: %w", t.name, err)
			}
			return nil
		})
	}
	return put.Wait()
}

func putTable(outer *ebpf.Map, port uint32, spec *ebpf.MapSpec) error {
	flows, err := ebpf.NewMap(spec)
	if err != nil {
		return fmt.Errorf("make a flow table: %w", err)
	}
	defer flows.Close() // the outer map holds it
	return outer.Put(port, flows)
}

func (h *Host) forgetFlows(port uint32) error {
	var errs []error
	if _, err := h.sweepPort(bpf.Sweep{Port: port, All: 1}); err != nil {
		errs = append(errs, err) // those who follow its flows are not told of their end
	}
	for _, outer := range []*ebpf.Map{h.Maps.CtNew, h.Maps.CtEst} {
		if err := outer.Delete(port); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("forget its flows: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Quota is how many confirmed flows a port has room for.
func (h *Host) Quota(port uint32) (uint32, error) {
	var flows *ebpf.Map
	if err := h.Maps.CtEst.Lookup(port, &flows); err != nil {
		return 0, fmt.Errorf("open the flow table of port %d: %w", port, err)
	}
	defer flows.Close()
	return flows.MaxEntries(), nil
}

// SetQuota gives a port room for another number of confirmed flows. It keeps
// those that it has, as far as they fit; what the programs write in the moment
// of the change is copied after it. A port without tables gets them.
func (h *Host) SetQuota(port, quota uint32) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.setQuota(port, quota); err != nil {
		return fmt.Errorf("set the quota of port %d: %w", port, err)
	}
	return nil
}

func (h *Host) setQuota(port, quota uint32) error {
	if quota == 0 {
		return errors.New("a port without flows")
	}
	if err := h.ensureFlows(port); err != nil {
		return err
	}
	var old *ebpf.Map
	if err := h.Maps.CtEst.Lookup(port, &old); err != nil {
		return fmt.Errorf("open its flow table: %w", err)
	}
	defer old.Close()
	if old.MaxEntries() == quota {
		return nil
	}
	spec := h.ctEst.Copy()
	spec.MaxEntries = quota
	now, err := ebpf.NewMap(spec)
	if err != nil {
		return fmt.Errorf("make a flow table: %w", err)
	}
	defer now.Close()
	if err := copyFlows(old, now); err != nil {
		return err
	}
	// When this returns no program uses the old one any more.
	if err := h.Maps.CtEst.Put(port, now); err != nil {
		return fmt.Errorf("write ct_est: %w", err)
	}
	return copyFlows(old, now)
}

// copyFlows leaves alone what has gone on in the new table, and stops when
// there is no room.
func copyFlows(from, to *ebpf.Map) error {
	var first error
	err := eachFlow(from, func(key bpf.CtKey, f bpf.Ct) {
		var there bpf.Ct
		if to.Lookup(key, &there) == nil && there.Seen >= f.Seen {
			return
		}
		if err := to.Put(key, &f); err != nil && first == nil {
			first = err
		}
	})
	if errors.Is(first, unix.E2BIG) {
		first = nil
	}
	return errors.Join(err, first)
}

// Flow is one entry on its way to another host, where clocks tell another time:
// Seen and Created of Ct are how long ago that was, in nanoseconds.
type Flow struct {
	Key       bpf.CtKey
	Ct        bpf.Ct
	Confirmed bool
}

// Export the flows of a port.
func (h *Host) Export(port uint32) ([]Flow, error) {
	flows, err := h.Flows(port)
	if err != nil {
		return nil, fmt.Errorf("export flows: %w", err)
	}
	defer flows.Close()
	clock, err := monotonic()
	if err != nil {
		return nil, fmt.Errorf("export flows: %w", err)
	}
	now := uint64(clock)
	var out []Flow
	take := func(confirmed bool) func(bpf.CtKey, bpf.Ct) {
		return func(key bpf.CtKey, f bpf.Ct) {
			f.Seen, f.Created = now-f.Seen, now-f.Created
			out = append(out, Flow{key, f, confirmed})
		}
	}
	if err := errors.Join(eachFlow(flows.Confirmed, take(true)), eachFlow(flows.New, take(false))); err != nil {
		return nil, fmt.Errorf("export flows of port %d: %w", port, err)
	}
	return out, nil
}

// Import flows into an attached port. They are judged by the port's policy at
// their next packet. Flows that it knows by itself it knows better.
func (h *Host) Import(port uint32, all []Flow) error {
	flows, err := h.Flows(port)
	if err != nil {
		return fmt.Errorf("import flows: %w", err)
	}
	defer flows.Close()
	clock, err := monotonic()
	if err != nil {
		return fmt.Errorf("import flows: %w", err)
	}
	now := uint64(clock)
	for _, f := range all {
		to := flows.New
		if f.Confirmed {
			to = flows.Confirmed
		}
		f.Ct.Seen, f.Ct.Created, f.Ct.Generation = now-f.Ct.Seen, now-f.Ct.Created, 0
		f.Ct.Counted = 0 // here it is counted by its next packet
		if err := to.Update(f.Key, &f.Ct, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("import flows of port %d: %w", port, err)
		}
	}
	return nil
}

// Sweep deletes the expired flows of all attached ports. The programs take
// expired flows for gone anyway; sweeping keeps them from filling the quota.
func (h *Host) Sweep() (live, expired uint64, err error) {
	ports, err := h.Attached()
	if err != nil {
		return 0, 0, fmt.Errorf("sweep flows: %w", err)
	}
	for port := range ports {
		s, err := h.sweepPort(bpf.Sweep{Port: port})
		if err != nil {
			return live, expired, err
		}
		live += uint64(s.Live)
		expired += uint64(s.Expired)
	}
	return live, expired, nil
}

// sweepPort makes one pass over a port's flows; without a flow table it does
// nothing.
func (h *Host) sweepPort(s bpf.Sweep) (bpf.Sweep, error) {
	code, err := h.progs["ct_sweep"].Run(&ebpf.RunOptions{Context: &s, ContextOut: &s})
	if err != nil {
		return s, fmt.Errorf("sweep flows of port %d: %w", s.Port, err)
	}
	if code != 0 {
		s.Live, s.Expired = 0, 0
	}
	return s, nil
}
