// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"cairn/bpf"
	"cairn/dataplane/host"
)

// Kernel is the store of the pinned maps. Arrays that the programs read while
// they change are mapped into memory: only the words that differ are stored,
// each at once.
type Kernel struct {
	host   *host.Host
	plain  [mapEnd]*ebpf.Map
	mapped [mapEnd]*mapped
}

// NewKernel opens the maps of a host. The host stays the caller's.
func NewKernel(h *host.Host) (*Kernel, error) {
	m := &h.Maps
	k := &Kernel{host: h, plain: [mapEnd]*ebpf.Map{
		Prefixes: m.Prefixes, Vteps: m.Vteps, RuleIDs: m.RuleIds, PortBounds: m.PortBounds, PortBM: m.PortBm,
		CidrBM: m.CidrBm, Cidr: m.Cidr, PeerBM: m.PeerBm, Members: m.Members, AddrOK: m.AddrOk, Fdb: m.Fdb, Neigh: m.Neigh, Bum: m.Bum,
		PortCfg: m.PortCfg, AddrPort: m.AddrPort, AddrAllow: m.AddrAllow, AddrNet: m.AddrNet, Local: m.Local, VIPAddr4: m.Vipaddr4, VIP4: m.Vip4,
		VIPNodes: m.VipNodes, Quic: m.Quic, VIPAddr6: m.Vipaddr6, VIP6: m.Vip6,
	}}
	for at, array := range map[Map]*ebpf.Map{
		Nexthops: m.Nexthops, Backends: m.Backends, Slots: m.Slots, Svc: m.Svc, VIPBits: m.VipBits,
	} {
		memory, err := mapArray(array)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("map %s into memory: %w", at, err), k.Close())
		}
		k.mapped[at] = memory
	}
	return k, nil
}

// Capacity is how many entries a map has room for.
func (k *Kernel) Capacity(m Map) uint32 {
	if k.mapped[m] != nil {
		return k.mapped[m].entries
	}
	return k.plain[m].MaxEntries()
}

// Close ends the mappings; the maps are the host's.
func (k *Kernel) Close() error {
	var errs []error
	for _, m := range k.mapped {
		if m != nil {
			errs = append(errs, unix.Munmap(m.memory))
		}
	}
	return errors.Join(errs...)
}

// Put writes an entry.
func (k *Kernel) Put(e Entry, _ string) error {
	switch {
	case e.Map == Attach:
		return k.host.AttachPort(int(u32(e.Value)), u32(e.Key))
	case e.Map == Quota:
		return k.host.SetQuota(u32(e.Key), u32(e.Value))
	case e.Map == Shaper:
		limit := As[Limit](e.Value)
		return host.Shape(int(limit.Device), limit.Rate)
	case k.mapped[e.Map] != nil:
		return k.mapped[e.Map].store(u32(e.Key), e.Value)
	}
	return k.plain[e.Map].Put([]byte(e.Key), []byte(e.Value))
}

// Delete removes an entry; in an array it becomes zeros.
func (k *Kernel) Delete(e Entry) error {
	switch {
	case e.Map == Attach:
		return k.host.DetachPort(u32(e.Key))
	case e.Map == Quota:
		return nil // the tables go with the port
	case e.Map == Shaper:
		return host.Shape(int(As[Limit](e.Value).Device), 0)
	case k.mapped[e.Map] != nil:
		return k.mapped[e.Map].store(u32(e.Key), string(make([]byte, len(e.Value))))
	case e.Map == PortCfg:
		return k.plain[e.Map].Put([]byte(e.Key), make([]byte, len(e.Value)))
	}
	err := k.plain[e.Map].Delete([]byte(e.Key))
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// Get reads an entry back.
func (k *Kernel) Get(e Entry) (string, bool, error) {
	switch {
	case e.Map == Attach:
		var port uint32
		err := k.host.Maps.IfindexPort.Lookup([]byte(e.Value), &port)
		if errors.Is(err, ebpf.ErrKeyNotExist) || (err == nil && port != u32(e.Key)) {
			return "", false, nil
		}
		return e.Value, err == nil, err
	case e.Map == Quota:
		quota, err := k.host.Quota(u32(e.Key))
		return U32(quota), err == nil, err
	case e.Map == Shaper:
		limit := As[Limit](e.Value)
		rates, err := host.Shapers()
		limit.Rate = rates[int(limit.Device)]
		return Bytes(limit), limit.Rate != 0, err
	case k.mapped[e.Map] != nil:
		value, err := k.mapped[e.Map].load(u32(e.Key), len(e.Value))
		return value, err == nil && !(array(e.Map) && zero(value)), err
	}
	value, err := k.plain[e.Map].LookupBytes([]byte(e.Key))
	if err != nil || value == nil || (array(e.Map) && zero(string(value))) {
		return "", false, err
	}
	return string(value), true, nil
}

// Load reads all entries of a map. The ranges of slots are those that a record
// names which vip4 or vip6 leads to: slots themselves do not say where a range begins.
func (k *Kernel) Load(m Map, found func(Entry)) error {
	switch {
	case m == Attach:
		ports, err := k.host.Attached()
		for port, ifindex := range ports {
			found(Make(Attach, port, uint32(ifindex)))
		}
		return err
	case m == Quota:
		return k.loadQuotas(found)
	case m == Shaper:
		return k.loadShapers(found)
	case m == Slots:
		return k.loadSlots(found)
	case k.mapped[m] != nil:
		return k.mapped[m].each(func(index uint32, value string) { found(Entry{ID{m, Bytes(index)}, value}) })
	case m == PortCfg:
		return k.loadPorts(found)
	}
	var key, value []byte
	it := k.plain[m].Iterate()
	for it.Next(&key, &value) {
		found(Entry{ID{m, string(key)}, string(value)})
	}
	return it.Err()
}

// loadQuotas leaves out ports that have lost their tables: setting the quota
// makes them anew.
func (k *Kernel) loadQuotas(found func(Entry)) error {
	ports, err := k.host.Attached()
	for port := range ports {
		quota, err := k.host.Quota(port)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		found(Make(Quota, port, quota))
	}
	return err
}

func (k *Kernel) loadShapers(found func(Entry)) error {
	rates, err := host.Shapers()
	if err != nil || len(rates) == 0 {
		return err
	}
	ports, err := k.host.Attached()
	for port, ifindex := range ports {
		if rate := rates[ifindex]; rate != 0 {
			found(Make(Shaper, port, Limit{Device: uint32(ifindex), Rate: rate}))
		}
	}
	return err
}

func (k *Kernel) loadSlots(found func(Entry)) error {
	seen := map[uint32]bool{}
	var failed error
	named := func(vip Entry) {
		record, err := k.mapped[Svc].load(u32(vip.Value), int(unsafe.Sizeof(bpf.Svc{})))
		if err != nil || zero(record) {
			return // such an entry leads nowhere; the sweep takes it
		}
		svc := As[bpf.Svc](record)
		if seen[svc.SlotBase] {
			return
		}
		seen[svc.SlotBase] = true
		value, err := k.mapped[Slots].load(svc.SlotBase, 8*(int(svc.SlotMask)+1))
		if err != nil {
			failed = err
			return
		}
		found(Entry{ID{Slots, Bytes(svc.SlotBase)}, value})
	}
	err := errors.Join(k.Load(VIP4, named), k.Load(VIP6, named))
	return errors.Join(err, failed)
}

// loadPorts reads the array in batches: one call an entry would take a tenth of
// a second.
func (k *Kernel) loadPorts(found func(Entry)) error {
	var cursor ebpf.MapBatchCursor
	keys, values := make([]uint32, 1024), make([]bpf.PortCfg, 1024)
	for {
		n, err := k.plain[PortCfg].BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			if values[i] != (bpf.PortCfg{}) {
				found(Make(PortCfg, keys[i], values[i]))
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// mapped is an array map in memory.
type mapped struct {
	memory  []byte
	entries uint32
	stride  int
}

func mapArray(m *ebpf.Map) (*mapped, error) {
	stride := int(m.ValueSize()+7) &^ 7
	page := unix.Getpagesize()
	size := (stride*int(m.MaxEntries()) + page - 1) / page * page
	memory, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &mapped{memory: memory, entries: m.MaxEntries(), stride: stride}, nil
}

func (m *mapped) at(index uint32, size int) ([]byte, error) {
	from := int(index) * m.stride
	if index >= m.entries || from+size > int(m.entries)*m.stride {
		return nil, fmt.Errorf("index %d is outside of %d entries", index, m.entries)
	}
	return m.memory[from : from+size], nil
}

// store writes the 8-byte words that differ, each at once. All entries of these
// maps are whole words.
func (m *mapped) store(index uint32, value string) error {
	to, err := m.at(index, len(value))
	if err != nil {
		return err
	}
	if len(value)%8 != 0 {
		return fmt.Errorf("%d bytes are no whole words", len(value))
	}
	for i := 0; i < len(value); i += 8 {
		word := (*uint64)(unsafe.Pointer(&to[i]))
		want := binary.NativeEndian.Uint64([]byte(value[i : i+8]))
		if atomic.LoadUint64(word) != want {
			atomic.StoreUint64(word, want)
		}
	}
	return nil
}

func (m *mapped) load(index uint32, size int) (string, error) {
	from, err := m.at(index, size)
	if err != nil {
		return "", err
	}
	out := make([]byte, size)
	for i := 0; i+8 <= size; i += 8 {
		binary.NativeEndian.PutUint64(out[i:], atomic.LoadUint64((*uint64)(unsafe.Pointer(&from[i]))))
	}
	return string(out), nil
}

// each visits the entries that are not zeros.
func (m *mapped) each(yield func(index uint32, value string)) error {
	for index := range m.entries {
		at := int(index) * m.stride
		if !slices.ContainsFunc(m.memory[at:at+m.stride], func(b byte) bool { return b != 0 }) {
			continue
		}
		value, err := m.load(index, m.stride)
		if err != nil {
			return err
		}
		yield(index, value)
	}
	return nil
}
