// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"path/filepath"
	"reflect"
	"slices"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/announce"
	"cairn/dataplane/maps"
	"cairn/dataplane/nlb"
	"cairn/dataplane/table"
)

// announce hands over what this host can answer for: services that are in its
// maps, ports that are attached and have a policy. Nothing is written while the
// set stays the same.
func (a *Agent) announce(view table.View, facts Facts) {
	set := wanted(view, a.loop.Image(), facts.Balancer.Self, slices.Contains(a.cfg.Roles, RoleBalancer))
	if a.announced != nil && reflect.DeepEqual(a.announced.Wanted, set.Wanted) {
		return
	}
	if err := announce.Write(filepath.Join(a.cfg.State, Announcements), set); err != nil {
		a.log.Error("announcements not handed over", "error", err)
		return
	}
	a.announced = &set
}

// wanted is the set of announcements of a view as far as it is programmed.
func wanted(view table.View, have *maps.Image, self uint32, balancer bool) announce.Set {
	d := announce.Desired{Revision: view.Mark().Revision, Host: self, Slots: map[uint32]wire.Slots{}}
	for v := range table.All[wire.Announcement](view) {
		if balancer || !v.Service {
			d.Announcements = append(d.Announcements, v)
		}
	}
	programmed := nlb.Services(have)
	for s := range table.All[wire.Service](view) {
		if programmed[s.ID] {
			d.Services = append(d.Services, s)
		}
	}
	for s := range table.All[wire.Slots](view) {
		d.Slots[s.Service] = s
	}
	for p := range table.All[wire.Port](view) {
		cfg, ok := have.Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(p.ID)})
		_, attached := have.Get(maps.ID{Map: maps.Attach, Key: maps.Bytes(p.ID)})
		if ok && attached && maps.As[bpf.PortCfg](cfg).PolicyIn != 0 {
			d.Ports = append(d.Ports, p)
		}
	}
	return announce.Collect(d)
}
