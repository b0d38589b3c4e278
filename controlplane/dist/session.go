// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/pki"
	agentv1 "cairn/proto/agent/v1"
)

// maxUnacked deltas may be on their way to an agent. What changes meanwhile is
// collected, and the latest of each item goes with the next one.
const maxUnacked = 4

// session is one agent's stream.
type session struct {
	server *Server
	stream agentv1.Agents_SyncServer
	name   string
	number uint32
	boot   string // of the host
	cert   *x509.Certificate
	log    *slog.Logger
	cancel context.CancelCauseFunc
	ctx    context.Context
	wake   chan struct{} // there may be something to send
	report reporter

	mu       sync.Mutex
	dirty    map[wire.Key]cloud.ID // to be sent, with what answers for a removal
	whole    bool                  // a snapshot is due
	advance  bool                  // the agent's revision is to be moved on
	sent     uint64                // revision that the agent has once all is delivered
	target   uint64                // from which on it has caught up
	reached  bool                  // it has
	believed bool                  // what it acknowledges below that counts too
	said     uint64                // revision of its last status
	unacked  []uint64
	intended map[cloud.ID]bool   // operations whose intents were sent
	refused  map[wire.Key]string // items that the agent cannot hold
	audited  time.Time           // when a snapshot was last caused by a digest
}

func (s *Server) newSession(stream agentv1.Agents_SyncServer, name string, number uint32, boot string, cert *x509.Certificate) *session {
	ctx, cancel := context.WithCancelCause(stream.Context())
	return &session{
		server: s, stream: stream, name: name, number: number, boot: boot, cert: cert, ctx: ctx, cancel: cancel,
		log: s.config.Log.With("agent", name), wake: make(chan struct{}, 1), report: newReporter(),
		dirty: map[wire.Key]cloud.ID{}, intended: map[cloud.ID]bool{}, refused: map[wire.Key]string{},
	}
}

// Why a session ends from this side.
var (
	errSuperseded = errors.New("the agent has a newer stream")
	errExpired    = errors.New("the certificate has expired")
	errRemoved    = errors.New("the hypervisor was removed")
)

// run serves the stream until it ends. Sending, receiving and reporting have
// goroutines of their own, which end with the stream.
func (s *session) run(hello *agentv1.Hello) error {
	defer s.cancel(nil)
	s.server.opened(s)
	defer s.server.closed(s)
	s.begin(hello)
	defer s.end()
	s.server.Stats.Sessions.Add(1)
	defer s.server.Stats.Sessions.Add(-1)
	go func() { s.cancel(s.sendAll()) }()
	go func() { s.cancel(s.receiveAll()) }()
	go s.report.run(s)
	go s.audit()
	expiry := time.AfterFunc(s.cert.NotAfter.Sub(s.server.config.Now()), func() { s.cancel(errExpired) })
	defer expiry.Stop()
	<-s.ctx.Done()
	switch cause := context.Cause(s.ctx); {
	case errors.Is(cause, errSuperseded):
		return status.Error(codes.Aborted, cause.Error())
	case errors.Is(cause, errExpired), errors.Is(cause, pki.ErrRevoked), errors.Is(cause, errRemoved):
		return status.Error(codes.Unauthenticated, cause.Error())
	default:
		return cause
	}
}

// begin enters the session on the shelf and decides what the agent needs. Both
// happen under one lock, so that no change falls in between. The revision in
// Hello is of what the agent wants, not of what it has programmed: operations
// wait for its acknowledgement.
func (s *session) begin(hello *agentv1.Hello) {
	shelf := s.server.shelf
	said, legible := digestsOf(hello.Digests)
	shelf.mu.Lock()
	if old := shelf.sessions[s.number]; old != nil {
		old.cancel(errSuperseded)
	}
	shelf.sessions[s.number] = s
	s.mu.Lock()
	s.sent, s.target = hello.Revision, shelf.revision
	same := legible && said == shelf.expected(s.number)
	switch {
	case hello.Epoch != shelf.epoch:
		s.whole = true
	case same:
		s.believed, s.advance = true, hello.Revision < shelf.revision
		s.server.Stats.InStep.Add(1)
	case hello.Revision < shelf.floor:
		s.whole = true
	default:
		s.dirty = shelf.since(s.number, hello.Revision)
		if s.whole = len(s.dirty) == 0; !s.whole {
			s.believed = true
			s.server.Stats.Resumes.Add(1)
		}
	}
	s.reached = s.believed && len(s.dirty) == 0 && !s.advance
	inStep := s.reached
	s.mu.Unlock()
	shelf.mu.Unlock()
	s.server.heard(s.name, s.number, inStep)
	s.poke()
}

func (s *session) end() {
	shelf := s.server.shelf
	shelf.mu.Lock()
	defer shelf.mu.Unlock()
	if shelf.sessions[s.number] == s {
		delete(shelf.sessions, s.number)
	}
}

func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default: // it is awake
	}
}

// mark notes that an item has changed for this agent. The shelf is locked.
func (s *session) mark(key wire.Key, operation cloud.ID) {
	s.mu.Lock()
	s.dirty[key] = operation
	delete(s.refused, key)
	s.mu.Unlock()
	s.poke()
}

// sendAll sends whatever is to be sent, for as long as the stream lasts. It may
// hang in a send: the agent does not read. That is the agent's affair alone.
func (s *session) sendAll() error {
	for {
		messages, snapshot := s.next()
		if snapshot {
			if wait := s.server.begin.reserve(s.server.config.Now()); !sleep(s.ctx, wait) {
				return s.ctx.Err()
			}
			messages = s.snapshot()
		}
		for _, m := range messages {
			if err := s.stream.SendMsg(m); err != nil {
				return err
			}
		}
		if len(messages) > 0 {
			continue
		}
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-s.wake:
		}
	}
}

// next takes what is dirty and makes messages of it: the intents of what they
// remove first. It is nothing while enough is on its way.
func (s *session) next() (messages []any, snapshot bool) {
	shelf := s.server.shelf
	shelf.mu.RLock()
	defer shelf.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole {
		return nil, true
	}
	if len(s.unacked) >= maxUnacked || (len(s.dirty) == 0 && !s.advance) {
		return nil, false
	}
	d := &delta{from: s.sent, to: shelf.revision, epoch: shelf.epoch}
	for key, operation := range s.dirty {
		if e, ok := shelf.holds(s.number, key); ok {
			d.items = append(d.items, e)
			continue
		}
		d.tombstones = append(d.tombstones, tombstone{key, operation})
		if operation == "" || s.intended[operation] {
			continue
		}
		s.intended[operation] = true
		for _, intent := range shelf.intents[operation] {
			if kind, err := wire.ParseKind(intent.Class); err == nil && intent.Count > 0 {
				messages = append(messages, &agentv1.ToAgent{Message: &agentv1.ToAgent_Intent{Intent: &agentv1.Intent{
					Operation: string(operation), Kind: agentv1.Kind(kind), Count: uint32(intent.Count),
				}}})
			}
		}
	}
	clear(s.dirty)
	s.advance = false
	s.sent = d.to
	s.unacked = append(s.unacked, d.to)
	stats := &s.server.Stats
	stats.Deltas.Add(1)
	stats.Items.Add(uint64(len(d.items)))
	stats.Tombstones.Add(uint64(len(d.tombstones)))
	d.order()
	for _, frame := range d.cut() {
		messages = append(messages, frame)
	}
	return messages, false
}

// snapshot makes the messages of all that the agent should hold.
func (s *session) snapshot() []any {
	shelf := s.server.shelf
	shelf.mu.RLock()
	s.mu.Lock()
	d := &delta{to: shelf.revision, epoch: shelf.epoch, items: shelf.all(s.number)}
	sums := shelf.expected(s.number)
	s.whole, s.advance = false, false
	clear(s.dirty)
	s.sent, s.target, s.unacked = d.to, d.to, []uint64{d.to}
	s.reached, s.believed = false, false
	s.mu.Unlock()
	shelf.mu.RUnlock()
	s.server.Stats.Snapshots.Add(1)
	d.order()
	messages := []any{&agentv1.ToAgent{Message: &agentv1.ToAgent_SnapshotBegin{
		SnapshotBegin: &agentv1.SnapshotBegin{Revision: d.to, Epoch: d.epoch},
	}}}
	for _, frame := range d.cut() {
		frame.to = d.to
		messages = append(messages, frame)
	}
	return append(messages, &agentv1.ToAgent{Message: &agentv1.ToAgent_SnapshotEnd{
		SnapshotEnd: &agentv1.SnapshotEnd{Revision: d.to, Digests: sums.toProto()},
	}})
}

// audit looks after the session at a constant, unhurried pace: an idle agent's
// revision is moved on, and a certificate revoked meanwhile ends the stream.
func (s *session) audit() {
	gap := s.server.config.AuditGap
	for sleep(s.ctx, gap/2+rand.N(gap)) {
		shelf := s.server.shelf
		shelf.mu.RLock()
		s.mu.Lock()
		s.advance = s.advance || s.sent < shelf.revision
		s.mu.Unlock()
		shelf.mu.RUnlock()
		s.poke()
		if err := s.server.config.Desk.Registry.Valid(s.ctx, s.name, pki.Serial(s.cert)); errors.Is(err, pki.ErrRevoked) {
			s.server.refuse(s.ctx, s.name, err.Error())
			s.cancel(err)
		}
	}
}
