// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"cairn/cloud"
	"cairn/cloud/join"
	"cairn/cloud/wire"
	"cairn/controlplane/operation"
	"cairn/controlplane/pki"
	"cairn/controlplane/store"
	agentv1 "cairn/proto/agent/v1"
)

// bench is a zone with a server, over a real store and real TLS on loopback.
type bench struct {
	*testing.T
	store  *store.Store
	issuer *pki.FileIssuer
	desk   *pki.Desk
	offset atomic.Int64 // of the server's clock
	ledger string
	gap    time.Duration

	mu       sync.Mutex
	outcomes map[cloud.ID]operation.Outcome
	reports  []Report
	refused  []string
	notices  []string
	deaf     int      // calls of Report that fail
	heard    []string // of traffic

	server *Server
	addr   string
	stop   func()
}

func newBench(t *testing.T, options ...store.Option) *bench {
	t.Helper()
	b := &bench{
		T: t, outcomes: map[cloud.ID]operation.Outcome{}, ledger: filepath.Join(t.TempDir(), "ledger"),
		gap: time.Hour, stop: func() {},
	}
	ctx := t.Context()
	var err error
	if b.store, err = store.Open(ctx, filepath.Join(t.TempDir(), "zone.db"), options...); err != nil {
		t.Fatal(err)
	}
	if _, err = b.store.Init(ctx, "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if _, err = pki.Open(folder, "ch-gva-2", func() time.Time { return time.Now().Add(-60 * 24 * time.Hour) }); err != nil {
		t.Fatal(err) // an authority old enough to have signed what has expired
	}
	if b.issuer, err = pki.Open(folder, "ch-gva-2", time.Now); err != nil {
		t.Fatal(err)
	}
	b.desk = &pki.Desk{Issuer: b.issuer, Registry: registry{b.store}, Now: time.Now}
	b.serve()
	t.Cleanup(func() {
		b.stop()
		b.store.Close()
	})
	return b
}

func (b *bench) now() time.Time { return time.Now().Add(time.Duration(b.offset.Load())) }

// serve starts a server, as after a start of the process.
func (b *bench) serve() {
	b.Helper()
	server, err := New(Config{
		Store: b.store, Desk: b.desk, Events: listener{b}, Traffic: listener{b}, Settler: b, Log: slog.New(slog.DiscardHandler),
		Ledger: b.ledger, Now: b.now, AuditGap: b.gap,
	})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	running.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			b.Error(err)
		}
	})
	b.server, b.addr = server, l.Addr().String()
	b.stop = func() {
		cancel()
		running.Wait()
		b.stop = func() {}
	}
}

// restart kills the server, does something while it is away, and starts anew.
func (b *bench) restart(meanwhile func()) {
	b.stop()
	meanwhile()
	b.serve()
}

// Settled implements converge.Settler.
func (b *bench) Settled(_ context.Context, op cloud.ID, o operation.Outcome) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ended := b.outcomes[op]; !ended {
		b.outcomes[op] = o
	}
	return nil
}

func (b *bench) outcome(op cloud.ID) (operation.Outcome, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o, ok := b.outcomes[op]
	return o, ok
}

// listener implements Events with the rows of the zone.
type listener struct{ *bench }

func (l listener) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notices = append(l.notices, fmt.Sprintf(format, args...))
}

// row changes the row of a hypervisor.
func (b *bench) row(ctx context.Context, name string, change func(*store.HypervisorDoc)) error {
	_, err := b.store.Write(ctx, func(tx *store.Tx) error {
		doc, err := store.Get[store.HypervisorDoc](tx, "", cloud.ID(name))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		doc.ID, doc.Body.ID, doc.Body.Name, doc.Body.Number = cloud.ID(name), cloud.ID(name), name, numberOf(name)
		change(&doc.Body)
		return store.Put(tx, "", doc)
	})
	return err
}

func numberOf(name string) (n uint32) {
	_, _ = fmt.Sscanf(name, "hv%d", &n)
	return n
}

func (l listener) Hello(ctx context.Context, host string, in Inventory) (uint32, error) {
	return numberOf(host), l.row(ctx, host, func(d *store.HypervisorDoc) {
		d.Joined, d.Endpoint, d.MTU, d.Roles, d.Drivers = true, in.Endpoint, in.MTU, in.Roles, in.Drivers
	})
}

func (l listener) Report(_ context.Context, _ string, reports []Report) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deaf > 0 {
		l.deaf--
		return errors.New("busy")
	}
	l.bench.reports = append(l.bench.reports, reports...)
	return nil
}

func (l listener) Alive(ctx context.Context, host string, uplinkDown bool) error {
	l.note("%s alive, uplink down %t", host, uplinkDown)
	return l.row(ctx, host, func(d *store.HypervisorDoc) { d.Unreachable, d.UplinkDown = uplinkDown, uplinkDown })
}

func (l listener) Lost(ctx context.Context, host string, since time.Time) error {
	l.note("%s lost", host)
	return l.row(ctx, host, func(d *store.HypervisorDoc) { d.Unreachable, d.Since = true, since.UTC() })
}

func (l listener) Refused(_ context.Context, who, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = append(l.refused, who+": "+why)
}

// eventually waits for a condition.
func (b *bench) eventually(what string, ok func() bool) {
	b.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			b.Fatalf("in vain: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// agent is one that holds what it is told and programs nothing.
type agent struct {
	*bench
	name  string
	roles []string
	leaf  join.Credentials

	mu        sync.Mutex
	items     map[wire.Key]string
	intents   map[string]int
	epoch     uint64
	revision  uint64
	inside    bool // a snapshot
	down      bool // its uplink
	refuses   map[wire.Key]string
	reports   []*agentv1.Report
	traffic   []*agentv1.FromAgent // to be said
	snapshots int
	deltas    int
	got, gone int // items and tombstones, in deltas
	unnamed   int // tombstones without an operation whose intent came first
	disorder  int // upserts or tombstones out of order
	largest   int // frame, in items' bytes
	failed    error

	gate   sync.RWMutex // held by who stops the agent
	cancel context.CancelFunc
	ended  chan struct{}
}

// join makes an agent that has joined and is not connected.
func (b *bench) join(name string, roles ...string) *agent {
	b.Helper()
	ctx := b.Context()
	token, err := b.desk.Token(ctx, name)
	if err != nil {
		b.Fatal(err)
	}
	a := &agent{
		bench: b, name: name, roles: roles, items: map[wire.Key]string{}, intents: map[string]int{}, refuses: map[wire.Key]string{},
	}
	if a.leaf, err = b.enroll(token); err != nil {
		b.Fatal(err)
	}
	return a
}

// enroll joins over the wire.
func (b *bench) enroll(token join.Token) (join.Credentials, error) {
	key, err := join.NewKey()
	if err != nil {
		return join.Credentials{}, err
	}
	csr, err := join.Request(key, token.Name)
	if err != nil {
		return join.Credentials{}, err
	}
	conn, err := grpc.NewClient(b.addr, grpc.WithTransportCredentials(credentials.NewTLS(join.Enrolling(token.Pin))))
	if err != nil {
		return join.Credentials{}, err
	}
	defer conn.Close()
	r, err := agentv1.NewAgentsClient(conn).Enroll(b.Context(), &agentv1.EnrollRequest{Name: token.Name, Secret: token.Secret, Csr: csr})
	if err != nil {
		return join.Credentials{}, err
	}
	return join.NewCredentials(key, r.Certificate, r.Authority)
}

func (a *agent) conn() *grpc.ClientConn {
	config := join.Joined(a.issuer.Authority(), "ch-gva-2", func() *tls.Certificate { return &a.leaf.Leaf })
	conn, err := grpc.NewClient(a.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		a.Fatal(err)
	}
	return conn
}

// connect opens the stream; cut closes it.
func (a *agent) connect() *agent {
	a.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	conn := a.conn()
	stream, err := agentv1.NewAgentsClient(conn).Sync(ctx)
	if err != nil {
		a.Fatal(err)
	}
	a.cancel, a.ended, a.inside = cancel, make(chan struct{}), false
	if err := stream.Send(a.hello(a.name)); err != nil {
		a.Fatal(err)
	}
	go func() {
		defer close(a.ended)
		defer conn.Close()
		err := a.live(ctx, stream)
		a.mu.Lock()
		a.failed = err
		a.mu.Unlock()
	}()
	a.Cleanup(a.cut)
	return a
}

func (a *agent) cut() {
	a.cancel()
	<-a.ended
}

// stopped holds the agent as a signal would: it reads and says nothing.
func (a *agent) stopped(meanwhile func()) {
	a.gate.Lock()
	defer a.gate.Unlock()
	meanwhile()
}

func (a *agent) sums() digests {
	var sum digests
	for key, body := range a.items {
		sum[key.Kind].Add(key, []byte(body))
	}
	return sum
}

func (a *agent) hello(as string) *agentv1.FromAgent {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &agentv1.FromAgent{Message: &agentv1.FromAgent_Hello{Hello: &agentv1.Hello{
		Agent: as, BootId: "b", Epoch: a.epoch, Revision: a.revision, Digests: a.sums().toProto(),
		Endpoint: endpointOf(a.name), Mtu: 1600, Roles: a.roles, Drivers: []string{"netns"}, Cpus: 2, Memory: 1 << 30,
	}}}
}

func endpointOf(name string) string {
	n := numberOf(name)
	return netip.AddrFrom4([4]byte{10, 64, byte(n >> 8), byte(n)}).String()
}

func (a *agent) live(ctx context.Context, stream agentv1.Agents_SyncClient) error {
	var sending sync.Mutex
	send := func(m *agentv1.FromAgent) {
		sending.Lock()
		defer sending.Unlock()
		_ = stream.Send(m) // the receiver hears of the end
	}
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			a.gate.RLock()
			send(a.status())
			a.mu.Lock()
			more := a.traffic
			a.traffic = nil
			a.mu.Unlock()
			for _, m := range more {
				send(m)
			}
			a.gate.RUnlock()
		}
	}()
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		a.gate.RLock()
		for _, answer := range a.take(m) {
			send(answer)
		}
		a.gate.RUnlock()
	}
}

func (a *agent) status() *agentv1.FromAgent {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &agentv1.Status{UplinkDown: a.down, Reports: a.reports, Revision: a.revision}
	if a.gap < time.Minute {
		s.Digests = a.sums().toProto()
	}
	a.reports = nil
	return &agentv1.FromAgent{Message: &agentv1.FromAgent_Status{Status: s}}
}

// take does what a message asks and says what is to be answered.
func (a *agent) take(m *agentv1.ToAgent) (answers []*agentv1.FromAgent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch m := m.Message.(type) {
	case *agentv1.ToAgent_Intent:
		a.intents[m.Intent.Operation] += int(m.Intent.Count)
	case *agentv1.ToAgent_SnapshotBegin:
		a.epoch, a.inside = m.SnapshotBegin.Epoch, true
		clear(a.items)
	case *agentv1.ToAgent_Delta:
		answers = a.apply(m.Delta)
	case *agentv1.ToAgent_SnapshotEnd:
		a.snapshots++
		a.inside = false
		a.revision = m.SnapshotEnd.Revision
		if said, _ := digestsOf(m.SnapshotEnd.Digests); said != a.sums() {
			a.disorder++
		}
		answers = append(answers, ack(a.revision))
	}
	return answers
}

func ack(revision uint64) *agentv1.FromAgent {
	return &agentv1.FromAgent{Message: &agentv1.FromAgent_Ack{Ack: &agentv1.Ack{Revision: revision, ProgrammedNs: 42}}}
}

func (a *agent) apply(d *agentv1.Delta) (answers []*agentv1.FromAgent) {
	size := 0
	var last agentv1.Kind
	for _, item := range d.Items {
		key := wire.Key{Kind: wire.Kind(item.Kind), ID: item.Key}
		if item.Kind < last {
			a.disorder++
		}
		last = item.Kind
		size += len(item.Body)
		if why, ok := a.refuses[key]; ok {
			answers = append(answers, &agentv1.FromAgent{Message: &agentv1.FromAgent_Nack{Nack: &agentv1.Nack{
				Revision: d.To, Kind: item.Kind, Key: item.Key, Reason: why,
			}}})
		}
		a.items[key] = string(item.Body)
	}
	last = 100
	for _, t := range d.Tombstones {
		if t.Kind > last {
			a.disorder++
		}
		last = t.Kind
		if a.intents[t.Operation] == 0 {
			a.unnamed++
		}
		delete(a.items, wire.Key{Kind: wire.Kind(t.Kind), ID: t.Key})
	}
	a.largest = max(a.largest, size)
	if a.inside {
		return answers
	}
	a.got += len(d.Items)
	a.gone += len(d.Tombstones)
	if d.To == d.From {
		return answers
	}
	if d.From > a.revision {
		a.disorder++
	}
	a.deltas++
	a.revision, a.epoch = d.To, d.Epoch
	return append(answers, ack(d.To))
}

// look reads the agent's counts and sets them back.
type counts struct{ snapshots, deltas, got, gone int }

func (a *agent) look() counts {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := counts{a.snapshots, a.deltas, a.got, a.gone}
	a.snapshots, a.deltas, a.got, a.gone = 0, 0, 0, 0
	return c
}

func (a *agent) holds(key wire.Key) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.items[key]
	return ok
}

// inStep waits until the agents hold exactly what they should.
func (b *bench) inStep(agents ...*agent) {
	b.Helper()
	for _, a := range agents {
		number := numberOf(a.name)
		var said, expected digests
		deadline := time.Now().Add(20 * time.Second)
		for !b.settled(a, number, &said, &expected) {
			if time.Now().After(deadline) {
				b.Fatalf("%s holds %v, should hold %v", a.name, said, expected)
			}
			<-time.After(5 * time.Millisecond)
		}
		a.mu.Lock()
		if a.disorder > 0 {
			b.Errorf("%s: %d things out of order", a.name, a.disorder)
		}
		a.mu.Unlock()
	}
}

// settled reports whether an agent's session has nothing to send, and holds
// what it should.
func (b *bench) settled(a *agent, number uint32, said, expected *digests) bool {
	shelf := b.server.shelf
	shelf.mu.RLock()
	at, session := shelf.revision, shelf.sessions[number]
	*expected = shelf.expected(number)
	shelf.mu.RUnlock()
	if session == nil || at != b.revision() {
		return false
	}
	session.mu.Lock()
	idle := session.inStep()
	session.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	*said = a.sums()
	return idle && *said == *expected
}

func (b *bench) revision() uint64 {
	var rev store.Revision
	err := b.store.Read(context.Background(), func(tx *store.Tx) (err error) { rev, err = tx.Revision(); return err })
	if err != nil {
		b.Fatal(err)
	}
	return uint64(rev)
}

// commit makes an operation with what write writes for it.
func (b *bench) commit(tightens bool, write func(tx *store.Tx, op cloud.ID) error) cloud.ID {
	b.Helper()
	id := cloud.NewID()
	_, err := b.store.Write(context.Background(), func(tx *store.Tx) error {
		err := tx.AddOperation(store.Operation{
			ID: id, Org: "org", Command: "test", Subject: store.Ref{Kind: store.KindSecurityGroup, ID: id},
			State: cloud.OperationPending, Tightens: tightens, Created: tx.Now(), Deadline: tx.Now().Add(time.Minute),
		})
		return errors.Join(err, write(tx, id))
	})
	if err != nil {
		b.Fatal(err)
	}
	return id
}

func groupID(n int) cloud.ID { return cloud.ID(fmt.Sprintf("group-%03d", n)) }

// group stores a group with rules for these ports.
func (b *bench) group(n int, ports ...uint16) cloud.ID {
	b.Helper()
	return b.commit(false, func(tx *store.Tx, op cloud.ID) error { return putGroup(tx, op, n, ports...) })
}

func putGroup(tx *store.Tx, op cloud.ID, n int, ports ...uint16) error {
	doc, err := store.Get[store.SecurityGroupDoc](tx, "", groupID(n))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	doc.ID, doc.Org = groupID(n), "org"
	doc.Body.ID, doc.Body.Name, doc.Body.Number = doc.ID, string(doc.ID), uint32(n)
	doc.Body.Rules, doc.Body.RuleNumbers = nil, map[cloud.ID]uint32{}
	for _, port := range ports {
		id := cloud.ID(fmt.Sprintf("rule-%d-%d", n, port))
		doc.Body.Rules = append(doc.Body.Rules, cloud.SecurityGroupRule{
			ID: id, FlowDirection: cloud.Ingress, Protocol: cloud.TCP, Network: "0.0.0.0/0", StartPort: port, EndPort: port,
		})
		doc.Body.RuleNumbers[id] = uint32(n)<<16 + uint32(port)
	}
	return store.Put(tx, op, doc)
}

func instanceID(n int) cloud.ID { return cloud.ID(fmt.Sprintf("instance-%03d", n)) }

// instance stores an instance of a group on an agent's host.
func (b *bench) instance(n int, at *agent, group int) cloud.ID {
	b.Helper()
	return b.commit(false, func(tx *store.Tx, op cloud.ID) error { return putInstance(tx, op, n, numberOf(at.name), group) })
}

func putInstance(tx *store.Tx, op cloud.ID, n int, host uint32, group int) error {
	doc := store.Doc[store.InstanceDoc]{ID: instanceID(n), Org: "org", Generation: 1}
	doc.Body.ID, doc.Body.Name, doc.Body.State = doc.ID, string(doc.ID), cloud.InstanceRunning
	doc.Body.HostNumber, doc.Body.Port, doc.Body.Class = host, uint32(n), uint32(group)
	doc.Body.Wanted, doc.Body.Driver, doc.Body.Command = store.WantedRunning, "netns", "echo"
	doc.Body.Address = netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)})
	doc.Body.MAC = fmt.Sprintf("02:ca:00:00:%02x:%02x", n>>8, n&255)
	doc.Body.SecurityGroups = []cloud.Ref{{ID: groupID(group)}}
	return store.Put(tx, op, doc)
}

// deleted removes instances, with the intent that goes with it.
func (b *bench) deleted(numbers ...int) cloud.ID {
	b.Helper()
	return b.commit(true, func(tx *store.Tx, op cloud.ID) error {
		err := tx.AddIntent(store.Intent{Operation: op, Class: "instance", Count: len(numbers)})
		for _, n := range numbers {
			err = errors.Join(err, tx.Delete(op, store.Ref{Kind: store.KindInstance, ID: instanceID(n)}))
		}
		return err
	})
}

func policy(group int) wire.Key { return wire.Key{Kind: wire.KindPolicy, ID: fmt.Sprint(group)} }

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

// registry keeps tokens and serials in the store.
type registry struct{ *store.Store }

func (r registry) write(ctx context.Context, fn func(*store.Tx) error) error {
	_, err := r.Store.Write(ctx, fn)
	return err
}

func (r registry) AddToken(ctx context.Context, name, hash string, expires time.Time) error {
	return r.write(ctx, func(tx *store.Tx) error {
		return errors.Join(tx.RevokeCertificates(name, ""), tx.AddToken(name, hash, expires))
	})
}

func (r registry) Enroll(ctx context.Context, name, hash, serial string, notAfter time.Time) error {
	return r.write(ctx, func(tx *store.Tx) error {
		if holder, err := tx.SpendToken(hash); err != nil || holder != name {
			return pki.ErrToken
		}
		return tx.AddCertificate(store.Certificate{Serial: serial, Name: name, NotAfter: notAfter})
	})
}

func (r registry) Renew(ctx context.Context, name, old, serial string, notAfter time.Time) error {
	if err := r.Valid(ctx, name, old); err != nil {
		return err
	}
	return r.write(ctx, func(tx *store.Tx) error {
		return tx.AddCertificate(store.Certificate{Serial: serial, Name: name, NotAfter: notAfter})
	})
}

func (r registry) Valid(ctx context.Context, name, serial string) error {
	return r.Read(ctx, func(tx *store.Tx) error {
		if c, err := tx.Certificate(serial); err != nil || c.Revoked || c.Name != name {
			return pki.ErrRevoked
		}
		return nil
	})
}
