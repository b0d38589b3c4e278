// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"bytes"
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// Entry is an item as agents get it. Nobody changes one.
type Entry struct {
	Key        wire.Key
	Owner      Owner
	Generation uint64
	Body       []byte
	Sum        uint64 // of key and body
	Hosts      []uint32
	All        bool
	Revision   uint64 // at which it became what it is, or came to one of its hosts
}

// Holds reports whether a host holds the item.
func (e *Entry) Holds(host uint32) bool {
	if e == nil {
		return false
	}
	_, found := slices.BinarySearch(e.Hosts, host)
	return e.All || found
}

func (e *Entry) sameBody(o *Entry) bool {
	return e.Sum == o.Sum && e.Generation == o.Generation && (e.Body == nil || o.Body == nil || bytes.Equal(e.Body, o.Body))
}

func (e *Entry) samePlace(o *Entry) bool { return e.All == o.All && slices.Equal(e.Hosts, o.Hosts) }

// Step is the difference that a batch makes to one item. Before is nil for a
// new one, After for one that is gone.
type Step struct {
	Before, After *Entry
	Operations    []cloud.ID // that led here; the first one answers for a removal
}

// Key of the item.
func (s Step) Key() wire.Key {
	if s.After != nil {
		return s.After.Key
	}
	return s.Before.Key
}

// Touches reports whether a host has to do anything: it gets the item, gets it
// anew, or has to let it go.
func (s Step) Touches(host uint32) bool {
	held, holds := s.Before.Holds(host), s.After.Holds(host)
	return held != holds || (holds && !s.Before.sameBody(s.After))
}

// Touched are the hosts that the step touches, ascending. all are those that
// an item for everybody goes to.
func (s Step) Touched(all []uint32) []uint32 {
	var candidates []uint32
	for _, e := range []*Entry{s.Before, s.After} {
		switch {
		case e == nil:
		case e.All:
			candidates = append(candidates, all...)
		default:
			candidates = append(candidates, e.Hosts...)
		}
	}
	return slices.DeleteFunc(sorted(candidates), func(h uint32) bool { return !s.Touches(h) })
}

// Operation answers for the step's tombstones; it may be empty.
func (s Step) Operation() cloud.ID {
	if len(s.Operations) == 0 {
		return ""
	}
	return s.Operations[0]
}

// Fault is an owner that could not be compiled: its items from before stay.
type Fault struct {
	Owner      Owner
	Operations []cloud.ID
	Err        error
}

// Result is what a batch changes. Nothing in it repeats what agents hold.
type Result struct {
	Revision uint64
	Steps    []Step // in order of kind, then key
	Everyone []uint32
	Faults   []Fault
}

// State is what was compiled last. It is not safe for concurrent use.
type State struct {
	zone    string
	entries map[wire.Key]*Entry
	owned   map[Owner][]wire.Key
}

// NewState begins with what agents were given in an earlier life, possibly
// nothing. Those entries have no bodies until the first, full, batch.
func NewState(zone string, given iter.Seq[*Entry]) *State {
	s := &State{zone: zone, entries: map[wire.Key]*Entry{}, owned: map[Owner][]wire.Key{}}
	for e := range given {
		s.entries[e.Key] = e
		s.owned[e.Owner] = append(s.owned[e.Owner], e.Key)
	}
	return s
}

// Entries are all items.
func (s *State) Entries() iter.Seq[*Entry] { return maps.Values(s.entries) }

// Apply compiles what a batch concerns.
func (s *State) Apply(b replica.Batch) Result {
	r := Result{Revision: uint64(b.After.Revision)}
	for h := range b.After.Hosts() {
		if h.Body.Joined {
			r.Everyone = append(r.Everyone, h.Body.Number)
		}
	}
	slices.Sort(r.Everyone)
	list, why := s.concerned(b)
	compiler := New(b.After, s.zone)
	made := map[wire.Key]*Entry{}
	var done []Owner
	for _, o := range list {
		entries, err := s.make(compiler, o, r.Revision)
		if err != nil {
			r.Faults = append(r.Faults, Fault{o, why[o], err})
			continue
		}
		done = append(done, o)
		for _, e := range entries {
			made[e.Key] = e
		}
	}
	r.Steps = append(s.remove(done, made, why), s.put(made, why)...)
	slices.SortFunc(r.Steps, func(a, b Step) int {
		ka, kb := a.Key(), b.Key()
		return cmp.Or(cmp.Compare(ka.Kind, kb.Kind), strings.Compare(ka.ID, kb.ID))
	})
	return r
}

// concerned are the owners to compile, each with the operations behind it: of
// those, the last one that may remove something comes first, for what it removes
// is counted among its intents.
func (s *State) concerned(b replica.Batch) ([]Owner, map[Owner][]cloud.ID) {
	var list owners
	why := map[Owner][]cloud.ID{}
	for _, c := range b.Changes {
		for _, o := range Affected(c, b.Before, b.After) {
			list.add(o)
			switch {
			case c.Operation == "" || slices.Contains(why[o], c.Operation):
			case c.Deleted || len(b.Intents[c.Operation]) > 0:
				why[o] = slices.Insert(why[o], 0, c.Operation)
			default:
				why[o] = append(why[o], c.Operation)
			}
		}
	}
	if b.Full {
		for _, o := range All(b.After) {
			list.add(o)
		}
		last := lastOperation(b.Changes)
		for o := range s.owned {
			list.add(o)
			if len(why[o]) == 0 && last != "" {
				why[o] = []cloud.ID{last}
			}
		}
	}
	bad := map[Owner]bool{}
	for _, ref := range b.Bad {
		for _, kind := range ownersOf[ref.Kind] {
			bad[owner(kind, ref.ID)] = true
		}
	}
	return slices.DeleteFunc(list.list, func(o Owner) bool { return bad[o] }), why
}

// lastOperation of changes, if there is one that deletes: what it takes along
// can no longer be found by an index when the rows before it are not known.
func lastOperation(changes []store.Change) (last cloud.ID) {
	deleting := false
	for _, c := range changes {
		if c.Operation != "" && (c.Deleted || !deleting) {
			last, deleting = c.Operation, deleting || c.Deleted
		}
	}
	return last
}

var ownersOf = map[store.Kind][]OwnerKind{
	store.KindHypervisor:   {OwnsHost},
	store.KindInstance:     {OwnsInstance, OwnsMember, OwnsNeighbour},
	store.KindService:      {OwnsService},
	store.KindLoadBalancer: {OwnsVIP},

	store.KindPrivateNetwork: {OwnsNetwork},
	store.KindElasticIP:      {OwnsElastic},
}

// make encodes the items of an owner: all of them or, with an error, none.
func (s *State) make(compiler *Compiler, o Owner, revision uint64) ([]*Entry, error) {
	items, err := compiler.Items(o)
	if err != nil {
		return nil, err
	}
	entries := make([]*Entry, len(items))
	for i, p := range items {
		body, err := wire.Encode(p.Item)
		if err == nil {
			_, err = wire.Decode(p.Item.Key().Kind, body) // what no agent could hold is not sent to any
		}
		if err != nil {
			return nil, err
		}
		var sum wire.Digest
		sum.Add(p.Item.Key(), body)
		entries[i] = &Entry{
			Key: p.Item.Key(), Owner: o, Generation: p.Generation, Body: body, Sum: sum.Sum,
			Hosts: p.Hosts, All: p.All, Revision: revision,
		}
	}
	return entries, nil
}

func (s *State) remove(done []Owner, made map[wire.Key]*Entry, why map[Owner][]cloud.ID) []Step {
	var steps []Step
	for _, o := range done {
		for _, key := range s.owned[o] {
			e, ok := s.entries[key]
			if _, again := made[key]; again || !ok || e.Owner != o {
				continue // made anew, or another owner's by now
			}
			delete(s.entries, key)
			steps = append(steps, Step{Before: e, Operations: why[o]})
		}
		delete(s.owned, o)
	}
	return steps
}

func (s *State) put(made map[wire.Key]*Entry, why map[Owner][]cloud.ID) []Step {
	var steps []Step
	for key, e := range made {
		s.owned[e.Owner] = append(s.owned[e.Owner], key)
		old := s.entries[key]
		switch {
		case old == nil, !old.sameBody(e), !old.samePlace(e):
			steps = append(steps, Step{Before: old, After: e, Operations: why[e.Owner]})
			s.entries[key] = e
		case old.Body == nil || old.Owner != e.Owner:
			kept := *e
			kept.Revision = old.Revision
			s.entries[key] = &kept
		}
	}
	return steps
}
