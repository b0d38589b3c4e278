// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// answer is what every protocol sends back, as one line.
type answer struct {
	Instance string `json:"instance"`
	Peer     string `json:"peer"`
	Local    string `json:"local,omitempty"`
	Data     string `json:"data,omitempty"` // what an echo was sent
}

// entry is what is printed of a request.
type entry struct {
	Time     time.Time `json:"time"`
	Instance string    `json:"instance"`
	Protocol string    `json:"protocol"` // http, udp, tcp
	Peer     string    `json:"peer"`
	Local    string    `json:"local"`
	Request  string    `json:"request"`
}

// maxLine bounds a line of TCP echo; a longer one ends the connection.
const maxLine = 64 << 10

// maxBytes bounds what GET /bytes/N sends.
const maxBytes = 1 << 30

type server struct {
	name string

	mu  sync.Mutex
	out io.Writer
}

// run serves until ctx ends.
func (s *server) run(ctx context.Context, web, echo string) error {
	// By IPv6, too, where the machine has any.
	httpListener, err := net.Listen("tcp", web)
	if err != nil {
		return err
	}
	defer httpListener.Close()
	tcp, err := net.Listen("tcp", echo)
	if err != nil {
		return err
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", echo)
	if err != nil {
		return err
	}
	defer udp.Close()
	ended := make(chan error, 3)
	go func() { ended <- (&http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}).Serve(httpListener) }()
	go func() { ended <- s.serveTCP(tcp) }()
	go func() { ended <- s.serveUDP(udp) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}

// ServeHTTP answers every path alike, but /bytes/N with N bytes, for tests that
// need a long answer.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	a := answer{Instance: s.name, Peer: r.RemoteAddr}
	if local != nil {
		a.Local = local.String()
	}
	s.print("http", a, r.Method+" "+r.URL.RequestURI())
	w.Header().Set("Cairn-Instance", s.name)
	var n int64
	if _, err := fmt.Sscanf(r.URL.Path, "/bytes/%d", &n); err == nil && n >= 0 && n <= maxBytes {
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, dots{}, n)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(line(a))
}

// serveTCP answers each line of a connection with one of its own, so that a
// test can ask a long-lived connection who is at its other end.
func (s *server) serveTCP(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			<-time.After(10 * time.Millisecond) // out of descriptors: let some close
			continue
		}
		go s.talk(conn)
	}
}

func (s *server) talk(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		a := answer{Instance: s.name, Peer: conn.RemoteAddr().String(), Local: conn.LocalAddr().String(), Data: lines.Text()}
		s.print("tcp", a, a.Data)
		if _, err := conn.Write(line(a)); err != nil {
			return
		}
	}
}

func (s *server) serveUDP(conn net.PacketConn) error {
	buffer := make([]byte, 64<<10)
	for {
		n, peer, err := conn.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error that an earlier answer brought back
		}
		a := answer{Instance: s.name, Peer: peer.String(), Local: conn.LocalAddr().String(), Data: string(bytes.TrimRight(buffer[:n], "\n"))}
		s.print("udp", a, a.Data)
		_, _ = conn.WriteTo(line(a), peer)
	}
}

func (s *server) print(protocol string, a answer, request string) {
	e := entry{Time: time.Now().UTC(), Instance: a.Instance, Protocol: protocol, Peer: a.Peer, Local: a.Local, Request: request}
	b, err := json.Marshal(e)
	if err != nil {
		return // strings and a time always marshal
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = s.out.Write(append(b, '\n'))
}

func line(a answer) []byte {
	b, err := json.Marshal(a)
	if err != nil {
		return nil // strings always marshal
	}
	return append(b, '\n')
}

// dots is an endless file.
type dots struct{}

func (dots) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '.'
	}
	return len(b), nil
}
