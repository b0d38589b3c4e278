// SPDX-License-Identifier: Apache-2.0

//go:build program

package check

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/cloud/wire"
	"cairn/dataplane/table"
)

// targets of one host that many takes: each has an address of its own in the
// door's namespace, asked by tcp, http and https in turn. Every tenth is ill: it
// refuses, answers 503, hangs, or is there for another name alone.
const targets = 500

type kind int

const (
	well kind = iota
	refuses
	unwell
	hangs
)

func kindOf(i int) kind {
	if i%10 != 9 {
		return well
	}
	return refuses + kind(i/10%3)
}

// servers answer for all targets: who is asked is told by the address.
type servers struct {
	open, most atomic.Int64 // connections
	asked      sync.Map     // server name → true
	release    chan struct{}
}

func (s *servers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	to := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr).IP.To4()
	if r.TLS != nil {
		s.asked.Store(r.TLS.ServerName, true)
	}
	switch kindOf(int(to[2])<<8 | int(to[3])) {
	case unwell:
		w.WriteHeader(http.StatusServiceUnavailable)
	case hangs:
		select {
		case <-s.release:
		case <-r.Context().Done():
		}
	}
}

func (s *servers) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if now := s.open.Add(1); now > s.most.Load() {
			s.most.Store(now)
		}
	case http.StateClosed, http.StateHijacked:
		s.open.Add(-1)
	}
}

// serve on both ports in the door's namespace until the test ends.
func serve(t *testing.T) (s *servers, plain, secret uint16) {
	s = &servers{release: make(chan struct{})}
	listeners := listenAt(t, ":0", ":0") // all of 127.0.0.0/8 is there
	start := func(l net.Listener, tls bool) uint16 {
		server := &httptest.Server{Listener: l, Config: &http.Server{Handler: s, ConnState: s.count}}
		if tls {
			server.StartTLS()
		} else {
			server.Start()
		}
		t.Cleanup(server.Close)
		return server.Listener.Addr().(*net.TCPAddr).AddrPort().Port()
	}
	plain, secret = start(listeners[0], false), start(listeners[1], true)
	t.Cleanup(func() { close(s.release) })
	return s, plain, secret
}

func target(i int, plain, secret uint16) wire.Check {
	c := wire.Check{
		Service: 1, Backend: uint32(i + 1), Address: netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), Port: plain,
		Interval: 5 * time.Second, Timeout: 2 * time.Second, Retries: 1, Generation: 1, Mode: [3]string{"tcp", "http", "https"}[i%3],
	}
	switch {
	case kindOf(i) == refuses:
		c.Port = 1
	case kindOf(i) != well && c.Mode == "tcp":
		c.Mode = "http"
	}
	if c.Mode == "https" {
		c.Port, c.TLSSNI = secret, fmt.Sprintf("b%d.example.net", i)
	}
	return c
}

func openFiles(t *testing.T) int {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// Five hundred targets on one host, real connections through the door: each gets
// the verdict it deserves, none of another's, and nothing is left open.
func TestManyTargets(t *testing.T) {
	s, plain, secret := serve(t)
	door, err := OpenDoor(doorNamespace)
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	before := openFiles(t)
	want := map[string]string{}
	var mu sync.Mutex
	told := map[string]string{}
	done := make(chan struct{})
	var once sync.Once
	c := New(door.Dial, func(key wire.Key, _ uint64, verdict, _ string) {
		mu.Lock()
		defer mu.Unlock()
		if told[key.ID] = verdict; len(told) < targets {
			return
		}
		for id, verdict := range want {
			if told[id] != verdict {
				return
			}
		}
		once.Do(func() { close(done) })
	}, func(wire.Key) {})
	defer c.Close()
	desired, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	defer desired.Close()
	d := table.Delta{To: table.Mark{Revision: 1}}
	names := 0
	for i := range targets {
		check := target(i, plain, secret)
		body, err := wire.Encode(check)
		if err != nil {
			t.Fatal(err)
		}
		d.Upserts = append(d.Upserts, table.Upsert{Key: check.Key(), Generation: 1, Body: body})
		if want[check.Key().ID] = "success"; kindOf(i) != well {
			want[check.Key().ID] = "failure"
		}
		if check.TLSSNI != "" {
			names++
		}
	}
	if _, err := desired.Apply(d); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.Set(desired.View())
	select {
	case <-done:
	case <-time.After(60 * time.Second): // the failures take two intervals: 10 s
		mu.Lock()
		for id, verdict := range want {
			if told[id] != verdict {
				t.Errorf("%s: told %q, want %s: %+v", id, told[id], verdict, c.Status()[id])
			}
		}
		mu.Unlock()
		t.FailNow()
	}
	asked := 0
	s.asked.Range(func(name, _ any) bool { asked++; return name != "" })
	if asked != names {
		t.Errorf("asked for %d names, want %d", asked, names)
	}
	t.Logf("%d targets: all verdicts after %s, at most %d connections at a time", targets, time.Since(began).Round(time.Millisecond), s.most.Load())
	c.Close()
	for deadline := time.Now().Add(10 * time.Second); s.open.Load() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections left", s.open.Load())
		}
		<-time.After(10 * time.Millisecond)
	}
	if after := openFiles(t); after > before+8 {
		t.Errorf("%d files open after, %d before", after, before)
	}
}
