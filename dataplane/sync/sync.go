// SPDX-License-Identifier: Apache-2.0

// Package sync owns the agent's end of the stream to the control plane: it
// joins, says what it holds, puts what comes into the desired tables, and tells
// what was programmed and what was observed. It also keeps the last good state
// on disk. It never touches a map and never waits for one: who programs calls
// Programmed. Start at Client.Run; handle.go takes what arrives.
package sync

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"cairn/cloud/join"
	"cairn/cloud/wire"
	"cairn/dataplane/table"
	agentv1 "cairn/proto/agent/v1"
)

// Inventory is what this hypervisor is.
type Inventory struct {
	Name     string
	BootID   string
	Endpoint string
	MTU      uint32
	Roles    []string
	Drivers  []string
	CPUs     uint32
	Memory   uint64
	Version  string
}

// Report is one object's observed state.
type Report struct {
	Key        wire.Key
	Generation uint64
	State      string
	Reason     string
}

// Config of a client.
type Config struct {
	Control   string // HOST:PORT
	Folder    string // of the credentials
	Token     string // to join with, once; empty for an agent that has joined
	Inventory func() Inventory
	Table     *table.Table
	Traffic   Traffic // nil: nothing is told of packets
	Log       *slog.Logger
	// UsageEvery is between what counters say, ten seconds if not set.
	UsageEvery time.Duration
	// Wait is the first pause before a new connection, a second if not set; it
	// doubles up to maxWaits times that.
	Wait time.Duration
}

// Client keeps a stream to the control plane open, for ever.
type Client struct {
	cfg Config

	mu      sync.Mutex
	creds   join.Credentials
	reports map[wire.Key]Report
	changed map[wire.Key]bool // reports that the control plane has not seen
	down    bool              // the uplink
	done    table.Mark        // programmed
	doneAt  int64             // CLOCK_MONOTONIC
	faults  []nack            // not sent yet
	kick    chan struct{}     // something is to be sent
	state   State

	// Held from before the table takes what has come until its faults are noted:
	// others program a revision as soon as the table has it, and it must not be
	// acknowledged before what it lacks is named. Before mu.
	applying sync.Mutex
}

type nack struct {
	revision uint64
	table.Fault
}

// State of the connection, for people.
type State struct {
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"` // of the connection, or of its loss
	Error     string    `json:"error,omitempty"`
	Streams   uint64    `json:"streams"`
	Deltas    uint64    `json:"deltas"`
	Snapshots uint64    `json:"snapshots"`
	Nacks     uint64    `json:"nacks"`
}

// New makes a client that is not connected.
func New(cfg Config) *Client {
	if cfg.Wait == 0 {
		cfg.Wait = time.Second
	}
	if cfg.UsageEvery == 0 {
		cfg.UsageEvery = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Client{
		cfg: cfg, reports: map[wire.Key]Report{}, changed: map[wire.Key]bool{}, kick: make(chan struct{}, 1),
		state: State{Since: time.Now()},
	}
}

// State of the connection.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Programmed says that all up to mark is in the maps and was read back at a
// time of CLOCK_MONOTONIC, but for the faults.
func (c *Client) Programmed(mark table.Mark, at int64, faults []table.Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done, c.doneAt = mark, at
	c.fail(mark.Revision, faults)
	c.wake()
}

func (c *Client) fail(revision uint64, faults []table.Fault) {
	for _, f := range faults {
		c.faults = append(c.faults, nack{revision, f})
	}
	if over := len(c.faults) - maxFaults; over > 0 {
		c.faults = c.faults[over:]
	}
	c.wake()
}

// Observe says in what state an object is. Only changes are sent, and all
// there are when a stream opens.
func (c *Client) Observe(r Report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.reports[r.Key]; ok && old == r {
		return
	}
	c.reports[r.Key] = r
	c.changed[r.Key] = true
	c.wake()
}

// Forget an object that has no state any more.
func (c *Client) Forget(key wire.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.reports, key)
	delete(c.changed, key)
}

// Uplink says whether the uplink's carrier is gone.
func (c *Client) Uplink(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != down {
		c.down = down
		c.wake()
	}
}

func (c *Client) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// errDrained is the end of a stream that the control plane asked for.
type errDrained struct{ after time.Duration }

func (e errDrained) Error() string { return fmt.Sprintf("asked to come back in %s", e.after) }

// Run joins if need be and keeps a stream open until ctx ends. Whatever fails
// is tried again, later and later.
func (c *Client) Run(ctx context.Context) {
	pauses := pauses{first: c.cfg.Wait}
	for ctx.Err() == nil {
		err := c.once(ctx)
		pause := pauses.next(c.lost(err))
		var drained errDrained
		if errors.As(err, &drained) {
			pause = drained.after
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// maxWaits: the longest pause, half as long again, is shorter than the time a
// control plane that has just started gives agents to find it.
const maxWaits = 8

// pauses between connections: longer and longer while nothing comes of them,
// short again after a stream that stood. How often the control plane was
// restarted before is no reason to be away from it for long.
type pauses struct{ first, wait time.Duration }

// next is the pause after a stream that stood for so long, 0 if there was none.
func (p *pauses) next(stood time.Duration) time.Duration {
	if p.wait == 0 || stood >= p.first {
		p.wait = p.first
	}
	wait := p.wait
	p.wait = min(2*wait, maxWaits*p.first)
	return wait/2 + rand.N(wait)
}

// lost notes that there is no stream, and returns for how long there was one.
func (c *Client) lost(err error) (stood time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Connected {
		stood = time.Since(c.state.Since)
		c.state.Connected, c.state.Since = false, time.Now()
	}
	reason := fmt.Sprint(err)
	if err != nil && reason != c.state.Error {
		c.cfg.Log.Warn("no stream to the control plane", "error", err)
	}
	c.state.Error = reason
	return stood
}

func (c *Client) once(ctx context.Context) error {
	creds, err := c.credentials(ctx)
	if err != nil {
		return err
	}
	conn, err := c.dial(join.Joined(creds.Authority, creds.Zone, c.leaf))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if time.Now().After(creds.Leaf.Leaf.NotAfter) { // it may renew, and nothing else
		if err := c.renew(ctx, conn); err != nil {
			return err
		}
		return errDrained{}
	}
	go c.renewals(ctx, conn)
	stream, err := agentv1.NewAgentsClient(conn).Sync(ctx)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	return c.talk(ctx, stream)
}

// window of flow control, in bytes: room for a few of the largest messages. With
// one of its own grpc does not measure the path, which is a ping for every
// delta that comes.
const window = 4 << 20

func (c *Client) dial(config *tls.Config) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+c.cfg.Control,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", c.cfg.Control, err)
	}
	return conn, nil
}

// talk is the life of one stream: this goroutine sends, another receives.
func (c *Client) talk(ctx context.Context, stream agentv1.Agents_SyncClient) error {
	if err := stream.Send(c.hello()); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	c.opened()
	failed := make(chan error, 1)
	go func() { failed <- c.receive(stream) }()
	status := time.NewTicker(time.Second)
	defer status.Stop()
	s := sending{stream: stream}
	if err := s.status(c, true); err != nil {
		return err
	}
	t := c.tell()
	defer t.end()
	for {
		var err error
		select { // acknowledgements first
		case <-c.kick:
			if err := s.news(c); err != nil {
				return err
			}
		default:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err = <-failed:
			return err
		case <-status.C:
			err = s.status(c, true)
		case <-c.kick:
			err = s.news(c)
		case <-t.rest.C:
			err = t.rested(&s)
		case <-t.wake:
			err = t.flows(&s)
		case <-t.every.C:
			err = t.usage(&s)
		}
		if err != nil {
			return err
		}
	}
}

func (c *Client) opened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.Connected, c.state.Since, c.state.Error = true, time.Now(), ""
	c.state.Streams++
	for key := range c.reports {
		c.changed[key] = true
	}
	c.wake()
}

func (c *Client) hello() *agentv1.FromAgent {
	inv := c.cfg.Inventory()
	view := c.cfg.Table.View()
	return &agentv1.FromAgent{Message: &agentv1.FromAgent_Hello{Hello: &agentv1.Hello{
		Agent: inv.Name, BootId: inv.BootID, Epoch: view.Mark().Epoch, Revision: view.Mark().Revision, Digests: digests(view),
		Endpoint: inv.Endpoint, Mtu: inv.MTU, Roles: inv.Roles, Drivers: inv.Drivers, Cpus: inv.CPUs, Memory: inv.Memory,
		Version: inv.Version,
	}}}
}

func digests(view table.View) []*agentv1.Digest {
	var out []*agentv1.Digest
	for kind, d := range view.Digests() {
		if wire.Kind(kind).Valid() {
			out = append(out, &agentv1.Digest{Kind: agentv1.Kind(kind), Count: d.Count, Sum: d.Sum})
		}
	}
	return out
}
