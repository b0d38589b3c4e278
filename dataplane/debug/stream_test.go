// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// endless has frames for as long as somebody takes them.
type endless struct {
	source
	ended chan error
}

func (s endless) Capture(_ context.Context, _ CaptureRequest, line func(CaptureEvent) error) error {
	for {
		if err := line(CaptureEvent{Frame: &CapturedFrame{Bytes: make([]byte, 1500)}}); err != nil {
			s.ended <- err
			return err
		}
	}
}

// A client that is there and reads nothing is not waited for.
func TestStreamEndsWhenNobodyReads(t *testing.T) {
	defer func(was time.Duration) { patience = was }(patience)
	patience = 50 * time.Millisecond
	s := endless{ended: make(chan error, 1)}
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: Handler(s)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() { server.Close(); <-served }()
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /capture?port=1&bytes=1500 HTTP/1.1\r\nHost: agent\r\n\r\n")
	select {
	case <-s.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits")
	}
}
