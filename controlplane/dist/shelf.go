// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"slices"
	"sync"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/compile"
	"cairn/controlplane/store"
)

// grave is an item that hosts had to let go.
type grave struct {
	Key       wire.Key
	Revision  uint64
	Operation cloud.ID
	Hosts     []uint32
	All       bool
}

func (g grave) held(host uint32) bool {
	_, found := slices.BinarySearch(g.Hosts, host)
	return g.All || found
}

// maxGraves bounds how far back removals are remembered. An agent that was
// away for longer gets a snapshot.
const maxGraves = 1 << 16

// digests of all kinds; index them by kind.
type digests [wire.KindLast + 1]wire.Digest

func (d *digests) add(e *compile.Entry) {
	d[e.Key.Kind].Count++
	d[e.Key.Kind].Sum += e.Sum
}

func (d *digests) remove(e *compile.Entry) {
	d[e.Key.Kind].Count--
	d[e.Key.Kind].Sum -= e.Sum
}

// shelf is what is there to be delivered: the items of every host at one
// revision, what was removed since another, and the sessions that want to hear
// of it.
type shelf struct {
	mu       sync.RWMutex
	epoch    uint64
	revision uint64
	floor    uint64 // removals after it are known
	items    map[wire.Key]*compile.Entry
	shared   holdings            // items of every host
	hosts    map[uint32]holdings // items of one and another
	graves   []grave             // by revision
	intents  map[cloud.ID][]store.Intent
	sessions map[uint32]*session
}

// holdings are items with their digests.
type holdings struct {
	items   map[wire.Key]*compile.Entry
	digests *digests
}

func newHoldings() holdings {
	return holdings{items: map[wire.Key]*compile.Entry{}, digests: new(digests)}
}

func (h holdings) put(e *compile.Entry) {
	h.drop(e.Key)
	h.items[e.Key] = e
	h.digests.add(e)
}

func (h holdings) drop(key wire.Key) {
	if old, ok := h.items[key]; ok {
		delete(h.items, key)
		h.digests.remove(old)
	}
}

func newShelf() *shelf {
	return &shelf{
		items: map[wire.Key]*compile.Entry{}, shared: newHoldings(), hosts: map[uint32]holdings{},
		intents: map[cloud.ID][]store.Intent{}, sessions: map[uint32]*session{},
	}
}

// put and drop keep the three views of an item in step.
func (s *shelf) put(e *compile.Entry) {
	s.drop(e.Key)
	s.items[e.Key] = e
	if e.All {
		s.shared.put(e)
	}
	for _, n := range e.Hosts {
		s.of(n).put(e)
	}
}

func (s *shelf) drop(key wire.Key) {
	old, ok := s.items[key]
	if !ok {
		return
	}
	delete(s.items, key)
	if old.All {
		s.shared.drop(key)
	}
	for _, n := range old.Hosts {
		s.of(n).drop(key)
	}
}

func (s *shelf) of(host uint32) holdings {
	h, ok := s.hosts[host]
	if !ok {
		h = newHoldings()
		s.hosts[host] = h
	}
	return h
}

// graveOf says what a step removes, and from whom.
func graveOf(step compile.Step, revision uint64) (grave, bool) {
	if step.Before == nil || (step.Before.All && step.After != nil && step.After.All) {
		return grave{}, false
	}
	g := grave{Key: step.Key(), Revision: revision, Operation: step.Operation(), All: step.Before.All}
	for _, n := range step.Before.Hosts {
		if !step.After.Holds(n) {
			g.Hosts = append(g.Hosts, n)
		}
	}
	return g, g.All || len(g.Hosts) > 0
}

// publish takes in what a batch has changed and tells the sessions concerned.
func (s *shelf) publish(r compile.Result, intents map[cloud.ID][]store.Intent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision = r.Revision
	for op, list := range intents {
		if len(list) > 0 {
			s.intents[op] = list
		}
	}
	for _, step := range r.Steps {
		if step.After != nil {
			s.put(step.After)
		} else {
			s.drop(step.Key())
		}
		if g, ok := graveOf(step, r.Revision); ok {
			s.graves = append(s.graves, g)
		}
		s.tell(step)
	}
	if over := len(s.graves) - maxGraves; over > 0 {
		s.forget(s.graves[over-1].Revision)
	}
}

func (s *shelf) tell(step compile.Step) {
	if (step.Before != nil && step.Before.All) || (step.After != nil && step.After.All) {
		for n, session := range s.sessions {
			if step.Touches(n) {
				session.mark(step.Key(), step.Operation())
			}
		}
		return
	}
	for _, n := range step.Touched(nil) {
		if session := s.sessions[n]; session != nil {
			session.mark(step.Key(), step.Operation())
		}
	}
}

// compact forgets removals up to a revision.
func (s *shelf) compact(upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(min(upTo, s.revision))
}

func (s *shelf) forget(upTo uint64) {
	if upTo <= s.floor {
		return
	}
	s.floor = upTo
	s.graves = slices.Clone(slices.DeleteFunc(s.graves, func(g grave) bool { return g.Revision <= upTo }))
	named := map[cloud.ID]bool{}
	for _, g := range s.graves {
		named[g.Operation] = true
	}
	for op := range s.intents {
		if !named[op] {
			delete(s.intents, op)
		}
	}
}

// expected is what a host's digests should be.
func (s *shelf) expected(host uint32) digests {
	sum := *s.shared.digests
	if h, ok := s.hosts[host]; ok {
		for kind, d := range h.digests {
			sum[kind].Count += d.Count
			sum[kind].Sum += d.Sum
		}
	}
	return sum
}

// holds finds an item that a host should hold.
func (s *shelf) holds(host uint32, key wire.Key) (*compile.Entry, bool) {
	e, ok := s.items[key]
	return e, ok && e.Holds(host)
}

// all items of a host.
func (s *shelf) all(host uint32) []*compile.Entry {
	var items []*compile.Entry
	for _, e := range s.shared.items {
		items = append(items, e)
	}
	if h, ok := s.hosts[host]; ok {
		for _, e := range h.items {
			items = append(items, e)
		}
	}
	return items
}

// since lists what a host that holds everything up to a revision may not have
// heard of, with the operation that answers for a removal.
func (s *shelf) since(host uint32, revision uint64) map[wire.Key]cloud.ID {
	dirty := map[wire.Key]cloud.ID{}
	for i := len(s.graves) - 1; i >= 0 && s.graves[i].Revision > revision; i-- {
		g := s.graves[i]
		if _, later := dirty[g.Key]; !later && g.held(host) {
			dirty[g.Key] = g.Operation
		}
	}
	for _, h := range []holdings{s.shared, s.hosts[host]} {
		for key, e := range h.items {
			if e.Revision > revision {
				dirty[key] = ""
			}
		}
	}
	return dirty
}
