// SPDX-License-Identifier: Apache-2.0

//go:build program

package agent

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"cairn/cloud/wire"
	"cairn/dataplane/host"
	"cairn/dataplane/maps"
	"cairn/dataplane/nlb"
	"cairn/dataplane/table"
)

const benchNamespace = "cagt-hv"

// counting is a store that counts what is written to it.
type counting struct {
	maps.Store
	writes int
}

func (c *counting) Put(e maps.Entry, old string) error {
	c.writes++
	return c.Store.Put(e, old)
}

func (c *counting) Delete(e maps.Entry) error {
	c.writes++
	return c.Store.Delete(e)
}

// bench is a world over the maps of a kernel, in a namespace of its own with
// an uplink and the device of port 1.
type bench struct {
	*world
	t      *testing.T
	cfg    host.Config
	host   *host.Host
	kernel *maps.Kernel
	counts *counting
}

// onBench runs a test in the bench's namespace. Its thread ends with it.
func onBench(t *testing.T, sizes map[string]uint32, test func(*bench)) {
	t.Helper()
	pins := filepath.Join(t.TempDir(), "bpf")
	b := &bench{t: t, cfg: host.Config{
		Pins: pins, Uplink: "up0", Endpoint: netip.MustParseAddr("10.64.0.1"), Sizes: sizes,
	}}
	if err := host.EnsureBPFFS(pins); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(pins, 0); err != nil {
			t.Errorf("unmount the bpffs: %v", err)
		}
		if err := netns.DeleteNamed(benchNamespace); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("remove the namespace: %v", err)
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: it is in another namespace
		defer b.remove()
		b.wire()
		b.open()
		test(b)
	}()
	<-done
}

func (b *bench) wire() {
	_ = netns.DeleteNamed(benchNamespace) // of a test that was killed
	ns, err := netns.NewNamed(benchNamespace)
	if err != nil {
		b.t.Errorf("make the namespace: %v", err)
		runtime.Goexit()
	}
	ns.Close()
	for _, pair := range [][2]string{{"up0", "r0"}, {"cp1", "eth0"}} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = pair[0], 1600
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: pair[1], PeerMTU: 1600}); err != nil {
			b.fatal(err)
		}
		for _, name := range pair {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(l)
			}
			if err != nil {
				b.fatal(err)
			}
		}
	}
}

// fatal ends the goroutine that the test runs on.
func (b *bench) fatal(v ...any) {
	b.t.Helper()
	b.t.Error(v...)
	runtime.Goexit()
}

// Fatal and Fatalf are those of the world.
func (b *bench) Helper()        { b.t.Helper() }
func (b *bench) Fatal(v ...any) { b.t.Helper(); b.fatal(v...) }
func (b *bench) Fatalf(f string, v ...any) {
	b.t.Helper()
	b.t.Errorf(f, v...)
	runtime.Goexit()
}

// open brings the host up, or takes it over.
func (b *bench) open() {
	b.t.Helper()
	var err error
	if b.host, err = host.Open(b.cfg); err != nil {
		b.fatal(err)
	}
	if b.kernel, err = maps.NewKernel(b.host); err != nil {
		b.fatal(err)
	}
	b.counts = &counting{Store: b.kernel}
	if b.world == nil {
		b.world = newWorld(b)
	}
	device, err := netlink.LinkByName("cp1")
	if err != nil {
		b.fatal(err)
	}
	b.facts.Ports.Devices = map[uint32]uint32{1: uint32(device.Attrs().Index)}
	b.loop, err = NewLoop(b.counts, table.Mark{}, nlb.Capacities{
		Slots: b.kernel.Capacity(maps.Slots), Services: b.kernel.Capacity(maps.Svc), Nexthops: b.kernel.Capacity(maps.Nexthops),
	})
	if err != nil {
		b.fatal(err)
	}
}

// close lets go of everything, as the end of a process does.
func (b *bench) close() {
	b.t.Helper()
	if err := errors.Join(b.kernel.Close(), b.host.Close()); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) remove() {
	if b.host != nil {
		b.close()
	}
	if err := host.Remove(b.cfg); err != nil {
		b.t.Errorf("remove the host: %v", err)
	}
}

func (b *bench) compare() {
	b.t.Helper()
	found, err := maps.Load(b.kernel)
	if err != nil {
		b.fatal(err)
	}
	if diff := b.loop.Compare(b.table.View(), found, b.facts); !diff.Empty() {
		b.t.Errorf("desired and programmed differ: %+v", diff)
	}
	b.loop.Release(b.now.Add(time.Hour))
	if lines := b.loop.Image().Correct(found); len(lines) > 0 {
		b.t.Errorf("the image is not what the maps hold: %v", lines)
	}
}

// ids of what must stay across restarts.
func (b *bench) ids() map[string]any {
	b.t.Helper()
	ids := map[string]any{}
	meta, err := b.host.Maps.Meta.LookupBytes(uint32(0))
	if err != nil {
		b.fatal(err)
	}
	ids["meta"] = string(meta)
	for name, m := range map[string]*ebpf.Map{
		"vip4": b.host.Maps.Vip4, "slots": b.host.Maps.Slots, "port_cfg": b.host.Maps.PortCfg, "ct_est": b.host.Maps.CtEst,
	} {
		info, err := m.Info()
		if err != nil {
			b.fatal(err)
		}
		ids[name], _ = info.ID()
	}
	flows, err := b.host.Flows(1)
	if err != nil {
		b.fatal(err)
	}
	defer flows.Close()
	for name, m := range map[string]*ebpf.Map{"flows of port 1": flows.Confirmed, "new flows of port 1": flows.New} {
		info, err := m.Info()
		if err != nil {
			b.fatal(err)
		}
		ids[name], _ = info.ID()
	}
	return ids
}

func TestKernelHoldsWhatIsWantedAndARestartChangesNothing(t *testing.T) {
	onBench(t, map[string]uint32{"slots": 1024}, func(b *bench) {
		b.mustApply(small())
		b.compare()
		if ports, err := b.host.Attached(); err != nil || len(ports) != 1 || uint32(ports[1]) != b.facts.Ports.Devices[1] {
			t.Errorf("attached %v %v", ports, err)
		}
		before := b.ids()
		b.close()
		b.open()
		if out := b.round(); len(out.Faults) > 0 || len(lines(out.Steps)) > 0 || b.counts.writes > 0 {
			t.Errorf("a restart made %d writes: %q %v", b.counts.writes, lines(out.Steps), out.Faults)
		}
		for what, id := range b.ids() {
			if id != before[what] {
				t.Errorf("%s is another one after the restart", what)
			}
		}
		// The negative control: a change is written, and counted.
		b.mustApply([]wire.Item{aTable(1, 2, 256, [2]uint32{1, 2}, [2]uint32{2, 0})})
		if b.counts.writes != 2 {
			t.Errorf("%d writes for a change of slots and generation", b.counts.writes)
		}
		b.compare()
	})
}

func TestKernelKeepsTheOthersWhenSlotsAreFull(t *testing.T) {
	onBench(t, map[string]uint32{"slots": 1024}, func(b *bench) {
		b.mustApply(small())
		b.mustApply([]wire.Item{aBackend(12, 2, 2, 20), aTable(2, 1, 512, [2]uint32{12, 0}), aService(2)})
		out := b.apply([]wire.Item{aBackend(13, 3, 2, 21), aTable(3, 1, 512, [2]uint32{13, 0}), aService(3)})
		if len(out.Faults) == 0 {
			t.Error("a third table fits into 1024 slots beside 256 and 512")
		}
		if n := b.loop.Image().Len(maps.VIP4); n != 2 {
			t.Errorf("%d services in the maps, want 2", n)
		}
		b.mustApply([]wire.Item{aHost(3)})
	})
}

func TestKernelIsEmptyAfterAll(t *testing.T) {
	onBench(t, map[string]uint32{"slots": 1024}, func(b *bench) {
		b.mustApply(small())
		b.mustApply(nil, small()...)
		b.release()
		found, err := maps.Load(b.kernel)
		if err != nil {
			b.fatal(err)
		}
		for _, m := range maps.All() {
			if n := found.Len(m); n != 0 && m != maps.Prefixes && m != maps.Nexthops { // this host's own
				t.Errorf("%d entries left in %s", n, m)
			}
		}
		if _, err := b.host.Flows(1); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("the port's flow table is still there: %v", err)
		}
	})
}

func TestMarkLivesBesideTheMaps(t *testing.T) {
	onBench(t, map[string]uint32{"slots": 1024}, func(b *bench) {
		m, err := openMark(b.cfg.Pins)
		if err != nil {
			b.fatal(err)
		}
		if err := m.write(table.Mark{Epoch: 3, Revision: 99}); err != nil {
			t.Error(err)
		}
		m.close()
		if m, err = openMark(b.cfg.Pins); err != nil {
			b.fatal(err)
		}
		defer m.close()
		if at, err := m.read(); err != nil || at != (table.Mark{Epoch: 3, Revision: 99}) {
			t.Errorf("%v %v", at, err)
		}
	})
}
