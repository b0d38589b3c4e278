// SPDX-License-Identifier: Apache-2.0

package sync

import (
	"fmt"
	"slices"
	"time"

	"cairn/dataplane/table"
	agentv1 "cairn/proto/agent/v1"
)

// sending is what was said on one stream.
type sending struct {
	stream   agentv1.Agents_SyncClient
	acked    table.Mark
	digested time.Time
	down     bool
}

// news sends what has changed.
func (s *sending) news(c *Client) error {
	if err := s.acks(c); err != nil {
		return err
	}
	return s.status(c, false)
}

// acks sends the faults, then the revision: an ack covers what was named before.
func (s *sending) acks(c *Client) error {
	c.applying.Lock()
	c.mu.Lock()
	faults, done, at := c.faults, c.done, c.doneAt
	c.faults = nil
	c.state.Nacks += uint64(len(faults))
	c.mu.Unlock()
	c.applying.Unlock()
	for i, f := range faults {
		err := s.stream.Send(&agentv1.FromAgent{Message: &agentv1.FromAgent_Nack{Nack: &agentv1.Nack{
			Revision: f.revision, Kind: agentv1.Kind(f.Key.Kind), Key: f.Key.ID, Reason: f.Reason,
		}}})
		if err != nil {
			c.mu.Lock()
			c.faults = append(faults[i:], c.faults...)
			c.mu.Unlock()
			return fmt.Errorf("send nack: %w", err)
		}
	}
	if done == s.acked || done == (table.Mark{}) {
		return nil
	}
	s.acked = done
	err := s.stream.Send(&agentv1.FromAgent{Message: &agentv1.FromAgent_Ack{Ack: &agentv1.Ack{
		Revision: done.Revision, ProgrammedNs: at,
	}}})
	if err != nil {
		return fmt.Errorf("send ack: %w", err)
	}
	return nil
}

// maxReports of one status message, and faults that wait for a stream.
const (
	maxReports = 4096
	maxFaults  = 65536
)

// status sends what changed since the last one; as a sign of life also when
// nothing did.
func (s *sending) status(c *Client, life bool) error {
	c.mu.Lock()
	m := &agentv1.Status{UplinkDown: c.down, Revision: c.done.Revision}
	for key := range c.changed {
		if len(m.Reports) == maxReports {
			c.wake()
			break
		}
		r := c.reports[key]
		delete(c.changed, key)
		m.Reports = append(m.Reports, &agentv1.Report{
			Kind: agentv1.Kind(key.Kind), Key: key.ID, Generation: r.Generation, State: r.State, Reason: r.Reason,
		})
	}
	c.mu.Unlock()
	if !life && len(m.Reports) == 0 && m.UplinkDown == s.down {
		return nil
	}
	slices.SortFunc(m.Reports, func(a, b *agentv1.Report) int {
		return slices.Compare([]byte(a.Key), []byte(b.Key))
	})
	if time.Since(s.digested) >= 30*time.Second {
		view := c.cfg.Table.View()
		m.Digests, m.Revision, s.digested = digests(view), view.Mark().Revision, time.Now()
	}
	s.down = m.UplinkDown
	if err := s.stream.Send(&agentv1.FromAgent{Message: &agentv1.FromAgent_Status{Status: m}}); err != nil {
		return fmt.Errorf("send status: %w", err)
	}
	return nil
}
