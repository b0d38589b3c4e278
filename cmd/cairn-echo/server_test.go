// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestEveryProtocolAnswersAndPrintsThePeer(t *testing.T) {
	for _, c := range []struct {
		protocol string
		ask      func(t *testing.T, s *server) (reply, self string)
	}{
		{"http", askHTTP}, {"tcp", askTCP}, {"udp", askUDP},
	} {
		t.Run(c.protocol, func(t *testing.T) {
			var out bytes.Buffer
			s := &server{name: "web1", out: &out}
			reply, self := c.ask(t, s)
			var a answer
			if err := json.Unmarshal([]byte(reply), &a); err != nil {
				t.Fatalf("answer %q: %v", reply, err)
			}
			if a.Instance != "web1" || a.Peer != self {
				t.Errorf("answer %+v, want web1 and %s", a, self)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			var e entry
			if err := json.Unmarshal(out.Bytes(), &e); err != nil {
				t.Fatalf("printed %q: %v", out.String(), err)
			}
			if e.Protocol != c.protocol || e.Instance != "web1" || e.Peer != self || e.Local == "" {
				t.Errorf("printed %+v", e)
			}
		})
	}
}

func askHTTP(t *testing.T, s *server) (string, string) {
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	conn := dial(t, "tcp", h.Listener.Addr().String())
	_, _ = io.WriteString(conn, "GET /hello HTTP/1.0\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(response.Body)
	return string(b), conn.LocalAddr().String()
}

func askTCP(t *testing.T, s *server) (string, string) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { _ = s.serveTCP(l) }()
	return askLine(t, "tcp", l.Addr().String())
}

func askUDP(t *testing.T, s *server) (string, string) {
	l, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { _ = s.serveUDP(l) }()
	return askLine(t, "udp", l.LocalAddr().String())
}

func askLine(t *testing.T, network, address string) (string, string) {
	conn := dial(t, network, address)
	_, _ = io.WriteString(conn, "hello\n")
	b := make([]byte, 2048)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b[:n]), `"data":"hello"`) {
		t.Errorf("answer %q does not hold what was sent", b[:n])
	}
	return string(b[:n]), conn.LocalAddr().String()
}

func dial(t *testing.T, network, address string) net.Conn {
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	return conn
}

func TestBytesSendsAsManyAsAsked(t *testing.T) {
	s := &server{name: "web1", out: io.Discard}
	for _, path := range []string{"/bytes/0", "/bytes/100000"} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if got, want := w.Body.Len(), map[string]int{"/bytes/0": 0, "/bytes/100000": 100000}[path]; got != want {
			t.Errorf("%s: %d bytes, want %d", path, got, want)
		}
	}
}
