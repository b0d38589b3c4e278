// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/cloud/wire"
	dsync "cairn/dataplane/sync"
	"cairn/dataplane/table"
)

func (a *Agent) facts(view table.View) Facts {
	self := a.self(view)
	var endpoints []netip.Addr
	for h := range table.All[wire.Host](view) {
		if h.ID != self {
			endpoints = append(endpoints, h.Endpoint)
		}
	}
	facts := a.senses.Facts(endpoints)
	facts.Balancer.Self, facts.Balancer.Sample = self, a.cfg.Sample
	if control, err := netip.ParseAddrPort(a.cfg.Control); err == nil && control.Addr().Is4() {
		facts.Ports.Own = append(slices.Clone(facts.Ports.Own), netip.PrefixFrom(control.Addr(), 32))
	}
	return facts
}

// self is this host's number, 0 while it is not known.
func (a *Agent) self(view table.View) uint32 {
	for h := range table.All[wire.Host](view) {
		if h.Name == a.cfg.Name {
			return h.ID
		}
	}
	return 0
}

func (a *Agent) forgetInstances(view table.View, changed []wire.Key) {
	for _, key := range changed {
		if _, there := view.Row(key); key.Kind == wire.KindInstance && !there {
			a.client.Forget(key)
		}
	}
}

func (a *Agent) inventory() dsync.Inventory {
	mtu, _ := a.senses.Uplink()
	drivers := a.worker.Drivers()
	slices.Sort(drivers)
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without one a reboot is not told from a restart
	inv := dsync.Inventory{
		Name: a.cfg.Name, BootID: strings.TrimSpace(string(boot)), Endpoint: a.cfg.Endpoint.String(), MTU: mtu,
		Roles: a.cfg.Roles, Drivers: drivers, CPUs: uint32(cpus()), Version: Version,
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		inv.Memory = uint64(info.Totalram) * uint64(info.Unit)
	}
	return inv
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it has no way to fail
	return ts.Nano()
}
