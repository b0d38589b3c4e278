// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"cairn/cloud/wire"
	"cairn/dataplane/check"
	"cairn/dataplane/dhcp"
	"cairn/dataplane/host"
	"cairn/dataplane/instance"
	"cairn/dataplane/maps"
	"cairn/dataplane/nlb"
	dsync "cairn/dataplane/sync"
	"cairn/dataplane/table"
	"cairn/dataplane/trace"
)

func (a *Agent) open() (err error) {
	cfg := a.cfg
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return err
	}
	if a.lock, err = lock(cfg.State); err != nil {
		return err
	}
	if a.restarts, err = countStart(cfg.State); err != nil {
		return err
	}
	if err := host.EnsureBPFFS(filepath.Dir(cfg.Pins)); err != nil {
		return err
	}
	a.host, err = host.Open(host.Config{
		Pins: cfg.Pins, Uplink: cfg.Uplink, Endpoint: cfg.Endpoint, Door: cfg.Door, Sizes: cfg.Sizes,
	})
	if err != nil {
		return err
	}
	a.tracer = trace.New(a.host)
	if a.store, err = maps.NewKernel(a.host); err != nil {
		return err
	}
	if a.mark, err = openMark(cfg.Pins); err != nil {
		return err
	}
	high, err := a.mark.read()
	if err != nil {
		return err
	}
	if a.senses, err = NewSenses(cfg.Uplink, a.log); err != nil {
		return err
	}
	if err := a.checkMTU(); err != nil {
		return err
	}
	a.loop, err = NewLoop(a.store, high, nlb.Capacities{
		Slots: a.store.Capacity(maps.Slots), Services: a.store.Capacity(maps.Svc), Nexthops: a.store.Capacity(maps.Nexthops),
	})
	if err != nil {
		return err
	}
	if err := a.openTable(high); err != nil {
		return err
	}
	return a.openParts()
}

// openTable fills the desired tables from the cache. Without one, the maps say
// by how much a first snapshot may differ from them.
func (a *Agent) openTable(high table.Mark) (err error) {
	if a.table, err = table.New(high); err != nil {
		return err
	}
	a.cache = dsync.NewCache(a.cfg.State)
	at, ups, err := a.cache.Load()
	switch {
	case err == nil:
		_, err = a.table.Restore(at, ups)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	default:
		a.log.Error("the cache is of no use, waiting for the control plane", "error", err)
		err = nil
	}
	if err != nil {
		return err
	}
	have, machines := a.loop.Image(), 0
	for _, d := range a.cfg.Drivers {
		found, err := d.List()
		if err != nil {
			return err
		}
		machines += len(found)
	}
	a.table.Expect(map[wire.Kind]int{
		wire.KindInstance: machines,
		wire.KindHost:     have.Len(maps.Vteps), wire.KindMember: have.Len(maps.Members), wire.KindPort: have.Len(maps.PortCfg),
		wire.KindBackend: have.Len(maps.Backends), wire.KindSlots: have.Len(maps.Slots), wire.KindService: have.Len(maps.VIP4) + have.Len(maps.VIP6),
	})
	a.watcher, err = a.table.Watch()
	return err
}

func (a *Agent) openParts() error {
	a.openTraffic()
	cfg := dsync.Config{
		Control: a.cfg.Control, Folder: a.cfg.State, Token: a.cfg.Token, Inventory: a.inventory, Table: a.table, Log: a.log,
		UsageEvery: a.cfg.Usage,
	}
	if a.traffic != nil {
		cfg.Traffic = a.traffic
	}
	a.client = dsync.New(cfg)
	a.worker = instance.NewWorker(a.cfg.Drivers, func(r instance.Report) {
		a.client.Observe(dsync.Report{
			Key: wire.Instance{ID: r.ID}.Key(), Generation: r.Generation, State: r.State, Reason: r.Reason,
		})
	}, a.log)
	answers, err := dhcp.Open(a.host.Maps.Punts, a.cfg.DNS, a.log)
	if err != nil {
		a.log.Error("guests get no answer to DHCP", "error", err) // all else goes on
	} else {
		a.answers = answers
	}
	a.repairOverlay()
	if a.cfg.Door == "" {
		return nil
	}
	a.openMetadata()
	door, err := check.OpenDoor(a.cfg.Door)
	if err != nil {
		return err
	}
	a.checks = check.New(door.Dial, func(key wire.Key, generation uint64, verdict, reason string) {
		a.log.Info("check", "key", key.ID, "verdict", verdict, "reason", reason)
		a.client.Observe(dsync.Report{Key: key, Generation: generation, State: verdict, Reason: reason})
	}, a.client.Forget)
	return nil
}

func (a *Agent) close() {
	if a.checks != nil {
		a.checks.Close()
	}
	if a.answers != nil {
		_ = a.answers.Close() // nothing is kept in it
	}
	if a.metadata != nil {
		_ = a.metadata.Close() // the same
	}
	a.closeTraffic()
	if a.table != nil {
		a.table.Close()
	}
	if a.mark != nil {
		a.mark.close()
	}
	if a.store != nil {
		_ = a.store.Close() // the mappings end with the process
	}
	if a.tracer != nil {
		a.tracer.Close()
	}
	if a.host != nil {
		_ = a.host.Close() // the pins stay, which is the point
	}
}
