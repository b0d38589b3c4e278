// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"fmt"
	"net/netip"
	"sync"

	"cairn/cloud/wire"
	agentv1 "cairn/proto/agent/v1"
)

// receiveAll takes in what the agent says. Nothing in it waits for the store.
func (s *session) receiveAll() error {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *agentv1.FromAgent_Ack:
			s.acked(m.Ack.Revision, m.Ack.ProgrammedNs)
		case *agentv1.FromAgent_Nack:
			s.nacked(m.Nack)
		case *agentv1.FromAgent_Status:
			s.status(m.Status)
		case *agentv1.FromAgent_Flows:
			s.flows(m.Flows)
		case *agentv1.FromAgent_Usage:
			s.usage(m.Usage)
		}
	}
}

// acked: everything up to a revision is programmed, or was refused before.
func (s *session) acked(revision uint64, programmed int64) {
	s.mu.Lock()
	revision = min(revision, s.sent) // nobody holds what was not sent
	if revision < s.target && !s.believed {
		s.mu.Unlock()
		return // of another epoch, or of contents that are to be replaced
	}
	for len(s.unacked) > 0 && s.unacked[0] <= revision {
		s.unacked = s.unacked[1:]
	}
	s.reached = s.reached || (revision >= s.target && !s.whole)
	s.believed = s.believed || s.reached
	inStep := s.inStep()
	s.mu.Unlock()
	s.server.tracker.Acked(s.number, revision, programmed)
	if inStep {
		s.server.heard(s.name, s.number, true)
	}
	s.poke()
}

// inStep: nothing is on its way to the agent, or waiting to be.
func (s *session) inStep() bool {
	return s.reached && !s.whole && len(s.unacked) == 0 && len(s.dirty) == 0
}

func (s *session) nacked(n *agentv1.Nack) {
	key := wire.Key{Kind: kindOf(n.Kind), ID: n.Key}
	s.mu.Lock()
	s.refused[key] = n.Reason
	s.mu.Unlock()
	s.server.Stats.Nacks.Add(1)
	s.log.Warn("item refused", "key", key.String(), "revision", n.Revision, "reason", n.Reason)
	s.server.tracker.Nacked(s.number, key, n.Reason)
}

func (s *session) status(m *agentv1.Status) {
	s.mu.Lock()
	// A status that says twice what is programmed stands in for an
	// acknowledgement that was lost with its stream. Once is not enough: a
	// refusal may still be behind it.
	again := len(m.Digests) == 0 && m.Revision != 0 && m.Revision == s.said
	if len(m.Digests) == 0 {
		s.said = m.Revision
	}
	inStep := s.inStep()
	s.mu.Unlock()
	if again {
		s.acked(m.Revision, 0)
	}
	s.server.alive(s.name, s.number, m.UplinkDown, inStep)
	if reports := s.server.sees(s, m.Reports); len(reports) > 0 {
		s.report.add(reports)
	}
	if len(m.Digests) > 0 {
		s.compare(m)
	}
}

// compare is the audit by digests: what an idle agent holds must be what it
// should hold. If not, something was lost on the way, and it gets everything;
// but not more often than the audit's pace, since what it refused to remove
// stays different.
func (s *session) compare(m *agentv1.Status) {
	said, legible := digestsOf(m.Digests)
	shelf := s.server.shelf
	shelf.mu.RLock()
	defer shelf.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.Revision != s.sent || len(s.unacked) > 0 || len(s.dirty) > 0 || s.whole {
		return
	}
	if legible && said == shelf.expected(s.number) {
		return
	}
	s.server.Stats.Mismatches.Add(1)
	now := s.server.config.Now()
	if now.Sub(s.audited) < s.server.config.AuditGap {
		return
	}
	s.log.Warn("holds other things than it should", "revision", m.Revision)
	s.audited, s.whole = now, true
	s.poke()
}

// kindOf keeps a kind that does not fit from looking like another one.
func kindOf(k agentv1.Kind) wire.Kind {
	if k < 0 || k > 255 {
		return 0
	}
	return wire.Kind(k)
}

func inventoryOf(h *agentv1.Hello) (Inventory, error) {
	endpoint, err := netip.ParseAddr(h.Endpoint)
	if err != nil {
		return Inventory{}, fmt.Errorf("tunnel endpoint: %w", err)
	}
	return Inventory{
		BootID: h.BootId, Endpoint: endpoint, MTU: h.Mtu, Roles: h.Roles, Drivers: h.Drivers,
		CPUs: int(h.Cpus), Memory: int64(h.Memory), Version: h.Version,
	}, nil
}

// reporter hands reports to Events, the latest of each object, in an order of
// its own: a store that is slow delays reports and nothing else.
type reporter struct {
	wake chan struct{}

	mu      sync.Mutex
	pending map[wire.Key]Report
	order   []wire.Key
}

func newReporter() reporter {
	return reporter{wake: make(chan struct{}, 1), pending: map[wire.Key]Report{}}
}

func (r *reporter) add(list []*agentv1.Report) {
	r.mu.Lock()
	for _, one := range list {
		kind := kindOf(one.Kind)
		if !kind.Valid() {
			continue
		}
		key := wire.Key{Kind: kind, ID: one.Key}
		if _, ok := r.pending[key]; !ok {
			r.order = append(r.order, key)
		}
		r.pending[key] = Report{Kind: kind, Key: one.Key, Generation: one.Generation, State: one.State, Reason: one.Reason}
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // it is awake
	}
}

func (r *reporter) take() []Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	reports := make([]Report, 0, len(r.order))
	for _, key := range r.order {
		reports = append(reports, r.pending[key])
	}
	clear(r.pending)
	r.order = nil
	return reports
}

// putBack returns reports that could not be delivered, unless a later one of
// the object has come.
func (r *reporter) putBack(reports []Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var order []wire.Key
	for _, one := range reports {
		key := wire.Key{Kind: one.Kind, ID: one.Key}
		if _, later := r.pending[key]; !later {
			r.pending[key] = one
			order = append(order, key)
		}
	}
	r.order = append(order, r.order...)
}

func (r *reporter) run(s *session) {
	for {
		if reports := r.take(); len(reports) > 0 {
			if err := s.server.config.Events.Report(s.ctx, s.name, reports); err != nil && s.ctx.Err() == nil {
				s.log.Warn("reports not taken", "error", err)
				r.putBack(reports)
				if !sleep(s.ctx, pause) {
					return
				}
			}
			continue
		}
		select {
		case <-s.ctx.Done():
			return
		case <-r.wake:
		}
	}
}
