// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netns"

	"cairn/dataplane/host"
)

// Bounds of a connection. A guest is near, and its requests are a few lines.
const (
	readTimeout  = 5 * time.Second
	writeTimeout = 10 * time.Second
	idleTimeout  = 10 * time.Second
	maxHeader    = 8 << 10

	maxPerPort = 16
	maxAll     = 2048
)

// Server answers in the namespace of the host's own services.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Open listens at the metadata address inside the door's namespace, which the
// host has opened. The socket stays there, whoever serves it.
func Open(namespace string, h *Handler, log *slog.Logger) (*Server, error) {
	l, err := listenIn(namespace, netip.AddrPortFrom(host.MetadataAddr, 80).String())
	if err != nil {
		return nil, fmt.Errorf("open the metadata service: %w", err)
	}
	return newServer(l, h, log), nil
}

func newServer(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	return &Server{
		listener: &bounded{Listener: l, by: map[netip.Addr]int{}, perPeer: maxPerPort, all: maxAll},
		http: &http.Server{
			Handler: http.MaxBytesHandler(h, 0), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
			ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		},
	}
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() })
	defer stop()
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metadata: %w", err)
	}
	return nil
}

// Close is for a server that was never run.
func (s *Server) Close() error { return errors.Join(s.http.Close(), s.listener.Close()) }

func listenIn(namespace, address string) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the wrong namespace and ends here
		ns, err := netns.GetFromName(namespace)
		if err == nil {
			err = errors.Join(netns.Set(ns), ns.Close())
		}
		if err != nil {
			done <- result{nil, fmt.Errorf("enter namespace %s: %w", namespace, err)}
			return
		}
		l, err := net.Listen("tcp4", address)
		done <- result{l, err}
	}()
	r := <-done
	return r.listener, r.err
}

// bounded closes the connections that a peer has too many of, so that no guest
// can keep the others out.
type bounded struct {
	net.Listener
	perPeer, all int

	mu    sync.Mutex
	by    map[netip.Addr]int
	total int
}

// Accept returns the next connection within the bounds.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := peerOf(c)
		if b.enter(peer) {
			return &counted{Conn: c, leave: sync.OnceFunc(func() { b.leave(peer) })}, nil
		}
		_ = c.Close()
	}
}

func peerOf(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func (b *bounded) enter(peer netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.by[peer] >= b.perPeer || b.total >= b.all {
		return false
	}
	b.by[peer]++
	b.total++
	return true
}

func (b *bounded) leave(peer netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total--
	if b.by[peer]--; b.by[peer] == 0 {
		delete(b.by, peer)
	}
}

type counted struct {
	net.Conn
	leave func()
}

// Close the connection and give its place away.
func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}
