// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"cairn/controlplane/pki"
	agentv1 "cairn/proto/agent/v1"
)

// credentials of the server, which audit those who fail to show theirs.
func (s *Server) credentials() credentials.TransportCredentials {
	return &watched{credentials.NewTLS(pki.ServerConfig(s.config.Desk.Issuer, s.config.Now)), s}
}

type watched struct {
	credentials.TransportCredentials
	server *Server
}

func (w *watched) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := w.TransportCredentials.ServerHandshake(conn)
	if err != nil && !errors.Is(err, io.EOF) { // who says nothing at all only looked whether the port is open
		w.server.refuse(context.Background(), conn.RemoteAddr().String(), err.Error())
	}
	return secured, info, err
}

func (w *watched) Clone() credentials.TransportCredentials {
	return &watched{w.TransportCredentials.Clone(), w.server}
}

// caller is who calls, by certificate. Anybody without the standing that a call
// needs is refused and audited.
func (s *Server) caller(ctx context.Context, needs pki.Standing) (name string, cert *x509.Certificate, err error) {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return "", nil, status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := from.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", nil, status.Error(codes.Unauthenticated, "no TLS")
	}
	name, standing, err := pki.Judge(s.config.Desk.Issuer, info.State, s.config.Now())
	switch {
	case err != nil:
	case standing == pki.Stranger && needs > pki.Stranger:
		name, err = from.Addr.String(), errors.New("a certificate is needed")
	case standing < needs:
		err = errors.New("the certificate has expired: it may renew and nothing else")
	}
	if err != nil {
		s.refuse(ctx, name, err.Error())
		return "", nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if standing == pki.Stranger {
		return from.Addr.String(), nil, nil
	}
	return name, info.State.PeerCertificates[0], nil
}

// Enroll exchanges a token for a certificate.
func (s *Server) Enroll(ctx context.Context, r *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	from, _, err := s.caller(ctx, pki.Stranger)
	if err != nil {
		return nil, err
	}
	leaf, err := s.config.Desk.Enroll(ctx, r.Name, r.Secret, r.Csr)
	if errors.Is(err, pki.ErrToken) {
		s.refuse(ctx, from, err.Error())
	}
	if err != nil {
		return nil, statusOf(err)
	}
	s.config.Log.Info("joined", "agent", r.Name, "serial", pki.Serial(leaf))
	return &agentv1.EnrollResponse{Certificate: leaf.Raw, Authority: s.config.Desk.Issuer.Authority().Raw}, nil
}

// Renew gives an agent the certificate that follows its own.
func (s *Server) Renew(ctx context.Context, r *agentv1.RenewRequest) (*agentv1.RenewResponse, error) {
	name, cert, err := s.caller(ctx, pki.Expired)
	if err != nil {
		return nil, err
	}
	leaf, err := s.config.Desk.Renew(ctx, cert, r.Csr)
	if errors.Is(err, pki.ErrRevoked) {
		s.refuse(ctx, name, err.Error())
	}
	if err != nil {
		return nil, statusOf(err)
	}
	return &agentv1.RenewResponse{Certificate: leaf.Raw}, nil
}

// statusOf is the one place that maps errors to gRPC. What went wrong inside is
// the caller's to know only when it is the caller's fault.
func statusOf(err error) error {
	switch {
	case errors.Is(err, pki.ErrToken), errors.Is(err, pki.ErrRevoked):
		return status.Error(codes.PermissionDenied, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

// Limits of the beginning of a stream.
const (
	helloTimeout = 10 * time.Second
	// ahead is how long an agent that holds more than we know is asked to wait
	// for us to catch up.
	ahead = 2 * time.Second
)

// Sync is the life of one agent's stream.
func (s *Server) Sync(stream agentv1.Agents_SyncServer) error {
	ctx := stream.Context()
	name, cert, err := s.caller(ctx, pki.Member)
	if err != nil {
		return err
	}
	if err := s.config.Desk.Registry.Valid(ctx, name, pki.Serial(cert)); err != nil {
		if errors.Is(err, pki.ErrRevoked) {
			s.refuse(ctx, name, err.Error())
		}
		return statusOf(err)
	}
	hello, err := receiveHello(stream)
	if err != nil {
		return err
	}
	if hello.Agent != name {
		why := fmt.Sprintf("says Hello as %q", hello.Agent)
		s.refuse(ctx, name, why)
		return status.Error(codes.PermissionDenied, name+" "+why)
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	in, err := inventoryOf(hello)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	number, err := s.config.Events.Hello(ctx, name, in)
	if err != nil {
		return statusOf(fmt.Errorf("hello of %s: %w", name, err))
	}
	if err := s.catchUp(ctx, hello); err != nil {
		return err
	}
	return s.newSession(stream, name, number, in.BootID, cert).run(hello)
}

func receiveHello(stream agentv1.Agents_SyncServer) (*agentv1.Hello, error) {
	type received struct {
		message *agentv1.FromAgent
		err     error
	}
	first := make(chan received, 1)
	go func() {
		m, err := stream.Recv() // ends with the stream at the latest
		first <- received{m, err}
	}()
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil, status.Error(codes.DeadlineExceeded, "no Hello")
	case r := <-first:
		if r.err != nil {
			return nil, r.err
		}
		if hello := r.message.GetHello(); hello != nil {
			return hello, nil
		}
		return nil, status.Error(codes.InvalidArgument, "a stream begins with Hello")
	}
}

// catchUp waits until this replica knows what the agent holds. It never sends
// anything older.
func (s *Server) catchUp(ctx context.Context, hello *agentv1.Hello) error {
	deadline := s.config.Now().Add(ahead)
	for {
		s.shelf.mu.RLock()
		epoch, revision := s.shelf.epoch, s.shelf.revision
		s.shelf.mu.RUnlock()
		if hello.Epoch < epoch || (hello.Epoch == epoch && hello.Revision <= revision) {
			return nil
		}
		if s.config.Now().After(deadline) {
			return status.Errorf(codes.FailedPrecondition, "the agent holds revision %d of epoch %d, this replica is at %d of %d",
				hello.Revision, hello.Epoch, revision, epoch)
		}
		if !sleep(ctx, pause) {
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}
