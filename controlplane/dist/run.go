// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/compile"
	"cairn/controlplane/converge"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// pause before the store is asked again after an error.
const pause = 250 * time.Millisecond

// Run follows the zone and delivers until ctx ends. It goes on through errors
// of the store; what it returns is that it could not start.
func (s *Server) Run(ctx context.Context) error {
	defer s.replica.Close()
	defer s.follower.Close()
	book, told, err := openLedger(s.config.Ledger)
	if err != nil {
		return err
	}
	defer book.close()
	zone, err := s.config.Store.Zone(ctx)
	if err != nil {
		return fmt.Errorf("deliver: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.tracker.Run(ctx) })
	group.Go(func() error { return s.watchLeases(ctx) })
	group.Go(func() error {
		state, err := s.load(ctx, zone, book, told)
		for err != nil {
			s.config.Log.Error("load the zone", "error", err)
			if !sleep(ctx, pause) {
				return nil
			}
			state, err = s.load(ctx, zone, book, told)
		}
		close(s.ready)
		s.follow(ctx, zone, book, state)
		return nil
	})
	return group.Wait()
}

// sleep pauses; false if ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// load fills the shelf with the zone as it is, and with what an earlier life
// told agents that is no longer so.
func (s *Server) load(ctx context.Context, zone store.Zone, book *ledger, told past) (*compile.State, error) {
	batch, err := s.follower.Load(ctx, store.Revision(told.revision))
	if err != nil {
		return nil, err
	}
	if err := s.config.Store.Durable(batch.After.Revision); err != nil {
		return nil, err
	}
	revision := uint64(batch.After.Revision)
	known := told.zone == zone.ID && told.epoch == zone.Epoch && told.revision <= revision
	if !known {
		told = past{zone: zone.ID, epoch: zone.Epoch, floor: revision}
	}
	state := compile.NewState(zone.Name, func(yield func(*compile.Entry) bool) {
		for _, e := range told.items {
			if !yield(e) {
				return
			}
		}
	})
	result := state.Apply(batch)
	s.fill(zone, told, state, result, batch.Intents)
	if err := s.renewLedger(zone, book, state); err != nil {
		s.config.Log.Error("what is told to agents will be forgotten", "error", err)
	}
	s.meet(batch.After)
	if err := s.rebuild(ctx, batch, result, state, known); err != nil {
		return nil, err
	}
	for _, f := range result.Faults {
		s.config.Log.Error("set aside", "error", f.Err)
	}
	return state, nil
}

func (s *Server) fill(zone store.Zone, told past, state *compile.State, result compile.Result, intents map[cloud.ID][]store.Intent) {
	s.shelf.mu.Lock()
	s.shelf.epoch, s.shelf.floor = zone.Epoch, told.floor
	s.shelf.graves = told.graves
	maps.Copy(s.shelf.intents, told.intents)
	for e := range state.Entries() {
		s.shelf.put(e)
	}
	s.shelf.mu.Unlock()
	s.leavings.note(result, s.config.Now())
	s.shelf.publish(result, intents)
}

// renewLedger writes down the whole of what is told.
func (s *Server) renewLedger(zone store.Zone, book *ledger, state *compile.State) error {
	s.shelf.mu.RLock()
	defer s.shelf.mu.RUnlock()
	return book.renew(past{
		zone: zone.ID, epoch: zone.Epoch, floor: s.shelf.floor, revision: s.shelf.revision,
		graves: s.shelf.graves, intents: s.shelf.intents,
	}, state.Entries())
}

// follow delivers one batch after the other.
func (s *Server) follow(ctx context.Context, zone store.Zone, book *ledger, state *compile.State) {
	for {
		batch, err := s.follower.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.config.Log.Error("follow the zone", "error", err)
			if !sleep(ctx, pause) {
				return
			}
			continue
		}
		result := state.Apply(batch)
		for _, f := range result.Faults {
			s.config.Log.Error("set aside", "error", f.Err)
		}
		if batch.Full || slices.ContainsFunc(batch.Changes, func(c store.Change) bool { return c.Kind == store.KindHypervisor }) {
			s.meet(batch.After)
		}
		if err := s.expect(ctx, batch, result, state); err != nil { // before an agent can acknowledge it
			s.config.Log.Error("operations may wait in vain", "error", err)
		}
		if err := book.note(result, intentsOf(result, batch)); err != nil {
			s.config.Log.Error("what is told to agents will be forgotten", "error", err)
		}
		if !s.durable(ctx, batch.After.Revision) {
			return
		}
		s.leavings.note(result, s.config.Now()) // before they are gone
		s.shelf.publish(result, intentsOf(result, batch))
		if book.full() {
			if err := s.renewLedger(zone, book, state); err != nil {
				s.config.Log.Error("ledger grows", "error", err)
			}
		}
	}
}

// durable waits until a revision cannot be lost any more, so that no agent holds
// one that is given out again; false if ctx has ended.
func (s *Server) durable(ctx context.Context, rev store.Revision) bool {
	for {
		err := s.config.Store.Durable(rev)
		if err == nil {
			return true
		}
		s.config.Log.Error("agents are told nothing new", "error", err)
		if !sleep(ctx, pause) {
			return false
		}
	}
}

// expect waits for the agents that have to acknowledge a batch. When the log was
// compacted under our feet, nobody knows which operations are in it.
func (s *Server) expect(ctx context.Context, batch replica.Batch, result compile.Result, state *compile.State) error {
	if batch.Full {
		return s.rebuild(ctx, batch, result, state, true)
	}
	s.tracker.Begin(changesOf(batch, result)...)
	return nil
}

// intentsOf are those of operations that remove something.
func intentsOf(result compile.Result, batch replica.Batch) map[cloud.ID][]store.Intent {
	intents := map[cloud.ID][]store.Intent{}
	for _, step := range result.Steps {
		if list := batch.Intents[step.Operation()]; len(list) > 0 {
			intents[step.Operation()] = list
		}
	}
	return intents
}

// changesOf says who has to acknowledge what before each pending operation of
// a batch can end.
func changesOf(batch replica.Batch, result compile.Result) []converge.Change {
	byOp := map[cloud.ID]*converge.Change{}
	for id, op := range batch.Operations {
		if !op.State.Final() {
			byOp[id] = &converge.Change{Operation: id, Tightens: op.Tightens, Revision: result.Revision}
		}
	}
	for _, step := range result.Steps {
		touched := step.Touched(result.Everyone)
		for _, id := range step.Operations {
			if c := byOp[id]; c != nil {
				c.Hosts = append(c.Hosts, touched...)
				c.Keys = append(c.Keys, step.Key())
			}
		}
	}
	for _, f := range result.Faults {
		for _, id := range f.Operations {
			if c := byOp[id]; c != nil {
				c.Fault = f.Err.Error()
			}
		}
	}
	changes := make([]converge.Change, 0, len(byOp))
	for _, c := range byOp {
		slices.Sort(c.Hosts)
		c.Hosts = slices.Compact(c.Hosts)
		changes = append(changes, *c)
	}
	return changes
}

// rebuild finds out what the pending operations wait for after a restart. What
// was committed and never told is in the batch; what had been told is still to
// be acknowledged by whoever holds, or held, one of the items. When it is not
// known who held what, removals wait for everybody.
func (s *Server) rebuild(ctx context.Context, batch replica.Batch, result compile.Result, state *compile.State, known bool) error {
	changes := changesOf(batch, result)
	inBatch := map[cloud.ID]*converge.Change{}
	for i := range changes {
		inBatch[changes[i].Operation] = &changes[i]
	}
	var older []converge.Change
	err := s.config.Store.Read(ctx, func(tx *store.Tx) error {
		pending, err := tx.Pending(store.Ref{})
		if err != nil {
			return err
		}
		older = nil
		for _, op := range pending {
			of, err := tx.ChangesOf(op.ID)
			if err != nil {
				return err
			}
			c := converge.Change{Operation: op.ID, Tightens: op.Tightens, Revision: result.Revision}
			s.audience(&c, op, of, batch.After, state)
			if !known && (op.Tightens || slices.ContainsFunc(of, func(c store.Change) bool { return c.Deleted })) {
				c.Hosts = append(c.Hosts, result.Everyone...)
			}
			older = append(older, c)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("find out what pending operations wait for: %w", err)
	}
	for _, c := range older {
		if had := inBatch[c.Operation]; had != nil {
			had.Hosts, had.Keys = append(had.Hosts, c.Hosts...), append(had.Keys, c.Keys...)
		} else {
			changes = append(changes, c)
		}
	}
	s.tracker.Begin(changes...)
	return nil
}

// audience adds to a change those who hold, or let go of, what the operation
// has changed.
func (s *Server) audience(c *converge.Change, op store.Operation, changes []store.Change, snap replica.Snapshot, state *compile.State) {
	owners := ownersOf(changes, snap)
	keys := map[wire.Key]bool{}
	var hosts []uint32
	for e := range state.Entries() {
		if owners[e.Owner] && e.Revision >= uint64(op.Revision) {
			keys[e.Key] = true
			hosts = append(hosts, e.Hosts...)
			if e.All {
				hosts = append(hosts, joined(snap)...)
			}
		}
	}
	s.shelf.mu.RLock()
	defer s.shelf.mu.RUnlock()
	for _, g := range s.shelf.graves {
		if g.Operation == op.ID {
			keys[g.Key] = true
			hosts = append(hosts, g.Hosts...)
		}
	}
	slices.Sort(hosts)
	c.Hosts = slices.Compact(hosts)
	for key := range keys {
		c.Keys = append(c.Keys, key)
	}
}

// ownersOf are the owners that changes concern, as far as they are still there.
func ownersOf(changes []store.Change, snap replica.Snapshot) map[compile.Owner]bool {
	owners := map[compile.Owner]bool{}
	for _, c := range changes {
		for _, o := range compile.Affected(c, snap, snap) {
			owners[o] = true
		}
	}
	return owners
}

func joined(snap replica.Snapshot) []uint32 {
	var numbers []uint32
	for h := range snap.Hosts() {
		if h.Body.Joined {
			numbers = append(numbers, h.Body.Number)
		}
	}
	return numbers
}
