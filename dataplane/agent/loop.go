// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/cloud/wire"
	"cairn/dataplane/maps"
	"cairn/dataplane/nlb"
	"cairn/dataplane/port"
	"cairn/dataplane/table"
	"cairn/dataplane/vnet"
)

// grace is how long a deleted number is kept from being given out again: no
// packet is in a program for as long.
const grace = 500 * time.Millisecond

// Facts are what this host knows without being told.
type Facts struct {
	Balancer nlb.Facts
	Ports    port.Facts
}

// Loop turns the desired tables into map contents, one round at a time. It is
// the only writer of its store.
type Loop struct {
	store   maps.Store
	have    *maps.Image
	caps    nlb.Capacities
	high    table.Mark // what the maps hold; a view before it is never programmed
	facts   Facts
	classes port.Classes

	started   bool
	raise     map[uint32]bool   // ports to judge again, until they were told
	unsettled map[string]string // unit → why it is not as wanted
	freed     []freed
}

// freed are steps that wait for the end of their grace period.
type freed struct {
	at    time.Time
	steps []maps.Step
}

// NewLoop over a store whose contents were programmed up to high.
func NewLoop(store maps.Store, high table.Mark, caps nlb.Capacities) (*Loop, error) {
	have, err := maps.Load(store)
	if err != nil {
		return nil, err
	}
	return &Loop{
		store: store, have: have, high: high, caps: caps,
		classes: port.Classes{}, raise: map[uint32]bool{}, unsettled: map[string]string{},
	}, nil
}

// Outcome of a round.
type Outcome struct {
	Mark   table.Mark
	Steps  []maps.Step
	Faults []table.Fault // by the items that changed in this round
	// Held is set when nothing was programmed because the view is older than
	// the maps.
	Held bool
}

// Round programs a view. Changed are the items that differ from the last one.
func (l *Loop) Round(view table.View, changed []wire.Key, facts Facts, now time.Time) Outcome {
	out := Outcome{Mark: view.Mark()}
	if out.Mark == (table.Mark{}) || out.Mark.Before(l.high) {
		out.Held = true
		l.started = false // whatever changed meanwhile is looked at then
		return out
	}
	d := newDirty(view, l.have)
	l.collect(d, changed, facts)
	units, faults := l.build(d, facts)
	steps, conflicts := maps.Plan(l.have, units)
	faults = append(faults, conflicts...)
	first := !l.started
	later, failed := maps.Apply(l.store, l.have, units, steps, faults)
	for _, f := range faults {
		if !slices.ContainsFunc(failed, func(g maps.Fault) bool { return g.Unit == f.Unit }) {
			failed = append(failed, f)
		}
	}
	out.Steps = steps
	if first {
		out.Steps = append(out.Steps, l.sweep(len(failed) > 0)...)
	}
	out.Faults = l.settle(d, failed)
	l.classes.Remember(view, l.have)
	if len(later) > 0 {
		l.freed = append(l.freed, freed{now.Add(grace), later})
	}
	l.started, l.high = true, out.Mark
	return out
}

func (l *Loop) collect(d *dirty, changed []wire.Key, facts Facts) {
	if !l.started || l.surroundingsChanged(facts) {
		d.all(facts)
	}
	members := !l.started
	for _, key := range changed {
		d.change(key)
		members = members || key.Kind == wire.KindMember || key.Kind == wire.KindClass
	}
	d.owners(changed)
	for id, device := range facts.Ports.Devices {
		if l.facts.Ports.Devices[id] != device {
			d.add(fmt.Sprintf("port/%d", id))
		}
	}
	for id := range l.facts.Ports.Devices {
		if _, ok := facts.Ports.Devices[id]; !ok {
			d.add(fmt.Sprintf("port/%d", id))
		}
	}
	for _, via := range facts.Balancer.Via {
		if mac, ok := facts.Balancer.MAC[via]; ok != l.knows(via.String()) || mac != l.facts.Balancer.MAC[via] {
			d.add(nlb.Nexthop(via))
		}
	}
	for unit := range l.unsettled {
		d.add(unit)
	}
	if members {
		for id := range port.Tightened(d.view, l.have, l.classes) {
			l.raise[id] = true
		}
	}
	for id := range l.raise {
		d.add(fmt.Sprintf("port/%d", id))
	}
	l.facts = facts
}

func (l *Loop) knows(via string) bool { return len(l.have.Of("nexthop/"+via)) > 0 }

// surroundingsChanged tells whether units of all kinds may look different now.
func (l *Loop) surroundingsChanged(facts Facts) bool {
	a, b := l.facts.Balancer, facts.Balancer
	return a.Self != b.Self || a.MTU != b.MTU || !reflect.DeepEqual(a.Via, b.Via) ||
		!slices.Equal(l.facts.Ports.Own, facts.Ports.Own) || l.facts.Ports.Underlay != facts.Ports.Underlay
}

// build asks for what each unit wants. A unit that cannot be built keeps what
// it has.
func (l *Loop) build(d *dirty, facts Facts) (units []maps.Unit, faults []maps.Fault) {
	balancer := nlb.NewBuilder(d.view, facts.Balancer, l.have, l.caps)
	ports := port.NewBuilder(d.view, facts.Ports, l.have, l.raise)
	networks := vnet.NewBuilder(d.view, facts.Balancer.Self)
	for _, name := range d.names() {
		unit, err := balancer.Unit, error(nil)
		switch kind, _, _ := strings.Cut(name, "/"); kind {
		case "port", "policy", "member", "announcement", port.Host:
			unit = ports.Unit
		case "network", "neighbour", "address":
			unit = networks.Unit
		}
		u, err := unit(name)
		if err != nil {
			faults = append(faults, maps.Fault{Unit: name, Reason: err.Error()})
			continue
		}
		units = append(units, u)
	}
	return units, faults
}

// sweep deletes what no item accounts for, once all items were looked at. With
// a unit that failed it waits: what looks like nobody's may be that unit's.
func (l *Loop) sweep(failed bool) []maps.Step {
	if failed {
		return nil
	}
	steps := maps.Sweep(l.have)
	_, faults := maps.Apply(l.store, l.have, nil, steps, nil)
	for _, f := range faults {
		slog.Warn("sweep", "unit", f.Unit, "error", f.Reason)
	}
	return steps
}

// settle remembers what is not as wanted, to try again, and names the items at
// whose change it went wrong.
func (l *Loop) settle(d *dirty, failed []maps.Fault) []table.Fault {
	var faults []table.Fault
	seen := map[wire.Key]bool{}
	reasons := map[string]string{}
	for _, f := range failed {
		reasons[f.Unit] = f.Reason
		for _, key := range d.units[f.Unit] {
			if !seen[key] {
				seen[key] = true
				faults = append(faults, table.Fault{Key: key, Reason: f.Unit + ": " + f.Reason})
			}
		}
	}
	for unit := range d.units {
		if reason, ok := reasons[unit]; ok {
			l.unsettled[unit] = reason
			continue
		}
		delete(l.unsettled, unit)
		if id, ok := strings.CutPrefix(unit, "port/"); ok {
			n, _ := strconv.ParseUint(id, 10, 32)
			delete(l.raise, uint32(n))
		}
	}
	return faults
}

// Release does the deletions whose grace period has passed, and says when the
// next one ends; zero for none.
func (l *Loop) Release(now time.Time) time.Time {
	for len(l.freed) > 0 && !l.freed[0].at.After(now) {
		again := maps.Release(l.store, l.have, l.freed[0].steps)
		l.freed = l.freed[1:]
		if len(again) > 0 {
			l.freed = append(l.freed, freed{now.Add(grace), again})
		}
	}
	if len(l.freed) == 0 {
		return time.Time{}
	}
	return l.freed[0].at
}

// Audit reads all maps again. What somebody else changed in them is put right
// by the next round, which looks at everything; audit tells what that was.
func (l *Loop) Audit() (differences []string, err error) {
	found, err := maps.Load(l.store)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	differences = l.have.Correct(found)
	if len(differences) > 0 {
		l.started = false
	}
	return differences, nil
}

// Anew has the next round look at everything, and delete what nobody wants.
func (l *Loop) Anew() { l.started = false }

// Unsettled lists the units that are not as wanted, and why.
func (l *Loop) Unsettled() map[string]string { return l.unsettled }

// Image is what the maps hold.
func (l *Loop) Image() *maps.Image { return l.have }
