// SPDX-License-Identifier: Apache-2.0

// Package dist delivers: it serves the stream of every agent, follows the
// zone, has it compiled, and sends each agent the differences that concern it,
// by revision, until it has acknowledged them. A slow agent gets fewer and
// larger deltas and slows nobody else. The package decides nothing about the
// zone and writes nothing to the store: what agents report goes to Events, what
// they acknowledge to package converge.
//
// Start at Server.Run for the way of a change, Server.Sync for the life of a
// stream, and session.next for what is sent when.
package dist

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/keepalive"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/converge"
	"cairn/controlplane/pki"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
	agentv1 "cairn/proto/agent/v1"
)

// Inventory is what an agent says of its hypervisor.
type Inventory struct {
	BootID   string
	Endpoint netip.Addr // of the tunnel
	MTU      uint32
	Roles    []string
	Drivers  []string
	CPUs     int
	Memory   int64 // octets
	Version  string
}

// Report is the observed state of an object. Kinds and states are those of the
// proto's Report.
type Report struct {
	Kind       wire.Kind
	Key        string
	Generation uint64
	State      string
	Reason     string
}

// Events hears of agents. A call that fails is made again, except for Hello,
// whose failure refuses the stream, and Refused.
type Events interface {
	// Hello brings the inventory of the hypervisor called host, and returns its
	// number.
	Hello(ctx context.Context, host string, in Inventory) (number uint32, err error)
	// Report brings states. Of each object it brings the latest one; a new
	// stream brings all of them again.
	Report(ctx context.Context, host string, reports []Report) error
	// Alive: the host is in lease and holds all that it should; called when that
	// becomes so and when its uplink goes down or comes back.
	Alive(ctx context.Context, host string, uplinkDown bool) error
	// Lost: the host's lease is over, or its stream is and no packet gets
	// through to it. It may well be forwarding.
	Lost(ctx context.Context, host string, since time.Time) error
	// Refused: a caller was turned away, for the audit. Who is the name in its
	// certificate or, without one, its address.
	Refused(ctx context.Context, who, why string)
}

// Config of a server.
type Config struct {
	Store    *store.Store
	Desk     *pki.Desk
	Events   Events
	Traffic  Traffic // nil: nobody wants to know
	Settler  converge.Settler
	Log      *slog.Logger
	Ledger   string           // file that remembers what was told; "" for none
	Now      func() time.Time // nil: time.Now
	AuditGap time.Duration    // between comparisons of digests; 0: a minute
}

// Stats count what a server has done.
type Stats struct {
	Sessions   atomic.Int64 // at present
	InStep     atomic.Uint64
	Resumes    atomic.Uint64
	Snapshots  atomic.Uint64
	Deltas     atomic.Uint64
	Items      atomic.Uint64 // in deltas outside of snapshots
	Tombstones atomic.Uint64
	Nacks      atomic.Uint64
	Mismatches atomic.Uint64 // found by digests
	Refused    atomic.Uint64

	Flows          atomic.Uint64 // entries of the flow log that were taken
	FlowsForeign   atomic.Uint64 // of ports that are not on the host
	FlowsIllegible atomic.Uint64
	Usage          atomic.Uint64 // counters of ports that were taken
	UsageForeign   atomic.Uint64
	UsageIllegible atomic.Uint64
}

// Server delivers to the agents of a zone.
type Server struct {
	agentv1.UnimplementedAgentsServer
	config   Config
	tracker  *converge.Tracker
	replica  *replica.Replica
	follower *replica.Follower
	shelf    *shelf
	leavings *leavings
	start    time.Time
	ready    chan struct{} // closed when the shelf is filled
	refusals limiter
	begin    limiter // of snapshots

	leaseMu sync.Mutex
	leases  map[string]*lease
	kick    chan struct{} // there may be something to tell Events

	Stats Stats
}

// New makes a server. It serves nobody before Run has loaded the zone.
func New(config Config) (*Server, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.AuditGap == 0 {
		config.AuditGap = time.Minute
	}
	r, err := replica.New()
	if err != nil {
		return nil, err
	}
	return &Server{
		config: config, tracker: converge.New(config.Settler, config.Log),
		replica:  r,
		follower: &replica.Follower{Store: config.Store, Replica: r, Log: config.Log},
		shelf:    newShelf(), leavings: &leavings{ports: map[wire.Key]left{}}, start: config.Now(), ready: make(chan struct{}),
		refusals: limiter{every: 100 * time.Millisecond, burst: 20}, begin: limiter{every: 5 * time.Millisecond},
		leases: map[string]*lease{}, kick: make(chan struct{}, 1),
	}, nil
}

// Waiting says whom an operation waits for: "hv3, silent since 10:15:04".
func (s *Server) Waiting(op cloud.ID) string { return s.tracker.Waiting(op) }

// Missing lists whom an operation waits for.
func (s *Server) Missing(op cloud.ID) []string { return s.tracker.Missing(op) }

// Programmed says when the last map write of an operation that has just ended
// was done, by the monotonic clock of its host; 0 if it is not known.
func (s *Server) Programmed(op cloud.ID) int64 { return s.tracker.Programmed(op) }

// Snapshot is the zone as it is delivered; its revision is 0 before Run has read it.
func (s *Server) Snapshot() replica.Snapshot { return s.replica.Snapshot() }

// Compact forgets removals up to a revision, as the store has forgotten its
// changes: agents below it get a snapshot.
func (s *Server) Compact(upTo store.Revision) { s.shelf.compact(uint64(upTo)) }

// window of flow control, in bytes, for what an agent says.
const window = 1 << 20

// Serve answers agents on a listener until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer(
		grpc.Creds(s.credentials()),
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(encodingproto.Name)}),
		// grpc's own minimum of 5 minutes answers an agent's pings with GOAWAY.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// A stopped process is not a dead one: its stream is kept, so that it can
		// go on where it was. Leases, not pings, say who is silent.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: time.Minute}),
		grpc.MaxRecvMsgSize(4<<20),
		// A window of its own size keeps grpc from measuring the path with a ping
		// for every message, which is two more packets and wakes both ends twice.
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
	)
	agentv1.RegisterAgentsServer(server, s)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	err := server.Serve(l)
	if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// limiter spaces events out, and lets burst of them through at once.
type limiter struct {
	every time.Duration
	burst int
	mu    sync.Mutex
	next  time.Time
}

// reserve says how long to wait for one's turn.
func (l *limiter) reserve(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next.Before(now) {
		l.next = now
	}
	wait := l.next.Sub(now)
	l.next = l.next.Add(l.every)
	return wait
}

// allow reports whether it is one's turn now, and takes no turn if it is not.
func (l *limiter) allow(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next.Before(now) {
		l.next = now
	}
	if l.next.Sub(now) > time.Duration(l.burst)*l.every {
		return false
	}
	l.next = l.next.Add(l.every)
	return true
}

// refuse audits that somebody was turned away. A flood of refusals is counted,
// and audited in samples.
func (s *Server) refuse(ctx context.Context, who, why string) {
	s.Stats.Refused.Add(1)
	if s.refusals.allow(s.config.Now()) {
		s.config.Log.Warn("refused", "who", who, "why", why)
		s.config.Events.Refused(ctx, who, why)
	}
}

var _ agentv1.AgentsServer = (*Server)(nil)
