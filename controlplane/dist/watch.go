// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"cairn/cloud/wire"
	"cairn/controlplane/replica"
	agentv1 "cairn/proto/agent/v1"
)

// leaseTick is how often leases are looked at.
const leaseTick = 200 * time.Millisecond

// Session is what there is to know of an agent's stream.
type Session struct {
	Agent    string
	Number   uint32
	Revision uint64              // that the agent has once all is delivered
	OnTheWay int                 // deltas that it has not acknowledged
	Waiting  int                 // items that will go with the next one
	InStep   bool                // neither
	Refused  map[wire.Key]string // items that it cannot hold, with its reasons
}

// Sessions lists the streams by the numbers of their hypervisors.
func (s *Server) Sessions() []Session {
	s.shelf.mu.RLock()
	defer s.shelf.mu.RUnlock()
	all := make([]Session, 0, len(s.shelf.sessions))
	for _, one := range s.shelf.sessions {
		one.mu.Lock()
		all = append(all, Session{
			Agent: one.name, Number: one.number, Revision: one.sent, OnTheWay: len(one.unacked),
			Waiting: len(one.dirty), InStep: one.inStep(), Refused: maps.Clone(one.refused),
		})
		one.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b Session) int { return cmp.Compare(a.Number, b.Number) })
	return all
}

// heard notes a sign of life that is not a status, and that the agent holds
// all that it should.
func (s *Server) heard(name string, number uint32, inStep bool) {
	s.leaseMu.Lock()
	l := s.leaseOf(name, number)
	l.last = s.config.Now()
	l.synced = l.synced || inStep
	s.leaseMu.Unlock()
	s.tellSoon()
}

// alive notes a status.
func (s *Server) alive(name string, number uint32, uplinkDown, inStep bool) {
	s.leaseMu.Lock()
	l := s.leaseOf(name, number)
	returned := l.lost
	if returned {
		l.lost, l.synced = false, false
	}
	l.last, l.uplinkDown, l.synced = s.config.Now(), uplinkDown, l.synced || inStep
	news := l.due() != l.told
	s.leaseMu.Unlock()
	if returned {
		s.tracker.Returned(number)
	}
	if news {
		s.tellSoon()
	}
}

func (s *Server) leaseOf(name string, number uint32) *lease {
	l := s.leases[name]
	if l == nil {
		l = &lease{}
		s.leases[name] = l
	}
	l.number = number
	return l
}

// opened notes a new stream: what was said on the one before is over.
func (s *Server) opened(one *session) {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	l := s.leaseOf(one.name, one.number)
	l.stream, l.ended, l.sees = one, false, map[uint32]bool{}
}

// closed notes that a stream has ended, unless there is a newer one.
func (s *Server) closed(one *session) {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	if l := s.leases[one.name]; l != nil && l.stream == one {
		l.ended = true
		s.tellSoon()
	}
}

// sees takes out of an LB node's reports which hosts it reaches, and returns
// the others.
func (s *Server) sees(one *session, reports []*agentv1.Report) (others []*agentv1.Report) {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	l := s.leases[one.name]
	for _, r := range reports {
		if r.Kind != agentv1.Kind_KIND_HOST {
			others = append(others, r)
			continue
		}
		number, err := strconv.ParseUint(r.Key, 10, 32)
		if err != nil || l == nil || l.stream != one {
			continue
		}
		switch r.State {
		case "reached", "missed":
			l.sees[uint32(number)] = r.State == "reached"
		default:
			delete(l.sees, uint32(number))
		}
		s.tellSoon()
	}
	return others
}

func (s *Server) tellSoon() {
	select {
	case s.kick <- struct{}{}:
	default: // somebody did already
	}
}

// meet brings the leases in step with the hypervisors of the zone: each that
// has joined has one, whether or not its agent has been heard of yet.
func (s *Server) meet(snap replica.Snapshot) {
	present := map[string]bool{}
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	for h := range snap.Hosts() {
		s.tracker.Known(h.Body.Number, h.Body.Name)
		if !h.Body.Joined {
			continue
		}
		present[h.Body.Name] = true
		if _, known := s.leases[h.Body.Name]; known {
			continue
		}
		l := s.leaseOf(h.Body.Name, h.Body.Number)
		l.last = s.config.Now()
		if h.Body.Unreachable && !h.Body.UplinkDown {
			l.lost, l.told, l.last = true, lost, h.Body.Since.Add(-leaseLife)
			s.tracker.Expired(l.number, l.last)
		}
	}
	for name, l := range s.leases {
		if present[name] || s.config.Now().Sub(l.last) <= leaseLife {
			continue // one that has just joined may be ahead of its row
		}
		delete(s.leases, name)
		s.tracker.Removed(l.number)
		s.shelf.mu.Lock()
		if session := s.shelf.sessions[l.number]; session != nil {
			session.cancel(errRemoved)
		}
		s.shelf.mu.Unlock()
	}
}

// watchLeases declares leases over and tells Events what has become of
// hypervisors, until it has been heard.
func (s *Server) watchLeases(ctx context.Context) error {
	tick := time.NewTicker(leaseTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-s.kick:
		}
		s.expireLeases()
		s.tellEvents(ctx)
	}
}

func (s *Server) expireLeases() {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	for _, l := range s.leases {
		l.missed = (l.ended || l.told == lost) && missed(s.leases, l.number)
	}
	for _, name := range severed(s.leases) {
		s.lose(name, "stream has ended and no packet gets through")
	}
	for _, name := range over(s.leases, s.start, s.config.Now()) {
		s.lose(name, "lease over")
	}
}

// lose a hypervisor. Called with the lock held.
func (s *Server) lose(name, why string) {
	l := s.leases[name]
	l.lost = true
	s.config.Log.Warn("hypervisor lost: "+why, "agent", name, "silent since", l.last)
	s.tracker.Expired(l.number, l.last)
}

// tellEvents brings what Events know in step with what is so, one call after
// the other, without holding anybody up meanwhile.
func (s *Server) tellEvents(ctx context.Context) {
	type news struct {
		name string
		due  notice
		last time.Time
	}
	var all []news
	s.leaseMu.Lock()
	for name, l := range s.leases {
		if due := l.due(); due != l.told {
			all = append(all, news{name, due, l.last})
		}
	}
	s.leaseMu.Unlock()
	slices.SortFunc(all, func(a, b news) int { return a.last.Compare(b.last) })
	for _, n := range all {
		var err error
		switch n.due {
		case lost:
			err = s.config.Events.Lost(ctx, n.name, n.last)
		case alive, uplinkDown:
			err = s.config.Events.Alive(ctx, n.name, n.due == uplinkDown)
		}
		if err != nil {
			if ctx.Err() == nil {
				s.config.Log.Warn("news of a hypervisor not taken", "agent", n.name, "error", err)
			}
			continue // it is due again at the next tick
		}
		s.leaseMu.Lock()
		if l := s.leases[n.name]; l != nil {
			l.told = n.due
		}
		s.leaseMu.Unlock()
	}
}
