// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"cairn/cloud/join"
	agentv1 "cairn/proto/agent/v1"
)

// simulated is an agent that takes what it is told, programs nothing, and
// acknowledges at once.
type simulated struct {
	name     string
	endpoint string
	stream   agentv1.Agents_SyncClient

	mu       sync.Mutex
	revision uint64
	inside   bool // a snapshot
	items    int
	took     time.Time // when the last policy came
}

// dialer reaches the control plane from the underlay.
type dialer func(ctx context.Context, address string) (net.Conn, error)

func connect(address string, dial dialer, config *tls.Config) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithContextDialer(dial), grpc.WithTransportCredentials(credentials.NewTLS(config)))
}

// enroll joins with a token and opens the stream.
func (s *simulated) enroll(ctx context.Context, address string, dial dialer, token join.Token, zone string) error {
	key, err := join.NewKey()
	if err != nil {
		return err
	}
	csr, err := join.Request(key, token.Name)
	if err != nil {
		return err
	}
	conn, err := connect(address, dial, join.Enrolling(token.Pin))
	if err != nil {
		return err
	}
	defer conn.Close()
	r, err := agentv1.NewAgentsClient(conn).Enroll(ctx, &agentv1.EnrollRequest{Name: token.Name, Secret: token.Secret, Csr: csr})
	if err != nil {
		return fmt.Errorf("enroll %s: %w", s.name, err)
	}
	leaf, err := join.NewCredentials(key, r.Certificate, r.Authority)
	if err != nil {
		return err
	}
	authority, err := x509.ParseCertificate(r.Authority)
	if err != nil {
		return err
	}
	joined, err := connect(address, dial, join.Joined(authority, zone, func() *tls.Certificate { return &leaf.Leaf }))
	if err != nil {
		return err
	}
	if s.stream, err = agentv1.NewAgentsClient(joined).Sync(ctx); err != nil {
		return fmt.Errorf("sync %s: %w", s.name, err)
	}
	return s.stream.Send(&agentv1.FromAgent{Message: &agentv1.FromAgent_Hello{Hello: &agentv1.Hello{
		Agent: s.name, BootId: "b", Endpoint: s.endpoint, Mtu: 1600, Roles: []string{"compute"}, Drivers: []string{"netns"}, Cpus: 2, Memory: 1 << 30,
	}}})
}

// live answers until the stream ends.
func (s *simulated) live(ctx context.Context) {
	var sending sync.Mutex
	send := func(m *agentv1.FromAgent) {
		sending.Lock()
		defer sending.Unlock()
		_ = s.stream.Send(m) // the receiver hears of the end
	}
	go func() {
		alive := time.NewTicker(time.Second)
		defer alive.Stop()
		for ctx.Err() == nil {
			<-alive.C
			s.mu.Lock()
			revision := s.revision
			s.mu.Unlock()
			send(&agentv1.FromAgent{Message: &agentv1.FromAgent_Status{Status: &agentv1.Status{Revision: revision}}})
		}
	}()
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return
		}
		if revision := s.take(m); revision > 0 {
			send(&agentv1.FromAgent{Message: &agentv1.FromAgent_Ack{Ack: &agentv1.Ack{Revision: revision, ProgrammedNs: 1}}})
		}
	}
}

// take a message, and give the revision to acknowledge; 0 for none.
func (s *simulated) take(m *agentv1.ToAgent) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m := m.Message.(type) {
	case *agentv1.ToAgent_SnapshotBegin:
		s.inside = true
	case *agentv1.ToAgent_SnapshotEnd:
		s.inside, s.revision = false, m.SnapshotEnd.Revision
		return s.revision
	case *agentv1.ToAgent_Delta:
		s.items += len(m.Delta.Items)
		for _, item := range m.Delta.Items {
			if item.Kind == agentv1.Kind_KIND_POLICY {
				s.took = time.Now()
			}
		}
		if !s.inside {
			s.revision = m.Delta.To
			return s.revision
		}
	}
	return 0
}

// tookPolicy tells when the last one came.
func (s *simulated) tookPolicy() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.took
}

func (s *simulated) holds() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.items
}
