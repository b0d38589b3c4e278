// SPDX-License-Identifier: Apache-2.0

package sync

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"cairn/cloud/join"
	"cairn/cloud/wire"
	"cairn/dataplane/table"
	agentv1 "cairn/proto/agent/v1"
)

const zone, secret = "ch-test-1", "00112233445566778899aabbccddeeff"

// control is a control plane that does what the test says.
type control struct {
	agentv1.UnimplementedAgentsServer
	t       *testing.T
	address string
	ca      *x509.Certificate
	key     *ecdsa.PrivateKey
	life    time.Duration // of leaves

	mu       sync.Mutex
	enrolled int
	renewed  int
	streams  chan *talk
}

// talk is one stream, from the control plane's end.
type talk struct {
	t      *testing.T
	stream agentv1.Agents_SyncServer
	from   chan *agentv1.FromAgent
	end    chan error
	hello  *agentv1.Hello
}

func newControl(t *testing.T) *control {
	t.Helper()
	c := &control{t: t, life: time.Hour, streams: make(chan *talk, 8)}
	var err error
	if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	c.ca = c.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, c.key.Public(), time.Hour)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.address = listener.Addr().String()
	key, err := join.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	leaf := c.sign(&x509.Certificate{
		URIs: []*url.URL{join.ControlID(zone)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key.Public(), time.Hour)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, c.ca.Raw}, PrivateKey: key}},
	})))
	agentv1.RegisterAgentsServer(server, c)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return c
}

func (c *control) sign(template *x509.Certificate, public any, life time.Duration) *x509.Certificate {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: "test"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Second), time.Now().Add(life)
	if life < 0 {
		template.NotBefore = time.Now().Add(2 * life)
	}
	parent := c.ca
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, c.key)
	if err != nil {
		c.t.Error(err)
		return template
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Error(err)
	}
	return cert
}

func (c *control) leafFor(name string, csr []byte) ([]byte, error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	return c.sign(&x509.Certificate{
		URIs: []*url.URL{join.AgentID(zone, name)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, request.PublicKey, c.life).Raw, nil
}

func (c *control) Enroll(_ context.Context, r *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	if r.Secret != secret {
		return nil, status.Error(codes.PermissionDenied, "no such token")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enrolled++
	leaf, err := c.leafFor(r.Name, r.Csr)
	return &agentv1.EnrollResponse{Certificate: leaf, Authority: c.ca.Raw}, err
}

func (c *control) Renew(_ context.Context, r *agentv1.RenewRequest) (*agentv1.RenewResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renewed++
	c.life = time.Hour
	leaf, err := c.leafFor("hv1", r.Csr)
	return &agentv1.RenewResponse{Certificate: leaf}, err
}

func (c *control) Sync(stream agentv1.Agents_SyncServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	k := &talk{t: c.t, stream: stream, from: make(chan *agentv1.FromAgent, 1024), end: make(chan error, 1), hello: first.GetHello()}
	c.streams <- k
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				close(k.from)
				return
			}
			k.from <- m
		}
	}()
	select {
	case err := <-k.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func (c *control) token() string {
	return join.Token{Name: "hv1", Secret: secret, Pin: join.Pin(c.ca)}.String()
}

// stream waits for the next one.
func (c *control) stream() *talk {
	c.t.Helper()
	select {
	case k := <-c.streams:
		return k
	case <-time.After(10 * time.Second):
		c.t.Fatal("no stream")
		return nil
	}
}

func (k *talk) send(messages ...*agentv1.ToAgent) {
	k.t.Helper()
	for _, m := range messages {
		if err := k.stream.Send(m); err != nil {
			k.t.Fatal(err)
		}
	}
}

// next waits for a message that want takes; others are passed over.
func next[T any](k *talk, want func(*agentv1.FromAgent) (T, bool)) T {
	k.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case m, ok := <-k.from:
			if !ok {
				k.t.Fatal("the stream ended")
			}
			if v, ok := want(m); ok {
				return v
			}
		case <-deadline:
			k.t.Fatal("nothing came")
		}
	}
}

func (k *talk) ack() *agentv1.Ack {
	k.t.Helper()
	return next(k, func(m *agentv1.FromAgent) (*agentv1.Ack, bool) {
		if m.GetNack() != nil {
			k.t.Errorf("a nack: %v", m.GetNack())
		}
		return m.GetAck(), m.GetAck() != nil
	})
}

func (k *talk) nack() *agentv1.Nack {
	k.t.Helper()
	return next(k, func(m *agentv1.FromAgent) (*agentv1.Nack, bool) { return m.GetNack(), m.GetNack() != nil })
}

func (k *talk) reports() []*agentv1.Report {
	k.t.Helper()
	return next(k, func(m *agentv1.FromAgent) ([]*agentv1.Report, bool) {
		return m.GetStatus().GetReports(), len(m.GetStatus().GetReports()) > 0
	})
}

// messages of items.
func item(t *testing.T, v wire.Item) *agentv1.Item {
	t.Helper()
	body, err := wire.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return &agentv1.Item{Kind: agentv1.Kind(v.Key().Kind), Key: v.Key().ID, Body: body}
}

func delta(from, to uint64, items ...*agentv1.Item) *agentv1.ToAgent {
	return &agentv1.ToAgent{Message: &agentv1.ToAgent_Delta{Delta: &agentv1.Delta{From: from, To: to, Epoch: 1, Items: items}}}
}

func snapshot(revision uint64, items ...*agentv1.Item) []*agentv1.ToAgent {
	var sums [wire.KindLast + 1]wire.Digest
	var digests []*agentv1.Digest
	for _, i := range items {
		sums[i.Kind].Add(wire.Key{Kind: wire.Kind(i.Kind), ID: i.Key}, i.Body)
	}
	for kind, d := range sums {
		if d.Count > 0 {
			digests = append(digests, &agentv1.Digest{Kind: agentv1.Kind(kind), Count: d.Count, Sum: d.Sum})
		}
	}
	return []*agentv1.ToAgent{
		{Message: &agentv1.ToAgent_SnapshotBegin{SnapshotBegin: &agentv1.SnapshotBegin{Revision: revision, Epoch: 1}}},
		delta(0, revision, items...),
		{Message: &agentv1.ToAgent_SnapshotEnd{SnapshotEnd: &agentv1.SnapshotEnd{Revision: revision, Digests: digests}}},
	}
}

// agent runs a client over a table; what the table holds counts as programmed.
type agent struct {
	*Client
	table  *table.Table
	folder string
	stop   func()
}

func startAgent(t *testing.T, c *control, folder, token string) *agent {
	t.Helper()
	desired, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	return startOver(t, c, folder, token, desired)
}

func startOver(t *testing.T, c *control, folder, token string, desired *table.Table) *agent {
	t.Helper()
	a := &agent{table: desired, folder: folder}
	a.Client = New(Config{
		Control: c.address, Folder: folder, Token: token, Table: desired, Wait: 10 * time.Millisecond,
		Inventory: func() Inventory {
			return Inventory{Name: "hv1", Endpoint: "10.64.0.1", MTU: 1600, Roles: []string{"lb"}}
		},
		Log: slog.New(slog.DiscardHandler),
	})
	watcher, err := desired.Watch()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { a.Run(ctx) })
	running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-watcher.Wake():
				a.Programmed(desired.View().Mark(), 42, nil)
			}
		}
	})
	a.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(func() { a.stop(); desired.Close() })
	return a
}

func (a *agent) waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

var errEnd = errors.New("the test ends the stream")
