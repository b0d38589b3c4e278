// SPDX-License-Identifier: Apache-2.0

package sync

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"cairn/cloud/wire"
	"cairn/dataplane/table"
	agentv1 "cairn/proto/agent/v1"
)

// maxPending bounds what a delta or a snapshot may add up to before it is
// applied: more than any host holds.
const maxPending = 1 << 30

// receiving is what came in parts on one stream and is not applied yet.
type receiving struct {
	c        *Client
	snapshot *table.Snapshot
	delta    *table.Delta
	bytes    int
}

func (c *Client) receive(stream agentv1.Agents_SyncClient) error {
	r := receiving{c: c}
	for {
		m, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if err := r.handle(m); err != nil {
			return err
		}
	}
}

func (r *receiving) handle(m *agentv1.ToAgent) error {
	switch v := m.Message.(type) {
	case *agentv1.ToAgent_Intent:
		if kind := wire.Kind(v.Intent.Kind); kind.Valid() {
			r.c.cfg.Table.Intend(table.Intent{Operation: v.Intent.Operation, Kind: kind, Count: v.Intent.Count})
		}
	case *agentv1.ToAgent_SnapshotBegin:
		r.snapshot = &table.Snapshot{At: table.Mark{Epoch: v.SnapshotBegin.Epoch, Revision: v.SnapshotBegin.Revision}}
		r.delta, r.bytes = nil, 0
	case *agentv1.ToAgent_Delta:
		return r.part(v.Delta)
	case *agentv1.ToAgent_SnapshotEnd:
		return r.end(v.SnapshotEnd)
	case *agentv1.ToAgent_Drain:
		after := time.Duration(v.Drain.ReconnectAfterMs) * time.Millisecond
		if jitter := time.Duration(v.Drain.JitterMs) * time.Millisecond; jitter > 0 {
			after += rand.N(jitter)
		}
		return errDrained{after}
	}
	return nil
}

// part of a delta, or a whole one; or of a snapshot.
func (r *receiving) part(d *agentv1.Delta) error {
	ups := make([]table.Upsert, 0, len(d.Items))
	for _, item := range d.Items {
		r.bytes += len(item.Body) + len(item.Key)
		ups = append(ups, table.Upsert{
			Key: wire.Key{Kind: kindOf(item.Kind), ID: item.Key}, Generation: item.Generation, Body: item.Body,
		})
	}
	if r.bytes > maxPending {
		return fmt.Errorf("receive: more than %d bytes in one piece", maxPending)
	}
	if r.snapshot != nil {
		r.snapshot.Upserts = append(r.snapshot.Upserts, ups...)
		return nil
	}
	if r.delta == nil {
		r.delta = &table.Delta{From: d.From}
	}
	r.delta.Upserts = append(r.delta.Upserts, ups...)
	for _, t := range d.Tombstones {
		r.delta.Tombstones = append(r.delta.Tombstones, table.Tombstone{
			Key: wire.Key{Kind: kindOf(t.Kind), ID: t.Key}, Operation: t.Operation,
		})
	}
	if d.To == d.From { // the revision is reached with a later part
		return nil
	}
	whole := *r.delta
	whole.To = table.Mark{Epoch: d.Epoch, Revision: d.To}
	r.delta, r.bytes = nil, 0
	r.c.applying.Lock()
	defer r.c.applying.Unlock()
	faults, err := r.c.cfg.Table.Apply(whole)
	if err != nil {
		return err // the next stream begins with what the table holds
	}
	r.c.mu.Lock()
	r.c.state.Deltas++
	r.c.fail(whole.To.Revision, faults)
	r.c.mu.Unlock()
	return nil
}

func (r *receiving) end(e *agentv1.SnapshotEnd) error {
	s := r.snapshot
	if s == nil || e.Revision != s.At.Revision {
		return errors.New("receive: a snapshot ends that did not begin")
	}
	r.snapshot, r.bytes = nil, 0
	for _, d := range e.Digests {
		if kind := kindOf(d.Kind); kind.Valid() {
			s.Digests[kind] = wire.Digest{Count: d.Count, Sum: d.Sum}
		}
	}
	r.c.applying.Lock()
	defer r.c.applying.Unlock()
	faults, err := r.c.cfg.Table.Replace(*s)
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.c.state.Snapshots++
	if err != nil {
		r.c.cfg.Log.Error("snapshot not taken", "error", err)
		faults = []table.Fault{{Reason: err.Error()}} // of no key: the snapshot itself
	}
	r.c.fail(s.At.Revision, faults)
	return nil
}

// kindOf keeps a kind that does not fit from looking like another one.
func kindOf(k agentv1.Kind) wire.Kind {
	if k < 0 || k > 255 {
		return 0
	}
	return wire.Kind(k)
}
